//! Every bound in one place, with the relations between them checked when this is compiled.
//!
//! Nothing in settled grows without one of these. What a person may change is in the
//! configuration, and these are then its defaults and its borders.

use std::time::Duration;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

// ── Webhooks in ─────────────────────────────────────────────────────────────────────────────────

/// How long a connection may take to send a request's headers. Senders are programs that have them
/// ready; more would only feed a slow-header attack. Also ends idle kept-alive connections.
pub const HOOK_HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a body may take in all: the largest default body over a line of 5 Mbit/s.
pub const HOOK_BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a body may pause. A sender that is alive sends something within it.
pub const HOOK_BODY_IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections to the webhook endpoint at once. Providers retry when refused, so this only has to
/// keep a flood from taking all file descriptors.
pub const HOOK_CONNECTIONS_MAX: usize = 10_000;

/// Connections that may wait to be accepted, as many as Linux and systemd let wait by default.
pub const HOOK_BACKLOG: u32 = 4096;

/// How much of a body is read unless configured. Firecrawl sends whole pages.
pub const HOOK_BODY_BYTES: usize = 32 * MIB;

/// The least that may be configured: less than this would cut off ordinary webhooks, and would
/// make the kept head of a cut-off body larger than a whole one.
pub const HOOK_BODY_BYTES_MIN: usize = 64 * KIB;

/// The most that may be configured: a row of the database has to hold it.
pub const HOOK_BODY_BYTES_MAX: usize = 256 * MIB;

/// Header lines of a delivery that are looked at and stored. Honest ones carry about ten; a chain of
/// proxies adds some, and the signature may stand behind them. Hyper takes no more than this either
/// and answers 431.
pub const HOOK_HEADERS_MAX: usize = 100;

/// A body up to this size is small. Nearly all webhooks are.
pub const HOOK_SMALL_BODY_BYTES: usize = 64 * KIB;

/// Bytes of small bodies held in memory at once: a thousand of the largest.
pub const HOOK_SMALL_BODIES_BYTES_MAX: usize = 64 * MIB;

/// Bytes of larger bodies held in memory at once, over all connections and the queue: beyond it,
/// readers wait. The number of connections times the size of one body is no bound anybody has memory for.
pub const HOOK_BODIES_BYTES_MAX: usize = 512 * MIB;

/// Bytes kept of a body that was too large: enough to find the run's id in.
pub const TRUNCATED_HEAD_BYTES: usize = 16 * KIB;

/// How much of a refused body is read and thrown away, so that its sender gets to read the answer.
pub const HOOK_DISCARDED_BYTES_MAX: usize = 64 * MIB;

/// … and for how long.
pub const HOOK_DISCARD_TIMEOUT: Duration = Duration::from_secs(10);

/// Unverified deliveries kept per source unless configured; the oldest go first.
pub const UNVERIFIED_ROWS: u64 = 10_000;

/// Bytes of unverified deliveries kept per source unless configured; the oldest go first.
pub const UNVERIFIED_BYTES: u64 = 64 * MIB as u64;

/// Deliveries that are not authentic which one sender may bring at once …
pub const UNPROVEN_BURST: f64 = 120.0;

/// … and so many per second after that. A provider whose secret is not yet configured stays below
/// it; what is over it is not stored, since the unverified buffer would soon drop it anyway.
pub const UNPROVEN_RATE: f64 = 2.0;

/// A delivery that is not authentic uses one more of these deliveries for each so many bytes: a
/// sender then writes at most 128 KiB a second to the unverified buffer, in bodies of any size.
pub const UNPROVEN_UNIT_BYTES: usize = 64 * KIB;

/// Bytes of a delivery that is not authentic which processing reads, on the writer's thread. The
/// providers name the run well before; the rest is stored and read once `reverify` has proven it.
pub const UNPROVEN_READ_BYTES: usize = 64 * KIB;

/// The largest test ping. Pings need no signature; the providers' have 60 bytes.
pub const PING_BYTES_MAX: usize = 4 * KIB;

/// Senders of such deliveries that are told apart. One that is not is counted with the others.
pub const UNPROVEN_SENDERS_MAX: usize = 4_096;

/// Seconds that `Retry-After` says in a 503: a disk that recovers does so within seconds, and the
/// providers' own retries are coarser.
pub const RETRY_AFTER_SECONDS: u64 = 5;

// ── The ledger ──────────────────────────────────────────────────────────────────────────────────

/// Pages (of 4 KiB) in the write-ahead log that are worth a round of moving them into the file: 2 MiB. The
/// round ends with a sync of the file, behind which the writer's own sync may have to wait.
pub const CHECKPOINT_PAGES: i32 = 512;

/// Pages in the log at which it must begin anew: 64 MiB.
pub const LOG_PAGES_MAX: i32 = 16_384;

/// So few pages, if the rest is moved already, the writer moves itself: two syncs and little more.
pub const LOG_REST_PAGES: i32 = 256;

/// The pause between two attempts to empty the log when the daemon stops.
pub const CLOSE_CHECKPOINT_PAUSE: Duration = Duration::from_millis(100);

// ── The reconciler ──────────────────────────────────────────────────────────────────────────────

/// Reports that wait for the writer. A full queue makes the senders wait, as it should.
pub const QUEUE_REPORTS_MAX: usize = 4096;

/// How long an input waits for room in that queue before it answers 503.
pub const QUEUE_WAIT: Duration = Duration::from_secs(5);

/// How long more may come in than can be written before senders are turned away at once. Bursts are
/// shorter, and every sender waits longer than this for its answer.
pub const STANDING_MAX: Duration = Duration::from_secs(1);

/// Reports in one transaction. More gains nothing (measured: the commit is paid off by then) and
/// would delay the first of them.
pub const BATCH_REPORTS_MAX: usize = 512;

/// Characters kept of a provider's word for a state, of a group's id and the like.
pub const WORD_CHARS_MAX: usize = 200;

/// Numbers kept of those that a provider counts about a run. Providers send about ten.
pub const COUNTERS_MAX: usize = 64;

/// How deep metadata may nest: it is kept inside a run's state and inside records, and JSON parsers,
/// ours too, stop at 128.
pub const METADATA_DEPTH_MAX: usize = 64;

/// How many bytes of metadata are kept with a run: they are written again with each of its changes.
pub const METADATA_BYTES_MAX: usize = 64 * KIB;

/// Characters kept of a provider's error.
pub const ERROR_CHARS_MAX: usize = 2_000;

/// How often a report may kill its reader before it is quarantined.
pub const ATTEMPTS_MAX: u32 = 3;

/// The pause after a failed read or write of the database, before the next try.
pub const FAILURE_PAUSE: Duration = Duration::from_secs(1);

/// Runs whose limits have passed that are looked at together.
pub const TIMERS_PER_ROUND_MAX: u32 = 200;

/// How often passed limits are looked for at the least.
pub const TIMER_INTERVAL_MAX: Duration = Duration::from_secs(1);

/// A clock that is off by more than this against the monotonic one has jumped.
pub const CLOCK_JUMP: Duration = Duration::from_secs(2);

// ── Every server ────────────────────────────────────────────────────────────────────────────────

/// Bytes buffered of a connection. They bound the size of a request's head.
pub const CONNECTION_BUFFER_BYTES: usize = 64 * KIB;

// ── The sockets ─────────────────────────────────────────────────────────────────────────────────

/// Connections to each Unix socket at once.
pub const SOCKET_CONNECTIONS_MAX: usize = 1_200;

/// Streams that follow the feed at once. Fewer than the connections, so that a command still gets
/// through when every stream is taken.
pub const STREAMS_MAX: usize = 1_100;

/// Readers that are at most this many rows behind the head share one read.
pub const TAIL_ROWS: i64 = 256;

/// Pages kept for them: different filters and slightly different heads at once. Beyond that the
/// oldest is forgotten.
pub const TAIL_PAGES: usize = 8;

/// Lookups for the sockets at once, each with a connection and its cache of the database.
pub const LOOKUPS_MAX: usize = 8;

/// Rows read from the database for one page of a stream or list: short reads keep the log of the
/// database small.
pub const PAGE_ROWS: usize = 500;

/// Bytes after which a page ends, whatever it has in rows: what a slow reader costs.
pub const PAGE_BYTES: usize = MIB;

/// Rows looked at for one page, matching or not: a narrow filter must not hold a snapshot for long.
pub const PAGE_SCAN_ROWS: i64 = 10_000;

/// After so many rows without a match a stream says how far it has come.
pub const BOOKMARK_ROWS: i64 = 1_000;

/// Records a consumer may have out unacknowledged unless it says otherwise.
pub const WINDOW: u32 = 1_000;

/// The most it may say; their numbers are held in memory.
pub const WINDOW_MAX: u32 = 100_000;

/// Events a consumer may have parked. Who fills this has a broken command, not broken events.
pub const PARKED_MAX: i64 = 10_000;

/// Bytes kept of the reason an event was parked for.
pub const PARKED_ERROR_BYTES: usize = 4 * KIB;

/// Bytes of one field that a command gets in its environment; all of it is on its standard input.
pub const VARIABLE_BYTES: usize = 4 * KIB;

/// The longest `wait` of a request.
pub const WAIT_MAX: Duration = Duration::from_secs(600);

/// How large the body of a request on a socket may be.
pub const REQUEST_BYTES_MAX: usize = MIB;

/// The most bytes of a request's body that a socket discards, so that a client that is still writing
/// sees the reply.
pub const SOCKET_DISCARDED_BYTES_MAX: usize = 64 * MIB;

/// How long a socket discards a body before it replies.
pub const SOCKET_DISCARD_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a local client may take to send a request's headers.
pub const SOCKET_HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a stream is silent before it says that it is alive, unless the client asks otherwise.
pub const HEARTBEAT: Duration = Duration::from_secs(15);

/// How long a reader may leave our bytes lying before its connection is closed.
pub const WRITE_STALL: Duration = Duration::from_secs(60);

/// The longest path of a Unix socket: `sun_path` has 108 bytes, one of which is the NUL.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

// ── Asking ──────────────────────────────────────────────────────────────────────────────────────

/// Questions per second to a source unless configured: below every provider's published limit.
pub const RATE_PER_SECOND: f64 = 5.0;

/// The most that may be configured, here only to catch slips.
pub const RATE_PER_SECOND_MAX: f64 = 1_000.0;

/// Questions to a source at once unless configured.
pub const CONCURRENCY: usize = 4;

/// The most that may be configured.
pub const CONCURRENCY_MAX: usize = 256;

/// The shortest `first_poll` and `max_interval`: at nought, the curve would never leave nought.
pub const POLL_INTERVAL_MIN: Duration = Duration::from_millis(100);

/// How long connecting to a provider may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Questions that make up one poll: the state, what must be known beside it, the canary.
pub const QUESTIONS_PER_POLL_MAX: usize = 16;

/// Pages of a list read in one sweep.
pub const SWEEP_PAGES_MAX: usize = 200;

/// Between two inquiries of a source. At the default rate they are a 25th of all requests.
pub const INQUIRY_INTERVAL: Duration = Duration::from_secs(5);

/// Inquiries that a source may start at once after a quiet time.
pub const INQUIRY_BURST: f64 = 5.0;

/// Between two inquiries caused by one sender whose deliveries cannot be verified at all.
pub const INQUIRY_SENDER_INTERVAL: Duration = Duration::from_secs(15);

/// Within this time no run is inquired about again.
pub const INQUIRY_REPEAT: Duration = Duration::from_secs(600);

/// The pause before an inquiry that failed is repeated, times the attempts made.
pub const INQUIRY_RETRY: Duration = Duration::from_secs(60);

/// Attempts to reach the provider for one inquiry.
pub const INQUIRY_ATTEMPTS_MAX: u32 = 5;

/// Inquiries that wait, per source.
pub const INQUIRIES_MAX: usize = 64;

/// Inquiries of one sender that wait, per source.
pub const INQUIRIES_PER_SENDER_MAX: usize = 8;

/// Inquiries on their way from the writer to the pollers. A poller takes its share every few seconds.
pub const INQUIRIES_PASSED_ON_MAX: usize = 1_024;

/// A source's loop looks around at least this often.
pub const POLLER_IDLE_MAX: Duration = Duration::from_secs(5);

/// … and never more often than this.
pub const POLLER_IDLE_MIN: Duration = Duration::from_millis(5);

// ── Upkeep ──────────────────────────────────────────────────────────────────────────────────────

/// The first round of upkeep comes this long after the start, when the rush of it is over.
pub const UPKEEP_FIRST: Duration = Duration::from_secs(60);

/// … and the others so far apart.
pub const UPKEEP_INTERVAL: Duration = Duration::from_secs(600);

/// Reports looked at for one transaction of upkeep.
pub const UPKEEP_ROWS: i64 = 500;

/// Bytes of bodies that one transaction of upkeep lets go: some milliseconds of work.
pub const UPKEEP_BYTES: i64 = 8 << 20;

/// The pause between two of them, in which intake has the writer for itself.
pub const UPKEEP_PAUSE: Duration = Duration::from_millis(20);

/// Free bytes in the file that are worth giving back.
pub const SHRINK_BYTES_MIN: i64 = 64 << 20;

/// Pages given back in one transaction.
pub const SHRINK_PAGES: u32 = 256;

/// The smallest `retention.store_bytes`: less would empty what has only just come in.
pub const RETENTION_STORE_BYTES_MIN: u64 = 16 * MIB as u64;

// ── The rest ────────────────────────────────────────────────────────────────────────────────────

/// How long deliveries are kept unless configured.
pub const RETENTION_DELIVERIES: Duration = Duration::from_secs(30 * 86_400);

/// How long the feed is kept unless configured.
pub const RETENTION_FEED: Duration = Duration::from_secs(90 * 86_400);

/// How large all records together may become unless configured. This bound is hard: a consumer
/// that is further behind loses records, since a full disk would lose everybody's.
pub const RETENTION_FEED_BYTES: u64 = 8 * 1024 * MIB as u64;

/// The least that may be configured: the largest record and a few more must fit.
pub const RETENTION_FEED_BYTES_MIN: u64 = MIB as u64;

/// How often the feed is looked at for what may go.
pub const TRIM_INTERVAL: Duration = Duration::from_secs(60);

/// Records looked at for that in one transaction.
pub const TRIM_ROWS: u32 = 1_000;

/// The shortest retention that may be configured: what nobody had time to read must not go.
pub const RETENTION_MIN: Duration = Duration::from_secs(60);

/// The longest duration that may be configured (ten years): sums of a few of these still fit into
/// every number they are put in.
pub const DURATION_MAX: Duration = Duration::from_secs(3_650 * 86_400);

/// The longest secret. Also keeps a mistaken `file = "/dev/zero"` from filling the memory.
pub const SECRET_BYTES_MAX: usize = 16 * KIB;

/// A path token shorter than this can be guessed; `settled init` makes longer ones.
pub const TOKEN_BYTES_MIN: usize = 16;

/// How long what is under way may take after SIGTERM.
pub const SHUTDOWN_DRAIN: Duration = Duration::from_secs(20);
/// How long the last checkpoint waits for readers when stopping: whoever is still copying has the
/// write-ahead log as well.
pub const CLOSE_CHECKPOINT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a connection on which nothing is under way is kept when stopping. A request may be on
/// its way to us already, and closing then would look to its sender like a refusal.
pub const SHUTDOWN_LINGER: Duration = Duration::from_secs(1);

/// How often the watchdog asks the writer to commit, unless systemd wants it more often.
pub const PULSE: Duration = Duration::from_secs(3);

/// By how much longer a start may take each time a hundred more reports have been recovered.
pub const RECOVERY_STEP: Duration = Duration::from_secs(120);

/// File descriptors the unit asks for (`LimitNOFILE`).
pub const FILES_MAX: usize = 16_384;

const _: () = {
    assert!(HOOK_BODY_IDLE_TIMEOUT.as_secs() < HOOK_BODY_TIMEOUT.as_secs());
    assert!(HOOK_BODY_BYTES_MIN <= HOOK_BODY_BYTES && HOOK_BODY_BYTES <= HOOK_BODY_BYTES_MAX);
    assert!(
        HOOK_BODY_BYTES_MAX <= HOOK_BODIES_BYTES_MAX,
        "the largest body must fit"
    );
    assert!(TRUNCATED_HEAD_BYTES < HOOK_BODY_BYTES_MIN);
    assert!(TRUNCATED_HEAD_BYTES <= UNPROVEN_READ_BYTES);
    assert!(
        UNVERIFIED_BYTES >= HOOK_BODY_BYTES as u64,
        "the unverified buffer must hold one whole delivery"
    );
    assert!(BATCH_REPORTS_MAX <= QUEUE_REPORTS_MAX);
    assert!(
        STREAMS_MAX < SOCKET_CONNECTIONS_MAX,
        "commands must get through"
    );
    assert!(
        HEARTBEAT.as_secs() * 2 <= WRITE_STALL.as_secs(),
        "a stall shows on a heartbeat"
    );
    assert!(CONCURRENCY <= CONCURRENCY_MAX && RATE_PER_SECOND <= RATE_PER_SECOND_MAX);
    assert!(RETENTION_MIN.as_secs() <= RETENTION_DELIVERIES.as_secs());
    assert!(RETENTION_FEED.as_secs() <= DURATION_MAX.as_secs());
    // systemd kills after 90 seconds (DefaultTimeoutStopSec).
    assert!(SHUTDOWN_DRAIN.as_secs() < 90);
    // Two sockets, and a reserve for the database, calls to providers and the log.
    assert!(HOOK_CONNECTIONS_MAX + 2 * SOCKET_CONNECTIONS_MAX + 2_048 <= FILES_MAX);
};
