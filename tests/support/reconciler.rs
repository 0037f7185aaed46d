//! A ledger in a folder of its own, and the reports that go into it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;
use settled::config::SourceConfig;
use settled::config::Sources;
use settled::ledger::changes::Processed;
use settled::ledger::{
    FeedBounds, Filter, Reader, RecordQuery, RunRow, StoredRecord, TimelineRow, UnverifiedLimits,
    Writer,
};
use settled::model::record::Cursor;
use settled::model::{At, Kind, RunId, RunKey, SourceName};
use settled::providers::skyvern::Skyvern;
use settled::providers::{ApiResponse, Provider, Response, Verdict};
use settled::reconciler::{self, Reconciler};
use settled::report::{Meta, PollMeta, Report, ResponseMeta, TrackMeta, WebhookMeta};
use settled::secret::{Key, Secret, SecretLabel};
use tempfile::TempDir;

pub const API_KEY: &str = "sk-0123456789abcdef";
pub const START: At = At(1_700_000_000_000);
pub const ROOMY: UnverifiedLimits = UnverifiedLimits {
    rows_max: 1_000,
    bytes_max: 1 << 20,
};

/// A ledger with a reconciler over it.
pub struct Ledger {
    pub folder: TempDir,
    pub reader: Reader,
    pub reconciler: Reconciler,
    pub now: At,
}

/// A ledger whose reconciler is gone: the test writes.
pub struct Bare {
    pub folder: TempDir,
    pub reader: Reader,
    pub writer: Writer,
}

impl Bare {
    /// A second connection, that asks SQLite for whatever it likes.
    pub fn sql(&self) -> Connection {
        Connection::open(self.folder.path().join("settled.db")).unwrap()
    }

    pub fn count(&self, sql: &str) -> i64 {
        self.sql().query_row(sql, [], |row| row.get(0)).unwrap()
    }
}

/// A source of the name, that asks with [`API_KEY`].
pub fn source(name: &str, provider: &'static dyn Provider) -> SourceConfig {
    let key = Key {
        label: SecretLabel("api_key".to_owned()),
        secret: Secret::new(API_KEY),
    };
    SourceConfig::new(SourceName::new(name).unwrap(), provider).with_keys(Some(key), [])
}

/// The rows and the reconciler's view of these sources.
pub fn register(writer: &mut Writer, sources: impl IntoIterator<Item = SourceConfig>) -> Sources {
    let sources = sources
        .into_iter()
        .map(|source| (source.name.clone(), Arc::new(source)));
    reconciler::register(writer, &sources.collect::<BTreeMap<_, _>>(), START).unwrap()
}

impl Ledger {
    /// One Skyvern account named `sky`, source row 1.
    pub fn new() -> Ledger {
        Ledger::of([source("sky", &Skyvern)], ROOMY)
    }

    /// These sources, in rows by the order of their names.
    pub fn of(
        sources: impl IntoIterator<Item = SourceConfig>,
        unverified: UnverifiedLimits,
    ) -> Ledger {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(&folder.path().join("settled.db"), START).unwrap();
        let sources = register(&mut writer, sources);
        let reader = writer.reader();
        let mut reconciler = Reconciler::new(writer, sources, unverified);
        assert_eq!(reconciler.recover(START, |_| ()).unwrap(), 0);
        Ledger {
            folder,
            reader,
            reconciler,
            now: START,
        }
    }

    pub fn bare(self) -> Bare {
        let (
            path,
            Ledger {
                folder,
                reader,
                reconciler,
                ..
            },
        ) = (self.path(), self);
        drop(reconciler);
        Bare {
            folder,
            reader,
            writer: Writer::open(&path, START).unwrap(),
        }
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("settled.db")
    }

    /// A second connection, that asks SQLite for whatever it likes.
    pub fn sql(&self) -> Connection {
        Connection::open(self.path()).unwrap()
    }

    pub fn count(&self, sql: &str) -> i64 {
        self.sql().query_row(sql, [], |row| row.get(0)).unwrap()
    }

    /// Hears one report, a second after the one before.
    pub fn hears(&mut self, report: Report) -> Processed {
        self.now = self.now.plus(Duration::from_secs(1));
        let report = Report {
            at: self.now,
            ..report
        };
        self.reconciler
            .step(vec![report], self.now)
            .unwrap()
            .remove(0)
    }

    /// Every record there is.
    pub fn feed(&self) -> Vec<StoredRecord> {
        self.filtered(&Filter {
            types: Vec::new(),
            ..Filter::default()
        })
    }

    pub fn filtered(&self, filter: &Filter) -> Vec<StoredRecord> {
        self.reader
            .read(|view| {
                Ok(view
                    .records(&RecordQuery {
                        after: 0,
                        upto: i64::MAX,
                        filter,
                        rows_max: 1_000,
                        scan_max: i64::MAX,
                    })?
                    .0)
            })
            .unwrap()
    }

    pub fn run(&self, run_id: &str) -> Option<RunRow> {
        let key = RunKey {
            source: SourceName::new("sky").unwrap(),
            run_id: RunId::new(run_id).unwrap(),
        };
        self.reader.read(|view| view.run(&key)).unwrap()
    }

    pub fn timeline(&self, run_id: &str) -> Vec<TimelineRow> {
        let row = self.run(run_id).unwrap().row;
        self.reader.read(|view| view.timeline(row)).unwrap()
    }

    /// How many reports are quarantined.
    #[expect(
        clippy::redundant_closure_for_method_calls,
        reason = "the method alone is not general enough"
    )]
    pub fn quarantined(&self) -> i64 {
        self.reader.read(|view| view.quarantined_count()).unwrap()
    }

    pub fn cursor(&self, seq: i64) -> Cursor {
        self.reader.read(|view| Ok(view.cursor(seq))).unwrap()
    }
}

/// Where the feed begins and ends.
#[expect(
    clippy::redundant_closure_for_method_calls,
    reason = "the method alone is not general enough"
)]
pub fn bounds(reader: &Reader) -> FeedBounds {
    reader.read(|view| view.bounds()).unwrap()
}

/// The line of a record, as JSON.
pub fn json(record: &StoredRecord) -> serde_json::Value {
    serde_json::from_str(&record.line).unwrap_or_else(|error| panic!("{error}: {}", record.line))
}

/// A delivery of the first source.
pub fn delivery(verdict: Verdict, body: impl Into<Vec<u8>>) -> Report {
    let meta = WebhookMeta {
        headers: vec![("content-type".to_owned(), "application/json".to_owned())],
        path_token: None,
        verdict,
        secret: None,
        truncated: false,
        peer: None,
    };
    Report {
        source: 1,
        at: START,
        meta: Meta::Webhook(meta),
        body: body.into(),
    }
}

/// What Skyvern tells of a run.
pub fn state(run_id: &str, status: &str) -> String {
    format!(
        r#"{{"run_id": "{run_id}", "status": "{status}", "workflow_permanent_id": "wpid_{run_id}"}}"#
    )
}

pub fn signed(run_id: &str, status: &str) -> Report {
    delivery(Verdict::Signed, state(run_id, status))
}

pub fn forged(run_id: &str, status: &str) -> Report {
    delivery(Verdict::BadSignature, state(run_id, status))
}

/// An answer to a question about a run.
pub fn answer(run_id: &str, requested_at: At, body: &str) -> Report {
    let response = Response {
        status: 200,
        body: body.into(),
        ..Response::default()
    };
    let (answer, body) = ResponseMeta::split("/v1/runs/x".to_owned(), ApiResponse::Http(response));
    let run_id = RunId::new(run_id).unwrap();
    let meta = PollMeta {
        run_id,
        kind: Kind::Workflow,
        guessed: false,
        group_id: None,
        requested_at,
        answers: vec![answer],
    };
    Report {
        source: 1,
        at: START,
        meta: Meta::Poll(meta),
        body,
    }
}

pub fn track(run_id: &str) -> Report {
    let run_id = RunId::new(run_id).unwrap();
    let meta = TrackMeta {
        run_id,
        kind: Some(Kind::Workflow),
        group_id: None,
        metadata: None,
    };
    Report {
        source: 1,
        at: START,
        meta: Meta::Track(meta),
        body: Vec::new(),
    }
}
