//! `settled check`: what the configuration means, whether it can work on this machine, whether the
//! database is sound, and, with `--online`, whether the providers accept the keys.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use rustix::fs::{Access, access};
use serde::Serialize;

use super::{Context, Failure, exit, show};
use crate::config::cron::Schedule;
use crate::config::{Config, SourceConfig, shown};
use crate::config::{Source, SourceRow};
use crate::daemon::system_clock;
use crate::ledger::{self, Examination, LedgerError};
use crate::model::At;
use crate::polling::client::{HttpClient, SourceClient};
use crate::providers::{ApiResponse, ResponseClass};
use crate::secret::{Key, Keyring};

/// How long the daemon may take to answer that it is well.
const HEALTH_MAX: Duration = Duration::from_secs(5);
/// A clock that is this far off makes signatures look old.
const SKEW_MAX_MS: i64 = 30_000;
/// `Date` counts in seconds, and the answer has travelled.
const SKEW_NOISE_MS: i64 = 3_000;

/// Check the configuration and the database
///
/// Ends with 1 if the daemon could not work with it, or if the database is damaged. The database is
/// read whole, also while the daemon runs. With --online, one cheap call is made to
/// each provider with the configured key.
///
/// Example: settled --config settled.toml check --online
#[derive(Debug, Args)]
pub struct Check {
    /// Make one call to each provider too
    #[arg(long)]
    online: bool,
    /// Do not read the whole database
    #[arg(long)]
    quick: bool,
    /// Check this database and nothing else: a backup, for instance
    #[arg(long, value_name = "FILE", conflicts_with_all = ["online", "quick"])]
    database: Option<PathBuf>,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

/// The findings, as `--json` prints them.
#[derive(Serialize)]
struct Report {
    ok: bool,
    config: String,
    hooks: Option<Part>,
    store: Option<Part>,
    #[serde(skip_serializing_if = "Option::is_none")]
    database: Option<Examination>,
    feed: Option<Part>,
    control: Option<Part>,
    sources: Vec<SourcePart>,
    warnings: Vec<String>,
    errors: Vec<String>,
}

/// An address or a path, and its state.
#[derive(Serialize)]
struct Part {
    at: String,
    state: String,
}

/// A source, in words.
#[derive(Serialize)]
struct SourcePart {
    name: String,
    provider: &'static str,
    base_url: String,
    api: Option<String>,
    api_key: bool,
    verified_by: Vec<String>,
    polls: String,
    lists: Option<String>,
    settles: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    online: Option<Online>,
}

/// The provider's answer to the call of `--online`.
#[derive(Serialize)]
struct Online {
    ok: bool,
    verdict: String,
    clock_skew_ms: Option<i64>,
}

impl Check {
    /// Runs the command.
    pub async fn run(self, context: &Context) -> Result<ExitCode, Failure> {
        let report = match context.service_config() {
            _ if self.database.is_some() => self.of_database(),
            Ok(config) => self.report(&config, context.now()).await?,
            Err(failure) if self.json => Report::broken(&failure.to_string()),
            Err(failure) => return Err(failure),
        };
        if self.json {
            let text = serde_json::to_string(&report)
                .map_err(|error| Failure::Other(error.to_string()))?;
            show::json(&text)?;
        } else {
            show::line(&report.text())?;
        }
        Ok(ExitCode::from(if report.ok {
            exit::OK
        } else {
            exit::FAILED
        }))
    }

    fn of_database(&self) -> Report {
        let mut report = Report::broken("");
        if let Some(path) = &self.database {
            report.store = Some(Part {
                at: path.display().to_string(),
                state: "a file".to_owned(),
            });
            report.examine(path);
        }
        report.ok = report.errors.is_empty();
        report
    }

    async fn report(&self, config: &Config, now: At) -> Result<Report, Failure> {
        let sources: Vec<Arc<SourceConfig>> = config.sources.values().cloned().collect();
        let mut report = Report::of(config, now);
        if !self.quick && config.store_path.exists() {
            report.examine(&config.store_path);
        }
        if self.online {
            let http = HttpClient::new().map_err(|error| Failure::Other(error.to_string()))?;
            let calls = sources
                .iter()
                .map(|source| call(source.clone(), http.clone()));
            let results = futures_util::future::join_all(calls).await;
            for (part, online) in report.sources.iter_mut().zip(results) {
                if !online.ok {
                    report
                        .errors
                        .push(format!("sources.{}: {}", part.name, online.verdict));
                }
                if let Some(skew) = online.clock_skew_ms.filter(|skew| skew.abs() > SKEW_MAX_MS) {
                    report.warnings.push(format!(
                        "sources.{}: {}; is our clock right?",
                        part.name,
                        clock(skew)
                    ));
                }
                part.online = Some(online);
            }
        }
        report.ok = report.errors.is_empty();
        Ok(report)
    }
}

impl Report {
    /// The report of a configuration that cannot be loaded.
    fn broken(why: &str) -> Report {
        Report {
            ok: false,
            config: String::new(),
            hooks: None,
            store: None,
            database: None,
            feed: None,
            control: None,
            sources: Vec::new(),
            warnings: Vec::new(),
            errors: why.lines().map(str::to_owned).collect(),
        }
    }

    fn of(config: &Config, now: At) -> Report {
        let mut errors = Vec::new();
        let mut part = |key: &str, at: String, state: Result<String, String>| {
            let state = state.unwrap_or_else(|trouble| {
                errors.push(format!("{key}: {at}: {trouble}"));
                trouble
            });
            Some(Part { at, state })
        };
        let (feed, control) = (&config.sockets.feed, &config.sockets.control);
        let running = UnixStream::connect(control).is_ok();
        let path = |path: &Path| path.display().to_string();
        let hooks = part(
            "hooks.listen",
            config.hooks.listen.to_string(),
            listening(config.hooks.listen, running),
        );
        let store = part(
            "store.path",
            path(&config.store_path),
            writable(&config.store_path, running),
        );
        let feed = part("sockets.feed", path(feed), socket(feed));
        let control = part("sockets.control", path(control), socket(control));
        Report {
            ok: errors.is_empty(),
            config: config.origin.to_string(),
            hooks,
            store,
            database: None,
            feed,
            control,
            sources: config
                .sources
                .values()
                .map(|source| SourcePart::of(source, now))
                .collect(),
            warnings: config.warnings.clone(),
            errors,
        }
    }

    /// Whether the database is sound. One that this user may not read is not called damaged.
    fn examine(&mut self, path: &Path) {
        if let Err(error) = access(path, Access::READ_OK) {
            let skipped = format!("store.path: {}: not examined: {error}", path.display());
            match error {
                rustix::io::Errno::ACCESS => self
                    .warnings
                    .push(skipped + "; run this as root or as settled"),
                _ => self.errors.push(skipped),
            }
            return;
        }
        let text = |error: &LedgerError| match error {
            LedgerError::Sqlite(error) => format!("store.path: {}: {error}", path.display()),
            error => format!("store.path: {error}"),
        };
        match ledger::examine(path) {
            Ok(examination) => {
                self.errors.extend(
                    examination
                        .findings
                        .iter()
                        .map(|finding| format!("database: {finding}")),
                );
                self.database = Some(examination);
            }
            Err(error) => self.errors.push(text(&error)),
        }
    }

    fn text(&self) -> String {
        let place = |part: &Option<Part>| {
            part.as_ref()
                .map(|part| format!("{}: {}", part.at, part.state))
        };
        let mut text = show::facts([
            (
                "config",
                Some(self.config.clone()).filter(|config| !config.is_empty()),
            ),
            ("hooks", place(&self.hooks)),
            ("store", place(&self.store)),
            ("database", self.database.as_ref().map(sound)),
            ("feed", place(&self.feed)),
            ("control", place(&self.control)),
        ]);
        for source in &self.sources {
            let _ = write!(text, "\n\n{}", source.text());
        }
        let findings = self
            .warnings
            .iter()
            .map(|warning| format!("warning: {warning}"));
        let findings: Vec<String> = findings
            .chain(self.errors.iter().map(|error| format!("error: {error}")))
            .collect();
        let sum = if self.ok {
            "all is well"
        } else {
            "not all is well"
        };
        let findings = if findings.is_empty() {
            sum.to_owned()
        } else {
            format!("{}\n{sum}", findings.join("\n"))
        };
        show::clean_lines(&format!("{text}\n\n{findings}"))
    }
}

fn sound(examination: &Examination) -> String {
    let rows = |table| examination.rows.get(table).copied().unwrap_or(0);
    let counts = format!(
        "{} runs, {} reports, {} records",
        rows("runs"),
        rows("reports"),
        rows("records")
    );
    let aside = match rows("quarantined") {
        0 => String::new(),
        count => format!(", {count} of the reports quarantined"),
    };
    let sound = if examination.findings.is_empty() {
        "sound"
    } else {
        "DAMAGED"
    };
    format!("{sound}: {counts}{aside}")
}

// ── Places ──────────────────────────────────────────────────────────────────────────────────────

/// Whether webhooks could be taken here.
fn listening(address: SocketAddr, running: bool) -> Result<String, String> {
    match TcpListener::bind(address) {
        Ok(_) => Ok("free".to_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && running => {
            Ok("the daemon is listening".to_owned())
        }
        Err(error) => Err(format!("this address cannot be listened on: {error}")),
    }
}

/// Whether the database could be written here.
fn writable(path: &Path, running: bool) -> Result<String, String> {
    if running {
        return Ok("the daemon has it".to_owned());
    }
    if path.exists() {
        let writable =
            access(path, Access::READ_OK | Access::WRITE_OK).and_then(|()| folder_access(path));
        return writable
            .map(|()| "can be written".to_owned())
            .map_err(|error| format!("cannot be written: {error}"));
    }
    creatable(path)
}

/// Whether a socket could be made here, or whether a daemon answers on it.
fn socket(path: &Path) -> Result<String, String> {
    match std::fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => {
            Err("there is something that is no socket; move it away".to_owned())
        }
        Ok(_) => match UnixStream::connect(path) {
            Ok(stream) => healthy(stream),
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                Ok("there, and not for this user".to_owned())
            }
            Err(_) => Ok("left over; the daemon will replace it".to_owned()),
        },
        Err(_) => creatable(path),
    }
}

/// Asks for `/healthz`: a stopped daemon accepts connections, as the kernel does it, and says nothing.
fn healthy(mut stream: UnixStream) -> Result<String, String> {
    let ask = |stream: &mut UnixStream| {
        stream.set_read_timeout(Some(HEALTH_MAX))?;
        stream.set_write_timeout(Some(HEALTH_MAX))?;
        stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n")?;
        let mut line = Vec::new();
        BufReader::new(stream.take(1024)).read_until(b'\n', &mut line)?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&line).into_owned())
    };
    let line = ask(&mut stream).map_err(|_| {
        let span = shown(HEALTH_MAX);
        format!("a process has this socket and does not answer (for {span}); it is stopped or overloaded")
    })?;
    match line.split(' ').nth(1) {
        Some("200") => Ok("the daemon answers".to_owned()),
        Some(status) => Err(format!(
            "the daemon answers HTTP {status}: it cannot store anything"
        )),
        None => Err("a process has this socket and does not speak HTTP".to_owned()),
    }
}

fn folder_access(path: &Path) -> rustix::io::Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    access(folder, Access::WRITE_OK | Access::EXEC_OK)
}

/// Whether this file could be made, with its folders.
fn creatable(path: &Path) -> Result<String, String> {
    let there = path
        .ancestors()
        .skip(1)
        .find(|folder| folder.exists())
        .unwrap_or(Path::new("."));
    let there = if there.as_os_str().is_empty() {
        Path::new(".")
    } else {
        there
    };
    if !there.is_dir() {
        return Err(format!("{} is no folder", there.display()));
    }
    match access(there, Access::WRITE_OK | Access::EXEC_OK) {
        Ok(()) => Ok("can be made".to_owned()),
        Err(error) => Err(format!(
            "{} cannot be written by this user ({error})",
            there.display()
        )),
    }
}

// ── Sources ─────────────────────────────────────────────────────────────────────────────────────

impl SourcePart {
    fn of(source: &SourceConfig, now: At) -> SourcePart {
        let policy = source.policy(None);
        let lists = source
            .provider
            .list_request(None, &source.settings)
            .is_some();
        SourcePart {
            name: source.name.to_string(),
            provider: source.provider.name(),
            base_url: source.base_url.clone(),
            api: source.settings.api.clone(),
            api_key: source.api_key.is_some(),
            verified_by: verified_by(&source.keyring),
            polls: format!(
                "may start {}; a run is first polled at an age of {}, then less and less often, at least every {}; \
                 at most {}/s, {} at once",
                often(&source.poll, now),
                shown(policy.first_poll),
                shown(policy.max_interval),
                source.rate,
                source.concurrency,
            ),
            lists: lists.then(|| often(&source.sweep, now)),
            settles: format!(
                "confirm {} within {}, grace {}; overdue after {}, given up after {}",
                policy.confirm,
                shown(policy.confirm_timeout),
                shown(policy.grace),
                shown(policy.deadline),
                shown(policy.give_up),
            ),
            online: None,
        }
    }

    fn text(&self) -> String {
        let api = self
            .api
            .as_ref()
            .map(|api| format!(", API {api}"))
            .unwrap_or_default();
        let key = if self.api_key {
            "api_key"
        } else {
            "no api_key: the provider cannot be polled"
        };
        let by = if self.verified_by.is_empty() {
            "nothing".to_owned()
        } else {
            self.verified_by.join(", ")
        };
        let lists = || {
            self.lists
                .clone()
                .unwrap_or_else(|| "the provider has no list".to_owned())
        };
        let clock = |skew| format!("; {}", clock(skew));
        let online = |online: &Online| {
            online.verdict.clone() + &online.clock_skew_ms.map(clock).unwrap_or_default()
        };
        show::facts([
            ("source", Some(self.name.clone())),
            (
                "provider",
                Some(format!("{}{api}, at {}", self.provider, self.base_url)),
            ),
            ("polled with", Some(key.to_owned())),
            ("verified by", Some(by)),
            ("polls", self.api_key.then(|| self.polls.clone())),
            ("lists", self.api_key.then(lists)),
            ("settles", Some(self.settles.clone())),
            ("online", self.online.as_ref().map(online)),
        ])
    }
}

fn verified_by(keyring: &Keyring) -> Vec<String> {
    let labels = |keys: &[Key]| {
        keys.iter()
            .map(|key| key.label.to_string())
            .collect::<Vec<_>>()
            .join(" or ")
    };
    let mut ways = Vec::new();
    if !keyring.signing.is_empty() {
        ways.push(format!("a signature with {}", labels(&keyring.signing)));
    }
    if !keyring.path_tokens.is_empty() {
        ways.push(format!("{} in the URL", labels(&keyring.path_tokens)));
    }
    ways.extend(
        keyring
            .headers
            .iter()
            .map(|header| format!("the header {}", header.name)),
    );
    ways
}

/// A schedule in words: `every 5m (30 */5 * * * *)`.
fn often(schedule: &Schedule, now: At) -> String {
    let times = std::iter::successors(schedule.next_after(now), |at| schedule.next_after(*at));
    let times: Vec<At> = times.take(10).collect();
    let mut gaps = times.windows(2).map(|pair| pair[1].since(pair[0]));
    let words = match (gaps.next(), times.first()) {
        (Some(first), _) if gaps.all(|gap| gap == first) => format!("every {}", shown(first)),
        (_, Some(next)) => format!(
            "next {}, at most {} apart",
            show::when(now, *next),
            shown(schedule.largest_gap())
        ),
        (_, None) => "never again".to_owned(),
    };
    format!("{words} ({schedule})")
}

// ── Online ──────────────────────────────────────────────────────────────────────────────────────

/// Makes the cheap call that must work whenever the key does.
async fn call(source: Arc<SourceConfig>, http: HttpClient) -> Online {
    if source.api_key.is_none() {
        let verdict = "not called: there is no api_key".to_owned();
        return Online {
            ok: true,
            verdict,
            clock_skew_ms: None,
        };
    }
    let request = source.provider.canary_request(&source.settings);
    let client = SourceClient::new(
        Arc::new(Source::new(
            SourceRow {
                id: 0,
                since: At(0),
            },
            source.clone(),
        )),
        http,
        system_clock(),
    );
    let answer = client.poll_now(&request).await;
    let (ok, verdict) = judge(&source.provider.classify(&answer), &answer);
    Online {
        ok,
        verdict: client.member.redactor().redact(show::clean(&verdict)),
        clock_skew_ms: client.skew_ms(),
    }
}

fn judge(class: &ResponseClass, answer: &ApiResponse) -> (bool, String) {
    match (class, answer) {
        (ResponseClass::Ok, ApiResponse::Http(response)) if response.status < 300 => {
            (true, "the key works".to_owned())
        }
        (ResponseClass::Ok, ApiResponse::Http(response)) => (
            false,
            format!(
                "an answer that is not expected, HTTP {}; is base_url right?",
                response.status
            ),
        ),
        (ResponseClass::Ok, ApiResponse::Failed { what }) => (false, format!("no answer: {what}")),
        (ResponseClass::RateLimited { .. }, _) => (
            true,
            "the provider limits our rate; whether the key works is not known now".to_owned(),
        ),
        (ResponseClass::Denied { why }, _) => (false, format!("the key is refused: {why}")),
        (ResponseClass::Unavailable { why, .. }, _) => {
            (false, format!("the provider cannot be reached: {why}"))
        }
    }
}

fn clock(skew_ms: i64) -> String {
    let seconds = skew_ms.abs() / 1_000;
    match skew_ms {
        skew if skew.abs() <= SKEW_NOISE_MS => "its clock and ours agree".to_owned(),
        0.. => format!("its clock is {seconds} s ahead of ours"),
        _ => format!("its clock is {seconds} s behind ours"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::providers::Response;

    #[test]
    fn schedules_are_told_in_words() {
        let told = |text: &str| often(&Schedule::parse(text).unwrap(), At(1_700_000_000_000));
        assert_eq!(told("0 * * * * *"), "every 1m (0 * * * * *)");
        assert_eq!(told("30 */5 * * * *"), "every 5m (30 */5 * * * *)");
        assert_eq!(
            told("0 0 9 * * MON-FRI"),
            "next in 10 h, at most 3d apart (0 0 9 * * MON-FRI)"
        );
    }

    #[test]
    fn verdicts_are_plain() {
        let http = |status| {
            ApiResponse::Http(Response {
                status,
                body: b"{}".to_vec(),
                ..Response::default()
            })
        };
        let told =
            |answer: &ApiResponse| judge(&crate::providers::classify_by_status(answer), answer);
        assert_eq!(told(&http(200)), (true, "the key works".to_owned()));
        assert_eq!(
            told(&http(404)).1,
            "an answer that is not expected, HTTP 404; is base_url right?"
        );
        assert_eq!(
            told(&http(401)),
            (
                false,
                "the key is refused: the API key is not accepted (401)".to_owned()
            )
        );
        assert!(told(&http(429)).0 && !told(&http(500)).0);
        assert!(
            !told(&ApiResponse::Failed {
                what: "refused".to_owned()
            })
            .0
        );
    }

    #[test]
    fn clocks_are_compared_beyond_the_noise() {
        assert_eq!(clock(-900), "its clock and ours agree");
        assert_eq!(
            [clock(5_500), clock(-61_000)],
            [
                "its clock is 5 s ahead of ours",
                "its clock is 61 s behind ours"
            ]
        );
    }

    #[test]
    fn places_are_judged_without_touching_them() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(
            writable(&folder.path().join("deep/er/x.db"), false),
            Ok("can be made".to_owned())
        );
        assert!(!folder.path().join("deep").exists());
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert_eq!(writable(&file, false), Ok("can be written".to_owned()));
        assert_eq!(
            writable(&file.join("x.db"), false),
            Err(format!("{} is no folder", file.display()))
        );
        assert!(socket(&file).unwrap_err().contains("no socket"));
        drop(std::os::unix::net::UnixListener::bind(folder.path().join("s")).unwrap());
        assert_eq!(
            socket(&folder.path().join("s")),
            Ok("left over; the daemon will replace it".to_owned())
        );
    }
}
