//! A TOML document that is walked by hand, so that every complaint has a line and all of them are
//! made at once. (Derived deserializers stop at the first, and their words are the compiler's.)
//!
//! Values are never quoted here: where a secret belongs, the value may be one.

use std::cell::RefCell;
use std::fmt::Display;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{ConfigError, Problem};

/// The text of a file and what was found wrong with it.
pub(super) struct Document<'d> {
    file: &'d Path,
    text: &'d str,
    problems: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<String>>,
}

impl<'d> Document<'d> {
    pub(super) fn new(file: &'d Path, text: &'d str) -> Document<'d> {
        Document {
            file,
            text,
            problems: RefCell::default(),
            warnings: RefCell::default(),
        }
    }

    /// Reads the text. A mistake of syntax stands alone: nothing after it can be trusted.
    pub(super) fn parse(&self) -> Result<DeTable<'d>, ConfigError> {
        DeTable::parse(self.text)
            .map(Spanned::into_inner)
            .map_err(|error| ConfigError::Syntax {
                file: self.file.to_owned(),
                line: self.line(error.span().map_or(0, |span| span.start)),
                // Only the message: the error's own display draws the line, and a secret may be in it.
                message: error.message().lines().collect::<Vec<_>>().join(", "),
            })
    }

    pub(super) fn root(
        &'d self,
        table: &'d DeTable<'d>,
        known: &'static [&'static str],
    ) -> Section<'d> {
        Section::new(self, String::new(), 1, Some(table), known)
    }

    pub(super) fn folder(&self) -> &'d Path {
        self.file.parent().unwrap_or(Path::new(""))
    }

    pub(super) fn warn(&self, warning: String) {
        self.warnings.borrow_mut().push(warning);
    }

    pub(super) fn problem(&self, line: Option<usize>, key: &str, text: impl Display) {
        let place = line.map(|line| (self.file.to_owned(), line));
        self.problems.borrow_mut().push(Problem {
            place,
            key: key.to_owned(),
            text: text.to_string(),
        });
    }

    /// The warnings, or all problems in the order of their lines.
    pub(super) fn finish(self) -> Result<Vec<String>, ConfigError> {
        let mut problems = self.problems.into_inner();
        if problems.is_empty() {
            return Ok(self.warnings.into_inner());
        }
        problems.sort_by_key(|problem| problem.place.as_ref().map(|(_, line)| *line));
        Err(ConfigError::Invalid(problems))
    }

    fn line(&self, offset: usize) -> usize {
        self.text
            .bytes()
            .take(offset)
            .filter(|byte| *byte == b'\n')
            .count()
            + 1
    }
}

/// A table, or the absence of one, of which the keys are known.
pub(super) struct Section<'d> {
    doc: &'d Document<'d>,
    path: String,
    line: usize,
    table: Option<&'d DeTable<'d>>,
}

impl<'d> Section<'d> {
    /// Complains about every key that is not known.
    fn new(
        doc: &'d Document<'d>,
        path: String,
        line: usize,
        table: Option<&'d DeTable<'d>>,
        known: &'static [&'static str],
    ) -> Section<'d> {
        let section = Section {
            doc,
            path,
            line,
            table,
        };
        for entry in section
            .entries()
            .filter(|entry| !known.contains(&entry.name()))
        {
            entry.problem(format!(
                "there is no such key; {}",
                suggestion(entry.name(), known)
            ));
        }
        section
    }

    pub(super) fn get(&self, name: &str) -> Option<Entry<'d>> {
        self.entries().find(|entry| entry.name() == name)
    }

    /// Whether anything is said under this name: a heading with nothing below it says nothing.
    pub(super) fn says(&self, name: &str) -> bool {
        self.get(name)
            .is_some_and(|entry| !matches!(entry.value, DeValue::Table(table) if table.is_empty()))
    }

    /// The table of this name; if it is not there, one in which nothing is.
    pub(super) fn section(&self, name: &str, known: &'static [&'static str]) -> Section<'d> {
        let found = self.get(name);
        let line = found.as_ref().map_or(self.line, |entry| entry.line);
        let table =
            found.and_then(|entry| entry.table(&format!("write [{name}] and its keys below")));
        Section::new(self.doc, name.to_owned(), line, table, known)
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = Entry<'d>> + use<'_, 'd> {
        self.table.into_iter().flatten().map(|(key, value)| Entry {
            doc: self.doc,
            key: join(&self.path, key.get_ref()),
            name_at: if self.path.is_empty() {
                0
            } else {
                self.path.len() + 1
            },
            line: self.doc.line(key.span().start),
            value: value.get_ref(),
        })
    }

    /// Reads a text value, if it is there. `example` shows one that would be right.
    pub(super) fn parse<T, E: Display>(
        &self,
        name: &str,
        example: &str,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        self.get(name)?.parse(example, read)
    }

    /// A complaint about a key that is there, or ought to be.
    pub(super) fn problem(&self, name: &str, text: impl Display) {
        let line = self.get(name).map_or(self.line, |entry| entry.line);
        self.doc.problem(Some(line), &join(&self.path, name), text);
    }

    pub(super) fn doc(&self) -> &'d Document<'d> {
        self.doc
    }
}

/// One value with the name of its key.
pub(super) struct Entry<'d> {
    pub(super) doc: &'d Document<'d>,
    /// The whole path to it: `sources.bu.grace`.
    pub(super) key: String,
    name_at: usize,
    line: usize,
    value: &'d DeValue<'d>,
}

impl<'d> Entry<'d> {
    /// The last part of its key, which may itself have dots in it.
    pub(super) fn name(&self) -> &str {
        &self.key[self.name_at..]
    }

    pub(super) fn problem(&self, text: impl Display) {
        self.doc.problem(Some(self.line), &self.key, text);
    }

    /// Whether this is the text `word`.
    pub(super) fn says(&self, word: &str) -> bool {
        matches!(self.value, DeValue::String(text) if text.as_ref() == word)
    }

    /// The kind of value that stands here, for an error message.
    pub(super) fn kind(&self) -> &'static str {
        match self.value {
            DeValue::String(_) => "text",
            DeValue::Integer(_) | DeValue::Float(_) => "a bare number",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        }
    }

    pub(super) fn parse<T, E: Display>(
        &self,
        example: &str,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let DeValue::String(text) = self.value else {
            self.problem(format!(
                "this is {}; write text in quotes, for example {example}",
                self.kind()
            ));
            return None;
        };
        read(text).map_err(|error| self.problem(error)).ok()
    }

    /// A whole number within the borders.
    pub(super) fn number(&self, least: u64, most: u64) -> Option<u64> {
        let number = match self.value {
            DeValue::Integer(digits) => u64::from_str_radix(digits.as_str(), digits.radix()).ok(),
            _ => None,
        };
        let number = number.filter(|number| (least..=most).contains(number));
        if number.is_none() {
            self.problem(format!(
                "write a whole number from {least} to {most}, without quotes"
            ));
        }
        number
    }

    pub(super) fn table(&self, remedy: &str) -> Option<&'d DeTable<'d>> {
        let DeValue::Table(table) = self.value else {
            self.problem(format!("this is {}; {remedy}", self.kind()));
            return None;
        };
        Some(table)
    }

    /// As a section with its own keys.
    pub(super) fn section(
        &self,
        remedy: &str,
        known: &'static [&'static str],
    ) -> Option<Section<'d>> {
        Some(Section::new(
            self.doc,
            self.key.clone(),
            self.line,
            Some(self.table(remedy)?),
            known,
        ))
    }

    /// As a section with keys of any name.
    pub(super) fn open_section(&self, remedy: &str) -> Option<Section<'d>> {
        Some(Section {
            doc: self.doc,
            path: self.key.clone(),
            line: self.line,
            table: Some(self.table(remedy)?),
        })
    }

    pub(super) fn is_list(&self) -> bool {
        matches!(self.value, DeValue::Array(_))
    }

    /// The items of a list, each named `key[0]`, `key[1]`, …
    pub(super) fn list(&self, remedy: &str) -> Vec<Entry<'d>> {
        let DeValue::Array(items) = self.value else {
            self.problem(format!("this is {}; {remedy}", self.kind()));
            return Vec::new();
        };
        let item = |(index, value): (usize, &'d Spanned<DeValue<'d>>)| Entry {
            doc: self.doc,
            key: format!("{}[{index}]", self.key),
            name_at: self.name_at,
            line: self.doc.line(value.span().start),
            value: value.get_ref(),
        };
        items.iter().enumerate().map(item).collect()
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

/// `did you mean "grace"?`, or what there is to choose from.
pub(super) fn suggestion(found: &str, known: &[&str]) -> String {
    let near = known.iter().map(|word| (distance(found, word), word)).min();
    match near {
        Some((steps, word)) if steps <= 2.min(word.len().div_ceil(2)) => {
            format!("did you mean {word:?}?")
        }
        _ => format!("there are: {}", known.join(", ")),
    }
}

/// Levenshtein's: insertions, deletions and replacements between two words.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.chars().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row.last().copied().unwrap_or(0)
}

/// A path out of the file: relative ones are below the file's folder, wherever we were started.
pub(super) fn path(doc: &Document<'_>, text: &str) -> Result<PathBuf, &'static str> {
    match text {
        "" => Err("the path is empty"),
        _ if text == "~" || text.starts_with("~/") => {
            Err("\"~\" is not expanded here; write the whole path")
        }
        _ => Ok(doc.folder().join(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distance_between_words_counts_single_changes() {
        assert_eq!(distance("grace", "grace"), 0);
        assert_eq!(distance("gruce", "grace"), 1);
        assert_eq!(distance("webhook_secret", "webhook_secrets"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
    }

    #[test]
    fn a_heading_alone_says_nothing() {
        let doc = Document::new(
            Path::new("x.toml"),
            "[store]\n# path = \"x\"\n[sockets]\nfeed = \"f\"\n",
        );
        let table = doc.parse().unwrap();
        let root = doc.root(&table, &["store", "sockets", "hooks"]);
        assert_eq!(
            ["store", "sockets", "hooks"].map(|name| root.says(name)),
            [false, true, false]
        );
    }

    #[test]
    fn a_far_off_word_gets_the_list_instead_of_a_guess() {
        assert_eq!(
            suggestion("lisen", &["listen", "body_limit"]),
            "did you mean \"listen\"?"
        );
        assert_eq!(
            suggestion("port", &["listen", "body_limit"]),
            "there are: listen, body_limit"
        );
    }
}
