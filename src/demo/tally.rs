//! The ledger: what the feed said, beside what the clouds know.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use super::client::{News, Record};
use super::clouds::{Count, World};
use super::life::{Cloud, DemoSource, Life};
use crate::ledger::Finding;
use crate::model::{Origin, Outcome};
use crate::providers::json;

/// The records of one run that the feed has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Belief {
    /// The outcome that the feed showed first.
    pub completion: Record,
    /// The outcome that the feed shows by now.
    pub outcome: Outcome,
    /// Corrections.
    pub amendments: u64,
}

/// Listens to the feed and keeps count.
#[derive(Debug)]
pub struct Book {
    world: Arc<World>,
    beliefs: HashMap<(String, String), Belief>,
    order: Vec<(String, String)>,
    cursors: HashSet<String>,
    tracked: HashSet<usize>,
    duplicates: Vec<Record>,
    nonsense: Vec<String>,
    broken: u64,
    told_late: u64,
}

/// A run about which the two disagree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Offender {
    /// The account.
    pub source: String,
    /// The run.
    pub run_id: String,
    /// The fault.
    pub fault: &'static str,
    /// The story of the run.
    pub story: &'static str,
    /// The truth that its cloud knows.
    pub known: Option<Outcome>,
    /// The lines that the feed showed.
    pub said: Option<Outcome>,
}

/// The result of a demo.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ledger {
    /// The seed of the plan.
    pub seed: u64,
    /// Runs that there were.
    pub runs: usize,
    /// Completions the feed published about them.
    pub completions: usize,
    /// The same by what settled them.
    pub by_origin: BTreeMap<Origin, u64>,
    /// The same by provider.
    pub by_provider: BTreeMap<Cloud, u64>,
    /// Completions without the answer that the policy wanted.
    pub unconfirmed: u64,
    /// Completions that were corrected later, counted by correction.
    pub amendments: u64,
    /// Completions beyond the first of a run. Must be 0.
    pub duplicates: u64,
    /// Runs without a completion. Must be 0.
    pub lost: u64,
    /// Runs of which the feed says something else than their cloud. Must be 0.
    pub disagreements: u64,
    /// Completions of runs that never existed. Must be 0.
    pub unknown: u64,
    /// Lines that were no lines, and differences between following the feed and reading it again.
    /// Must be 0.
    pub feed_faults: u64,
    /// Webhooks answered 2xx that the daemon knows nothing of. Must be 0.
    pub forgotten: u64,
    /// Runs whose only webhook found the daemon dead, so that nothing but the client could tell it
    /// of them, and did in the end.
    pub told_late: u64,
    /// The numbers that the clouds counted.
    pub clouds: BTreeMap<Count, u64>,
    /// How often the daemon was killed and started again.
    pub kills: u64,
    /// How often the daemon ended without having been killed. Must be 0.
    pub crashes: u64,
    /// How often the feed's stream broke and was read on from the last cursor.
    pub streams_broken: u64,
    /// The faults of the daemon's ledger by itself. There must be none.
    pub findings: Vec<Finding>,
    /// How long all this took.
    pub elapsed_seconds: f64,
    /// The first few runs with which something is wrong.
    pub offenders: Vec<Offender>,
    /// The beginnings of the first few lines of the feed that cannot be read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<String>,
    /// Where configuration, database and log were kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub folder: Option<PathBuf>,
}

/// The daemon's answers when all was over.
#[derive(Clone, Debug, Default)]
pub struct Audit {
    /// How often it was killed.
    pub kills: u64,
    /// How often it ended by itself.
    pub crashes: u64,
    /// How long all took.
    pub elapsed: Duration,
    /// The feed read once more from its beginning.
    pub again: Option<Vec<(String, String)>>,
    /// The faults of its ledger.
    pub findings: Vec<Finding>,
    /// How many webhooks it has counted for each run.
    pub webhooks: Option<HashMap<(String, String), u64>>,
}

/// So many offenders are named.
const OFFENDERS_MAX: usize = 20;

impl Book {
    /// An empty book about a world.
    pub fn new(world: Arc<World>) -> Book {
        Book {
            world,
            beliefs: HashMap::new(),
            order: Vec::new(),
            cursors: HashSet::new(),
            tracked: HashSet::new(),
            duplicates: Vec::new(),
            nonsense: Vec::new(),
            broken: 0,
            told_late: 0,
        }
    }

    /// Notes what the feed said.
    pub fn hear(&mut self, news: News) {
        match news {
            News::Record(record) => self.note(record),
            News::Nonsense(line) => self.nonsense.push(line),
            News::Broken => self.broken += 1,
        }
    }

    fn note(&mut self, record: Record) {
        if !self.cursors.insert(record.cursor.clone()) {
            self.duplicates.push(record);
            return;
        }
        self.order.push((record.cursor.clone(), record.id.clone()));
        let key = (record.source.clone(), record.run_id.clone());
        match (self.beliefs.get_mut(&key), record.amends) {
            (Some(belief), true) => {
                belief.outcome = record.outcome;
                belief.amendments += 1;
            }
            (None, false) => {
                let outcome = record.outcome;
                self.beliefs.insert(
                    key,
                    Belief {
                        completion: record,
                        outcome,
                        amendments: 0,
                    },
                );
            }
            (Some(_), false) => self.duplicates.push(record),
            (None, true) => self
                .nonsense
                .push(format!("an amendment before its completion: {}", record.id)),
        }
    }

    /// Notes that the daemon took in that a run exists.
    pub fn note_tracked(&mut self, run: usize) {
        self.tracked.insert(run);
    }

    /// The records of a run that the feed has shown.
    pub fn belief(&self, source: DemoSource, run_id: &str) -> Option<&Belief> {
        self.beliefs
            .get(&(source.word().to_owned(), run_id.to_owned()))
    }

    /// Completions so far, of whatever.
    pub fn completions(&self) -> usize {
        self.beliefs.len()
    }

    /// Duplicates so far.
    pub fn duplicates(&self) -> usize {
        self.duplicates.len()
    }

    /// Completions by what settled them.
    pub fn by_origin(&self) -> BTreeMap<Origin, u64> {
        let mut counts: BTreeMap<Origin, u64> =
            Origin::ALL.iter().map(|origin| (*origin, 0)).collect();
        self.beliefs
            .values()
            .for_each(|belief| *counts.entry(belief.completion.origin).or_default() += 1);
        counts
    }

    /// The runs with which the feed is not done yet, or wrong.
    pub fn open(&self) -> impl Iterator<Item = Offender> {
        let runs = self.world.plan.runs.iter().enumerate();
        runs.filter_map(move |(number, life)| self.fault(number, life))
    }

    fn fault(&self, number: usize, life: &Life) -> Option<Offender> {
        let said = self
            .belief(life.source, &life.id)
            .map(|belief| belief.outcome);
        let fault = match said {
            Some(outcome) if self.acceptable(number, life, outcome) => return None,
            Some(_) => "disagreement",
            None => "lost",
        };
        let source = life.source.word().to_owned();
        let known = life.truth.map(|truth| truth.outcome);
        Some(Offender {
            source,
            run_id: life.id.clone(),
            fault,
            story: life.story,
            known,
            said,
        })
    }

    /// Whether it is the truth, or as near to it as one can come without the letter that tells it.
    fn acceptable(&self, number: usize, life: &Life, outcome: Outcome) -> bool {
        life.truth.is_some_and(|truth| {
            let excused = |hinge: super::life::Hinge| {
                outcome == hinge.otherwise && !self.world.accepted(number, hinge.letter)
            };
            outcome == truth.outcome || truth.hinge.is_some_and(excused)
        })
    }

    /// The runs of which a daemon that was down at times cannot know: no client was to speak of
    /// them, and all their letters found nobody at home.
    pub fn untold(&self) -> Vec<usize> {
        let runs = self.world.plan.runs.iter().enumerate();
        let untold = |(number, life): &(usize, &Life)| {
            let never_named =
                self.belief(life.source, &life.id).is_none() && !self.tracked.contains(number);
            never_named
                && life.tracked.is_none()
                && !life.only_listed
                && self.world.told(*number) == 0
        };
        runs.filter(untold).map(|(number, _)| number).collect()
    }

    /// Notes that the client told the daemon of a run after all.
    pub fn note_told_late(&mut self, run: usize) {
        self.tracked.insert(run);
        self.told_late += 1;
    }

    /// Letters answered 2xx beyond those the daemon has counted.
    fn forgotten(&self, counted: &HashMap<(String, String), u64>) -> u64 {
        let runs = self.world.plan.runs.iter().enumerate();
        let missing = runs.map(|(number, life)| {
            let counted = counted.get(&(life.source.word().to_owned(), life.id.clone()));
            self.world
                .told(number)
                .saturating_sub(counted.copied().unwrap_or_default())
        });
        missing.sum()
    }

    /// Closes the book.
    pub fn close(&self, audit: &Audit) -> Ledger {
        let plan = &self.world.plan;
        let unknown_runs: Vec<&Belief> = self.unknown_runs().collect();
        let faults: Vec<Offender> = self.open().collect();
        let count = |fault: &str| {
            faults
                .iter()
                .filter(|offender| offender.fault == fault)
                .count() as u64
        };
        let real = || {
            self.beliefs
                .iter()
                .filter(|((source, id), _)| self.exists(source, id))
        };
        let mut by_origin: BTreeMap<Origin, u64> =
            Origin::ALL.iter().map(|origin| (*origin, 0)).collect();
        let mut by_provider: BTreeMap<Cloud, u64> =
            Cloud::ALL.iter().map(|cloud| (*cloud, 0)).collect();
        for ((source, _), belief) in real() {
            *by_origin.entry(belief.completion.origin).or_default() += 1;
            if let Some(source) = DemoSource::from_word(source) {
                *by_provider.entry(source.cloud()).or_default() += 1;
            }
        }
        Ledger {
            seed: plan.seed,
            runs: plan.runs.len(),
            completions: real().count(),
            by_origin,
            by_provider,
            unconfirmed: real()
                .filter(|(_, belief)| !belief.completion.confirmed)
                .count() as u64,
            amendments: real().map(|(_, belief)| belief.amendments).sum(),
            duplicates: self.duplicates.len() as u64,
            lost: count("lost"),
            disagreements: count("disagreement"),
            unknown: unknown_runs.len() as u64,
            feed_faults: self.nonsense.len() as u64
                + differences(&self.order, audit.again.as_deref()),
            forgotten: audit
                .webhooks
                .as_ref()
                .map_or(0, |counted| self.forgotten(counted)),
            told_late: self.told_late,
            clouds: self.world.tally.counted(),
            kills: audit.kills,
            crashes: audit.crashes,
            streams_broken: self.broken,
            findings: audit.findings.clone(),
            elapsed_seconds: (audit.elapsed.as_secs_f64() * 10.0).round() / 10.0,
            offenders: self.offenders(faults, &unknown_runs),
            unreadable: self
                .nonsense
                .iter()
                .take(3)
                .map(|line| json::shortened(line, 200))
                .collect(),
            folder: None,
        }
    }

    fn exists(&self, source: &str, run_id: &str) -> bool {
        DemoSource::from_word(source)
            .is_some_and(|source| self.world.life(source, run_id).is_some())
    }

    /// Completions of runs that never were.
    fn unknown_runs(&self) -> impl Iterator<Item = &Belief> {
        self.beliefs
            .iter()
            .filter(|((source, id), _)| !self.exists(source, id))
            .map(|(_, belief)| belief)
    }

    fn offenders(&self, faults: Vec<Offender>, unknown_runs: &[&Belief]) -> Vec<Offender> {
        let from = |record: &Record, fault: &'static str, story: &'static str| Offender {
            source: record.source.clone(),
            run_id: record.run_id.clone(),
            fault,
            story,
            known: None,
            said: Some(record.outcome),
        };
        let unknown_runs = unknown_runs
            .iter()
            .map(|belief| from(&belief.completion, "unknown", "never existed"));
        let duplicates = self
            .duplicates
            .iter()
            .map(|record| from(record, "duplicate", "said before"));
        let (wrong, lost): (Vec<_>, Vec<_>) = faults
            .into_iter()
            .partition(|offender| offender.said.is_some());
        wrong
            .into_iter()
            .chain(unknown_runs)
            .chain(duplicates)
            .chain(lost)
            .take(OFFENDERS_MAX)
            .collect()
    }
}

/// In how many places two readings of the feed differ.
fn differences(followed: &[(String, String)], again: Option<&[(String, String)]>) -> u64 {
    let Some(again) = again else { return 0 };
    let differing = followed
        .iter()
        .zip(again)
        .filter(|(one, other)| one != other)
        .count();
    (differing + followed.len().abs_diff(again.len())) as u64
}

impl Ledger {
    /// Whether every number that must be 0 is.
    pub fn ok(&self) -> bool {
        let faults = [
            self.duplicates,
            self.lost,
            self.disagreements,
            self.unknown,
            self.forgotten,
            self.feed_faults,
        ];
        faults == [0; 6] && self.crashes == 0 && self.findings.is_empty()
    }

    fn counted(&self, what: Count) -> u64 {
        self.clouds.get(&what).copied().unwrap_or_default()
    }

    /// The rows of the table for people: what, how many, and a remark.
    fn rows(&self) -> Vec<[String; 3]> {
        let row =
            |what: &str, number: u64, remark: String| [what.to_owned(), number.to_string(), remark];
        let list = |parts: Vec<(&str, u64)>| {
            let parts = parts.into_iter().filter(|(_, number)| *number > 0);
            parts
                .map(|(what, number)| format!("{number} {what}"))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let must_be_0 = |number: u64| {
            if number == 0 {
                "must be 0"
            } else {
                "MUST BE 0"
            }
            .to_owned()
        };
        let providers = self
            .by_provider
            .iter()
            .map(|(cloud, number)| (cloud.word(), *number))
            .collect();
        let origins = self
            .by_origin
            .iter()
            .map(|(origin, number)| (origin.word(), *number))
            .collect();
        let lies = list(vec![
            ("dropped", self.counted(Count::WebhooksDropped)),
            ("repeated", self.counted(Count::WebhooksRepeated)),
            ("rewritten", self.counted(Count::WebhooksRewritten)),
            ("forged", self.counted(Count::WebhooksForged)),
            ("stale", self.counted(Count::WebhooksStale)),
            ("poisoned", self.counted(Count::WebhooksPoisoned)),
            ("undelivered", self.counted(Count::WebhooksUndelivered)),
        ]);
        let failures = list(vec![
            ("failed", self.counted(Count::PollsFailed)),
            ("throttled", self.counted(Count::PollsThrottled)),
            ("refused", self.counted(Count::PollsRefused)),
        ]);
        let mut rows = vec![
            row("runs", self.runs as u64, list(providers)),
            row("webhooks sent", self.counted(Count::WebhooksSent), lies),
            row(
                "polls answered",
                self.counted(Count::PollsAnswered),
                failures,
            ),
            row("completions", self.completions as u64, list(origins)),
            row(
                "unconfirmed",
                self.unconfirmed,
                "settled from a webhook, no answer to be had in time".to_owned(),
            ),
            row(
                "amendments",
                self.amendments,
                "the provider contradicted itself after the completion".to_owned(),
            ),
            row("duplicates", self.duplicates, must_be_0(self.duplicates)),
            row("lost", self.lost, must_be_0(self.lost)),
            row(
                "disagreements",
                self.disagreements,
                must_be_0(self.disagreements),
            ),
            row("unknown runs", self.unknown, must_be_0(self.unknown)),
            row("forgotten", self.forgotten, must_be_0(self.forgotten)),
            row("feed faults", self.feed_faults, must_be_0(self.feed_faults)),
        ];
        rows.push(row(
            "ledger faults",
            self.findings.len() as u64,
            must_be_0(self.findings.len() as u64),
        ));
        if self.crashes > 0 {
            rows.push(row("crashes", self.crashes, must_be_0(self.crashes)));
        }
        if self.kills > 0 {
            let remark = format!(
                "of the daemon, by kill -9; the feed's stream broke {} times",
                self.streams_broken
            );
            rows.push(row("kills", self.kills, remark));
            let remark =
                "runs whose only webhook found the daemon dead; the client told of them in the end";
            rows.push(row("told late", self.told_late, remark.to_owned()));
        }
        rows
    }
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_style(NOTHING);
        for row in self.rows() {
            table.add_row(row);
        }
        if let Some(numbers) = table.column_mut(1) {
            numbers.set_cell_alignment(CellAlignment::Right);
        }
        writeln!(f, "{table}")?;
        let verdict = if self.ok() {
            "every run exactly once, and right"
        } else {
            "NOT RIGHT"
        };
        writeln!(
            f,
            "seed {}, {:.1} s: {verdict}",
            self.seed, self.elapsed_seconds
        )?;
        for offender in &self.offenders {
            let said = offender.said.map_or("nothing", Outcome::word);
            let known = offender.known.map_or("no such run", Outcome::word);
            let Offender {
                source,
                run_id,
                fault,
                story,
                ..
            } = offender;
            writeln!(
                f,
                "  {fault}: {source} {run_id} ({story}): its cloud knows: {known}; the feed said: {said}"
            )?;
        }
        for finding in &self.findings {
            writeln!(f, "  in the ledger: {finding}")?;
        }
        for line in &self.unreadable {
            writeln!(f, "  a line of the feed that cannot be read: {line}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::plan::{Plan, Rates};

    fn world() -> Arc<World> {
        Arc::new(World::new(Plan::new(1, 300, &Rates::default()), ""))
    }

    fn record(number: usize, source: &str, run_id: &str, outcome: Outcome, amends: bool) -> News {
        News::Record(Record {
            cursor: format!("e.{number}"),
            id: format!("{source}:{run_id}:{number}"),
            amends,
            source: source.to_owned(),
            run_id: run_id.to_owned(),
            outcome,
            origin: Origin::Poll,
            confirmed: true,
            reason: None,
        })
    }

    /// A book in which every run stands as it truly ended.
    fn honest(world: &Arc<World>) -> Book {
        let mut book = Book::new(Arc::clone(world));
        for (number, life) in world.plan.runs.iter().enumerate() {
            book.hear(record(
                number,
                life.source.word(),
                &life.id,
                life.truth.unwrap().outcome,
                false,
            ));
        }
        book
    }

    #[test]
    fn the_truth_told_once_is_right() {
        let ledger = honest(&world()).close(&Audit::default());
        assert!(ledger.ok(), "{ledger}");
        assert_eq!((ledger.runs, ledger.completions), (300, 300));
        assert_eq!(ledger.by_provider.values().sum::<u64>(), 300);
    }

    #[test]
    fn every_fault_is_found_and_named() {
        let world = world();
        let plain = world
            .plan
            .runs
            .iter()
            .find(|life| life.truth.unwrap().hinge.is_none())
            .unwrap();
        let (source, id, truth) = (
            plain.source.word(),
            plain.id.as_str(),
            plain.truth.unwrap().outcome,
        );
        let mut book = honest(&world);
        book.hear(record(1000, source, id, truth, false));
        book.hear(record(1001, source, id, Outcome::Indeterminate, true));
        book.hear(record(1002, source, "never-was", Outcome::Failed, false));
        book.hear(News::Nonsense("?".to_owned()));
        let ledger = book.close(&Audit::default());
        let faults = (
            ledger.duplicates,
            ledger.lost,
            ledger.disagreements,
            ledger.unknown,
            ledger.feed_faults,
        );
        assert_eq!(faults, (1, 0, 1, 1, 1));
        assert!(!ledger.ok() && ledger.offenders.len() == 3);
        assert_eq!(
            Book::new(Arc::clone(&world)).close(&Audit::default()).lost,
            300
        );
    }

    #[test]
    fn a_truth_that_one_letter_tells_is_not_asked_of_who_never_got_it() {
        let world = world();
        let hinged = |life: &Life| life.truth.and_then(|truth| truth.hinge).is_some();
        let (number, life) = world
            .plan
            .runs
            .iter()
            .enumerate()
            .find(|(_, life)| hinged(life))
            .unwrap();
        let hinge = life.truth.unwrap().hinge.unwrap();
        let mut book = honest(&world);
        book.hear(record(
            1000,
            life.source.word(),
            &life.id,
            hinge.otherwise,
            true,
        ));
        assert!(book.close(&Audit::default()).ok());
        world.note_accepted(number, hinge.letter);
        assert_eq!(book.close(&Audit::default()).disagreements, 1);
    }

    #[test]
    fn what_was_answered_2xx_must_have_been_counted() {
        let world = world();
        let telling = |life: &Life| life.mail.iter().position(super::super::life::Mail::tells);
        let (number, letter) = world
            .plan
            .runs
            .iter()
            .enumerate()
            .find_map(|(number, life)| Some((number, telling(life)?)))
            .unwrap();
        world.note_accepted(number, letter);
        world.note_accepted(number, letter);
        let life = &world.plan.runs[number];
        let counted = HashMap::from([((life.source.word().to_owned(), life.id.clone()), 1)]);
        let audit = Audit {
            webhooks: Some(counted),
            ..Audit::default()
        };
        assert_eq!(honest(&world).close(&audit).forgotten, 1);
    }

    #[test]
    fn what_is_wrong_in_the_daemons_ledger_is_wrong_here() {
        let audit = Audit {
            findings: vec![Finding::unreadable("a sector is gone")],
            ..Audit::default()
        };
        let ledger = honest(&world()).close(&audit);
        assert!(!ledger.ok());
        assert!(
            ledger
                .to_string()
                .contains("in the ledger: ledgers that cannot be read: 1: a sector is gone")
        );
    }

    #[test]
    fn reading_again_must_read_the_same() {
        let world = world();
        let mut book = honest(&world);
        let mut again = book.order.clone();
        assert!(
            book.close(&Audit {
                again: Some(again.clone()),
                ..Audit::default()
            })
            .ok()
        );
        again.swap(3, 4);
        assert_eq!(
            book.close(&Audit {
                again: Some(again.clone()),
                ..Audit::default()
            })
            .feed_faults,
            2
        );
        let first = &world.plan.runs[0];
        book.hear(record(
            0,
            first.source.word(),
            &first.id,
            first.truth.unwrap().outcome,
            false,
        ));
        assert_eq!(
            book.close(&Audit::default()).duplicates,
            1,
            "the same cursor twice"
        );
    }
}
