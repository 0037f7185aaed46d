//! Exactly-once effects in Rust: the program keeps the position in the SQLite transaction of the effect.
//!
//! `cargo run --example consume -- SOCKET DATABASE`
//!
//! HTTP takes four lines over the standard library's sockets: the daemon answers an HTTP/1.0 request
//! without chunks, so the lines of the feed follow the response's headers.

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rusqlite::{Connection, Transaction};
use serde_json::Value;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(socket), Some(database)) = (arguments.next(), arguments.next()) else {
        return Err("usage: consume SOCKET DATABASE".into());
    };
    let mut db = Connection::open(database)?;
    db.busy_timeout(Duration::from_secs(10))?;
    db.execute_batch(
        "CREATE TABLE IF NOT EXISTS results (n INTEGER PRIMARY KEY, id TEXT UNIQUE, run_id TEXT, outcome TEXT);
         CREATE TABLE IF NOT EXISTS position (one INTEGER PRIMARY KEY CHECK (one = 1), cursor TEXT);
         INSERT OR IGNORE INTO position VALUES (1, 'earliest');",
    )?;
    loop {
        if let Err(error) = follow(&socket, &mut db) {
            eprintln!("trying again: {error}");
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Reads the feed from the position in the database, until the stream ends.
fn follow(socket: &str, db: &mut Connection) -> Result<(), Box<dyn Error>> {
    let cursor: String = db.query_row("SELECT cursor FROM position", [], |row| row.get(0))?;
    let mut stream = UnixStream::connect(socket)?;
    // The daemon sends a heartbeat every 15 s; a minute of silence is a loss.
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    write!(
        stream,
        "GET /v1/events?follow=1&after={cursor} HTTP/1.0\r\n\r\n"
    )?;
    let mut lines = BufReader::new(stream);
    let mut line = String::new();
    lines.read_line(&mut line)?;
    let good = line.contains(" 200 ");
    while line.trim_end() != "" {
        line.clear();
        lines.read_line(&mut line)?;
    }
    loop {
        line.clear();
        lines.read_line(&mut line)?;
        if !good {
            // 409: the daemon's database was restored. 410: this reader was away for longer than
            // the feed is kept. The text says where to continue; a person should know.
            return Err(line.into());
        }
        if !line.ends_with('\n') {
            return Ok(()); // the stream ended, perhaps in the middle of a line
        }
        let event: Value = serde_json::from_str(&line)?;
        let tx = db.transaction()?;
        if event["type"]
            .as_str()
            .is_some_and(|kind| kind.starts_with("settled.run."))
        {
            effect(&tx, &event)?;
        }
        if let Some(cursor) = event["cursor"].as_str() {
            tx.execute("UPDATE position SET cursor = ?1", [cursor])?;
        }
        tx.commit()?;
    }
}

/// The effect of a completion. It may only change this database, or it is not exactly once.
fn effect(tx: &Transaction<'_>, event: &Value) -> rusqlite::Result<()> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    tx.execute(
        "INSERT INTO results (id, run_id, outcome) VALUES (?1, ?2, ?3)",
        [
            text(&event["id"]),
            text(&event["data"]["run_id"]),
            text(&event["data"]["outcome"]),
        ],
    )?;
    Ok(())
}
