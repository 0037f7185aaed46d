use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::model::observation::Observation;
use crate::model::schedule::{self, Confirm, Policy};
use crate::model::{At, Kind, RunId};
use crate::providers::{
    ApiRequest, ApiResponse, Delivery, Environment, Listing, Proof, Reading, RunRef, Settings,
    Webhook,
};

/// A provider of which only the configuration's side works.
struct Fake {
    name: &'static str,
    environment: Environment,
    apis: &'static [&'static str],
    signs_with_api_key: bool,
}

impl Provider for Fake {
    fn name(&self) -> &'static str {
        self.name
    }
    fn base_url(&self) -> &'static str {
        "https://api.fake.example"
    }
    fn key_header(&self) -> (&'static str, &'static str) {
        ("x-api-key", "")
    }
    fn environment(&self) -> Environment {
        self.environment
    }
    fn apis(&self) -> &'static [&'static str] {
        self.apis
    }
    fn signs_with_api_key(&self) -> bool {
        self.signs_with_api_key
    }
    fn policy(&self, kind: Option<Kind>) -> Policy {
        let deadline = Duration::from_secs(if kind == Some(Kind::Crawl) { 48 } else { 24 } * 3600);
        Policy {
            deadline,
            ..schedule::tests::policy()
        }
    }
    fn kind_of(&self, _: &RunId, _: &Settings) -> Kind {
        Kind::Task
    }
    fn verify(&self, _: &Delivery<'_>, _: &crate::secret::Keyring, _: At) -> Proof {
        unreachable!()
    }
    fn read_webhook(&self, _: &Webhook<'_>) -> Reading {
        unreachable!()
    }
    fn status_request(&self, _: &RunRef<'_>) -> ApiRequest {
        unreachable!()
    }
    fn read_status(&self, _: &RunRef<'_>, _: &[ApiResponse], _: At) -> Observation {
        unreachable!()
    }
    fn canary_request(&self, _: &Settings) -> ApiRequest {
        unreachable!()
    }
    fn list_request(&self, _: Option<&str>, _: &Settings) -> Option<ApiRequest> {
        unreachable!()
    }
    fn read_list(&self, _: Option<&str>, _: &ApiResponse, _: &Settings, _: At) -> Listing {
        unreachable!()
    }
}

static SKYVERN: Fake = Fake {
    name: "skyvern",
    environment: Environment {
        api_key: "SKYVERN_API_KEY",
        webhook_secret: None,
        path_token: None,
        base_urls: &["SKYVERN_BASE_URL"],
    },
    apis: &[],
    signs_with_api_key: true,
};
static BROWSER_USE: Fake = Fake {
    name: "browser-use",
    environment: Environment {
        api_key: "BROWSER_USE_API_KEY",
        webhook_secret: Some("BROWSER_USE_WEBHOOK_SECRET"),
        path_token: None,
        base_urls: &["BROWSER_USE_BASE_URL"],
    },
    apis: &["v2", "v3", "v4"],
    signs_with_api_key: false,
};
static SMARTBROWSE: Fake = Fake {
    name: "smartbrowse",
    environment: Environment {
        api_key: "WEBSCRAPE_API_KEY",
        webhook_secret: None,
        path_token: Some("SMARTBROWSE_PATH_TOKEN"),
        base_urls: &[],
    },
    apis: &[],
    signs_with_api_key: false,
};
static FIRECRAWL: Fake = Fake {
    name: "firecrawl",
    environment: Environment {
        api_key: "FIRECRAWL_API_KEY",
        webhook_secret: Some("FIRECRAWL_WEBHOOK_SECRET"),
        path_token: None,
        base_urls: &["FIRECRAWL_API_URL"],
    },
    apis: &[],
    signs_with_api_key: false,
};
static FAKES: [&dyn Provider; 4] = [&SKYVERN, &BROWSER_USE, &SMARTBROWSE, &FIRECRAWL];

const TOKEN: &str = "a-token-nobody-can-guess";

fn env() -> Env {
    Env::of([
        ("HOME", "/home/ada"),
        ("KEY", "key-hunter2"),
        ("OLD_KEY", "old-hunter2"),
        ("TOKEN", TOKEN),
        ("AUTH", "Bearer hunter2"),
        ("MULTILINE", "one-hunter2\ntwo"),
        ("EMPTY", " "),
    ])
}

fn read(text: &str) -> Result<Config, ConfigError> {
    file::read(&FAKES, Path::new("settled.toml"), text, &env())
}

fn good(text: &str) -> Config {
    read(text).unwrap_or_else(|error| panic!("{error}"))
}

fn source(keys: &str) -> SourceConfig {
    let config = good(&format!("[sources.bu]\nprovider = \"browser-use\"\n{keys}"));
    SourceConfig::clone(config.sources.values().next().unwrap())
}

/// The complaints about a text; none may repeat a secret.
fn complaint(text: &str) -> String {
    let error = read(text).expect_err("this has to be refused").to_string();
    assert!(!error.contains("hunter2"), "{error}");
    error
}

/// The complaint about one key of a source, without file, line and path.
fn complaint_about(key: &str, value: &str) -> String {
    let unsigned = key.starts_with("path_token") || key.starts_with("require_headers");
    let provider = if unsigned {
        "smartbrowse"
    } else {
        "browser-use"
    };
    let error = complaint(&format!(
        "[sources.bu]\nprovider = {provider:?}\n{key} = {value}"
    ));
    error
        .strip_prefix(&format!("settled.toml:3: sources.bu.{key}: "))
        .unwrap_or(&error)
        .to_owned()
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn labels(keys: &[crate::secret::Key]) -> Vec<&str> {
    keys.iter().map(|key| key.label.0.as_str()).collect()
}

// ── What is read ────────────────────────────────────────────────────────────────────────────────

/// The contract's own example (design.md §7), with secrets from the environment of the tests.
const CONTRACT: &str = r#"
[hooks]
listen = "127.0.0.1:8675"
body_limit = "32MiB"

[store]
path = "/var/lib/settled/settled.db"

[sockets]
feed = "/run/settled/feed.sock"
control = "/run/settled/control.sock"

[sources.skyvern-prod]
provider = "skyvern"
base_url = "https://api.skyvern.com"
api_key = { env = "KEY" }
webhook_secrets = [{ env = "OLD_KEY" }]
poll = "0 * * * * *"
sweep = "30 */5 * * * *"
first_poll = "20s"
max_interval = "5m"
grace = "60s"
confirm = "auto"
confirm_timeout = "60s"
deadline = "24h"
give_up = "7d"
rate = "5/s"
concurrency = 4

[sources.scrapes]
provider = "smartbrowse"
api_key = { env = "OLD_KEY" }
path_token = { env = "TOKEN" }
require_headers = { Authorization = { env = "AUTH" } }

[sources.bu]
provider = "browser-use"
api = "v2"

[retention]
deliveries = "30d"
feed = "90d"
"#;

#[test]
fn the_contracts_example_is_read_to_the_letter() {
    let config = good(CONTRACT);
    assert_eq!(config.hooks, Hooks::default());
    assert_eq!(config.retention, Retention::default());
    assert_eq!(config.store_path, Path::new("/var/lib/settled/settled.db"));
    assert_eq!(
        config.sockets,
        Sockets::in_folder(Path::new("/run/settled"))
    );
    assert_eq!(config.origin, Origin::File("settled.toml".into()));
    let names: Vec<&str> = config.sources.keys().map(SourceName::as_str).collect();
    assert_eq!(names, ["bu", "scrapes", "skyvern-prod"]);

    let skyvern = &config.sources[&SourceName::new("skyvern-prod").unwrap()];
    assert_eq!(skyvern.base_url, "https://api.skyvern.com");
    assert_eq!(
        labels(&skyvern.keyring.signing),
        ["api_key", "webhook_secrets[0]"]
    );
    assert_eq!(skyvern.overrides.give_up, Some(seconds(7 * 86_400)));
    assert_eq!(skyvern.overrides.confirm, Some(Confirm::Auto));

    let scrapes = &config.sources[&SourceName::new("scrapes").unwrap()];
    assert_eq!(labels(&scrapes.keyring.path_tokens), ["path_token"]);
    assert_eq!(scrapes.keyring.headers[0].name, "authorization");
    assert_eq!(
        labels(&scrapes.keyring.headers[0].values),
        ["require_headers.authorization"]
    );
    assert_eq!(scrapes.keyring.signing, []);
}

#[test]
fn an_empty_file_is_all_defaults_and_a_warning() {
    let config = good("");
    assert_eq!(config.hooks, Hooks::default());
    assert_eq!(
        config.store_path,
        Path::new("/home/ada/.local/state/settled/settled.db")
    );
    assert_eq!(
        config.sockets,
        Sockets::in_folder(Path::new("/home/ada/.local/state/settled"))
    );
    assert_eq!(
        config.warnings,
        ["sources: there are none; write for example [sources.prod] with a provider"]
    );
}

#[test]
fn the_shipped_example_is_valid_as_it_is_and_with_every_key_switched_on() {
    assert_eq!(good(EXAMPLE).hooks, Hooks::default());

    let folder = tempfile::tempdir().unwrap();
    let keys = [
        "skyvern_api_key",
        "skyvern_old_key",
        "browser_use_api_key",
        "browser_use_webhook_secret",
    ];
    let more = [
        "smartbrowse_api_key",
        "smartbrowse_path_token",
        "smartbrowse_old_path_token",
        "smartbrowse_hook_auth",
    ];
    for name in keys
        .iter()
        .chain(&more)
        .chain(&["firecrawl_api_key", "firecrawl_webhook_secret"])
    {
        std::fs::write(folder.path().join(name), format!("{name}-0123456789")).unwrap();
    }
    let word = |text: &str| {
        text.bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte == b'_')
    };
    let key = |line: &&str| {
        line.starts_with("[s") || line.split_once(" = ").is_some_and(|(key, _)| word(key))
    };
    let on: Vec<&str> = EXAMPLE
        .lines()
        .map(|line| line.strip_prefix("# ").filter(key).unwrap_or(line))
        .collect();
    let env = Env::of([("CREDENTIALS_DIRECTORY", folder.path().to_str().unwrap())]);
    let config = file::read(&FAKES, Path::new("settled.toml"), &on.join("\n"), &env).unwrap();

    assert_eq!(config.hooks, Hooks::default());
    assert_eq!(
        config.retention,
        Retention {
            store_bytes: Some(10 << 30),
            ..Retention::default()
        }
    );
    assert_eq!(config.sources.len(), 4);
    for key in file::every_key() {
        assert!(
            EXAMPLE.contains(&format!("\n# {key} = ")),
            "{key} is missing from the example"
        );
    }
    let skyvern = &config.sources[&SourceName::new("skyvern-prod").unwrap()];
    let default = SourceConfig::new(skyvern.name.clone(), &SKYVERN);
    assert_eq!(
        (&skyvern.poll, &skyvern.sweep),
        (&default.poll, &default.sweep)
    );
    assert_eq!(skyvern.concurrency, default.concurrency);
    assert!((skyvern.rate - default.rate).abs() < 1e-9);
}

#[test]
fn what_is_not_configured_stays_as_the_provider_has_it() {
    let plain = source("api_key = { env = \"KEY\" }");
    let listed_for = seconds(450);
    assert_eq!(
        plain.policy(None),
        Policy {
            listed_for,
            ..BROWSER_USE.policy(None)
        }
    );
    assert_eq!(plain.base_url, "https://api.fake.example");
    assert_eq!(plain.settings.api.as_deref(), Some("v2"));

    let set = source(
        "api_key = { env = \"KEY\" }\ngrace = \"0s\"\nconfirm = \"never\"\napi = \"v3\"\nrate = \"60/min\"",
    );
    let policy = set.policy(Some(Kind::Crawl));
    assert_eq!(
        (policy.grace, policy.confirm, policy.deadline),
        (Duration::ZERO, Confirm::Never, seconds(48 * 3600))
    );
    assert_eq!(set.settings.api.as_deref(), Some("v3"));
    assert!((set.rate - 1.0).abs() < 1e-9);
}

#[test]
fn without_a_key_nothing_can_be_asked_and_no_list_spares_a_request() {
    let policy = source("").policy(None);
    assert!(!policy.can_poll);
    assert_eq!(policy.listed_for, Duration::ZERO);
    let hourly = source("api_key = { env = \"KEY\" }\nsweep = \"0 * * * *\"").policy(None);
    assert!(hourly.can_poll);
    assert_eq!(hourly.listed_for, seconds(5400));
}

#[test]
fn only_a_provider_that_signs_with_the_api_key_gets_it_among_the_signing_secrets() {
    let keys = "api_key = { env = \"KEY\" }\nwebhook_secrets = [{ env = \"OLD_KEY\" }, { env = \"AUTH\" }]";
    assert_eq!(
        labels(&source(keys).keyring.signing),
        ["webhook_secrets[0]", "webhook_secrets[1]"]
    );
}

#[test]
fn tokens_and_headers_can_be_rotated() {
    let config = good(
        "[sources.s]\nprovider = \"smartbrowse\"\npath_token = { env = \"TOKEN\" }\npath_tokens = [{ env = \"KEY\" }]\n\
         require_headers.X-Hook = [{ env = \"KEY\" }, { env = \"OLD_KEY\" }]",
    );
    let source = config.sources.values().next().unwrap();
    assert_eq!(
        labels(&source.keyring.path_tokens),
        ["path_token", "path_tokens[0]"]
    );
    let header = &source.keyring.headers[0];
    assert_eq!(header.name, "x-hook");
    assert_eq!(
        labels(&header.values),
        ["require_headers.x-hook[0]", "require_headers.x-hook[1]"]
    );
}

#[test]
fn nothing_printable_shows_a_secret() {
    let config = good(CONTRACT);
    assert!(!format!("{config:?} {:?}", env()).contains("hunter2"));
    let scrapes = &config.sources[&SourceName::new("scrapes").unwrap()];
    let said = format!("old-hunter2 {TOKEN} Bearer hunter2");
    assert_eq!(
        scrapes.redactor().redact(said),
        "[secret] [secret] [secret]"
    );
}

// ── Where it is read ────────────────────────────────────────────────────────────────────────────

#[test]
fn the_named_file_goes_before_the_variable_and_the_variable_before_the_default() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, name).unwrap();
        path
    };
    let (named, set, default) = (file("named"), file("set"), file("default"));
    let env = Env::of([("SETTLED_CONFIG", set.to_str().unwrap())]);
    let found =
        |path, env: &Env, default: &Path| find(path, env, default).unwrap().map(|(_, text)| text);
    assert_eq!(found(Some(&named), &env, &default).unwrap(), "named");
    assert_eq!(found(None, &env, &default).unwrap(), "set");
    assert_eq!(found(None, &Env::of([]), &default).unwrap(), "default");
    assert_eq!(found(None, &Env::of([]), &folder.path().join("none")), None);
}

#[test]
fn a_file_that_was_named_has_to_be_there() {
    let error = load(Some(Path::new("/no/such/settled.toml")), &Env::of([])).unwrap_err();
    assert_eq!(
        error.to_string(),
        "/no/such/settled.toml cannot be read: No such file or directory (os error 2); `settled init` writes one"
    );
}

#[test]
fn without_a_file_sources_come_from_the_variables_people_have() {
    let env = Env::of([
        ("HOME", "/home/ada"),
        ("SKYVERN_API_KEY", "key-hunter2"),
        ("BROWSER_USE_WEBHOOK_SECRET", "whsec-hunter2"),
        ("SMARTBROWSE_PATH_TOKEN", TOKEN),
        ("FIRECRAWL_API_KEY", ""),
    ]);
    let config = from_environment(&FAKES, &env).unwrap();
    assert_eq!(config.origin, Origin::Environment);
    let source = |name: &str| &config.sources[&SourceName::new(name).unwrap()];
    assert_eq!(config.sources.len(), 3);
    assert_eq!(
        labels(&source("skyvern").keyring.signing),
        ["SKYVERN_API_KEY"]
    );
    assert!(source("skyvern").api_key.is_some());
    assert_eq!(
        labels(&source("browser-use").keyring.signing),
        ["BROWSER_USE_WEBHOOK_SECRET"]
    );
    assert!(source("browser-use").api_key.is_none());
    assert_eq!(
        labels(&source("smartbrowse").keyring.path_tokens),
        ["SMARTBROWSE_PATH_TOKEN"]
    );
}

#[test]
fn without_anything_the_warning_says_what_to_set() {
    let config = from_environment(&FAKES, &Env::of([("HOME", "/home/ada")])).unwrap();
    assert_eq!(
        config.warnings,
        [
            "sources: there are none; set one of $SKYVERN_API_KEY, $BROWSER_USE_API_KEY, $WEBSCRAPE_API_KEY, \
          $FIRECRAWL_API_KEY, or let `settled init` write a file"
        ]
    );
}

#[test]
fn a_variable_that_cannot_be_a_secret_is_named() {
    let env = Env::of([
        ("HOME", "/home/ada"),
        ("SKYVERN_API_KEY", "one-hunter2\ntwo"),
        ("SMARTBROWSE_PATH_TOKEN", "hunter2/with/slashes"),
    ]);
    assert_eq!(
        from_environment(&FAKES, &env).unwrap_err().to_string(),
        "$SKYVERN_API_KEY: the secret has to be one line of ASCII\n\
         $SMARTBROWSE_PATH_TOKEN: a path token is part of a URL; use letters, digits and - _ . ~ only \
         (`settled init` makes one)"
    );
}

#[test]
fn the_database_and_the_sockets_follow_the_service_manager_then_the_desktop_then_home() {
    let of = |env: Env| {
        let store = default_store(&env).unwrap();
        (
            store.display().to_string(),
            default_sockets(&env, Some(&store))
                .feed
                .display()
                .to_string(),
        )
    };
    let service = Env::of([
        ("STATE_DIRECTORY", "/var/lib/settled:/var/lib/other"),
        ("RUNTIME_DIRECTORY", "/run/settled"),
        ("XDG_STATE_HOME", "/x/state"),
        ("HOME", "/root"),
    ]);
    assert_eq!(
        of(service),
        (
            "/var/lib/settled/settled.db".to_owned(),
            "/run/settled/feed.sock".to_owned()
        )
    );
    let desktop = Env::of([
        ("XDG_STATE_HOME", "/x/state"),
        ("XDG_RUNTIME_DIR", "/x/run"),
        ("HOME", "/home/ada"),
    ]);
    assert_eq!(
        of(desktop),
        (
            "/x/state/settled/settled.db".to_owned(),
            "/x/run/settled/feed.sock".to_owned()
        )
    );
    let bare = Env::of([("HOME", "/h"), ("XDG_STATE_HOME", "relative")]);
    let home = "/h/.local/state/settled";
    assert_eq!(
        of(bare),
        (format!("{home}/settled.db"), format!("{home}/feed.sock"))
    );
}

#[test]
fn without_a_home_the_database_needs_a_path() {
    let text = "store.path: there is no place for the database, since none of $STATE_DIRECTORY, $XDG_STATE_HOME and \
                $HOME is set; write for example [store] path = \"/var/lib/settled/settled.db\"";
    assert_eq!(
        from_environment(&FAKES, &Env::of([]))
            .unwrap_err()
            .to_string(),
        text
    );
    let error = file::read(&FAKES, Path::new("settled.toml"), "", &Env::of([])).unwrap_err();
    assert_eq!(error.to_string(), text);
}

#[test]
fn relative_paths_are_below_the_folder_of_the_file() {
    let text = "store.path = \"data/settled.db\"\nsockets.feed = \"feed.sock\"\n";
    let config = file::read(&FAKES, Path::new("/srv/s/settled.toml"), text, &env()).unwrap();
    assert_eq!(config.store_path, Path::new("/srv/s/data/settled.db"));
    assert_eq!(config.sockets.feed, Path::new("/srv/s/feed.sock"));
    assert_eq!(
        config.sockets.control,
        Path::new("/srv/s/data/control.sock")
    );
}

#[test]
fn a_client_finds_the_sockets_without_the_right_to_the_secrets() {
    let text = "[sockets]\nfeed = \"/run/x/feed.sock\"\n[sources.a]\nprovider = \"skyvern\"\n\
                api_key = { credential = \"not-for-clients\" }\n";
    let sockets = file::client_sockets(Path::new("settled.toml"), text, &env()).unwrap();
    assert_eq!(sockets.feed, Path::new("/run/x/feed.sock"));
}

// ── What is refused ─────────────────────────────────────────────────────────────────────────────

#[test]
fn all_mistakes_are_told_at_once_in_the_order_of_their_lines() {
    let text = r#"[hooks]
listen = "8675"
body_limit = "1 lot"

[sources.bu]
provider = "browser-use"
gruce = "60s"
grace = "60 parsecs"
api_key = { env = "NOT_SET" }

[retention]
feed = 90

[sokets]
"#;
    assert_eq!(
        complaint(text),
        r#"settled.toml:2: hooks.listen: "8675" is not an address with a port; write for example "127.0.0.1:8675" or "[::1]:8675"
settled.toml:3: hooks.body_limit: "1 lot" is not a size; write for example "32MiB"
settled.toml:7: sources.bu.gruce: there is no such key; did you mean "grace"?
settled.toml:8: sources.bu.grace: "60 parsecs" is not a duration; write for example "60s", "5m" or "7d"
settled.toml:9: sources.bu.api_key.env: $NOT_SET is not set, or empty; set it where settled is started
settled.toml:12: retention.feed: this is a bare number; write text in quotes, for example "30d"
settled.toml:14: sokets: there is no such key; did you mean "sockets"?"#
    );
}

#[test]
fn a_mistake_of_syntax_has_its_line_and_shows_nothing_of_it() {
    let error = complaint("[hooks]\nlisten = \"127.0.0.1:1\"\napi_key = \"hunter2\n");
    assert!(
        error.starts_with("settled.toml:3: this is not TOML: invalid basic string"),
        "{error}"
    );
    assert_eq!(error.lines().count(), 1);
    let error = complaint("[hooks]\nlisten = \"127.0.0.1:1\"\nlisten = \"127.0.0.1:2\"\n");
    assert!(
        error.starts_with("settled.toml:3: this is not TOML: duplicate key"),
        "{error}"
    );
}

#[test]
fn a_secret_in_the_file_is_refused_and_not_repeated() {
    let right = "this is a secret, and this file gets copied and shown, so it must not stand here itself; write \
                 { credential = \"NAME\" }, { env = \"NAME\" } or { file = \"/PATH\" }";
    assert_eq!(complaint_about("api_key", "\"hunter2\""), right);
    assert_eq!(complaint_about("path_token", "\"hunter2\""), right);
    assert_eq!(
        complaint_about("require_headers.Authorization", "\"hunter2\""),
        right
    );
    let listed = complaint_about("webhook_secrets", "[\n \"hunter2\"]");
    assert_eq!(
        listed,
        format!("settled.toml:4: sources.bu.webhook_secrets[0]: {right}")
    );
}

#[test]
fn a_reference_to_a_secret_is_exactly_one() {
    let one = "write exactly one of { credential = \"NAME\" }, { env = \"NAME\" } or { file = \"/PATH\" }";
    assert_eq!(complaint_about("api_key", "{}"), one);
    assert_eq!(
        complaint_about("api_key", "{ env = \"KEY\", file = \"/x\" }"),
        one
    );
    assert_eq!(
        complaint_about("api_key", "{ evn = \"KEY\" }"),
        "settled.toml:3: sources.bu.api_key.evn: there is no such key; did you mean \"env\"?"
    );
    assert_eq!(
        complaint_about("api_key", "7"),
        "this is a bare number; write { credential = \"NAME\" }, { env = \"NAME\" } or { file = \"/PATH\" }"
    );
    assert_eq!(
        complaint_about("webhook_secrets", "{ env = \"KEY\" }"),
        "this is a table; write a list: webhook_secrets = [{ credential = \"NAME\" }]"
    );
    assert_eq!(
        complaint_about("path_token", "[{ env = \"TOKEN\" }]"),
        "this is a list; path_token is one secret, more are accepted beside it in path_tokens = […]"
    );
}

#[test]
fn a_secret_that_is_missing_or_unusable_says_where_and_what_to_do() {
    let about = |value: &str| {
        let error = complaint_about("api_key", value);
        error
            .strip_prefix("settled.toml:3: sources.bu.api_key.")
            .unwrap_or(&error)
            .to_owned()
    };
    assert_eq!(
        about("{ env = \"EMPTY\" }"),
        "env: $EMPTY is not set, or empty; set it where settled is started"
    );
    assert_eq!(
        about("{ env = \"sk-live-hunter2\" }"),
        "env: the environment variable named here is not set, or empty; set it where settled is started"
    );
    assert_eq!(
        about("{ env = \"MULTILINE\" }"),
        "the secret has several lines or characters that no header can carry; it has to be one line of ASCII"
    );
    assert_eq!(
        about("{ file = \"/no/such/key\" }"),
        "file: /no/such/key is not there; put the secret into it"
    );
    assert_eq!(
        about("{ file = \"~/key\" }"),
        "file: \"~\" is not expanded here; write the whole path"
    );
    assert_eq!(
        about("{ credential = \"bu\" }"),
        "credential: credential \"bu\" cannot be read: $CREDENTIALS_DIRECTORY is not set; systemd sets it for the \
         service, by hand write CREDENTIALS_DIRECTORY=/etc/settled/credentials before the command"
    );
    assert_eq!(
        about("{ credential = \"../key\" }"),
        "credential: a credential has the name of a file, without a folder; for a path write { file = \"/PATH\" }"
    );
}

#[test]
fn credentials_are_found_under_their_name_and_under_the_one_systemd_252_makes() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("settled_key"), "from-252\n").unwrap();
    std::fs::write(folder.path().join("empty"), "\n").unwrap();
    let path = folder.path().to_str().unwrap();
    let env = Env::of([("HOME", "/h"), ("CREDENTIALS_DIRECTORY", path)]);
    let read = |name: &str| {
        let text =
            format!("[sources.a]\nprovider = \"skyvern\"\napi_key = {{ credential = \"{name}\" }}");
        file::read(&FAKES, Path::new("settled.toml"), &text, &env)
    };
    let key = |config: Config| {
        config
            .sources
            .values()
            .next()
            .unwrap()
            .api_key
            .clone()
            .unwrap()
    };
    assert_eq!(key(read("key").unwrap()).expose(), "from-252");
    std::fs::write(folder.path().join("key"), "from-name\n").unwrap();
    assert_eq!(key(read("key").unwrap()).expose(), "from-name");
    assert_eq!(
        read("none").unwrap_err().to_string(),
        format!(
            "settled.toml:3: sources.a.api_key.credential: there is no credential \"none\" (nor settled_none) in {path}; \
             put the secret into /etc/settled/credentials/none and restart settled"
        )
    );
    assert_eq!(
        read("empty").unwrap_err().to_string(),
        format!(
            "settled.toml:3: sources.a.api_key.credential: {path}/empty is empty; put the secret into it"
        )
    );
}

#[test]
fn a_secret_file_is_read_and_told_of_when_everybody_may_read_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    std::fs::write(&path, "  key-hunter2\n").unwrap();
    let text = "[sources.a]\nprovider = \"skyvern\"\napi_key = { file = \"key\" }";
    let warnings = |mode| {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let config = file::read(&FAKES, &folder.path().join("settled.toml"), text, &env()).unwrap();
        assert_eq!(
            config
                .sources
                .values()
                .next()
                .unwrap()
                .api_key
                .as_ref()
                .unwrap()
                .expose(),
            "key-hunter2"
        );
        config.warnings
    };
    assert_eq!(warnings(0o640), Vec::<String>::new());
    let path = path.display();
    assert_eq!(
        warnings(0o644),
        [format!(
            "sources.a.api_key.file: everybody may read {path}; chmod o= {path}"
        )]
    );
}

#[test]
fn a_file_too_long_for_a_secret_is_not_read_to_its_end() {
    let error = complaint_about("api_key", "{ file = \"/dev/zero\" }");
    assert_eq!(
        error,
        "settled.toml:3: sources.bu.api_key.file: /dev/zero is too long to be a secret"
    );
}

#[test]
fn values_say_what_would_be_right() {
    let check =
        |key: &str, value: &str, right: &str| assert_eq!(complaint_about(key, value), right);
    check(
        "grace",
        "60",
        "this is a bare number; write text in quotes, for example \"60s\"",
    );
    check(
        "rate",
        "\"fast\"",
        "\"fast\" is not a rate; write for example \"5/s\" or \"300/min\"",
    );
    check(
        "concurrency",
        "0",
        "write a whole number from 1 to 256, without quotes",
    );
    check(
        "concurrency",
        "\"4\"",
        "write a whole number from 1 to 256, without quotes",
    );
    check(
        "confirm",
        "\"allways\"",
        "\"allways\" is no way to confirm; did you mean \"always\"?",
    );
    check(
        "confirm",
        "\"yes\"",
        "\"yes\" is no way to confirm; there are: auto, always, never",
    );
    check(
        "api",
        "\"v5\"",
        "there is no browser-use API \"v5\"; there are: v2, v3, v4",
    );
    check(
        "first_poll",
        "\"0s\"",
        "\"0s\" is too short; the least is \"100ms\"",
    );
    check(
        "poll",
        "\"0 0 * * 1\"",
        "\"0 0 * * 1\" gives its weekdays as numbers, and programs disagree on whether 1 is Sunday or Monday; write \
         names, for example \"Mon-Fri\"",
    );
    check(
        "base_url",
        "\"api.browser-use.com\"",
        "this is not a base URL (it has to start with https:// or http://); write for example \
         \"https://api.example.com\"",
    );
    check(
        "require_headers",
        "\"x\"",
        "this is text; write require_headers = { Authorization = { credential = \"NAME\" } }",
    );
    check(
        "require_headers.Authorization",
        "[]",
        "the list is empty, so no delivery could match; put a secret in it or remove the header",
    );
}

#[test]
fn sources_need_a_name_and_a_provider() {
    assert_eq!(
        complaint("[sources.Prod]\nprovider = \"skyvern\""),
        "settled.toml:1: sources.Prod: \"Prod\" is not a name: use 1 to 64 of a-z 0-9 . _ -, starting with a letter or \
         digit"
    );
    assert_eq!(
        complaint("[sources.a]\n"),
        "settled.toml:1: sources.a.provider: this is missing; there are: skyvern, browser-use, smartbrowse, firecrawl"
    );
    assert_eq!(
        complaint("[sources.a]\nprovider = \"skyvrn\""),
        "settled.toml:2: sources.a.provider: there is no provider \"skyvrn\"; did you mean \"skyvern\"?"
    );
    assert_eq!(
        complaint("sources = 3"),
        "settled.toml:1: sources: this is a bare number; write [sources.NAME]"
    );
    assert_eq!(
        complaint("[sources]\nprovider = \"skyvern\""),
        "settled.toml:2: sources.provider: this is text; write [sources.provider] and its keys below"
    );
    assert_eq!(
        complaint("hooks = 3"),
        "settled.toml:1: hooks: this is a bare number; write [hooks] and its keys below"
    );
}

#[test]
fn a_source_name_may_have_dots() {
    let text = "[sources.\"eu.prod\"]\nprovider = \"skyvern\"\ngrace = 1";
    assert!(complaint(text).starts_with("settled.toml:3: sources.eu.prod.grace: "));
}

#[test]
fn combinations_that_make_no_sense_are_refused() {
    assert_eq!(
        complaint_about("grace", "\"8d\""),
        "\"8d\" is longer than give_up (\"7d\" by default); change one, or set give_up too"
    );
    assert_eq!(
        complaint_about("give_up", "\"30h\""),
        "\"30h\" is shorter than deadline (\"2d\" by default for a crawl); change one, or set deadline too"
    );
    assert_eq!(
        complaint_about("deadline", "\"2d\"\ngive_up = \"1d\""),
        "\"2d\" is longer than give_up (\"1d\"); change one, or set give_up too"
    );
    assert_eq!(
        complaint_about("max_interval", "\"10s\""),
        "\"10s\" is shorter than first_poll (\"20s\" by default); change one, or set first_poll too"
    );
    assert_eq!(
        complaint_about("confirm", "\"always\""),
        "\"always\" means to ask the provider first, which takes an api_key; add one"
    );
    let of = |provider: &str, keys: &str| {
        complaint(&format!("[sources.a]\nprovider = \"{provider}\"\n{keys}"))
    };
    assert_eq!(
        of("skyvern", "api = \"v2\""),
        "settled.toml:3: sources.a.api: skyvern has one API only; remove this key"
    );
    assert_eq!(
        of("smartbrowse", "webhook_secrets = [{ env = \"KEY\" }]"),
        "settled.toml:3: sources.a.webhook_secrets: smartbrowse does not sign its webhooks; use path_token or \
         require_headers instead"
    );
    assert_eq!(
        of("firecrawl", "path_token = { env = \"KEY\" }"),
        "settled.toml:3: sources.a.path_token: firecrawl signs its webhooks, and this is without effect; remove it and \
         use webhook_secrets"
    );
    assert_eq!(
        complaint("[hooks]\nbody_limit = \"128MiB\""),
        "settled.toml:1: hooks.unverified_bytes: one delivery may be larger than this (see body_limit); write a larger \
         size here or a smaller there"
    );
}

#[test]
fn a_header_is_required_once_whatever_its_case() {
    let both = "{ X-Hook = { env = \"KEY\" }, x-hook = { env = \"KEY\" } }";
    assert_eq!(
        complaint_about("require_headers", both),
        "settled.toml:3: sources.bu.require_headers.x-hook: this header is here twice; give it a list of secrets, any \
         of which is accepted"
    );
}

#[test]
fn sockets_have_short_paths_and_two_of_them() {
    let long = "x".repeat(120);
    assert_eq!(
        complaint(&format!("[sockets]\nfeed = \"/{long}\"\ncontrol = \"/c\"")),
        format!(
            "settled.toml:2: sockets.feed: /{long} has 121 bytes, and a Unix socket's path at most 107; write a shorter \
             one"
        )
    );
    assert_eq!(
        complaint("[sockets]\nfeed = \"/s\"\ncontrol = \"/s\""),
        "settled.toml:3: sockets.control: this is the feed's socket too; write two different paths"
    );
}

#[test]
fn what_the_unit_sets_is_filled_in_beside_what_is_set() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("default");
    std::fs::write(
        &file,
        "# keys\nKEY=from-the-file\nQUOTED=\"a b\"\n;X=y\nSTATE_DIRECTORY=/elsewhere\n",
    )
    .unwrap();
    let env = Env::of([("KEY", "from-the-shell")]).of_service(&file);
    let get = |name| env.get(name).unwrap_or_default();
    assert_eq!(
        [get("KEY"), get("QUOTED"), get("X"), get("STATE_DIRECTORY")],
        ["from-the-shell", "a b", "", "/elsewhere"]
    );
    assert_eq!(get("CREDENTIALS_DIRECTORY"), "/etc/settled/credentials");
}

// ── What is worth telling ───────────────────────────────────────────────────────────────────────

#[test]
fn warnings_tell_what_will_not_work_well() {
    let text = r#"
hooks.listen = "0.0.0.0:8675"
[sources.a]
provider = "browser-use"
[sources.b]
provider = "skyvern"
api_key = { env = "KEY" }
base_url = "http://skyvern.example"
[sources.c]
provider = "skyvern"
api_key = { env = "KEY" }
base_url = "http://skyvern.example/"
[sources.d]
provider = "smartbrowse"
api_key = { env = "KEY" }
path_token = { env = "OLD_KEY" }
"#;
    assert_eq!(
        good(text).warnings,
        [
            "hooks.listen: 0.0.0.0:8675 can be reached from other machines without TLS; put a reverse proxy or tunnel \
             before 127.0.0.1:8675 instead",
            "sources.a: there is no api_key, so webhooks are recorded but nothing can be asked: a lost webhook stays \
             lost",
            "sources.a: there is nothing to verify webhooks against, so they are answered 401 and only hint at when to \
             ask; configure webhook_secrets",
            "sources.b.base_url: the API key will be sent unencrypted; write https://",
            "sources.c.base_url: the API key will be sent unencrypted; write https://",
            "sources.d: path_token has fewer than 16 characters and can be guessed; `settled init` makes a good one",
            "sources.c: this is the account of sources.b too (same provider, base URL and API key); its runs may be \
             completed once for each",
        ]
    );
}

#[test]
fn a_base_url_in_the_environment_is_where_the_key_goes() {
    let config = |url: &str| {
        let env = Env::of([
            ("HOME", "/home/ada"),
            ("SKYVERN_API_KEY", "key-hunter2"),
            ("SKYVERN_BASE_URL", url),
        ]);
        from_environment(&FAKES, &env)
    };
    let skyvern = SourceName::new("skyvern").unwrap();
    for (url, expected) in [
        ("http://localhost:8000", "http://localhost:8000"),
        ("http://localhost:8000/", "http://localhost:8000"),
        ("http://localhost:8000/v1/", "http://localhost:8000"),
        ("http://localhost:8000/api/v1", "http://localhost:8000"),
        ("https://x.example/agents/v2", "https://x.example/agents"),
        ("https://x.example/api", "https://x.example/api"),
        (" ", "https://api.fake.example"),
    ] {
        let config = config(url).unwrap();
        assert_eq!(config.sources[&skyvern].base_url, expected, "{url}");
    }
    // The key of a server whose address is mistyped is sent nowhere.
    let error = config("localhost:8000").unwrap_err().to_string();
    assert!(
        error.starts_with("$SKYVERN_BASE_URL: this is not a base URL"),
        "{error}"
    );
}

#[test]
fn a_server_without_keys_is_said_plainly() {
    let file = good(
        "[sources.a]\nprovider = \"skyvern\"\nbase_url = \"http://127.0.0.1:1\"\napi_key = \"none\"\n",
    );
    let env = Env::of([("HOME", "/home/ada"), ("SKYVERN_API_KEY", "none")]);
    let environment = from_environment(&FAKES, &env).unwrap();
    for source in file.sources.values().chain(environment.sources.values()) {
        assert!(source.api_key.is_some(), "it can be polled");
        assert!(
            source.keyring.signing.is_empty(),
            "nothing is signed with no key"
        );
        assert_eq!(
            source.redactor().redact("none of these".to_owned()),
            "none of these"
        );
    }
    assert!(read("[sources.a]\nprovider = \"skyvern\"\napi_key = \"None\"\n").is_err());
}
