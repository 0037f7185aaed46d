//! Processing without a ledger: the stored state is plain maps here.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::config::{SourceConfig, SourceRow};
use crate::model::observation::Evidence;
use crate::model::{Kind, Origin, Outcome, SourceName};
use crate::providers::browser_use::BrowserUse;
use crate::providers::skyvern::Skyvern;
use crate::providers::{ApiResponse, Response, Settings, Verdict};
use crate::report::{PollMeta, ResponseMeta, SweepMeta, TrackMeta, WebhookMeta};
use crate::secret::{Key, Secret, SecretLabel};

const KEY: &str = "sk-0123456789abcdef";
const NOW: At = At(1_700_000_000_000);

/// Two accounts, by row id: Skyvern's 1 and Browser Use's 2.
fn sources() -> Sources {
    static SOURCES: LazyLock<Sources> = LazyLock::new(configured);
    SOURCES.clone()
}

fn configured() -> Sources {
    let key = Key {
        label: SecretLabel("api_key".to_owned()),
        secret: Secret::new(KEY),
    };
    let name = SourceName::new("sky").unwrap();
    let skyvern = SourceConfig::new(name, &Skyvern).with_keys(Some(key.clone()), []);
    let name = SourceName::new("bu").unwrap();
    let mut browser_use = SourceConfig::new(name, &BrowserUse).with_keys(Some(key), []);
    browser_use.settings = Settings {
        api: Some("v4".to_owned()),
    };
    let row = |id| SourceRow { id, since: At(0) };
    Sources::of([
        Source::new(row(1), Arc::new(skyvern)),
        Source::new(row(2), Arc::new(browser_use)),
    ])
}

// ── Reports ─────────────────────────────────────────────────────────────────────────────────────

fn of_skyvern(meta: Meta, body: impl Into<Vec<u8>>) -> Report {
    Report {
        source: 1,
        at: NOW,
        meta,
        body: body.into(),
    }
}

fn delivery(verdict: Verdict, body: impl Into<Vec<u8>>) -> Report {
    let meta = WebhookMeta {
        headers: Vec::new(),
        path_token: None,
        verdict,
        secret: None,
        truncated: false,
        peer: None,
    };
    of_skyvern(Meta::Webhook(meta), body)
}

fn status(run_id: &str, status: &str) -> String {
    format!(r#"{{"run_id":"{run_id}","status":"{status}"}}"#)
}

fn signed(run_id: &str, word: &str) -> Report {
    delivery(Verdict::Signed, status(run_id, word))
}

fn id(run_id: &str) -> RunId {
    RunId::new(run_id).unwrap()
}

fn track(run_id: &str) -> Report {
    let meta = TrackMeta {
        run_id: id(run_id),
        kind: Some(Kind::Workflow),
        group_id: None,
        metadata: None,
    };
    of_skyvern(Meta::Track(meta), "")
}

fn timer(run_id: &str) -> Report {
    of_skyvern(Meta::Clock { run_id: id(run_id) }, "")
}

fn http(body: String) -> (ResponseMeta, Vec<u8>) {
    let response = Response {
        status: 200,
        body: body.into(),
        ..Response::default()
    };
    ResponseMeta::split("/v1/x".to_owned(), ApiResponse::Http(response))
}

fn poll(run_id: &str, word: &str) -> Report {
    let (answer, body) = http(status(run_id, word));
    let meta = PollMeta {
        run_id: id(run_id),
        kind: Kind::Workflow,
        guessed: false,
        group_id: None,
        requested_at: NOW,
        answers: vec![answer],
    };
    of_skyvern(Meta::Poll(meta), body)
}

// ── A ledger of plain maps ──────────────────────────────────────────────────────────────────────

#[derive(Clone, Debug, Default, PartialEq)]
struct Memory {
    reports: Vec<(i64, Vec<u8>)>,
    runs: Vec<(i64, String, Run)>,
    records: Vec<(i64, String, String)>,
    /// By run and report, as the ledger keeps them: the last row, unless an earlier one caused a record.
    timeline: BTreeMap<(String, i64), TimelineRow>,
    quarantined: Vec<(i64, String)>,
    notes: Vec<(i64, String)>,
    dropped: Vec<i64>,
    upto: Option<i64>,
    found_at: BTreeMap<i64, At>,
}

impl Memory {
    /// Stores reports and processes them in one batch, a second after what came before.
    fn batch(&mut self, reports: &[Report], now: At) -> ChangeSet {
        let first = i64::try_from(self.reports.len()).unwrap() + 1;
        let stored: Vec<Stored> = (first..).zip(reports.iter().cloned()).collect();
        for (id, report) in &stored {
            self.reports.push((*id, report.payload().to_vec()));
        }
        let sources = sources();
        let readings = read(
            &stored,
            Context {
                sources: &sources,
                now,
            },
        );
        let known = |(source, run_id): &(i64, RunId)| {
            let of = |run: &(i64, String, Run)| run.0 == *source && run.1 == run_id.as_str();
            let row = self.runs.iter().position(of)?;
            Some(StoredRun {
                source: *source,
                run_id: run_id.as_str().to_owned(),
                row: i64::try_from(row).unwrap(),
                state: Ok(self.runs[row].2.clone()),
            })
        };
        let state = StoredState {
            runs: readings.keys().iter().filter_map(known).collect(),
            next_seq: i64::try_from(self.records.len()).unwrap() + 1,
            found_at: self.found_at.clone(),
        };
        let decisions = readings.decide(state);
        let payload = |report: i64| {
            let index = usize::try_from(report - 1).unwrap();
            (report, StoredPayload::Whole(self.reports[index].1.clone()))
        };
        let payloads = decisions.wanted().into_iter().map(payload).collect();
        let changes = decisions.render(&payloads);
        self.apply(&changes);
        changes
    }

    fn apply(&mut self, changes: &ChangeSet) {
        let mut names = Vec::new();
        for change in &changes.runs {
            let name = change.run_id.as_str().to_owned();
            match &change.before {
                None => self
                    .runs
                    .push((change.source, name.clone(), change.after.clone())),
                Some((row, before)) => {
                    let known = &mut self.runs[usize::try_from(*row).unwrap()].2;
                    assert_eq!(known, before);
                    known.clone_from(&change.after);
                }
            }
            names.push(name);
        }
        for record in &changes.records {
            assert_eq!(record.seq, i64::try_from(self.records.len()).unwrap() + 1);
            let draft = record.draft.clone();
            self.records.push((record.seq, draft.envelope, draft.data));
        }
        for NewTimelineRow { run, row } in &changes.timeline {
            let kept = self
                .timeline
                .entry((names[*run].clone(), row.report))
                .or_insert_with(|| row.clone());
            if kept.seq.is_none() {
                kept.clone_from(row);
            }
        }
        let aside = |quarantine: &Quarantine| (quarantine.report, quarantine.why.clone());
        self.quarantined
            .extend(changes.quarantined.iter().map(aside));
        self.notes.extend(changes.notes.iter().cloned());
        self.dropped.extend(&changes.bodies_dropped);
        self.upto = self.upto.max(changes.processed_upto);
        for (source, traffic) in &changes.traffic {
            self.found_at
                .extend(traffic.found_at.map(|at| (*source, at)));
        }
    }

    fn run(&self, run_id: &str) -> &Run {
        &self.runs.iter().find(|run| run.1 == run_id).unwrap().2
    }

    fn data(&self, seq: usize) -> serde_json::Value {
        serde_json::from_str(&self.records[seq - 1].2).unwrap()
    }
}

fn belief(run: &Run) -> (&Evidence, Origin) {
    match &run.phase {
        Phase::Settled(settled) => (&settled.belief, settled.origin),
        Phase::Open(_) => panic!("it is open"),
    }
}

// ── How batches are cut makes no difference ─────────────────────────────────────────────────────

fn any_report() -> impl Strategy<Value = Report> {
    let run = prop::sample::select(vec!["wr_1", "wr_2", "tsk_3"]);
    let words = vec![
        "queued",
        "running",
        "completed",
        "failed",
        "canceled",
        "timed_out",
        "unheard_of",
    ];
    let word = prop::sample::select(words);
    (0..7_u8, run, word).prop_map(|(sort, run, word)| match sort {
        0 => track(run),
        1 => timer(run),
        2 => delivery(Verdict::BadSignature, status(run, word)),
        3 => poll(run, word),
        4 => delivery(Verdict::Signed, "no JSON"),
        _ => signed(run, word),
    })
}

proptest! {
    /// A batch leads to what its reports would lead to one by one, and so does every other cut.
    #[test]
    fn how_reports_are_cut_into_batches_makes_no_difference(
        reports in prop::collection::vec(any_report(), 1..25),
        cuts in prop::collection::vec(1..6_usize, 25),
    ) {
        let (mut whole, mut single, mut cut) = (Memory::default(), Memory::default(), Memory::default());
        whole.batch(&reports, NOW);
        for report in &reports {
            single.batch(std::slice::from_ref(report), NOW);
        }
        let mut rest = reports.as_slice();
        for size in cuts {
            let (batch, left) = rest.split_at(size.min(rest.len()));
            if !batch.is_empty() {
                cut.batch(batch, NOW);
            }
            rest = left;
        }
        prop_assert_eq!(&whole, &single);
        prop_assert_eq!(&whole, &cut);
    }

    /// The states are the fold of `decide` over what the reports say.
    #[test]
    fn states_are_the_fold_of_the_decisions(reports in prop::collection::vec(any_report(), 1..25)) {
        let mut memory = Memory::default();
        memory.batch(&reports, NOW);
        let sources = sources();
        let source = sources.by_id(1).unwrap();
        let mut folded: BTreeMap<String, Run> = BTreeMap::new();
        let mut found_at = None;
        for (report, number) in reports.iter().zip(1..) {
            let Reading::Said(observations) = report.read(&Skyvern, &source.config.settings) else {
                continue;
            };
            for observation in observations {
                let run_id = observation.run_id.as_str().to_owned();
                let run = folded.remove(&run_id);
                let kind = run.as_ref().and_then(|run| run.kind).or(observation.kind);
                let circumstances = Circumstances {
                    policy: &source.config.policy(kind),
                    now: NOW,
                    report: number,
                    seed: schedule::seed("sky", &run_id),
                    since: source.since,
                    found_at,
                };
                let decided = decide(run, &observation, &circumstances).run;
                let shown = matches!(observation.claim, Claim::Open(_) | Claim::Ended(_));
                if decided.is_some() && observation.via == Via::Poll && shown {
                    found_at = Some(NOW);
                }
                folded.extend(decided.map(|run| (run_id, run)));
            }
        }
        let processed: BTreeMap<String, Run> =
            memory.runs.into_iter().map(|(_, run_id, run)| (run_id, run)).collect();
        prop_assert_eq!(processed, folded);
    }

    /// Of webhooks that contradict each other the same one is believed, in whatever order they came.
    #[test]
    fn the_order_of_webhooks_does_not_decide_what_is_believed(
        words in Just(vec!["completed", "failed", "canceled"]).prop_shuffle(),
        cut in 0..4_usize,
    ) {
        let reports: Vec<Report> = words.iter().map(|word| signed("wr_1", word)).collect();
        let mut memory = Memory::default();
        let (first, second) = reports.split_at(cut.min(reports.len()));
        memory.batch(first, NOW);
        memory.batch(second, NOW);
        prop_assert_eq!(belief(memory.run("wr_1")).0.ending.outcome, Outcome::Failed);
        let completions = memory.records.iter().filter(|record| record.1.contains("settled.run.completion"));
        prop_assert_eq!(completions.count(), 1);
    }
}

// ── What a batch leads to ───────────────────────────────────────────────────────────────────────

#[test]
fn a_run_that_a_batch_names_often_is_changed_once() {
    let mut memory = Memory::default();
    let reports = [
        signed("wr_1", "running"),
        signed("wr_1", "completed"),
        signed("wr_1", "completed"),
        signed("wr_2", "failed"),
    ];
    let changes = memory.batch(&reports, NOW);
    let completions: Vec<_> = changes
        .runs
        .iter()
        .map(|change| (change.run_id.as_str(), change.completion))
        .collect();
    assert_eq!(completions, [("wr_1", Some(2)), ("wr_2", Some(3))]);
    assert_eq!(changes.records.len(), 3);
    assert_eq!(changes.processed_upto, Some(4));
    let effects: Vec<usize> = changes
        .processed
        .iter()
        .map(|processed| processed.effects.len())
        .collect();
    assert_eq!(effects, [1; 4]);
}

#[test]
fn a_damaged_run_takes_nothing_from_the_others() {
    let sources = sources();
    let context = Context {
        sources: &sources,
        now: NOW,
    };
    let reports = [
        (7, signed("wr_1", "completed")),
        (8, signed("wr_2", "completed")),
        (9, delivery(Verdict::BadSignature, status("wr_1", "failed"))),
    ];
    let damaged = StoredRun {
        source: 1,
        run_id: "wr_1".to_owned(),
        row: 3,
        state: Err("not JSON".to_owned()),
    };
    let state = StoredState {
        runs: vec![damaged],
        next_seq: 5,
        ..StoredState::default()
    };
    let changes = process(&reports, context, state, &BTreeMap::new());
    let aside: Vec<_> = changes
        .quarantined
        .iter()
        .map(|quarantine| quarantine.report)
        .collect();
    assert_eq!(aside, [7], "and a hint is not worth a quarantine");
    assert!(
        changes.quarantined[0]
            .why
            .contains("wr_1 cannot be read: not JSON")
    );
    assert_eq!(changes.runs.len(), 1);
    assert_eq!(changes.runs[0].run_id, id("wr_2"));
    assert_eq!(changes.records[0].seq, 5);
}

#[test]
fn a_report_of_no_configured_source_is_quarantined_and_one_that_says_nothing_is_noted() {
    let mut memory = Memory::default();
    let gone = Report {
        source: 9,
        ..signed("wr_1", "completed")
    };
    let changes = memory.batch(&[gone, delivery(Verdict::Signed, "no JSON")], NOW);
    assert_eq!(memory.quarantined[0].0, 1);
    assert_eq!(memory.notes[0].0, 2);
    assert!(changes.runs.is_empty() && changes.records.is_empty());
    assert_eq!(memory.upto, Some(2));
}

#[test]
fn an_answer_without_news_loses_its_body() {
    let mut memory = Memory::default();
    memory.batch(&[track("wr_1"), poll("wr_1", "running")], NOW);
    assert_eq!(memory.dropped, [0; 0]);
    memory.batch(&[poll("wr_1", "running")], NOW);
    assert_eq!(memory.dropped, [3]);
}

#[test]
fn a_count_of_runs_says_how_many_the_batch_had_made_known_before_it() {
    let row =
        |run: &str| serde_json::json!({"sessionId": run, "latestRunId": run, "status": "running"});
    let page = serde_json::json!({"sessions": [row("a"), row("b")]});
    let (answer, body) = http(page.to_string());
    let meta = SweepMeta {
        page: None,
        requested_at: NOW,
        answer,
    };
    let sweep = Report {
        source: 2,
        ..of_skyvern(Meta::Sweep(meta), body)
    };
    let mut memory = Memory::default();
    let changes = memory.batch(&[track("wr_1"), sweep], NOW);
    assert_eq!(changes.runs.len(), 3);
    assert_eq!(changes.counted, [], "this list has no counter");
    let mut deciding = Deciding {
        subjects: Vec::new(),
        decisions: Decisions {
            context: Context {
                sources: &sources(),
                now: NOW,
            },
            reports: &[],
            changes: ChangeSet::default(),
            waiting: Vec::new(),
        },
        spoken_of: Vec::new(),
        next_seq: 1,
        found_at: BTreeMap::new(),
        newly_known: BTreeMap::from([(2, 2)]),
    };
    deciding.count(2, Some(10));
    deciding.count(1, None);
    let counted = RunsCounted {
        source: 2,
        counted: 10,
        newly_known: 2,
    };
    assert_eq!(deciding.decisions.changes.counted, [counted]);
}

// ── Payloads of earlier reports ─────────────────────────────────────────────────────────────────

/// The second answer settles the run on what the first one said; `payload` is what is left of that.
fn settled_on_the_first_answer(payload: Option<StoredPayload>) -> ChangeSet {
    let mut memory = Memory::default();
    memory.batch(&[track("wr_1"), poll("wr_1", "completed")], NOW);
    assert!(
        memory.records.is_empty(),
        "one answer is held for the grace"
    );
    let (_, _, held) = memory.runs.remove(0);
    let stored = StoredRun {
        source: 1,
        run_id: "wr_1".to_owned(),
        row: 1,
        state: Ok(held),
    };
    let state = StoredState {
        runs: vec![stored],
        next_seq: 1,
        ..StoredState::default()
    };
    let sources = sources();
    let context = Context {
        sources: &sources,
        now: NOW.plus(Duration::from_secs(150)),
    };
    let fired = [(3, timer("wr_1"))];
    let decisions = read(&fired, context).decide(state);
    assert_eq!(decisions.wanted(), [2]);
    let payloads = payload.map(|payload| (2, payload));
    decisions.render(&payloads.into_iter().collect())
}

fn data(changes: &ChangeSet) -> serde_json::Value {
    serde_json::from_str(&changes.records[0].draft.data).unwrap()
}

#[test]
fn a_payload_that_stands_in_an_earlier_report_is_looked_up() {
    let body = StoredPayload::Whole(br#"{"a": 1}"#.to_vec());
    let changes = settled_on_the_first_answer(Some(body));
    assert_eq!(data(&changes)["payload"]["a"], 1);
    assert_eq!(changes.records[0].payload_report, None);
}

#[test]
fn a_payload_that_is_too_large_is_referred_to() {
    let changes = settled_on_the_first_answer(Some(StoredPayload::TooLarge));
    assert_eq!(data(&changes)["payload_ref"], "/v1/deliveries/2/body");
    assert_eq!(changes.records[0].payload_report, Some(2));
}

#[test]
fn a_payload_that_retention_has_removed_is_missing_and_never_another_s() {
    let changes = settled_on_the_first_answer(None);
    assert!(data(&changes)["payload"].is_null());
    assert!(data(&changes).get("payload_ref").is_none());
    assert_eq!(changes.records[0].payload_report, None);
}

#[test]
fn a_secret_in_a_payload_is_redacted() {
    let mut memory = Memory::default();
    let body = format!(
        r#"{{"run_id":"wr_1","status":"completed","failure_reason":"key {KEY}","echo":"{KEY}"}}"#
    );
    memory.batch(&[delivery(Verdict::Signed, body)], NOW);
    assert!(!memory.records[0].2.contains(KEY));
    assert_eq!(memory.data(1)["payload"]["echo"], "[secret]");
    let state = serde_json::to_string(memory.run("wr_1")).unwrap();
    assert!(!state.contains(KEY), "{state}");
}
