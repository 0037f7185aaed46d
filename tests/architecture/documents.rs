//! Documents name only paths that exist.

use std::fs;
use std::path::{Path, PathBuf};

/// Folders whose files a document may name by path.
const ROOTS: &[&str] = &[
    "src/",
    "tests/",
    "docs/",
    "benches/",
    "examples/",
    "fuzz/",
    "systemd/",
    ".ci/",
    ".cargo/",
];

fn documents() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found: Vec<PathBuf> = ["README.md", "schema.sql", "Cargo.toml", ".ci/run"]
        .iter()
        .map(|name| root.join(name))
        .collect();
    let mut folders = vec![root.join("docs"), root.join("systemd"), root.join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path);
            }
        }
    }
    found
}

/// The paths in a text: a root and what follows it without a gap.
fn paths(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for root in ROOTS {
        for (start, _) in text.match_indices(root) {
            let before = text[..start].chars().next_back();
            if before.is_some_and(|letter| letter.is_alphanumeric() || "/._-}$".contains(letter)) {
                continue; // the end of another path
            }
            let rest = &text[start..];
            let end = rest
                .find(|letter: char| !letter.is_ascii_alphanumeric() && !"/._-".contains(letter))
                .unwrap_or(rest.len());
            // What goes on with a placeholder is a pattern and not a path.
            if !rest[end..].starts_with(['<', '*', '{', '$', 'N']) {
                found.push(rest[..end].trim_end_matches(['.', '-']));
            }
        }
    }
    found
}

#[test]
fn documents_name_only_paths_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut missing = Vec::new();
    for document in documents() {
        let Ok(text) = fs::read_to_string(&document) else {
            continue;
        };
        for path in paths(&text) {
            if !root.join(path).exists() {
                let name = document.strip_prefix(root).unwrap().display();
                missing.push(format!("{name}: {path}"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}
