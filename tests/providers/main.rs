//! The dialects against captured deliveries, signature vectors and every fact of the dossiers.

mod browser_use;
mod field_reports;
mod firecrawl;
mod skyvern;
mod smartbrowse;

/// Names in backticks that look like tests: several words joined by underscores.
fn cited(table: &str) -> impl Iterator<Item = &str> {
    let code = table.split('`').skip(1).step_by(2);
    let last = code.map(|name| name.rsplit("::").next().unwrap_or(name));
    last.filter(|name| {
        name.matches('_').count() >= 3
            && name
                .bytes()
                .all(|byte| byte == b'_' || byte.is_ascii_lowercase() || byte.is_ascii_digit())
    })
}

#[test]
fn every_test_that_the_table_of_facts_names_exists() {
    let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = String::new();
    for folder in [
        "tests/providers",
        "tests/model",
        "tests/ledger",
        "src",
        "src/providers",
        "src/model",
        "src/config",
    ] {
        for file in std::fs::read_dir(here.join(folder))
            .into_iter()
            .flatten()
            .flatten()
        {
            sources.push_str(&std::fs::read_to_string(file.path()).unwrap_or_default());
        }
    }
    let table = std::fs::read_to_string(here.join("docs/providers.md"))
        .expect("docs/providers.md is part of the project");
    let names: Vec<_> = cited(&table).collect();
    assert!(names.len() > 150, "the table names {} tests", names.len());
    let missing: Vec<_> = names
        .into_iter()
        .filter(|name| !sources.contains(&format!("fn {name}(")))
        .collect();
    assert!(
        missing.is_empty(),
        "the table names tests that do not exist: {missing:?}"
    );
}
