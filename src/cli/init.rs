//! `settled init`: writes a first configuration.
//!
//! It is the commented example with a table for each named account. This command makes the path
//! tokens; to every other secret the file only refers.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use zeroize::Zeroizing;

use super::{Context, Failure, show};
use crate::config::{self, EXAMPLE, Env};
use crate::model::SourceName;
use crate::providers::{self, Provider, REGISTRY};

/// Bytes of randomness in a path token.
const TOKEN_BYTES: usize = 20;
/// Takes the place of `--public-url` if that is not given.
const ANY_HOST: &str = "https://YOUR.HOST";

/// Write a configuration with fresh tokens, and show the webhook URLs
///
/// Without --source: one account for each provider whose environment variables are set, or for each
/// provider there is. Files that exist are not overwritten, except the example as it was installed.
///
/// Example: settled init settled.toml --public-url https://hooks.example.org
#[derive(Debug, Args)]
pub struct Init {
    /// The file to write [default: --config, else $SETTLED_CONFIG, else settled.toml]
    file: Option<PathBuf>,
    /// An account and its provider; may be given several times
    #[arg(long, value_name = "NAME=PROVIDER", value_parser = account)]
    source: Vec<Account>,
    /// The URL by which providers reach the webhook endpoint
    #[arg(long, value_name = "URL", value_parser = config::base_url)]
    public_url: Option<String>,
    /// Print JSON, for programs; without the tokens
    #[arg(long)]
    json: bool,
}

#[derive(Clone)]
struct Account {
    name: SourceName,
    provider: &'static dyn Provider,
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}", self.name, self.provider.name())
    }
}

/// `NAME=PROVIDER`, or `PROVIDER` for an account of that name.
fn account(text: &str) -> Result<Account, String> {
    let (name, provider) = text.split_once('=').unwrap_or((text, text));
    let name = SourceName::new(name).map_err(|error| error.to_string())?;
    let known = || {
        REGISTRY
            .iter()
            .map(|provider| provider.name())
            .collect::<Vec<_>>()
            .join(", ")
    };
    let provider = providers::named(provider)
        .ok_or_else(|| format!("there is no provider {provider:?}; there are: {}", known()))?;
    Ok(Account { name, provider })
}

/// How the file refers to secrets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In the folder `credentials` beside the file, for systemd.
    Credentials,
    /// In environment variables, and in files beside the file.
    Beside,
}

/// A source of the file, before it is written.
struct Draft {
    account: Account,
    table: String,
    /// Where its path token goes, and the token.
    token: Option<(PathBuf, Zeroizing<String>)>,
    /// The secrets that a person has to provide.
    needs: Vec<String>,
}

/// The files that the command wrote, as `--json` prints them.
#[derive(Serialize)]
struct Written<'d> {
    config: &'d Path,
    sources: Vec<WrittenSource<'d>>,
}

#[derive(Serialize)]
struct WrittenSource<'d> {
    name: &'d str,
    provider: &'d str,
    /// Without the token at its end.
    webhook_url: String,
    path_token_file: Option<&'d Path>,
    enter_it: &'d str,
    needs: &'d [String],
}

impl Init {
    /// Runs the command.
    pub fn run(self, context: &Context) -> Result<ExitCode, Failure> {
        let file = self.file(context);
        let folder = file.parent().unwrap_or(Path::new("")).to_owned();
        let place = if folder.join("credentials").is_dir() {
            Place::Credentials
        } else {
            Place::Beside
        };
        let accounts = self.accounts(&context.env)?;
        let drafts = accounts
            .iter()
            .map(|account| draft(account, &accounts, place, &folder, &context.env));
        let drafts = drafts.collect::<Result<Vec<Draft>, Failure>>()?;
        write(&file, &drafts)?;
        if self.json {
            let json = serde_json::to_string(&self.written(&file, &drafts))
                .map_err(|error| Failure::Other(error.to_string()))?;
            show::json(&json)?;
        } else {
            show::line(&self.text(&file, &drafts, place))?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn file(&self, context: &Context) -> PathBuf {
        let named = self.file.clone().or_else(|| context.config.clone());
        let named = named.or_else(|| context.env.get("SETTLED_CONFIG").map(PathBuf::from));
        named.unwrap_or_else(|| PathBuf::from("settled.toml"))
    }

    fn accounts(&self, env: &Env) -> Result<Vec<Account>, Failure> {
        let mut named: BTreeMap<&SourceName, &Account> = BTreeMap::new();
        for account in &self.source {
            if named.insert(&account.name, account).is_some() {
                return Err(Failure::Other(format!(
                    "--source {} is there twice; give each account its own name",
                    account.name
                )));
            }
        }
        if !named.is_empty() {
            return Ok(self.source.clone());
        }
        let all: Vec<Account> = REGISTRY
            .iter()
            .filter_map(|provider| account(provider.name()).ok())
            .collect();
        let set = |account: &&Account| env.get(account.provider.environment().api_key).is_some();
        let ours: Vec<Account> = all.iter().filter(set).cloned().collect();
        Ok(if ours.is_empty() { all } else { ours })
    }

    fn url(&self, draft: &Draft) -> String {
        format!(
            "{}/hooks/{}",
            self.public_url.as_deref().unwrap_or(ANY_HOST),
            draft.account.name
        )
    }

    fn written<'d>(&self, file: &'d Path, drafts: &'d [Draft]) -> Written<'d> {
        let source = |draft: &'d Draft| WrittenSource {
            name: draft.account.name.as_str(),
            provider: draft.account.provider.name(),
            webhook_url: self.url(draft),
            path_token_file: draft.token.as_ref().map(|(path, _)| path.as_path()),
            enter_it: draft.account.provider.webhook_setup(),
            needs: &draft.needs,
        };
        Written {
            config: file,
            sources: drafts.iter().map(source).collect(),
        }
    }

    fn text(&self, file: &Path, drafts: &[Draft], place: Place) -> String {
        let mut urls = show::table(["WEBHOOK URL", "ENTER IT"]);
        for draft in drafts {
            let token = draft
                .token
                .as_ref()
                .map(|(_, token)| format!("/{}", token.as_str()))
                .unwrap_or_default();
            urls.add_row([
                format!("{}{token}", self.url(draft)),
                draft.account.provider.webhook_setup().to_owned(),
            ]);
        }
        let mut needs: Vec<&str> = drafts
            .iter()
            .flat_map(|draft| &draft.needs)
            .map(String::as_str)
            .collect();
        needs.dedup();
        let tokens = drafts.iter().filter_map(|draft| draft.token.as_ref());
        let files: Vec<String> = tokens
            .map(|(path, _)| format!(" and {}", path.display()))
            .collect();
        let path = file.display();
        let start = match place {
            Place::Credentials => "systemctl restart settled".to_owned(),
            Place::Beside => format!("settled --config {path} serve"),
        };
        format!(
            "wrote {path}{}\n\n{}\n\nNext:\n  provide {}\n  settled --config {path} check --online\n  {start}",
            files.concat(),
            urls.trim_fmt(),
            needs.join(", "),
        )
    }
}

/// The table of a source, and its path token if the provider needs one.
fn draft(
    account: &Account,
    all: &[Account],
    place: Place,
    folder: &Path,
    env: &Env,
) -> Result<Draft, Failure> {
    let names = account.provider.environment();
    let twins = all
        .iter()
        .filter(|other| other.provider.name() == account.provider.name())
        .count();
    let variable = |name: &str| {
        if twins > 1 {
            own_variable(&account.name, name)
        } else {
            name.to_owned()
        }
    };
    let (api_key, needed) = reference(
        place,
        folder,
        &account.name,
        "api_key",
        &variable(names.api_key),
    );
    let mut draft = Draft {
        account: account.clone(),
        table: String::new(),
        token: None,
        needs: vec![needed],
    };
    let mut lines = vec![
        format!("[sources.{}]", key(&account.name)),
        format!("provider = {:?}", account.provider.name()),
        format!("api_key = {api_key}"),
    ];
    if let Some(name) = names.webhook_secret {
        let variable = variable(name);
        let (secret, _) = reference(place, folder, &account.name, "webhook_secret", &variable);
        // Some providers show it only after the URL has been entered, so it cannot be demanded now.
        let known = place == Place::Beside && env.get(&variable).is_some();
        let line = format!("webhook_secrets = [{secret}]");
        lines.push(if known {
            line
        } else {
            format!("# {line} # once the provider shows it; until then nothing is verified")
        });
    }
    if names.path_token.is_some() {
        let (reference, path) = match place {
            Place::Credentials => {
                let name = format!("{}_path_token", account.name);
                (
                    format!("{{ credential = {name:?} }}"),
                    folder.join("credentials").join(name),
                )
            }
            Place::Beside => {
                let name = format!("{}.path_token", account.name);
                (format!("{{ file = {name:?} }}"), folder.join(name))
            }
        };
        lines.push(format!("path_token = {reference}"));
        draft.token = Some((path, token()?));
    }
    draft.table = lines.join("\n");
    Ok(draft)
}

/// How the file refers to a secret, and how a person provides it.
fn reference(
    place: Place,
    folder: &Path,
    name: &SourceName,
    what: &str,
    variable: &str,
) -> (String, String) {
    match place {
        Place::Credentials => {
            let credential = format!("{name}_{what}");
            let file = folder.join("credentials").join(&credential);
            (
                format!("{{ credential = {credential:?} }}"),
                format!("the file {}", file.display()),
            )
        }
        Place::Beside => (format!("{{ env = {variable:?} }}"), format!("${variable}")),
    }
}

/// Of several accounts at one provider, each has its own variables, with its name in front.
fn own_variable(name: &SourceName, variable: &str) -> String {
    let upper = |c: char| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_uppercase()
        } else {
            '_'
        }
    };
    let prefix: String = name.as_str().chars().map(upper).collect();
    // A name may begin with a digit, a variable may not.
    let digit = prefix.starts_with(|c: char| c.is_ascii_digit());
    format!("{}{prefix}_{variable}", if digit { "_" } else { "" })
}

/// A name as a key of TOML.
fn key(name: &SourceName) -> String {
    let name = name.as_str();
    if name.contains('.') {
        format!("{name:?}")
    } else {
        name.to_owned()
    }
}

/// A new path token: it can stand in a URL, and be selected with a double click.
fn token() -> Result<Zeroizing<String>, Failure> {
    let mut bytes = Zeroizing::new([0; TOKEN_BYTES]);
    getrandom::fill(bytes.as_mut_slice())
        .map_err(|error| Failure::Other(format!("the system gives no random numbers: {error}")))?;
    Ok(Zeroizing::new(
        data_encoding::BASE32_DNSSEC.encode(bytes.as_slice()),
    ))
}

/// The example up to its sources, these sources, and the example's other keys of a source.
fn text(drafts: &[Draft]) -> String {
    let (head, sources) = EXAMPLE.split_once("\n# [sources.").unwrap_or((EXAMPLE, ""));
    let head = head.split_once('\n').map_or(head, |(_, rest)| rest);
    let keys = sources.split("\n\n").next().unwrap_or_default().lines();
    let keys: Vec<&str> = keys
        .skip_while(|line| !line.starts_with("# base_url"))
        .collect();
    let tables: Vec<&str> = drafts.iter().map(|draft| draft.table.as_str()).collect();
    format!(
        "# settled — written by `settled init`\n{head}\n{}\n\n# Further keys of a source:\n\n{}\n",
        tables.join("\n\n"),
        keys.join("\n")
    )
}

/// Writes everything or nothing.
fn write(file: &Path, drafts: &[Draft]) -> Result<(), Failure> {
    let tokens = drafts.iter().filter_map(|draft| draft.token.as_ref());
    let secrets =
        tokens.map(|(path, token)| (path.as_path(), format!("{}\n", token.as_str()), 0o600));
    let files: Vec<(&Path, String, u32)> = std::iter::once((file, text(drafts), 0o644))
        .chain(secrets)
        .collect();
    if let Some(folder) = file
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
    {
        fs::create_dir_all(folder)
            .map_err(|error| Failure::Other(format!("{}: {error}", folder.display())))?;
    }
    // The package installs the example as the configuration file: it holds nothing of the user's.
    let example = fs::read_to_string(file).is_ok_and(|text| text == EXAMPLE);
    if example {
        fs::remove_file(file)?;
    }
    for (index, (path, text, mode)) in files.iter().enumerate() {
        if let Err(failure) = create(path, text, *mode) {
            files[..index]
                .iter()
                .for_each(|(path, ..)| drop(fs::remove_file(path)));
            if example {
                create(file, EXAMPLE, 0o644)?;
            }
            return Err(failure);
        }
    }
    Ok(())
}

fn create(path: &Path, text: &str, mode: u32) -> Result<(), Failure> {
    let opened = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path);
    let mut file = opened.map_err(|error| {
        Failure::Other(match error.kind() {
            ErrorKind::AlreadyExists => {
                format!(
                    "{} is there already and is not overwritten; name another file, or move it away",
                    path.display()
                )
            }
            _ => format!("{} cannot be written: {error}", path.display()),
        })
    })?;
    file.write_all(text.as_bytes())?;
    Ok(file.sync_all()?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn init(folder: &Path, sources: &[&str], env: Env) -> Result<PathBuf, Failure> {
        let file = folder.join("settled.toml");
        let source = sources.iter().map(|text| account(text).unwrap()).collect();
        let command = Init {
            file: Some(file.clone()),
            source,
            public_url: None,
            json: true,
        };
        command.run(&Context { config: None, env })?;
        Ok(file)
    }

    #[test]
    fn what_is_written_can_be_read_once_the_keys_are_there() {
        let folder = tempfile::tempdir().unwrap();
        let file = init(
            folder.path(),
            &["a.b=skyvern", "bu=browser-use", "scrapes=smartbrowse"],
            Env::of([]),
        )
        .unwrap();
        let env = Env::of([
            ("SKYVERN_API_KEY", "sky-key"),
            ("BROWSER_USE_API_KEY", "bu-key"),
            ("WEBSCRAPE_API_KEY", "scrape-key"),
            ("HOME", "/home/somebody"),
        ]);
        let config = config::load(Some(&file), &env).unwrap();
        let names: Vec<&str> = config.sources.keys().map(SourceName::as_str).collect();
        assert_eq!(names, ["a.b", "bu", "scrapes"]);
        let scrapes = &config.sources[&SourceName::new("scrapes").unwrap()];
        assert_eq!(scrapes.keyring.path_tokens[0].secret.expose().len(), 32);
        let about_scrapes = config
            .warnings
            .iter()
            .filter(|warning| warning.contains("scrapes"));
        assert_eq!(about_scrapes.count(), 0, "{:?}", config.warnings);
        let token = folder.path().join("scrapes.path_token");
        assert_eq!(
            fs::metadata(token).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let text = fs::read_to_string(&file).unwrap();
        assert!(
            text.contains("\n# give_up = \"7d\"") && text.contains("\n# listen = "),
            "{text}"
        );
    }

    #[test]
    fn nothing_is_overwritten_and_nothing_is_left_half_done() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("s.path_token"), "mine").unwrap();
        let failure = init(folder.path(), &["s=smartbrowse"], Env::of([])).unwrap_err();
        assert!(
            failure
                .to_string()
                .ends_with("s.path_token is there already and is not overwritten; name another file, or move it away")
        );
        assert!(!folder.path().join("settled.toml").exists());
        assert_eq!(
            fs::read_to_string(folder.path().join("s.path_token")).unwrap(),
            "mine"
        );
    }

    #[test]
    fn the_example_as_installed_gives_way_and_comes_back_if_nothing_comes_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("settled.toml");
        fs::write(&file, EXAMPLE).unwrap();
        fs::write(folder.path().join("s.path_token"), "mine").unwrap();
        assert!(init(folder.path(), &["s=smartbrowse"], Env::of([])).is_err());
        assert_eq!(fs::read_to_string(&file).unwrap(), EXAMPLE);
        init(folder.path(), &["a=skyvern"], Env::of([])).unwrap();
        assert!(fs::read_to_string(&file).unwrap().contains("[sources.a]"));
    }

    #[test]
    fn beside_a_folder_of_credentials_secrets_are_credentials() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("credentials")).unwrap();
        let file = init(folder.path(), &["s=smartbrowse"], Env::of([])).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        assert!(
            text.contains("api_key = { credential = \"s_api_key\" }\npath_token = { credential = \"s_path_token\" }")
        );
        assert!(folder.path().join("credentials/s_path_token").exists());
    }

    #[test]
    fn without_sources_the_environment_decides() {
        let names = |env: Env| {
            let folder = tempfile::tempdir().unwrap();
            let text = fs::read_to_string(init(folder.path(), &[], env).unwrap()).unwrap();
            text.lines()
                .filter(|line| line.starts_with("[sources."))
                .count()
        };
        assert_eq!(
            (
                names(Env::of([])),
                names(Env::of([("SKYVERN_API_KEY", "k")]))
            ),
            (REGISTRY.len(), 1)
        );
    }

    #[test]
    fn two_accounts_at_one_provider_do_not_share_a_key() {
        let name = |name: &str| SourceName::new(name).unwrap();
        assert_eq!(
            own_variable(&name("eu-1"), "SKYVERN_API_KEY"),
            "EU_1_SKYVERN_API_KEY"
        );
        assert_eq!(
            own_variable(&name("1.eu"), "SKYVERN_API_KEY"),
            "_1_EU_SKYVERN_API_KEY"
        );
        assert!(
            account("x=nobody")
                .unwrap_err()
                .starts_with("there is no provider \"nobody\"; there are: skyvern, ")
        );
    }
}
