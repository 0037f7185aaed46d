//! Old records stay readable: for every version of the ledger's schema there ever was, records as
//! that version wrote them are put into a ledger of it, opened by this program, and must come out
//! byte for byte, valid by today's schema, with the consumer's position where it was.
//!
//! `versions/N.ndjson` are lines of the feed as version N served them. When version N + 1 is made,
//! `versions/N.sql` has to become a copy of the `schema.sql` of N; this test asks for it.

use std::fs;

use rusqlite::Connection;
use settled::ledger::SCHEMA_VERSION;

use crate::schema::Schema;
use crate::support::home::{Home, Lines};

fn folder(file: &str) -> String {
    format!("{}/tests/api/versions/{file}", env!("CARGO_MANIFEST_DIR"))
}

/// An empty ledger of this version.
fn ledger(home: &Home, version: i64) -> Connection {
    if version == SCHEMA_VERSION {
        home.serve().stop();
        return Connection::open(home.path("settled.db")).unwrap();
    }
    let sql = fs::read_to_string(folder(&format!("{version}.sql")));
    let sql = sql.unwrap_or_else(|error| {
        panic!("versions/{version}.sql, the schema of that version: {error}")
    });
    let db = Connection::open(home.path("settled.db")).unwrap();
    db.execute_batch(&sql).unwrap();
    db.execute(
        "INSERT INTO meta (id, epoch, identity, created_at) VALUES (1, 'old', '', 0)",
        [],
    )
    .unwrap();
    db.pragma_update(None, "user_version", version).unwrap();
    db.pragma_update(None, "application_id", 0x5e77_1ed0_i64)
        .unwrap();
    db
}

#[test]
fn records_of_every_version_are_served_as_they_were() {
    let schema = Schema::load();
    for version in 1..=SCHEMA_VERSION {
        let golden =
            fs::read_to_string(folder(&format!("{version}.ndjson"))).unwrap_or_else(|error| {
                panic!("versions/{version}.ndjson, records of that version: {error}")
            });
        let home = Home::new();
        let db = ledger(&home, version);
        // Records outlive what is known of their runs, so none are needed.
        db.pragma_update(None, "foreign_keys", false).unwrap();
        db.execute("INSERT OR IGNORE INTO sources (id, name, provider, since) VALUES (1, 'sky', 'skyvern', 0)", [])
            .unwrap();
        for (seq, line) in (1_i64..).zip(golden.lines()) {
            let (envelope, rest) = line.split_once(",\"cursor\":\"").unwrap();
            let (_, data) = rest.split_once("\",\"data\":").unwrap();
            let kind = serde_json::from_str::<serde_json::Value>(line).unwrap()["type"]
                .as_str()
                .unwrap()
                .to_owned();
            db.execute(
                "INSERT INTO records (seq, run, type, at, source, envelope, data) VALUES (?1, ?1, ?2, 1, 1, ?3, ?4)",
                (seq, kind, format!("{envelope}}}"), data.strip_suffix('}').unwrap()),
            )
            .unwrap();
        }
        db.execute(
            "UPDATE meta SET recorded = (SELECT max(seq) FROM records)",
            [],
        )
        .unwrap();
        db.execute(
            "INSERT INTO consumers (name, acked, filter, window, generation, created_at, seen_at)
             VALUES ('old', 1, '{\"types\":[\"settled.run.completion\",\"settled.run.amendment\",\"settled.run.status\"]}', 10, 1, 1, 1)",
            [],
        )
        .unwrap();
        drop(db);

        // They are older than anything is kept for; the consumer that has not had them holds them.
        let _daemon = home.serve();
        let mut lines = Lines::open(&home.feed(), "/v1/consumers/old/events").unwrap();
        lines.until("settled.feed.hello");
        let mut count = 0;
        for (seq, old) in (1..).zip(golden.lines()).skip(1) {
            let new = lines.raw().unwrap();
            let value = serde_json::from_str(&new).unwrap();
            schema
                .check(&value)
                .unwrap_or_else(|wrong| panic!("version {version}, line {seq}: {wrong}\nin {new}"));
            let cursor = |line: &str| {
                line.split_once(",\"cursor\":\"")
                    .unwrap()
                    .1
                    .split_once('"')
                    .unwrap()
                    .0
                    .to_owned()
            };
            assert_eq!(
                new.trim_end().replace(&cursor(&new), &cursor(old)),
                old,
                "version {version}"
            );
            assert!(cursor(&new).ends_with(&format!(".{seq}")));
            count += 1;
        }
        assert!(
            count >= 3,
            "one line of each type at the least, and the first that was acknowledged"
        );
    }
}
