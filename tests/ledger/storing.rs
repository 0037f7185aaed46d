//! The way to the writer: whoever is told that something is written can rely on it, and nobody is
//! told so of what is not.

use std::sync::Arc;

use settled::ledger::Filter;
use settled::ledger::commands::CreateConsumer;
use settled::reconciler::{Handle, Refusal, channel};

use crate::support::reconciler::{Ledger, START, signed};

/// Every commit fails from now on, as late as it can: everything was written, and the end refuses.
const NO_COMMIT: &str = "
    CREATE TABLE nowhere (report INTEGER REFERENCES reports (id) DEFERRABLE INITIALLY DEFERRED);
    CREATE TRIGGER no_report AFTER INSERT ON reports BEGIN INSERT INTO nowhere VALUES (-1); END;
    CREATE TRIGGER no_consumer AFTER INSERT ON consumers BEGIN INSERT INTO nowhere VALUES (-1); END;";
const COMMIT_AGAIN: &str = "DROP TRIGGER no_report; DROP TRIGGER no_consumer; DROP TABLE nowhere;";

async fn make_consumer(handle: &Handle) -> Result<bool, Refusal> {
    let create = CreateConsumer {
        name: "c".to_owned(),
        acked: 0,
        filter: Filter::default(),
        window: 1,
        now: START,
    };
    Ok(handle.execute(create).await?.new)
}

#[test]
fn a_commit_that_fails_is_acknowledged_to_nobody() {
    let ledger = Ledger::new();
    let (sql, reader) = (ledger.sql(), ledger.reader.clone());
    let Ledger {
        folder, reconciler, ..
    } = ledger;
    let (handle, serve) = channel(reconciler, Arc::new(|| START), 0);
    let writer = std::thread::spawn(serve);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let count = |table: &str| -> i64 {
        sql.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| {
            row.get(0)
        })
        .unwrap()
    };
    runtime.block_on(async {
        sql.execute_batch(NO_COMMIT).unwrap();
        let stored = handle.store(signed("wr_1", "completed")).await;
        assert!(matches!(stored, Err(Refusal::Store(_))), "{stored:?}");
        let processed = handle.process(signed("wr_2", "completed")).await;
        assert!(matches!(processed, Err(Refusal::Store(_))), "{processed:?}");
        let written = make_consumer(&handle).await;
        assert!(matches!(written, Err(Refusal::Store(_))), "{written:?}");
        assert_eq!(
            (
                count("reports"),
                count("consumers"),
                *handle.head().borrow()
            ),
            (0, 0, 0)
        );

        sql.execute_batch(COMMIT_AGAIN).unwrap();
        let id = handle.store(signed("wr_1", "completed")).await.unwrap();
        assert!(
            reader.read(|view| view.body(id)).unwrap().is_some(),
            "it is there as soon as it is promised"
        );
        assert!(make_consumer(&handle).await.unwrap());
        assert_eq!(count("consumers"), 1);
        handle.process(signed("wr_2", "completed")).await.unwrap();
        assert_eq!((count("records"), *handle.head().borrow()), (2, 2));
    });
    drop(handle);
    writer.join().unwrap();
    drop(folder);
}
