//! Generated histories over the real store and the real reconciler, compared after every step with
//! a reference: plain maps, one process that never dies, and the pure functions. Who reads the feed and
//! how far it is kept is compared with it in [`readers`](crate::readers).
//!
//! What is concluded is [`decide`]'s own business and tested with it. Here it is shown that the
//! ledger is exactly the fold of `decide` over what was reported: over groups, restarts without a
//! clean end, rings that overflow, secrets that change, retention, and files that are restored elsewhere.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use rusqlite::{Connection, OpenFlags};
use settled::config::Source;
use settled::config::SourceConfig;
use settled::demo::clouds::{Item, Keys};
use settled::demo::life::{self, Mail, State};
use settled::ledger::commands::{DropBodies, RemoveReports, TrimRecords};
use settled::ledger::{
    AnyCommand, Filter, Reader, RecordQuery, RunQuery, UnverifiedLimits, Writer,
};
use settled::model::decide::{Circumstances, Effect, Phase, Publication, Run, decide};
use settled::model::observation::Claim;
use settled::model::record::{About, PAYLOAD_BYTES_MAX, Payload, RecordType, draft, payload_text};
use settled::model::{At, RunId, RunKey, SourceName, Trust, Via, schedule};
use settled::providers::Reading;
use settled::reconciler::{self, Reconciler};
use settled::report::{Meta, Report};
use tempfile::TempDir;

use crate::clouds;
use crate::files::{Remains, folder};
use crate::history::{Op, RUNS_EACH, SEED, Said, Scribe, op, verifies};
use crate::readers::{Commands, Published, Readers};
use crate::support::check::{self, Acked, Feed};

const RING: UnverifiedLimits = UnverifiedLimits {
    rows_max: 10,
    bytes_max: 1 << 20,
};

// ── The reference ───────────────────────────────────────────────────────────────────────────────

/// What the ledger must be.
#[derive(Default)]
struct Reference {
    runs: BTreeMap<(i64, RunId), Run>,
    /// By source: when a status answer last showed one of its runs.
    found_at: BTreeMap<i64, At>,
    readers: Readers,
    reports: Vec<Report>,
    unverified: Vec<usize>,
    acked: Vec<Acked>,
    /// Retention has taken some of the reports.
    forgotten: bool,
}

impl Reference {
    /// Takes reports in, as one group; gives the number of the first.
    fn promise(&mut self, reports: &[Report]) -> usize {
        let first = self.reports.len();
        for (number, report) in (first..).zip(reports) {
            match &report.meta {
                Meta::Webhook(meta) if meta.verdict.authentic() => {
                    let (verdict, body) =
                        (meta.verdict.word().to_owned(), check::digest(&report.body));
                    self.acked.push(Acked {
                        report: i64::try_from(number).unwrap() + 1,
                        verdict,
                        body,
                    });
                }
                Meta::Webhook(_) => self.unverified.push(number),
                _ => {}
            }
            self.reports.push(report.clone());
        }
        first
    }

    /// Of an account that just got one, only the newest unverified deliveries stay.
    fn trim(&mut self, report: &Report) {
        if report
            .meta
            .webhook()
            .is_none_or(|head| head.verdict.authentic())
        {
            return;
        }
        let source = report.source;
        let mine: Vec<usize> = self
            .unverified
            .iter()
            .copied()
            .filter(|number| self.reports[*number].source == source)
            .collect();
        let keep = mine
            .len()
            .saturating_sub(usize::try_from(RING.rows_max).unwrap());
        self.unverified
            .retain(|number| !mine[..keep].contains(number));
    }

    /// Concludes from one report.
    fn process(&mut self, member: &Source, number: usize, now: At) {
        let report = self.reports[number].clone();
        let source = &member.config;
        let (Reading::Said(heard) | Reading::Counted(heard, _)) =
            report.read(source.provider, &source.settings)
        else {
            return;
        };
        let mut news = false;
        for mut heard in heard {
            heard.detail = heard.detail.sanitized(|text| text);
            let key = (member.id, heard.run_id.clone());
            let known = self.runs.get(&key).cloned();
            let policy = source.policy(known.as_ref().and_then(|run| run.kind).or(heard.kind));
            let seed = schedule::seed(source.name.as_str(), heard.run_id.as_str());
            let id = i64::try_from(number).unwrap() + 1;
            let decision = decide(
                known,
                &heard,
                &Circumstances {
                    policy: &policy,
                    now,
                    report: id,
                    seed,
                    since: member.since,
                    found_at: self.found_at.get(&member.id).copied(),
                },
            );
            let Some(run) = decision.run else { continue };
            let shown = matches!(heard.claim, Claim::Open(_) | Claim::Ended(_));
            if heard.via == Via::Poll && shown {
                self.found_at.insert(member.id, now);
            }
            news |= decision.effect != Effect::Unchanged;
            if let Some(publication) = decision.publish {
                let record = self.record(member, &heard.run_id, &run, publication, now);
                self.readers.feed.push(record);
            }
            self.runs.insert(key, run);
        }
        if !news && matches!(report.meta.via(), Via::Poll | Via::Sweep) {
            self.reports[number].body.clear();
        }
    }

    fn record(
        &self,
        member: &Source,
        run_id: &RunId,
        run: &Run,
        publication: Publication,
        now: At,
    ) -> Published {
        let key = RunKey {
            source: member.config.name.clone(),
            run_id: run_id.clone(),
        };
        let about = About {
            provider: member.config.provider.name(),
            key: &key,
        };
        let spoken_by = match &run.phase {
            Phase::Settled(settled) if settled.belief.trust > Trust::Hint => {
                Some(settled.belief.report)
            }
            _ => None,
        };
        let body =
            spoken_by.map(|report| self.reports[usize::try_from(report).unwrap() - 1].payload());
        let json = body
            .filter(|body| body.len() <= PAYLOAD_BYTES_MAX)
            .and_then(payload_text);
        let payload = match (&json, spoken_by) {
            (Some(json), _) => Payload::Inline(json),
            (None, Some(report)) if body.is_some_and(|body| !body.is_empty()) => {
                Payload::Ref(report)
            }
            _ => Payload::Absent,
        };
        let draft = draft(about, run, publication, payload, now);
        Published {
            envelope: draft.envelope,
            data: draft.data,
            at: now,
        }
    }

    /// Retention takes these reports, or their bodies.
    fn forget(&mut self, ids: &[i64], bodies: bool) {
        self.forgotten |= !ids.is_empty();
        for id in ids {
            self.reports[usize::try_from(*id).unwrap() - 1].body.clear();
        }
        self.acked.retain(|acked| !ids.contains(&acked.report));
        self.unverified
            .retain(|number| bodies || !ids.contains(&(i64::try_from(*number).unwrap() + 1)));
    }

    /// Whether an open run holds what this report said against it.
    fn holds(&self, id: i64) -> bool {
        self.runs.values().any(|run| match &run.phase {
            Phase::Open(open) => {
                let claimed = open
                    .claim
                    .as_ref()
                    .is_some_and(|claim| claim.evidence.report == id);
                claimed || open.seen.as_ref().is_some_and(|seen| seen.report == id)
            }
            Phase::Settled(_) => false,
        })
    }

    /// Verifies what is in an account's unverified with the secrets it has now.
    fn reverify(&mut self, member: &Source, now: At) {
        for number in std::mem::take(&mut self.unverified) {
            let report = &mut self.reports[number];
            if report.source != member.id || !verifies(member, report) {
                self.unverified.push(number);
                continue;
            }
            self.process(member, number, now);
        }
    }
}

// ── The ledger beside it ────────────────────────────────────────────────────────────────────────

struct Pair {
    folder: TempDir,
    store: PathBuf,
    restored: usize,
    /// Nothing but while the process is dead.
    reconciler: Option<Reconciler>,
    reader: Option<Reader>,
    epoch: String,
    accounts: BTreeMap<SourceName, Arc<SourceConfig>>,
    scribe: Scribe,
    reference: Reference,
    feed: Feed,
}

impl Pair {
    fn new() -> Pair {
        let folder = folder();
        let mut pair = Pair {
            store: folder.path().join("settled.db"),
            folder,
            restored: 0,
            reconciler: None,
            reader: None,
            epoch: String::new(),
            accounts: clouds::accounts(&Keys::new(SEED)),
            scribe: Scribe::new(),
            reference: Reference::default(),
            feed: Feed::new(),
        };
        pair.open(0);
        pair
    }

    /// Opens the files as they lie there; so many reports must be found unprocessed.
    fn open(&mut self, owed: usize) {
        let mut writer = Writer::open(&self.store, self.scribe.now).unwrap();
        writer.epoch().clone_into(&mut self.epoch);
        self.reader = Some(writer.reader());
        let sources = reconciler::register(&mut writer, &self.accounts, self.scribe.now).unwrap();
        self.scribe.members = sources.members().cloned().collect();
        let mut reconciler = Reconciler::new(writer, sources, RING);
        assert_eq!(
            reconciler.recover(self.scribe.now, |_| ()).unwrap(),
            owed,
            "unprocessed reports"
        );
        self.reconciler = Some(reconciler);
    }

    fn happen(&mut self, op: &Op) {
        match op {
            Op::Reach(said) => {
                let reports = self.scribe.write(said);
                self.reconciler
                    .as_mut()
                    .unwrap()
                    .step(reports.clone(), self.scribe.now)
                    .unwrap();
                self.take_in(&reports, true);
            }
            Op::Wait(seconds) => self.scribe.now = At(self.scribe.now.0 + seconds * 1000 + 1),
            Op::Die(said) => self.die(said),
            Op::Restore => self.restore(),
            Op::Rotate {
                account,
                wrong,
                both,
            } => self.rotate(*account, *wrong, *both),
            Op::Reverify { account } => {
                let member = self.scribe.members[*account].clone();
                self.reconciler
                    .as_mut()
                    .unwrap()
                    .reverify(member.id, self.scribe.now, |_| ())
                    .unwrap();
                self.reference.reverify(&member, self.scribe.now);
            }
            Op::Consume(deed) => {
                let (deed, now) = (deed.clone(), self.scribe.now);
                self.write(|readers, ledger| readers.act(&deed, ledger, now));
            }
            Op::Trim(age, bytes_max, rows_max) => {
                let limits = TrimRecords {
                    before: self.ago(*age),
                    bytes_max: *bytes_max,
                    rows_max: *rows_max,
                };
                self.write(|readers, ledger| readers.trim(&limits, ledger));
            }
            Op::Forget { age, bodies } => self.forget(self.ago(*age), *bodies),
        }
    }

    fn ago(&self, seconds: i64) -> At {
        At(self.scribe.now.0 - seconds * 1000)
    }

    /// Sends commands, each in a batch of the writer, while the readers of the reference look on.
    fn write(&mut self, work: impl FnOnce(&mut Readers, &mut Commands<'_>)) {
        let (reconciler, now) = (self.reconciler.as_mut().unwrap(), self.scribe.now);
        let mut execute = |command: AnyCommand| {
            let batch = reconciler.write_batch(Vec::new(), vec![command], now);
            batch.unwrap().replies.remove(0).unwrap()
        };
        work(&mut self.reference.readers, &mut Commands(&mut execute));
    }

    /// What is taken is old, and nobody needs it: no open run, and no record that refers to it.
    fn forget(&mut self, before: At, bodies: bool) {
        let reader = self.reader.as_ref().unwrap();
        let ids = reader
            .read(|view| view.removable(0, before, bodies))
            .unwrap()
            .ids;
        let lines = self.reference.readers.lines(&self.epoch).concat();
        for id in &ids {
            assert!(
                self.reference.reports[usize::try_from(*id).unwrap() - 1].at < before,
                "{id} is not old"
            );
            assert!(!self.reference.holds(*id), "{id} is held");
            assert!(
                !lines.contains(&format!("\"/v1/deliveries/{id}/body\"")),
                "{id} is referred to"
            );
        }
        self.reference.forget(&ids, bodies);
        self.write(|_, ledger| {
            if bodies {
                ledger.execute(DropBodies { ids });
            } else {
                ledger.execute(RemoveReports { ids });
            }
        });
    }

    fn take_in(&mut self, reports: &[Report], trimmed: bool) {
        let first = self.reference.promise(reports);
        reports
            .iter()
            .filter(|_| trimmed)
            .for_each(|report| self.reference.trim(report));
        for (number, report) in reports.iter().enumerate() {
            let member = self.scribe.member(report.source);
            self.reference
                .process(&member, first + number, self.scribe.now);
        }
    }

    /// What was promised is kept, whatever became of the process.
    fn die(&mut self, said: &[Said]) {
        let reports = self.scribe.write(said);
        let remains = Remains::of(&self.store);
        (self.reconciler, self.reader) = (None, None);
        remains.lay_out();
        let mut writer = Writer::open(&self.store, self.scribe.now).unwrap();
        writer.store(&reports).unwrap();
        let remains = Remains::of(&self.store);
        drop(writer);
        remains.lay_out();
        let epoch = self.epoch.clone();
        self.open(reports.len());
        assert_eq!(self.epoch, epoch, "the same file is of the same epoch");
        // Whoever recovers trims nothing; the next delivery will.
        self.take_in(&reports, false);
    }

    /// The same numbers must not name other records: another file is of another epoch.
    fn restore(&mut self) {
        let remains = Remains::of(&self.store);
        (self.reconciler, self.reader) = (None, None);
        remains.lay_out();
        self.restored += 1;
        let elsewhere = self
            .folder
            .path()
            .join(format!("restored-{}.db", self.restored));
        std::fs::copy(&self.store, &elsewhere).unwrap();
        if crate::files::log(&self.store).exists() {
            std::fs::copy(
                crate::files::log(&self.store),
                crate::files::log(&elsewhere),
            )
            .unwrap();
        }
        self.store = elsewhere;
        let epoch = self.epoch.clone();
        self.open(0);
        assert_ne!(self.epoch, epoch, "a restored file is of another epoch");
    }

    fn rotate(&mut self, account: usize, wrong: bool, both: bool) {
        let source = life::DemoSource::ALL[account];
        let mut made = clouds::account(source, &Keys::new(SEED));
        let other = || clouds::key("other", "a secret that nobody signs with");
        if wrong {
            let keyring = &mut made.keyring;
            for keys in [&mut keyring.signing, &mut keyring.path_tokens] {
                if both && !keys.is_empty() {
                    keys.push(other());
                } else {
                    keys.fill(other());
                }
            }
        }
        self.accounts.insert(made.name.clone(), Arc::new(made));
        let remains = Remains::of(&self.store);
        (self.reconciler, self.reader) = (None, None);
        remains.lay_out();
        self.open(0);
    }

    // ── Looking ─────────────────────────────────────────────────────────────────────────────────

    /// The ledger is what the reference says.
    fn agree(&self) {
        let writer =
            Connection::open_with_flags(&self.store, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        let unverified: Vec<usize> = writer
            .prepare("SELECT id FROM reports WHERE unverified = 1 ORDER BY id")
            .unwrap()
            .query_map([], |row| row.get::<_, i64>(0))
            .unwrap()
            .map(|id| usize::try_from(id.unwrap()).unwrap() - 1)
            .collect();
        assert_eq!(unverified, self.reference.unverified, "the unverified");
        let reader = self.reader.as_ref().unwrap();
        let (rows, records) = reader
            .read(|view| {
                let types = RecordType::ALL.to_vec();
                let all = Filter {
                    types,
                    ..Filter::default()
                };
                let rows = view
                    .runs(&RunQuery {
                        limit: 1000,
                        ..RunQuery::default()
                    })?
                    .runs;
                Ok((
                    rows,
                    view.records(&RecordQuery {
                        after: 0,
                        upto: i64::MAX,
                        filter: &all,
                        rows_max: 10_000,
                        scan_max: i64::MAX,
                    })?
                    .0,
                ))
            })
            .unwrap();
        let runs: BTreeMap<(i64, RunId), Run> = rows
            .into_iter()
            .map(|row| {
                let source = self
                    .scribe
                    .members
                    .iter()
                    .find(|member| member.config.name == row.key.source)
                    .unwrap();
                ((source.id, row.key.run_id), row.run)
            })
            .collect();
        assert_eq!(runs, self.reference.runs, "the runs");
        let said: Vec<&str> = records.iter().map(|record| record.line.as_str()).collect();
        assert_eq!(said, self.reference.readers.lines(&self.epoch), "the feed");
        self.reference.readers.agree(reader, &self.epoch);
    }

    /// The invariants hold.
    fn hold(&mut self) {
        let exists = |source: &str, id: &str| self.scribe.exists(source, id);
        let world = check::World {
            store: &self.store,
            acked: &self.reference.acked,
            exists: &exists,
            // Whoever recovers trims nothing.
            ring_rows_max: RING.rows_max + 3 * 20,
            at_rest: true,
            all_reports: !self.reference.forgotten,
        };
        if let Err(faults) = check::check(&world, &mut self.feed) {
            panic!("{faults}");
        }
    }
}

fn cases() -> ProptestConfig {
    let cases = std::env::var("SETTLED_SEEDS")
        .ok()
        .and_then(|seeds| seeds.parse().ok())
        .unwrap_or(48);
    ProptestConfig {
        cases,
        max_shrink_iters: 4_000,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn the_ledger_is_what_follows_from_what_was_reported(ops in prop::collection::vec(op(), 1..60)) {
        let mut pair = Pair::new();
        for op in &ops {
            pair.happen(op);
            pair.agree();
            if !matches!(op, Op::Reach(_) | Op::Wait(_)) {
                pair.hold();
            }
        }
        pair.hold();
    }
}

/// A word that nobody knows is a status, and a reason to ask: two things said of one run.
#[test]
fn a_report_that_speaks_of_a_run_twice_stays_the_cause_of_its_record() {
    let tasks = life::DemoSource::ALL
        .iter()
        .position(|source| *source == life::DemoSource::Tasks)
        .unwrap();
    let mut pair = Pair::new();
    let life = &pair.scribe.lives[tasks * RUNS_EACH];
    let mail = Mail::new(Duration::ZERO, State::open("hibernating"));
    let letter = pair.scribe.world(vec![life.clone()]).letter(&Item {
        life,
        number: 0,
        mail: &mail,
        written_at: pair.scribe.now,
        attempt: 0,
    });
    let report = clouds::receive(&pair.scribe.account(life.source), letter, pair.scribe.now);
    pair.reconciler
        .as_mut()
        .unwrap()
        .step(vec![report.clone()], pair.scribe.now)
        .unwrap();
    pair.take_in(&[report], true);
    pair.hold();
}
