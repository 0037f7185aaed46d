-- The ledger of settled, schema version 1. src/ledger/sqlite/file.rs applies it to an empty file. This
-- version is final: src/ledger/migrations/README.md says how a later one changes a stored format. The
-- JSON in `runs.state` and `reports.meta` is described in docs/formats.md.
-- Times are milliseconds since 1970, UTC.

-- One row: the identity of this file, the last numbers given, and how far the reports are processed.
CREATE TABLE meta (
    id         INTEGER PRIMARY KEY CHECK (id = 1),
    epoch      TEXT    NOT NULL,              -- first half of every cursor; new after a restore
    identity   TEXT    NOT NULL,              -- the file that the epoch belongs to (inode and birth)
    created_at INTEGER NOT NULL,
    reported   INTEGER NOT NULL DEFAULT 0,    -- id of the last report stored; never given twice
    processed  INTEGER NOT NULL DEFAULT 0,    -- every report up to this id is processed or quarantined
    recorded   INTEGER NOT NULL DEFAULT 0,    -- seq of the last record appended; never given twice
    trimmed    INTEGER NOT NULL DEFAULT 0,    -- retention has removed records up to this seq
    generation INTEGER NOT NULL DEFAULT 0,    -- last generation of a consumer's reader; never given twice
    fed_bytes  INTEGER NOT NULL DEFAULT 0     -- size of all records, for retention by size
) STRICT;

-- One row per source that is or ever was configured.
CREATE TABLE sources (
    id            INTEGER PRIMARY KEY,
    name          TEXT    NOT NULL UNIQUE,
    provider      TEXT    NOT NULL,
    since         INTEGER NOT NULL,           -- first configured; a run that was over before is history
    webhook_at    INTEGER,                    -- last authentic delivery
    unverified_at INTEGER,                    -- last delivery that could not be verified
    found_at      INTEGER,                    -- last status answer that showed any of its runs
    answer_at     INTEGER,                    -- last answer to a poll
    known         INTEGER NOT NULL DEFAULT 0, -- how many runs are known
    open          INTEGER NOT NULL DEFAULT 0, -- … of which open
    overdue       INTEGER NOT NULL DEFAULT 0, -- … of which past their deadline
    counted       INTEGER,                    -- runs the provider's own counter last showed
    counted_known INTEGER,                    -- runs we knew of then
    unaccounted   INTEGER NOT NULL DEFAULT 0  -- rises of that counter without a run that became known
) STRICT;

-- When each configured secret last verified a delivery: shows which old secret can be removed.
CREATE TABLE secret_uses (
    source  INTEGER NOT NULL REFERENCES sources (id),
    label   TEXT    NOT NULL,
    last_at INTEGER NOT NULL,
    uses    INTEGER NOT NULL,
    PRIMARY KEY (source, label)
) STRICT, WITHOUT ROWID;

-- Every input, as it came. A report is stored before anything parses it.
CREATE TABLE reports (
    id       INTEGER PRIMARY KEY,             -- meta.reported
    source   INTEGER NOT NULL REFERENCES sources (id),
    via      TEXT    NOT NULL,                -- webhook, poll, sweep, replay, clock, operator
    at       INTEGER NOT NULL,
    verdict  TEXT,                            -- of a webhook: the result of its verification
    secret   TEXT,                            -- of a webhook: the label of the secret that matched
    unverified INTEGER,                       -- 1: kept in the bounded buffer of unverified deliveries
    meta     TEXT    NOT NULL,                -- JSON: everything about the report but its body
    body     BLOB    NOT NULL,                -- raw bytes
    note     TEXT,                            -- why the provider could not read it
    attempts INTEGER NOT NULL DEFAULT 0       -- attempts to process it, each counted before it is made
) STRICT;
CREATE INDEX reports_unverified ON reports (source, id) WHERE unverified = 1;

-- Reports that are not processed again: three attempts failed, or a damaged row is in the way. They
-- hold up no other report, and an operator can look at them.
CREATE TABLE quarantined_reports (
    report INTEGER PRIMARY KEY REFERENCES reports (id) ON DELETE CASCADE,
    at     INTEGER NOT NULL,
    why    TEXT    NOT NULL
) STRICT;

-- One row per known run. Never deleted, so that a late duplicate finds its run settled. `state` is
-- everything that the decision needs; the other columns repeat what queries search for.
CREATE TABLE runs (
    id               INTEGER PRIMARY KEY,
    source           INTEGER NOT NULL REFERENCES sources (id),
    run_id           TEXT    NOT NULL,
    phase            TEXT    NOT NULL CHECK (phase IN ('open', 'settled')),
    overdue          INTEGER NOT NULL,
    opened_at        INTEGER NOT NULL,
    outcome          TEXT,
    origin           TEXT,
    settled_at       INTEGER,
    first_webhook_at INTEGER,
    poll_at          INTEGER,                 -- poll it from then on, in the source's poll window
    poll_urgent_at   INTEGER,                 -- poll it then, in or outside of that window
    wake_at          INTEGER,                 -- when the next of its deadlines passes; NULL: settled
    completion       INTEGER,                 -- seq of its completion
    state            TEXT    NOT NULL,
    UNIQUE (source, run_id),
    CHECK ((phase = 'settled') = (completion IS NOT NULL)),
    CHECK (poll_at IS NULL OR poll_urgent_at IS NULL)
) STRICT;
CREATE INDEX runs_poll ON runs (source, poll_at) WHERE poll_at IS NOT NULL;
CREATE INDEX runs_urgent ON runs (source, poll_urgent_at) WHERE poll_urgent_at IS NOT NULL;
-- Exactly the open runs. The source is in it, so that a query need not read the rows for it.
CREATE INDEX runs_wake ON runs (wake_at, source) WHERE wake_at IS NOT NULL;

-- Settled runs whose webhook never came.
CREATE INDEX runs_without_webhook ON runs (source) WHERE settled_at IS NOT NULL AND first_webhook_at IS NULL;

-- Invariants 2 and 5, also after retention has removed the record: a settled run stays settled, by the
-- same completion.
CREATE TRIGGER a_completion_is_for_ever
BEFORE UPDATE ON runs
WHEN OLD.completion IS NOT NULL AND NEW.completion IS NOT OLD.completion
BEGIN
    SELECT RAISE(ABORT, 'a settled run has one completion, for ever');
END;

-- How many runs settled in each minute, and how many of their webhooks were lost or late: a loss rate
-- is a sum of few rows. Retention removes minutes that no rate covers.
CREATE TABLE settlements (
    source      INTEGER NOT NULL REFERENCES sources (id),
    minute      INTEGER NOT NULL,             -- since 1970
    completions INTEGER NOT NULL,
    synthesized INTEGER NOT NULL,             -- … before or without their webhook
    late        INTEGER NOT NULL,             -- … and the webhook came afterwards
    PRIMARY KEY (source, minute)
) STRICT, WITHOUT ROWID;

-- What each report claimed about each run, and what that did: the timelines.
CREATE TABLE timeline (
    run    INTEGER NOT NULL REFERENCES runs (id),
    report INTEGER NOT NULL,
    at     INTEGER NOT NULL,
    via    TEXT    NOT NULL,
    trust  TEXT    NOT NULL,
    claim  TEXT    NOT NULL,                  -- one word: open, ended, missing, …
    status TEXT,                              -- the provider's status word
    effect TEXT    NOT NULL,
    seq    INTEGER,                           -- the record it caused
    PRIMARY KEY (run, report)
) STRICT, WITHOUT ROWID;
CREATE INDEX timeline_report ON timeline (report);

-- The feed. Rows never change; retention removes the oldest.
CREATE TABLE records (
    seq      INTEGER PRIMARY KEY,             -- meta.recorded
    run      INTEGER NOT NULL REFERENCES runs (id),
    type     TEXT    NOT NULL,
    at       INTEGER NOT NULL,
    source   INTEGER NOT NULL,
    group_id TEXT,
    outcome  TEXT,
    origin   TEXT,
    payload_report INTEGER,                   -- the report whose body `data` refers to, if it does
    envelope TEXT    NOT NULL,                -- the line up to where the cursor is inserted
    data     TEXT    NOT NULL                 -- the JSON object that follows the cursor
) STRICT;
CREATE UNIQUE INDEX one_completion_per_run ON records (run) WHERE type = 'settled.run.completion';

-- Retention asks whether a record refers to a report.
CREATE INDEX records_payload ON records (payload_report) WHERE payload_report IS NOT NULL;

-- Named readers, whose position settled keeps.
CREATE TABLE consumers (
    name       TEXT    PRIMARY KEY,
    acked      INTEGER NOT NULL,              -- every record up to this seq is done
    filter     TEXT    NOT NULL,              -- JSON, fixed for life
    window     INTEGER NOT NULL,              -- records that may be out unacknowledged; 0: any number
    generation INTEGER NOT NULL,              -- of the last reader, seek or creation; readers with an older one are refused
    created_at INTEGER NOT NULL,
    seen_at    INTEGER NOT NULL               -- when it was last opened, acknowledged or moved
) STRICT, WITHOUT ROWID;

-- Events that a consumer has put aside for now. Its position has passed them, so a copy is kept here
-- that retention does not take.
CREATE TABLE parked (
    consumer TEXT    NOT NULL REFERENCES consumers (name) ON DELETE CASCADE,
    seq      INTEGER NOT NULL,
    type     TEXT    NOT NULL,
    envelope TEXT    NOT NULL,
    data     TEXT    NOT NULL,
    attempts INTEGER NOT NULL,
    error    TEXT    NOT NULL,
    at       INTEGER NOT NULL,                -- of the last attempt
    retry    INTEGER NOT NULL,                -- 1: to be tried again
    PRIMARY KEY (consumer, seq)
) STRICT, WITHOUT ROWID;
