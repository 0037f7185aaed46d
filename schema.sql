-- The ledger of settled, version 1. Applied by src/ledger/mod.rs to an empty file; changes go into
-- src/ledger/migrations, one numbered step each. Times are milliseconds since 1970, UTC.

-- One row: what this file is, the last numbers given, and how far its reports are processed.
CREATE TABLE meta (
    id         INTEGER PRIMARY KEY CHECK (id = 1),
    epoch      TEXT    NOT NULL,              -- first half of every cursor; new after a restore
    identity   TEXT    NOT NULL,              -- the file this epoch belongs to (inode and birth)
    created_at INTEGER NOT NULL,
    reported   INTEGER NOT NULL DEFAULT 0,    -- id of the last report there ever was; never used twice
    processed   INTEGER NOT NULL DEFAULT 0,    -- every report up to this id has been processed or set aside
    recorded   INTEGER NOT NULL DEFAULT 0,    -- seq of the last record there ever was; never used twice
    trimmed    INTEGER NOT NULL DEFAULT 0,    -- retention has removed records up to this seq
    generation INTEGER NOT NULL DEFAULT 0,    -- last number given to a reader of a consumer; never used twice
    fed_bytes  INTEGER NOT NULL DEFAULT 0     -- size of all records, for the cap of their retention
) STRICT;

CREATE TABLE sources (
    id            INTEGER PRIMARY KEY,
    name          TEXT    NOT NULL UNIQUE,
    provider      TEXT    NOT NULL,
    since         INTEGER NOT NULL,           -- first configured; runs that were over before are history
    webhook_at    INTEGER,                    -- last authentic delivery
    unverified_at INTEGER,                    -- last one that was not
    found_at      INTEGER,                    -- last status answer that showed any of its runs
    answer_at     INTEGER,                    -- last answer to a question of ours
    known         INTEGER NOT NULL DEFAULT 0, -- runs there are
    open          INTEGER NOT NULL DEFAULT 0, -- … of which open
    overdue       INTEGER NOT NULL DEFAULT 0, -- … of which past their deadline
    counted       INTEGER,                    -- runs the provider's own counter last showed
    counted_known INTEGER,                    -- runs we knew of then
    unaccounted   INTEGER NOT NULL DEFAULT 0  -- rises of that counter that no known run explains
) STRICT;

-- When each configured secret last verified a delivery: shows which old one can go.
CREATE TABLE secret_uses (
    source  INTEGER NOT NULL REFERENCES sources (id),
    label   TEXT    NOT NULL,
    last_at INTEGER NOT NULL,
    uses    INTEGER NOT NULL,
    PRIMARY KEY (source, label)
) STRICT, WITHOUT ROWID;

-- Whatever reached us, as it came. Written before anything is parsed.
CREATE TABLE reports (
    id       INTEGER PRIMARY KEY,             -- meta.reported
    source   INTEGER NOT NULL REFERENCES sources (id),
    via      TEXT    NOT NULL,                -- webhook, poll, sweep, replay, clock, operator
    at       INTEGER NOT NULL,
    verdict  TEXT,                            -- of a webhook: what verification found
    secret   TEXT,                            -- of a webhook: the label of the secret that matched
    unverified INTEGER,                         -- 1: unverified, lives in the bounded ring
    meta     TEXT    NOT NULL,                -- JSON: headers, statuses, what was asked
    body     BLOB    NOT NULL,                -- raw bytes
    note     TEXT,                            -- why it could not be read
    attempts INTEGER NOT NULL DEFAULT 0       -- digestions that did not come back
) STRICT;
CREATE INDEX reports_unverified ON reports (source, id) WHERE unverified = 1;

-- Reports that could not be processed in three attempts. They block nobody and can be looked at.
CREATE TABLE quarantined_reports (
    report INTEGER PRIMARY KEY REFERENCES reports (id) ON DELETE CASCADE,
    at     INTEGER NOT NULL,
    why    TEXT    NOT NULL
) STRICT;

-- One row per run we know or ever knew; never deleted, so that a late duplicate finds it.
-- `state` is everything the decision needs; the other columns repeat what is searched for.
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
    poll_at           INTEGER,                 -- when to ask, once the source's gate opens
    poll_urgent_at        INTEGER,                 -- when to ask, gate or no gate
    wake_at          INTEGER,                 -- when our own clock has something to say
    completion       INTEGER,                 -- seq of its completion
    state            TEXT    NOT NULL,
    UNIQUE (source, run_id),
    CHECK ((phase = 'settled') = (completion IS NOT NULL)),
    CHECK (poll_at IS NULL OR poll_urgent_at IS NULL)
) STRICT;
CREATE INDEX runs_ask ON runs (source, poll_at) WHERE poll_at IS NOT NULL;
CREATE INDEX runs_urgent ON runs (source, poll_urgent_at) WHERE poll_urgent_at IS NOT NULL;
-- Exactly the open runs. Source is in it to be told apart without reading the runs.
CREATE INDEX runs_wake ON runs (wake_at, source) WHERE wake_at IS NOT NULL;

-- Settled runs whose webhook never came: few, and asked for on demand.
CREATE INDEX runs_missing ON runs (source) WHERE settled_at IS NOT NULL AND first_webhook_at IS NULL;

-- Invariants 2 and 5 survive even the retention of records: what has settled stays settled, by
-- the same completion.
CREATE TRIGGER a_completion_is_for_ever
BEFORE UPDATE ON runs
WHEN OLD.completion IS NOT NULL AND NEW.completion IS NOT OLD.completion
BEGIN
    SELECT RAISE(ABORT, 'a settled run has one completion, for ever');
END;

-- How many runs settled in each minute, and how many of their webhooks were lost or late: loss
-- rates without a look at every run. Kept as long as anybody asks.
CREATE TABLE settlements (
    source      INTEGER NOT NULL REFERENCES sources (id),
    minute      INTEGER NOT NULL,             -- since 1970
    completions INTEGER NOT NULL,
    synthesized INTEGER NOT NULL,             -- … without a webhook
    late        INTEGER NOT NULL,             -- … of which the webhook came afterwards
    PRIMARY KEY (source, minute)
) STRICT, WITHOUT ROWID;

-- What each report did to each run it spoke of: the timeline.
CREATE TABLE timeline (
    run    INTEGER NOT NULL REFERENCES runs (id),
    report INTEGER NOT NULL,
    at     INTEGER NOT NULL,
    via    TEXT    NOT NULL,
    trust  TEXT    NOT NULL,
    claim  TEXT    NOT NULL,                  -- one word: open, ended, missing, …
    status TEXT,                              -- the provider's word
    effect TEXT    NOT NULL,
    seq    INTEGER,                           -- the record it caused
    PRIMARY KEY (run, report)
) STRICT, WITHOUT ROWID;
CREATE INDEX timeline_report ON timeline (report);

-- The feed. Rows never change.
CREATE TABLE records (
    seq      INTEGER PRIMARY KEY,             -- meta.recorded
    run      INTEGER NOT NULL REFERENCES runs (id),
    type     TEXT    NOT NULL,
    at       INTEGER NOT NULL,
    source   INTEGER NOT NULL,
    group_id TEXT,
    outcome  TEXT,
    origin   TEXT,
    envelope TEXT    NOT NULL,                -- the line up to where the cursor goes
    data     TEXT    NOT NULL
) STRICT;
CREATE UNIQUE INDEX one_completion_per_run ON records (run) WHERE type = 'settled.run.completion';

-- Named readers whose position we keep.
CREATE TABLE consumers (
    name       TEXT    PRIMARY KEY,
    acked      INTEGER NOT NULL,              -- everything up to here is done
    filter     TEXT    NOT NULL,              -- JSON, fixed for life
    window     INTEGER NOT NULL,              -- records that may be out unacknowledged; 0: any number
    generation INTEGER NOT NULL,              -- of the last reader, seek or creation: it fences the ones before
    created_at INTEGER NOT NULL,
    seen_at    INTEGER NOT NULL               -- when it was last opened, acknowledged or moved
) STRICT, WITHOUT ROWID;

-- Events a consumer gave up on for now. Its position has passed them, so they are kept here whole:
-- retention of records must not take them.
CREATE TABLE parked (
    consumer TEXT    NOT NULL REFERENCES consumers (name) ON DELETE CASCADE,
    seq      INTEGER NOT NULL,
    type     TEXT    NOT NULL,
    envelope TEXT    NOT NULL,
    data     TEXT    NOT NULL,
    attempts INTEGER NOT NULL,
    error    TEXT    NOT NULL,
    at       INTEGER NOT NULL,                -- of the last attempt
    retry    INTEGER NOT NULL,                -- 1: somebody asked for another attempt
    PRIMARY KEY (consumer, seq)
) STRICT, WITHOUT ROWID;
