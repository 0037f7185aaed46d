//! The daemon as far as it decides: the real reconciler over a real file, the real dialects and the
//! real pace, and a poller that follows `ask_at`, `urgent_at` and `wake_at` as the real one does.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use settled::demo::clouds::Keys;
use settled::demo::plan::{Cloud, Source};
use settled::limits;
use settled::providers::pace::Pace;
use settled::providers::{Answer, Hearing, Question, Subject};
use settled::reconciler::{Fleet, Member, Reconciler};
use settled::report::{AnswerHead, Head, PollHead, Report, SweepHead};
use settled::run::asking;
use settled::run::{At, Kind, RunId};
use settled::store::{Due, Reader, RingLimits, View, Writer};

use crate::clouds;

/// What is kept of unverified deliveries here: few, so that rings are trimmed.
pub const RING: RingLimits = RingLimits { rows_max: 40, bytes_max: 1 << 20 };

/// One life of the daemon, from its start to its crash.
pub struct Daemon {
    pub reconciler: Reconciler,
    pub reader: Reader,
    pub desks: Vec<Desk>,
    /// What was found undigested at the start.
    pub recovered: usize,
}

/// One source's loop.
pub struct Desk {
    pub member: Arc<Member>,
    pub cloud: Cloud,
    pub pace: Pace,
    gate: At,
    next_poll: At,
    next_sweep: At,
    busy: BTreeSet<i64>,
    sweeping: bool,
    probing: bool,
}

/// Something that is being asked.
#[derive(Clone, Debug)]
pub enum Errand {
    Run(Inquiry),
    Sweep(Page),
    Probe,
}

/// About one run: its question, and whatever the dialect must know beside it.
#[derive(Clone, Debug)]
pub struct Inquiry {
    row: i64,
    run_id: RunId,
    kind: Kind,
    guessed: bool,
    group_id: Option<String>,
    asked_at: At,
    paths: Vec<String>,
    answers: Vec<Answer>,
}

/// About a page of a list.
#[derive(Clone, Debug)]
pub struct Page {
    token: Option<String>,
    number: usize,
    asked_at: At,
}

/// What comes after an answer.
pub enum Next {
    /// One more question.
    Ask(Errand, Question),
    /// A report, and perhaps a further question.
    Report(Report, Option<(Errand, Question)>),
    /// Nothing.
    Done,
}

impl Daemon {
    /// Starts in the order of the real one: the ledger, what is owed, the askers.
    pub fn start(store: &Path, keys: &Keys, now: At) -> Daemon {
        let mut writer = Writer::open(store, now).unwrap();
        let latest = now.plus(asking::CHECKS[1] + Duration::from_secs(3600));
        writer.transaction(|tx| tx.clamp_asks(now, latest)).unwrap();
        let fleet = Fleet::enlist(&mut writer, &clouds::accounts(keys), now).unwrap();
        let reader = writer.reader();
        let desks = fleet.members().map(|member| Desk::new(member.clone(), now)).collect();
        let mut reconciler = Reconciler::new(writer, fleet, RING);
        let recovered = reconciler.recover(now, |_| ()).unwrap();
        Daemon { reconciler, reader, desks, recovered }
    }

    /// Limits that have passed, as reports, and when the next one passes.
    pub fn alarms(&self, now: At) -> (Vec<Report>, At) {
        let sources: Vec<i64> = self.desks.iter().map(|desk| desk.member.id).collect();
        let look = |view: &View<'_>| view.alarms(&sources, now, limits::ALARMS_PER_ROUND_MAX);
        let (due, next) = self.reader.read(look).unwrap();
        let ring = |(source, run_id)| Report { source, at: now, head: Head::Clock { run_id }, body: Vec::new() };
        (due.into_iter().map(ring).collect(), next.unwrap_or(At::NEVER))
    }
}

impl Desk {
    fn new(member: Arc<Member>, now: At) -> Desk {
        let source = &member.source;
        let next = |schedule: &settled::calendar::Schedule| schedule.next_after(now).unwrap_or(At::NEVER);
        Desk {
            cloud: Source::from_word(source.name.as_str()).unwrap().cloud(),
            pace: Pace::new(source.rate, now),
            gate: At(0),
            next_poll: next(&source.poll),
            next_sweep: next(&source.sweep),
            busy: BTreeSet::new(),
            sweeping: false,
            probing: false,
            member,
        }
    }

    /// One look around: what is to be asked now, and when looking again is worthwhile.
    pub fn look(&mut self, reader: &Reader, now: At) -> (Vec<(Errand, Question)>, At) {
        let member = self.member.clone();
        let source = &member.source;
        if self.next_poll <= now {
            self.gate = now;
            self.next_poll = source.poll.next_after(now).unwrap_or(At::NEVER);
        }
        let mut errands = Vec::new();
        let broken = self.pace.state(now).breaker.is_some();
        if broken && !self.probing && self.pace.may_probe(now) {
            self.probing = true;
            errands.push((Errand::Probe, source.provider.canary_question(&source.settings)));
        }
        if self.next_sweep <= now {
            self.next_sweep = source.sweep.next_after(now).unwrap_or(At::NEVER);
            if !self.sweeping && !broken {
                errands.extend(self.first_page(now));
            }
        }
        let (due, look_again) = self.due(reader, now, broken);
        errands.extend(due.into_iter().map(|due| self.inquiry(due, now)));
        let probe = self.pace.probe_at().unwrap_or(At::NEVER);
        (errands, look_again.min(self.next_poll).min(self.next_sweep).min(probe))
    }

    fn first_page(&mut self, now: At) -> Option<(Errand, Question)> {
        let source = &self.member.source;
        let question = source.provider.list_question(None, &source.settings)?;
        self.sweeping = true;
        Some((Errand::Sweep(Page { token: None, number: 1, asked_at: now }), question))
    }

    fn due(&mut self, reader: &Reader, now: At, broken: bool) -> (Vec<Due>, At) {
        let hands = self.member.source.concurrency;
        if broken || self.busy.len() >= hands {
            return (Vec::new(), At::NEVER);
        }
        let (id, gate) = (self.member.id, self.gate);
        let max = u32::try_from(hands + self.busy.len()).unwrap();
        let look = |view: &View<'_>| Ok((view.due(id, now, gate, max)?, view.next_urgent_after(id, now)?));
        let (mut due, next) = reader.read(look).unwrap();
        let mut look_again = next.unwrap_or(At::NEVER);
        due.retain(|due| !self.busy.contains(&due.row));
        due.truncate(hands - self.busy.len());
        let mut allowed = 0;
        while allowed < due.len() {
            match self.pace.may_poll(due[allowed].run.is_urgent(), now, self.seed()) {
                Ok(()) => allowed += 1,
                Err(at) => {
                    look_again = at;
                    break;
                }
            }
        }
        due.truncate(allowed);
        self.busy.extend(due.iter().map(|due| due.row));
        (due, look_again)
    }

    fn inquiry(&self, due: Due, now: At) -> (Errand, Question) {
        let source = &self.member.source;
        let inquiry = Inquiry {
            row: due.row,
            guessed: due.run.kind.is_none() && source.provider.guesses_kind(),
            kind: due.run.kind.unwrap_or_else(|| source.provider.kind_of(&due.run_id, &source.settings)),
            group_id: due.run.detail.group_id.clone(),
            run_id: due.run_id,
            asked_at: now,
            paths: Vec::new(),
            answers: Vec::new(),
        };
        let question = source.provider.status_question(&inquiry.subject(&self.member));
        (Errand::Run(inquiry), question)
    }

    /// Takes a permission to go on asking, or says when to try again.
    pub fn may_go_on(&mut self, now: At) -> Result<(), At> {
        self.pace.may_go_on(now, self.seed())
    }

    /// Whether nothing but a probe may be asked.
    pub fn broken(&self, now: At) -> bool {
        self.pace.state(now).breaker.is_some()
    }

    fn seed(&self) -> u64 {
        asking::seed(self.member.source.name.as_str(), "")
    }

    /// What an answer tells about the account.
    pub fn hear(&mut self, answer: &Answer, now: At) -> Hearing {
        let hearing = self.member.source.provider.hearing(answer);
        self.pace.told(&hearing, now, self.seed());
        hearing
    }

    /// Goes on after an answer.
    pub fn go_on(&mut self, errand: Errand, question: Question, answer: Answer, now: At) -> Next {
        match errand {
            Errand::Probe => {
                self.give_up(&errand);
                Next::Done
            }
            Errand::Run(inquiry) => self.inquire_on(inquiry, question, answer, now),
            Errand::Sweep(page) => self.turn_the_page(page, question, answer, now),
        }
    }

    /// The errand is over.
    pub fn give_up(&mut self, errand: &Errand) {
        match errand {
            Errand::Run(inquiry) => drop(self.busy.remove(&inquiry.row)),
            Errand::Sweep(_) => self.sweeping = false,
            Errand::Probe => self.probing = false,
        }
    }

    fn inquire_on(&mut self, mut inquiry: Inquiry, question: Question, answer: Answer, now: At) -> Next {
        inquiry.paths.push(question.path);
        inquiry.answers.push(answer);
        let provider = self.member.source.provider;
        if inquiry.answers.len() < limits::QUESTIONS_PER_POLL_MAX
            && let Some(further) = provider.follow_up(&inquiry.subject(&self.member), &inquiry.answers)
        {
            return Next::Ask(Errand::Run(inquiry), further);
        }
        self.busy.remove(&inquiry.row);
        let (heads, bodies): (Vec<_>, Vec<_>) = inquiry
            .paths
            .into_iter()
            .zip(inquiry.answers)
            .map(|(path, answer)| AnswerHead::split(path, answer))
            .unzip();
        let head = Head::Poll(PollHead {
            run_id: inquiry.run_id,
            kind: inquiry.kind,
            guessed: inquiry.guessed,
            group_id: inquiry.group_id,
            asked_at: inquiry.asked_at,
            answers: heads,
        });
        Next::Report(Report { source: self.member.id, at: now, head, body: bodies.concat() }, None)
    }

    fn turn_the_page(&mut self, page: Page, question: Question, answer: Answer, now: At) -> Next {
        let source = &self.member.source;
        let next = source.provider.read_list(page.token.as_deref(), &answer, &source.settings, page.asked_at).next;
        let (answer, body) = AnswerHead::split(question.path, answer);
        let head = Head::Sweep(SweepHead { page: page.token, asked_at: page.asked_at, answer });
        let report = Report { source: self.member.id, at: now, head, body };
        let further = next.filter(|_| page.number < limits::SWEEP_PAGES_MAX).and_then(|next| {
            let question = source.provider.list_question(Some(&next), &source.settings)?;
            Some((Errand::Sweep(Page { token: Some(next), number: page.number + 1, asked_at: now }), question))
        });
        self.sweeping = further.is_some();
        Next::Report(report, further)
    }
}

impl Inquiry {
    fn subject<'a>(&'a self, member: &'a Member) -> Subject<'a> {
        Subject {
            run_id: &self.run_id,
            kind: self.kind,
            guessed: self.guessed,
            group_id: self.group_id.as_deref(),
            settings: &member.source.settings,
        }
    }
}
