#!/usr/bin/env python3
"""Exactly-once effects with nothing but Python's standard library.

This program keeps the position itself, in the SQLite transaction of the effect: both happen or
neither does, whenever the process is killed.

    usage: consume.py SOCKET DATABASE
"""

import http.client
import json
import random
import socket
import sqlite3
import sys
import time

SOCKET, DATABASE = sys.argv[1:3]


class Feed(http.client.HTTPConnection):
    """HTTP over a Unix socket. The daemon sends a heartbeat every 15 s; a minute of silence is a loss."""

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(SOCKET)


def effect(db, event):
    """The effect of a completion. It may only change this database, or it is not exactly once."""
    data = event["data"]
    db.execute(
        "INSERT INTO results (id, run_id, outcome) VALUES (?, ?, ?)",
        (event["id"], data["run_id"], data["outcome"]),
    )


def follow(db):
    (cursor,) = db.execute("SELECT cursor FROM position").fetchone()
    feed = Feed("feed")
    feed.request("GET", f"/v1/events?follow=1&after={cursor}")
    answer = feed.getresponse()
    if answer.status in (409, 410):
        # 409: the daemon's database was restored. 410: this reader was away for longer than the
        # feed is kept. A person should know. To continue, put error.earliest into `position`; the
        # unique id of `results` tells which events are done.
        sys.exit(answer.read().decode())
    for line in answer if answer.status == 200 else ():
        if not line.endswith(b"\n"):
            return  # the connection broke in the middle of a line
        event = json.loads(line)
        with db:  # one transaction
            if event["type"].startswith("settled.run."):
                effect(db, event)
            if "cursor" in event:
                db.execute("UPDATE position SET cursor = ?", (event["cursor"],))


def main():
    db = sqlite3.connect(DATABASE)
    with db:
        db.execute("CREATE TABLE IF NOT EXISTS results (n INTEGER PRIMARY KEY, id TEXT UNIQUE, run_id TEXT, outcome TEXT)")
        db.execute("CREATE TABLE IF NOT EXISTS position (one INTEGER PRIMARY KEY CHECK (one = 1), cursor TEXT)")
        db.execute("INSERT OR IGNORE INTO position VALUES (1, 'earliest')")
    while True:
        try:
            follow(db)
        except (OSError, http.client.HTTPException, ValueError) as error:
            print(f"trying again: {error}", file=sys.stderr)
        time.sleep(0.5 + random.random())


main()
