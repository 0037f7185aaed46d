//! Secrets by reference: a table that says where the value is, never the value.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::document::{self, Entry, Section};
use super::env::Env;
use crate::limits;
use crate::secret::{Key, RequiredHeader, Secret, SecretLabel};

const FORMS: &str = "{ credential = \"NAME\" }, { env = \"NAME\" } or { file = \"/PATH\" }";

/// The secret that `entry` refers to, under its own key as label.
pub(super) fn key(entry: &Entry<'_>, label: String, env: &Env) -> Option<Key> {
    let secret = read(entry, env)?;
    if !secret
        .expose()
        .bytes()
        .all(|byte| (b' '..=b'~').contains(&byte))
    {
        entry.problem(
            "the secret has several lines or characters that no header can carry; it has to be one line of ASCII",
        );
        return None;
    }
    Some(Key {
        label: SecretLabel(label),
        secret,
    })
}

/// `webhook_secrets = [secret, …]`.
pub(super) fn webhook_secrets(section: &Section<'_>, env: &Env) -> Vec<Key> {
    section
        .get("webhook_secrets")
        .map_or_else(Vec::new, |entry| list(&entry, "webhook_secrets", env, key))
}

/// `path_token`, and the `path_tokens` accepted beside it.
pub(super) fn path_tokens(section: &Section<'_>, env: &Env) -> Vec<Key> {
    let one = section.get("path_token").and_then(|entry| {
        if entry.is_list() {
            entry.problem("this is a list; path_token is one secret, more are accepted beside it in path_tokens = […]");
            return None;
        }
        path_token(&entry, "path_token".to_owned(), env)
    });
    let more = section.get("path_tokens").map_or_else(Vec::new, |entry| {
        list(&entry, "path_tokens", env, path_token)
    });
    one.into_iter().chain(more).collect()
}

fn list(
    entry: &Entry<'_>,
    label: &str,
    env: &Env,
    read: impl Fn(&Entry<'_>, String, &Env) -> Option<Key>,
) -> Vec<Key> {
    let items = entry.list(&format!(
        "write a list: {} = [{{ credential = \"NAME\" }}]",
        entry.name()
    ));
    items
        .iter()
        .enumerate()
        .filter_map(|(index, item)| read(item, format!("{label}[{index}]"), env))
        .collect()
}

fn path_token(entry: &Entry<'_>, label: String, env: &Env) -> Option<Key> {
    let key = key(entry, label, env)?;
    if let Err(why) = check_path_token(key.secret.expose()) {
        entry.problem(why);
    }
    Some(key)
}

/// Whether a path token can stand in a URL as it is.
pub(super) fn check_path_token(token: &str) -> Result<(), &'static str> {
    let plain =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~');
    if token.bytes().all(plain) {
        return Ok(());
    }
    Err(
        "a path token is part of a URL; use letters, digits and - _ . ~ only (`settled init` makes one)",
    )
}

/// `require_headers = { Name = secret, Other = [secret, secret] }`.
pub(super) fn headers(section: &Section<'_>, env: &Env) -> Vec<RequiredHeader> {
    let remedy = "write require_headers = { Authorization = { credential = \"NAME\" } }";
    let Some(table) = section
        .get("require_headers")
        .and_then(|entry| entry.open_section(remedy))
    else {
        return Vec::new();
    };
    let mut headers: Vec<RequiredHeader> = Vec::new();
    for entry in table.entries() {
        let name = entry.name().to_ascii_lowercase();
        if name.is_empty()
            || !name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        {
            entry.problem("this is not the name of a header; use letters, digits and -");
        } else if headers.iter().any(|header| header.name == name) {
            entry.problem(
                "this header is here twice; give it a list of secrets, any of which is accepted",
            );
        } else {
            headers.push(RequiredHeader {
                values: header_values(&entry, &name, env),
                name,
            });
        }
    }
    headers
}

fn header_values(entry: &Entry<'_>, name: &str, env: &Env) -> Vec<Key> {
    let label = format!("require_headers.{name}");
    if !entry.is_list() {
        return key(entry, label, env).into_iter().collect();
    }
    let values = list(entry, &label, env, key);
    if entry.list("").is_empty() {
        entry.problem("the list is empty, so no delivery could match; put a secret in it or remove the header");
    }
    values
}

/// `api_key = secret`, or the word `none` for a server that needs no key.
pub(super) fn api_key(entry: &Entry<'_>, env: &Env) -> Option<Key> {
    if entry.says("none") {
        return Some(no_key("api_key".to_owned()));
    }
    key(entry, "api_key".to_owned(), env)
}

/// The key itself, or no key where it is the word `none`.
pub(super) fn none_is_no_key(key: Key) -> Key {
    if key.secret.expose() == "none" {
        return no_key(key.label.0);
    }
    key
}

/// An empty key: requests are sent, and carry none.
fn no_key(label: String) -> Key {
    Key {
        label: SecretLabel(label),
        secret: Secret::new(""),
    }
}

fn read(entry: &Entry<'_>, env: &Env) -> Option<Secret> {
    if entry.kind() == "text" {
        entry.problem(format!(
            "this is a secret, and this file gets copied and shown, so it must not stand here itself; write {FORMS}"
        ));
        return None;
    }
    let section = entry.section(&format!("write {FORMS}"), &["credential", "env", "file"])?;
    let mut places = section.entries();
    let (Some(place), None) = (places.next(), places.next()) else {
        entry.problem(format!("write exactly one of {FORMS}"));
        return None;
    };
    match place.name() {
        "credential" => place.parse("\"skyvern_api_key\"", |name| credential(&place, name, env)),
        "env" => place.parse("\"SKYVERN_API_KEY\"", |name| variable(name, env)),
        "file" => place.parse("\"/etc/settled/skyvern_api_key\"", |path| {
            let path = document::path(place.doc, path)?;
            file(&place, &path)?
                .ok_or_else(|| format!("{} is not there; put the secret into it", path.display()))
        }),
        _ => None, // the section has complained
    }
}

fn variable(name: &str, env: &Env) -> Result<Secret, String> {
    // A value pasted in place of a name must not be repeated in the complaint.
    let shown = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
    let named = if name.bytes().all(shown) {
        format!("${name}")
    } else {
        "the environment variable named here".into()
    };
    let value = env
        .get(name)
        .ok_or_else(|| format!("{named} is not set, or empty; set it where settled is started"))?;
    usable(&value, &named)
}

fn credential(place: &Entry<'_>, name: &str, env: &Env) -> Result<Secret, String> {
    if name.is_empty() || name.starts_with('.') || name.contains('/') {
        return Err(
            "a credential has the name of a file, without a folder; for a path write { file = \"/PATH\" }".into()
        );
    }
    let folder = env.get("CREDENTIALS_DIRECTORY").ok_or_else(|| {
        format!(
            "credential {name:?} cannot be read: $CREDENTIALS_DIRECTORY is not set; systemd sets it for the service, \
             by hand write CREDENTIALS_DIRECTORY=/etc/settled/credentials before the command"
        )
    })?;
    // systemd 252 hands in a folder's files as FOLDER_NAME.
    for file_name in [name.to_owned(), format!("settled_{name}")] {
        if let Some(secret) = file(place, &Path::new(&folder).join(file_name))? {
            return Ok(secret);
        }
    }
    Err(format!(
        "there is no credential {name:?} (nor settled_{name}) in {folder}; put the secret into \
         /etc/settled/credentials/{name} and restart settled"
    ))
}

/// The secret in a file; `None` if there is no such file.
fn file(place: &Entry<'_>, path: &PathBuf) -> Result<Option<Secret>, String> {
    let unreadable = |error| format!("{} cannot be read: {error}", path.display());
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(unreadable)?,
    };
    if file
        .metadata()
        .is_ok_and(|about| about.permissions().mode() & 0o004 != 0)
    {
        place.doc.warn(format!(
            "{}: everybody may read {1}; chmod o= {1}",
            place.key,
            path.display()
        ));
    }
    let mut text = Zeroizing::new(String::new());
    file.take(limits::SECRET_BYTES_MAX as u64 + 1)
        .read_to_string(&mut text)
        .map_err(unreadable)?;
    usable(&text, &path.display().to_string()).map(Some)
}

fn usable(value: &str, place: &str) -> Result<Secret, String> {
    let secret = Secret::new(value);
    match secret.expose().len() {
        0 => Err(format!("{place} is empty; put the secret into it")),
        length if length > limits::SECRET_BYTES_MAX => {
            Err(format!("{place} is too long to be a secret"))
        }
        _ => Ok(secret),
    }
}
