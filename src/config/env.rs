//! The process environment, as a function that is passed in.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The variables that systemd sets for the service, by its unit.
const SERVICE: [(&str, &str); 3] = [
    ("STATE_DIRECTORY", "/var/lib/settled"),
    ("RUNTIME_DIRECTORY", "/run/settled"),
    ("CREDENTIALS_DIRECTORY", "/etc/settled/credentials"),
];

type Lookup = dyn Fn(&str) -> Option<String> + Send + Sync;

/// Looks up environment variables. Tests pass a list; so nothing else in here touches the process.
pub struct Env(Box<Lookup>);

impl Env {
    /// The environment of this process.
    pub fn of_process() -> Env {
        Env(Box::new(|name| std::env::var(name).ok()))
    }

    /// These variables and no others.
    pub fn of<const N: usize>(variables: [(&str, &str); N]) -> Env {
        let variables =
            BTreeMap::from(variables.map(|(name, value)| (name.to_owned(), value.to_owned())));
        Env(Box::new(move |name| variables.get(name).cloned()))
    }

    /// This environment, with what the unit of the system's service would set beside it: for looking
    /// by hand at how the service is configured. `file` is the unit's `EnvironmentFile`.
    #[must_use]
    pub fn of_service(self, file: &Path) -> Env {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let line = |line: &str| {
            let (name, value) = line.trim().split_once('=')?;
            let quoted = ['"', '\'']
                .iter()
                .find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
            Some((name.to_owned(), quoted.unwrap_or(value).to_owned()))
                .filter(|_| !name.starts_with(['#', ';']))
        };
        let listed: BTreeMap<String, String> = text.lines().filter_map(line).collect();
        Env(Box::new(move |name| {
            let set = || {
                SERVICE
                    .iter()
                    .find(|(known, _)| *known == name)
                    .map(|(_, value)| (*value).to_owned())
            };
            (self.0)(name)
                .or_else(|| listed.get(name).cloned())
                .or_else(set)
        }))
    }

    /// A variable. One that is empty is as good as none.
    pub fn get(&self, name: &str) -> Option<String> {
        (self.0)(name).filter(|value| !value.trim().is_empty())
    }

    /// A variable that holds an absolute path, or several with colons between them: the first.
    pub(super) fn folder(&self, name: &str) -> Option<PathBuf> {
        let value = self.get(name)?;
        let first = PathBuf::from(value.split(':').next()?);
        first.is_absolute().then_some(first)
    }
}

impl std::fmt::Debug for Env {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Env(…)")
    }
}
