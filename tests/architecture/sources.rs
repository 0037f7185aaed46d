//! The files of `src/`, without their tests and comments, and what each imports.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// One file.
pub struct Source {
    /// Below `src/`.
    pub path: String,
    /// Its code: no comments, no test module.
    code: String,
}

/// Every file of `src/` except those that hold only tests.
pub fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    collect(&root, &root, &mut found);
    assert!(
        found.len() > 80,
        "the sources are where they are looked for"
    );
    found
}

fn collect(root: &Path, folder: &Path, found: &mut Vec<Source>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(root, &path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap();
            if !name.ends_with("tests.rs") && !name.ends_with("schedules.rs") {
                found.push(Source {
                    path: name.to_owned(),
                    code: code(&fs::read_to_string(&path).unwrap()),
                });
            }
        }
    }
}

/// The text without line comments, and only up to the test module, which stands last.
fn code(text: &str) -> String {
    let upto = text.find("#[cfg(test)]\nmod tests").unwrap_or(text.len());
    let upto = upto.min(
        text.find("#[cfg(test)]\npub(crate) mod tests")
            .unwrap_or(upto),
    );
    let lines = text[..upto].lines();
    let bare = lines.map(|line| {
        let comment = line.trim_start().starts_with("//");
        let code = line.split(" // ").next().unwrap_or(line);
        if comment { "" } else { code }
    });
    bare.collect::<Vec<_>>().join("\n")
}

impl Source {
    /// The module it belongs to: the first folder, or the file right below `src/`.
    pub fn module(&self) -> &str {
        let first = self.path.split('/').next().unwrap_or(&self.path);
        first.trim_end_matches(".rs")
    }

    /// Whether the code contains this text.
    pub fn names(&self, text: &str) -> bool {
        self.code.contains(text)
    }

    /// Other modules that its code names with `crate::`.
    pub fn modules_imported(&self) -> BTreeSet<String> {
        let paths = self.paths().into_iter();
        let others = paths.filter_map(|path| path.into_iter().next());
        others.filter(|module| module != self.module()).collect()
    }

    /// Other files that its code names. Arrows between a folder's `mod.rs` and the files below it
    /// are left out: declaring a file, and using what the folder shares, is no circle.
    pub fn files_imported(&self, all: &[Source]) -> BTreeSet<String> {
        let mut files = BTreeSet::new();
        for path in self.paths() {
            // The longest beginning that is a file.
            let file = (1..=path.len()).rev().find_map(|parts| {
                let name = path[..parts].join("/");
                let candidates = [format!("{name}.rs"), format!("{name}/mod.rs")];
                let known = |name: &String| all.iter().any(|source| source.path == *name);
                candidates.into_iter().find(known)
            });
            files.extend(file.filter(|file| *file != self.path && !related(file, &self.path)));
        }
        files
    }

    /// Every path that begins with `crate::` or `super::`, as parts from the root on.
    fn paths(&self) -> Vec<Vec<String>> {
        let mut paths = Vec::new();
        for (start, _) in self.code.match_indices("crate::") {
            paths.extend(expand(&self.code[start + "crate::".len()..], &[]));
        }
        for (start, _) in self.code.match_indices("super::") {
            if self.code[..start].ends_with("super::") {
                continue;
            }
            let mut rest = &self.code[start..];
            let mut base = self.own_path();
            while let Some(further) = rest.strip_prefix("super::") {
                base.pop();
                rest = further;
            }
            paths.extend(expand(rest, &base));
        }
        paths
    }

    /// Its own module path.
    fn own_path(&self) -> Vec<String> {
        let bare = self.path.trim_end_matches(".rs").trim_end_matches("/mod");
        bare.split('/').map(str::to_owned).collect()
    }
}

/// One of them is the `mod.rs`, or the parent file, of a folder around the other.
fn related(a: &str, b: &str) -> bool {
    let around = |folder: &str, file: &str| {
        let inside = folder.strip_suffix("mod.rs").map(str::to_owned);
        let inside = inside.unwrap_or_else(|| format!("{}/", folder.trim_end_matches(".rs")));
        file.starts_with(&inside)
    };
    around(a, b) || around(b, a)
}

/// A path as it is written, with its braces opened: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn expand(text: &str, base: &[String]) -> Vec<Vec<String>> {
    let mut path = base.to_vec();
    let mut rest = text;
    loop {
        if let Some(inside) = rest.strip_prefix('{') {
            let mut paths = Vec::new();
            let mut depth = 0;
            let mut begin = 0;
            for (at, letter) in inside.char_indices() {
                match letter {
                    '{' => depth += 1,
                    '}' if depth > 0 => depth -= 1,
                    ',' | '}' if depth == 0 => {
                        let item = inside[begin..at].trim();
                        if !item.is_empty() {
                            paths.extend(expand(item, &path));
                        }
                        begin = at + 1;
                        if letter == '}' {
                            break;
                        }
                    }
                    _ => {}
                }
            }
            return paths;
        }
        let end = rest
            .find(|letter: char| !letter.is_alphanumeric() && letter != '_')
            .unwrap_or(rest.len());
        if end == 0 {
            return vec![path];
        }
        if &rest[..end] != "self" {
            path.push(rest[..end].to_owned());
        }
        match rest[end..].strip_prefix("::") {
            Some(further) => rest = further,
            None => return vec![path],
        }
    }
}

#[test]
fn paths_are_read_with_their_braces() {
    let open = |text| {
        let paths = expand(text, &[]);
        let joined = paths.iter().map(|path| path.join("::"));
        joined.collect::<Vec<_>>()
    };
    assert_eq!(open("a::b;"), ["a::b"]);
    assert_eq!(
        open("a::{self, b, c::{d, e}};"),
        ["a", "a::b", "a::c::d", "a::c::e"]
    );
}
