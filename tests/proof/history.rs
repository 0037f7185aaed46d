//! Generated histories: what may reach the daemon and befall it, and the reports that come of it.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::Index;
use settled::config::Source;
use settled::demo::clouds::{Item, World};
use settled::demo::dice::Dice;
use settled::demo::life::{self, Answers, Forgery, Form, Life, Mail, Poison, State};
use settled::demo::plan::Plan;
use settled::demo::stories;
use settled::model::{At, RunId};
use settled::providers::{ApiResponse, Delivery, Response, RunRef};
use settled::report::{Meta, PollMeta, Report, ResponseMeta, SweepMeta, TrackMeta};

use crate::clouds::{self, BEGIN};
use crate::readers::{Deed, deed, limits};

/// What every key and run here is made from.
pub const SEED: u64 = 7;
/// Runs of each account.
pub const RUNS_EACH: usize = 2;

/// Something that happens.
#[derive(Clone, Debug)]
pub enum Op {
    /// Some reports reach the writer as one group.
    Reach(Vec<Said>),
    /// Time passes, or is set.
    Wait(i64),
    /// The process dies, having promised these and processed none of them.
    Die(Vec<Said>),
    /// The file is restored from a copy, under another name.
    Restore,
    /// An account's webhook secret is another one; `both`: the old one is still taken.
    Rotate {
        account: usize,
        wrong: bool,
        both: bool,
    },
    /// Unverified deliveries of an account are verified again.
    Reverify { account: usize },
    /// A named consumer does something.
    Consume(Deed),
    /// Retention of the feed: seconds, bytes, rows at a time.
    Trim(i64, i64, u32),
    /// Retention of what came in so many seconds ago, or of its bodies only.
    Forget { age: i64, bodies: bool },
}

/// A report on its way.
#[derive(Clone, Debug)]
pub enum Said {
    Letter {
        run: usize,
        word: Index,
        form: usize,
        late: i64,
    },
    /// The same bytes as some time before.
    Again(Index),
    ApiResponse {
        run: usize,
        word: Index,
        how: How,
        late: i64,
    },
    List {
        account: usize,
        word: Index,
    },
    Track {
        run: usize,
        kind: bool,
    },
    Alarm {
        run: usize,
    },
}

/// How a question is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Properly,
    Missing,
    MissingWithWrongKey,
    Status(u16),
    Garbage,
    Nothing,
}

const FORMS: [Form; 9] = [
    Form::Genuine,
    Form::Genuine,
    Form::Genuine,
    Form::Rewritten,
    Form::Stale,
    Form::Ping,
    Form::Poisoned(Poison::Deep),
    Form::Forged(Forgery::OtherKey),
    Form::Forged(Forgery::Unsigned),
];

const WAITS: [i64; 9] = [1, 20, 61, 301, 601, 3_600, 90_000, 700_000, -3_600];

fn runs() -> usize {
    life::DemoSource::ALL.len() * RUNS_EACH
}

/// Anything that may be reported.
pub fn said() -> impl Strategy<Value = Said> {
    let how = prop_oneof![
        8 => Just(How::Properly),
        3 => Just(How::Missing),
        1 => Just(How::MissingWithWrongKey),
        2 => prop::sample::select(vec![401, 402, 404, 429, 500, 503]).prop_map(How::Status),
        1 => Just(How::Garbage),
        1 => Just(How::Nothing),
    ];
    let accounts = life::DemoSource::ALL.len();
    let late = || prop_oneof![4 => Just(0_i64), 1 => 0_i64..4_000];
    prop_oneof![
        8 => (0..runs(), any::<Index>(), 0..FORMS.len(), late())
            .prop_map(|(run, word, form, late)| Said::Letter { run, word, form, late }),
        3 => any::<Index>().prop_map(Said::Again),
        8 => (0..runs(), any::<Index>(), how, late()).prop_map(|(run, word, how, late)| Said::ApiResponse { run, word, how, late }),
        1 => (0..accounts, any::<Index>()).prop_map(|(account, word)| Said::List { account, word }),
        3 => (0..runs(), any::<bool>()).prop_map(|(run, kind)| Said::Track { run, kind }),
        2 => (0..runs()).prop_map(|run| Said::Alarm { run }),
    ]
}

/// Anything that may happen.
pub fn op() -> impl Strategy<Value = Op> {
    let accounts = life::DemoSource::ALL.len();
    prop_oneof![
        20 => prop::collection::vec(said(), 1..4).prop_map(Op::Reach),
        8 => prop::sample::select(WAITS.to_vec()).prop_map(Op::Wait),
        2 => prop::collection::vec(said(), 0..4).prop_map(Op::Die),
        1 => Just(Op::Restore),
        2 => (0..accounts, any::<bool>(), any::<bool>())
            .prop_map(|(account, wrong, both)| Op::Rotate { account, wrong, both }),
        2 => (0..accounts).prop_map(|account| Op::Reverify { account }),
        6 => deed().prop_map(Op::Consume),
        2 => limits().prop_map(|(age, bytes, rows)| Op::Trim(age, bytes, rows)),
        2 => (prop::sample::select(vec![-1, 3_600, 90_000]), any::<bool>())
            .prop_map(|(age, bodies)| Op::Forget { age, bodies }),
    ]
}

/// The words an account's runs can be in, or be said to be in; the last is one nobody knows.
fn words(life: &Life) -> Vec<State> {
    let judged =
        |word| [Some(true), Some(false), None].map(|success| State::over(word).judged(success));
    let open = |words: &[&'static str]| words.iter().copied().map(State::open).collect::<Vec<_>>();
    let over = |words: &[&'static str]| words.iter().copied().map(State::over).collect::<Vec<_>>();
    let known = match life.source {
        life::DemoSource::Skyvern => {
            let ends = over(&["completed", "failed", "terminated", "timed_out", "canceled"]);
            [
                open(&["queued", "running", "paused"]),
                ends,
                vec![State::over("failed").pending()],
            ]
            .concat()
        }
        life::DemoSource::Tasks => [
            open(&["created", "started"]),
            over(&["failed", "stopped"]),
            judged("finished").to_vec(),
        ]
        .concat(),
        life::DemoSource::Sessions => [
            open(&["created", "idle", "running"]),
            over(&["timed_out", "error"]),
            judged("stopped").to_vec(),
        ]
        .concat(),
        life::DemoSource::Runs | life::DemoSource::Recipes => [
            open(&["queued", "running"]),
            over(&["completed", "failed", "cancelled"]),
        ]
        .concat(),
        life::DemoSource::Jobs => [
            open(&["started", "page", "scraping", "processing"]),
            over(&["completed", "failed", "cancelled"]),
        ]
        .concat(),
    };
    [known, open(&["hibernating"])].concat()
}

/// Writes reports as they would come in.
pub struct Scribe {
    pub lives: Vec<Life>,
    pub members: Vec<Arc<Source>>,
    pub now: At,
    /// Letters that came in before.
    letters: Vec<Report>,
}

impl Scribe {
    pub fn new() -> Scribe {
        let mut dice = Dice::new(SEED, 0);
        let lives = life::DemoSource::ALL
            .iter()
            .flat_map(|source| [*source; RUNS_EACH]);
        let lives = lives
            .map(|source| Life {
                answers: Answers::default(),
                ..stories::live(source, &mut dice)
            })
            .collect();
        Scribe {
            lives,
            members: Vec::new(),
            now: BEGIN,
            letters: Vec::new(),
        }
    }

    /// The account of this row.
    pub fn member(&self, id: i64) -> Arc<Source> {
        self.members
            .iter()
            .find(|member| member.id == id)
            .unwrap()
            .clone()
    }

    /// Whether there is such a run.
    pub fn exists(&self, source: &str, id: &str) -> bool {
        self.lives
            .iter()
            .any(|life| life.source.word() == source && life.id == id)
    }

    /// Reports as they would come in.
    pub fn write(&mut self, said: &[Said]) -> Vec<Report> {
        let reports: Vec<Report> = said.iter().filter_map(|said| self.report(said)).collect();
        self.letters.extend(
            reports
                .iter()
                .filter(|report| report.meta.webhook().is_some())
                .cloned(),
        );
        reports
    }

    fn report(&self, said: &Said) -> Option<Report> {
        match said {
            Said::Letter {
                run,
                word,
                form,
                late,
            } => {
                let life = &self.lives[*run];
                let mail = Mail {
                    form: FORMS[*form],
                    ..Mail::new(Duration::ZERO, *word.get(&words(life)))
                };
                let written_at = At(self.now.0 - late * 1000);
                let world = self.world(vec![life.clone()]);
                let letter = world.letter(&Item {
                    life,
                    number: 0,
                    mail: &mail,
                    written_at,
                    attempt: 0,
                });
                Some(clouds::receive(
                    &self.account(life.source),
                    letter,
                    self.now,
                ))
            }
            Said::Again(index) => {
                let mut again = (!self.letters.is_empty())
                    .then(|| index.get(&self.letters))?
                    .clone();
                again.at = self.now;
                let member = self.member(again.source);
                verifies(&member, &mut again);
                Some(again)
            }
            Said::ApiResponse {
                run,
                word,
                how,
                late,
            } => Some(self.answer(&self.lives[*run], *word, *how, *late)),
            Said::List { account, word } => self.list(life::DemoSource::ALL[*account], *word),
            Said::Track { run, kind } => {
                let life = &self.lives[*run];
                let run_id = RunId::new(&life.id).unwrap();
                let kind = kind.then_some(life.kind);
                let meta = Meta::Track(TrackMeta {
                    run_id,
                    kind,
                    group_id: None,
                    metadata: None,
                });
                Some(Report {
                    source: self.account(life.source).id,
                    at: self.now,
                    meta,
                    body: Vec::new(),
                })
            }
            Said::Alarm { run } => {
                let life = &self.lives[*run];
                let meta = Meta::Clock {
                    run_id: RunId::new(&life.id).unwrap(),
                };
                Some(Report {
                    source: self.account(life.source).id,
                    at: self.now,
                    meta,
                    body: Vec::new(),
                })
            }
        }
    }

    pub fn account(&self, source: life::DemoSource) -> Arc<Source> {
        self.members
            .iter()
            .find(|member| member.config.name.as_str() == source.word())
            .unwrap()
            .clone()
    }

    /// A world with these runs and nothing else, an hour after they began.
    pub fn world(&self, runs: Vec<Life>) -> World {
        let world = World::new(
            Plan {
                seed: SEED,
                runs,
                ghosts: Vec::new(),
                throttles: Vec::new(),
                kills: Vec::new(),
            },
            "",
        );
        let hour = Duration::from_secs(3600);
        world.turn_to(At(self.now.0 - 3_600_000), hour);
        world
    }

    fn answer(&self, life: &Life, word: Index, how: How, late: i64) -> Report {
        let known = matches!(
            how,
            How::Properly | How::Status(_) | How::Garbage | How::Nothing
        );
        let lives = if known {
            vec![in_state(life, *word.get(&words(life)))]
        } else {
            Vec::new()
        };
        let world = self.world(lives);
        let member = self.account(life.source);
        let (run_id, settings) = (RunId::new(&life.id).unwrap(), &member.config.settings);
        let subject = RunRef {
            run_id: &run_id,
            kind: life.kind,
            guessed: false,
            group_id: None,
            settings,
        };
        let (mut paths, mut answers) = (Vec::new(), Vec::new());
        let mut question = Some(member.config.provider.status_request(&subject));
        while let Some(next) = question.take() {
            let first = answers.is_empty();
            let (proper, _) = clouds::ask(&world, life.source.cloud(), &member, &next);
            answers.push(match how {
                How::Status(status) if first => http(status, "{}"),
                How::Garbage if first => http(200, "<html>{\"status\":"),
                How::Nothing if first => ApiResponse::Failed {
                    what: "refused".to_owned(),
                },
                How::MissingWithWrongKey if !first => http(401, "{}"),
                _ => proper,
            });
            paths.push(next.path);
            question = member.config.provider.follow_up(&subject, &answers);
        }
        let (answers, bodies): (Vec<_>, Vec<_>) = paths
            .into_iter()
            .zip(answers)
            .map(|(path, answer)| ResponseMeta::split(path, answer))
            .unzip();
        let requested_at = At(self.now.0 - late * 1000);
        let meta = Meta::Poll(PollMeta {
            run_id,
            kind: life.kind,
            guessed: false,
            group_id: None,
            requested_at,
            answers,
        });
        Report {
            source: member.id,
            at: self.now,
            meta,
            body: bodies.concat(),
        }
    }

    fn list(&self, source: life::DemoSource, word: Index) -> Option<Report> {
        let lives = self.lives.iter().filter(|life| life.source == source);
        let world = self.world(
            lives
                .map(|life| in_state(life, *word.get(&words(life))))
                .collect(),
        );
        let member = self.account(source);
        let question = member
            .config
            .provider
            .list_request(None, &member.config.settings)?;
        let (answer, _) = clouds::ask(&world, source.cloud(), &member, &question);
        let (answer, body) = ResponseMeta::split(question.path, answer);
        let meta = Meta::Sweep(SweepMeta {
            page: None,
            requested_at: self.now,
            answer,
        });
        Some(Report {
            source: member.id,
            at: self.now,
            meta,
            body,
        })
    }
}

/// Verifies a delivery with the secrets its account has now.
pub fn verifies(member: &Source, report: &mut Report) -> bool {
    let Meta::Webhook(meta) = &mut report.meta else {
        return false;
    };
    let delivery = Delivery {
        headers: &meta.headers,
        body: &report.body,
        truncated: meta.truncated,
        path_token: meta.path_token.as_ref(),
    };
    let proof = member
        .config
        .provider
        .verify(&delivery, &member.config.keyring, report.at);
    (meta.verdict, meta.secret) = (proof.verdict(), proof.secret().cloned());
    meta.verdict.authentic()
}

fn in_state(life: &Life, state: State) -> Life {
    Life {
        states: vec![(Duration::ZERO, state)],
        ..life.clone()
    }
}

fn http(status: u16, body: &str) -> ApiResponse {
    ApiResponse::Http(Response {
        status,
        body: body.as_bytes().to_vec(),
        ..Response::default()
    })
}
