//! The configuration: a TOML file, or the environment variables people already have.
//!
//! Order: `--config`, `$SETTLED_CONFIG`, `/etc/settled/settled.toml` if it is there, the
//! environment. The file is walked and not derived (see `document.rs`), since its error messages are
//! what a person meets first: each names file, line and key and says what would be right, and all
//! of them come at once. Every table knows its keys; one that it does not know is an error.
//!
//! Deliberately absent: secret values in the file, defaults that are written down twice (bounds
//! and defaults are in [`crate::limits`], policies in the providers), and the process environment,
//! which comes in as an [`Env`].

pub mod cron;
mod document;
mod env;
mod environment;
mod file;
mod page;
mod secrets;
mod source;
mod sources;
mod values;

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use env::Env;
pub use page::{Page, WebOrigin};
pub use source::{PolicyOverrides, SourceConfig};
pub use sources::{Source, SourceRow, Sources};
pub use values::{base_url, duration, shown};

use crate::limits;
use crate::model::SourceName;
use crate::providers::{Provider, REGISTRY};

/// Read if it is there and no other file was named.
pub const DEFAULT_FILE: &str = "/etc/settled/settled.toml";

/// The commented example, as shipped under `systemd/` and printed by `settled init`.
pub const EXAMPLE: &str = include_str!("../../systemd/settled.toml");

/// Everything a person has decided, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The webhook endpoint.
    pub hooks: Hooks,
    /// The database.
    pub store_path: PathBuf,
    /// The Unix sockets.
    pub sockets: Sockets,
    /// The addresses under which a proxy shows the sockets to browsers.
    pub page: Page,
    /// The accounts, by name.
    pub sources: BTreeMap<SourceName, Arc<SourceConfig>>,
    /// How long things are kept.
    pub retention: Retention,
    /// Where all this was read.
    pub origin: Origin,
    /// Warnings: allowed, but worth a line in `settled check`.
    pub warnings: Vec<String>,
}

/// `[hooks]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hooks {
    /// Where webhooks come in, unless systemd hands us a socket.
    pub listen: SocketAddr,
    /// How much of a body is read.
    pub body_limit: usize,
    /// Unverified deliveries kept per source.
    pub unverified_rows: u64,
    /// Bytes of unverified deliveries kept per source.
    pub unverified_bytes: u64,
}

impl Default for Hooks {
    fn default() -> Hooks {
        Hooks {
            listen: SocketAddr::from(([127, 0, 0, 1], 8675)),
            body_limit: limits::HOOK_BODY_BYTES,
            unverified_rows: limits::UNVERIFIED_ROWS,
            unverified_bytes: limits::UNVERIFIED_BYTES,
        }
    }
}

/// `[sockets]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sockets {
    /// Serves events, consumers and health.
    pub feed: PathBuf,
    /// Serves everything.
    pub control: PathBuf,
    /// The group that may use the feed's socket, if not the daemon's own.
    pub feed_group: Option<String>,
    /// The group that may use the control socket, if not the daemon's own.
    pub control_group: Option<String>,
}

impl Sockets {
    /// `feed.sock` and `control.sock` in this folder.
    pub fn in_folder(folder: &Path) -> Sockets {
        let (feed, control) = (folder.join("feed.sock"), folder.join("control.sock"));
        Sockets {
            feed,
            control,
            feed_group: None,
            control_group: None,
        }
    }
}

/// `[retention]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    /// How long deliveries, and whatever else was reported, are kept.
    pub deliveries: Duration,
    /// How long the feed is kept, and longer for consumers that have not acknowledged it.
    pub feed: Duration,
    /// How large it may become, whoever has not acknowledged it.
    pub feed_bytes: u64,
    /// How much the database may hold before the oldest deliveries go early; `None`: any amount.
    pub store_bytes: Option<u64>,
}

impl Default for Retention {
    fn default() -> Retention {
        Retention {
            deliveries: limits::RETENTION_DELIVERIES,
            feed: limits::RETENTION_FEED,
            feed_bytes: limits::RETENTION_FEED_BYTES,
            store_bytes: None,
        }
    }
}

/// Where a configuration was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This file.
    File(PathBuf),
    /// Environment variables alone.
    Environment,
}

impl Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File(path) => path.display().fmt(f),
            Origin::Environment => f.pad("the environment"),
        }
    }
}

/// Why there is no configuration. Its text has one line per mistake and never a secret.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{} cannot be read: {why}{}", .file.display(), unreadable_remedy(.why))]
    Unreadable {
        /// Which file.
        file: PathBuf,
        /// The error of the system.
        why: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{}:{line}: this is not TOML: {message}", .file.display())]
    Syntax {
        /// Which file.
        file: PathBuf,
        /// Where.
        line: usize,
        /// The parser's message.
        message: String,
    },
    /// The file is TOML and says things that cannot be.
    #[error("{}", lines(.0))]
    Invalid(Vec<Problem>),
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// File and line; `None` where no file is to blame.
    pub place: Option<(PathBuf, usize)>,
    /// The whole key, or the environment variable.
    pub key: String,
    /// The fault, and the remedy.
    pub text: String,
}

impl Problem {
    fn in_environment(variable: &str, text: impl Display) -> Problem {
        Problem {
            place: None,
            key: format!("${variable}"),
            text: text.to_string(),
        }
    }
}

impl Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((file, line)) = &self.place {
            write!(f, "{}:{line}: ", file.display())?;
        }
        write!(f, "{}: {}", self.key, self.text)
    }
}

fn lines(problems: &[Problem]) -> String {
    problems
        .iter()
        .map(Problem::to_string)
        .collect::<Vec<_>>()
        .join("\n")
}

fn unreadable_remedy(why: &std::io::Error) -> &'static str {
    match why.kind() {
        ErrorKind::NotFound => "; `settled init` writes one",
        ErrorKind::PermissionDenied => {
            "; run as the user settled, or name another file with --config"
        }
        _ => "",
    }
}

/// Reads the configuration: from `path` (`--config`) or wherever else it is to be looked for.
pub fn load(path: Option<&Path>, env: &Env) -> Result<Config, ConfigError> {
    load_with(REGISTRY, path, env)
}

/// As [`load`], knowing these providers.
pub fn load_with(
    registry: &[&'static dyn Provider],
    path: Option<&Path>,
    env: &Env,
) -> Result<Config, ConfigError> {
    match find(path, env, Path::new(DEFAULT_FILE))? {
        Some((file, text)) => file::read(registry, &file, &text, env),
        None => from_environment(registry, env),
    }
}

/// Where the daemon's sockets are, for commands that talk to it: they may be run by people who can
/// read neither the secrets nor the configuration.
pub fn client_sockets(path: Option<&Path>, env: &Env) -> Result<Sockets, ConfigError> {
    let named = path.is_some() || env.get("SETTLED_CONFIG").is_some();
    let found = match find(path, env, Path::new(DEFAULT_FILE)) {
        Err(ConfigError::Unreadable { why, .. })
            if !named && why.kind() == ErrorKind::PermissionDenied =>
        {
            None
        }
        found => found?,
    };
    match found {
        Some((file, text)) => file::client_sockets(&file, &text, env),
        None => Ok(reachable(
            default_sockets(env, default_store(env).as_deref()),
            env,
        )),
    }
}

/// The file to read with its text; `None` if the environment is to be used.
fn find(
    path: Option<&Path>,
    env: &Env,
    default: &Path,
) -> Result<Option<(PathBuf, String)>, ConfigError> {
    let named = path
        .map(Path::to_owned)
        .or_else(|| env.get("SETTLED_CONFIG").map(PathBuf::from));
    let must = named.is_some();
    let file = named.unwrap_or_else(|| default.to_owned());
    match std::fs::read_to_string(&file) {
        Ok(text) => Ok(Some((file, text))),
        Err(why) if !must && why.kind() == ErrorKind::NotFound => Ok(None),
        Err(why) => Err(ConfigError::Unreadable { file, why }),
    }
}

fn from_environment(registry: &[&'static dyn Provider], env: &Env) -> Result<Config, ConfigError> {
    let sources = environment::sources(registry, env)?;
    let store_path = default_store(env).ok_or_else(|| {
        ConfigError::Invalid(vec![Problem {
            place: None,
            key: "store.path".to_owned(),
            text: NO_STORE.to_owned(),
        }])
    })?;
    let sockets = default_sockets(env, Some(&store_path));
    if let Some((key, text)) = socket_trouble(&sockets).into_iter().next() {
        return Err(ConfigError::Invalid(vec![Problem {
            place: None,
            key: format!("sockets.{key}"),
            text,
        }]));
    }
    let warnings = warnings(&Hooks::default(), &sources, registry, &Origin::Environment);
    Ok(Config {
        hooks: Hooks::default(),
        store_path,
        sockets,
        page: Page::default(),
        sources,
        retention: Retention::default(),
        origin: Origin::Environment,
        warnings,
    })
}

const NO_STORE: &str = "there is no place for the database, since none of $STATE_DIRECTORY, $XDG_STATE_HOME and $HOME \
                        is set; write for example [store] path = \"/var/lib/settled/settled.db\"";

fn default_store(env: &Env) -> Option<PathBuf> {
    let state = env.folder("STATE_DIRECTORY");
    let xdg = || {
        env.folder("XDG_STATE_HOME")
            .map(|folder| folder.join("settled"))
    };
    let home = || {
        env.folder("HOME")
            .map(|folder| folder.join(".local/state/settled"))
    };
    Some(state.or_else(xdg).or_else(home)?.join("settled.db"))
}

fn default_sockets(env: &Env, store: Option<&Path>) -> Sockets {
    let runtime = env.folder("RUNTIME_DIRECTORY");
    let xdg = || {
        env.folder("XDG_RUNTIME_DIR")
            .map(|folder| folder.join("settled"))
    };
    let beside = || store.and_then(Path::parent).map(Path::to_owned);
    Sockets::in_folder(&runtime.or_else(xdg).or_else(beside).unwrap_or_default())
}

/// The system's service, if nothing is at the places of one started by hand.
fn reachable(own: Sockets, env: &Env) -> Sockets {
    let service = Sockets::in_folder(Path::new("/run/settled"));
    let there = |sockets: &Sockets| sockets.feed.exists() || sockets.control.exists();
    if env.get("RUNTIME_DIRECTORY").is_none() && !there(&own) && there(&service) {
        service
    } else {
        own
    }
}

/// The faults of these paths, by key.
fn socket_trouble(sockets: &Sockets) -> Vec<(&'static str, String)> {
    let mut trouble = Vec::new();
    for (key, path) in [("feed", &sockets.feed), ("control", &sockets.control)] {
        let (length, most) = (path.as_os_str().len(), limits::SOCKET_PATH_BYTES_MAX);
        if length > most {
            let path = path.display();
            trouble.push((
                key,
                format!("{path} has {length} bytes, and a Unix socket's path at most {most}; write a shorter one"),
            ));
        }
    }
    if sockets.feed == sockets.control {
        trouble.push((
            "control",
            "this is the feed's socket too; write two different paths".to_owned(),
        ));
    }
    trouble
}

/// Warnings: allowed, but worth telling.
fn warnings(
    hooks: &Hooks,
    sources: &BTreeMap<SourceName, Arc<SourceConfig>>,
    registry: &[&'static dyn Provider],
    origin: &Origin,
) -> Vec<String> {
    let mut warnings = Vec::new();
    if !hooks.listen.ip().is_loopback() {
        warnings.push(format!(
            "hooks.listen: {} can be reached from other machines without TLS; put a reverse proxy or tunnel before \
             127.0.0.1:8675 instead",
            hooks.listen
        ));
    }
    if sources.is_empty() {
        warnings.push(no_sources(registry, origin));
    }
    let sources: Vec<&SourceConfig> = sources.values().map(Arc::as_ref).collect();
    warnings.extend(sources.iter().flat_map(|source| source_warnings(source)));
    for (index, source) in sources.iter().enumerate() {
        let twin = sources[..index]
            .iter()
            .find(|other| same_account(other, source));
        warnings.extend(twin.map(|twin| {
            format!(
                "sources.{}: this is the account of sources.{} too (same provider, base URL and API key); its runs may \
                 be completed once for each",
                source.name, twin.name
            )
        }));
    }
    warnings
}

fn no_sources(registry: &[&'static dyn Provider], origin: &Origin) -> String {
    match origin {
        Origin::File(_) => {
            "sources: there are none; write for example [sources.prod] with a provider".to_owned()
        }
        Origin::Environment => {
            let variables: Vec<String> = registry
                .iter()
                .map(|provider| format!("${}", provider.environment().api_key))
                .collect();
            format!(
                "sources: there are none; set one of {}, or let `settled init` write a file",
                variables.join(", ")
            )
        }
    }
}

fn source_warnings(source: &SourceConfig) -> Vec<String> {
    let name = &source.name;
    let mut warnings = Vec::new();
    if source.api_key.is_none() {
        warnings.push(format!(
            "sources.{name}: there is no api_key, so webhooks are recorded but nothing can be asked: a lost webhook \
             stays lost"
        ));
    }
    if !source.can_verify() {
        warnings.push(format!(
            "sources.{name}: there is nothing to verify webhooks against, so they are answered 401 and only hint at \
             when to ask; configure {}",
            verifier(source.provider)
        ));
    }
    for token in &source.keyring.path_tokens {
        let least = limits::TOKEN_BYTES_MIN;
        if token.secret.expose().len() < least {
            warnings.push(format!(
                "sources.{name}: {} has fewer than {least} characters and can be guessed; `settled init` makes a good one",
                token.label
            ));
        }
    }
    if source.api_key.is_some() && values::in_the_clear(&source.base_url) {
        warnings.push(format!(
            "sources.{name}.base_url: the API key will be sent unencrypted; write https://"
        ));
    }
    warnings
}

/// The keys that webhooks of such a provider are verified with.
fn verifier(provider: &dyn Provider) -> &'static str {
    if provider.signs_with_api_key() {
        "api_key, which it signs with"
    } else if provider.environment().webhook_secret.is_some() {
        "webhook_secrets"
    } else {
        "path_token or require_headers"
    }
}

fn same_account(a: &SourceConfig, b: &SourceConfig) -> bool {
    a.api_key.is_some()
        && a.api_key == b.api_key
        && a.provider.name() == b.provider.name()
        && a.base_url == b.base_url
}

#[cfg(test)]
mod tests;
