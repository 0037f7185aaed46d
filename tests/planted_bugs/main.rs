//! The planted_bugs: planted bugs, each of which a test that is named must catch.
//!
//! Every `cargo test` sees that each bug can still be planted and that its test is still there. The
//! planted_bugs itself copies the tree, plants one bug at a time and runs its test, which must fail:
//! `tests/planted_bugs/run`, or `tests/planted_bugs/run 'redirects|breaker'` for those whose names contain one of that.

mod bugs;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use bugs::{BUGS, Bug};

/// A test that takes longer than this with its bug planted has noticed too: it hangs.
const PATIENCE: Duration = Duration::from_secs(300);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

impl Bug {
    /// The text of its file with the mistake in it.
    fn planted(&self, text: &str) -> Result<String, String> {
        match text.matches(self.old).count() {
            1 => Ok(text.replace(self.old, self.new)),
            count => Err(format!(
                "“{}”: what is to be changed is {count} times in {}",
                self.name, self.file
            )),
        }
    }

    /// Where its test stands: the file, and the name of the function.
    fn test_in(&self, root: &Path) -> (PathBuf, &str) {
        let mut modules: Vec<&str> = self.test.split("::").collect();
        let function = modules.pop().expect("a test has a name");
        modules.retain(|module| *module != "tests");
        let folder = if self.target == "lib" {
            root.join("src")
        } else {
            root.join("tests").join(self.target)
        };
        let path = modules
            .iter()
            .fold(folder.clone(), |path, module| path.join(module));
        let main = if modules.is_empty() {
            path.join("main.rs")
        } else {
            path.join("mod.rs")
        };
        let file = if main.exists() {
            main
        } else {
            path.with_extension("rs")
        };
        (file, function)
    }
}

#[test]
fn every_bug_can_be_planted_and_its_test_is_there() {
    let mut faults = Vec::new();
    for bug in BUGS {
        let text = fs::read_to_string(root().join(bug.file)).unwrap_or_default();
        faults.extend(bug.planted(&text).err());
        let (file, function) = bug.test_in(root());
        let text = fs::read_to_string(&file).unwrap_or_default();
        if !text.contains(&format!("fn {function}(")) {
            faults.push(format!(
                "“{}”: there is no test {function} in {}",
                bug.name,
                file.display()
            ));
        }
    }
    let names: BTreeSet<_> = BUGS.iter().map(|bug| bug.name).collect();
    assert_eq!(names.len(), BUGS.len(), "two bugs of one name");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Copies files and folders, of those in the root only what `wanted` says.
fn copy(from: &Path, to: &Path, wanted: &dyn Fn(&Path) -> bool) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if !wanted(path.strip_prefix(root()).unwrap()) {
            continue;
        }
        if entry.file_type().unwrap().is_dir() {
            copy(&path, &target, wanted);
        } else {
            fs::copy(path, target).unwrap();
        }
    }
}

/// How a test went.
#[derive(PartialEq)]
enum End {
    Passed,
    Failed,
    Hung,
}

/// A copy of the tree, with a place to build it: the whole of it, or what some tests rest on. Imports
/// run one way, so that a part can be built by itself, in a fraction of the time.
struct Tree {
    folder: PathBuf,
    built: PathBuf,
}

/// The modules below the servers and the commands, and the tests of these alone.
const PART: &[&str] = &[
    "changes",
    "config",
    "ledger",
    "limits",
    "model",
    "process",
    "providers",
    "reconciler",
    "report",
    "secret",
];
const PART_TESTS: &[&str] = &["model", "ledger", "providers"];

impl Bug {
    fn in_part(&self) -> bool {
        let module = Path::new(self.test.split("::").next().unwrap_or_default());
        PART_TESTS.contains(&self.target)
            || self.target == "lib" && PART.iter().any(|part| module == Path::new(part))
    }
}

impl Tree {
    /// A target folder of its own: a program with a bug in it must not be taken for ours.
    fn at(name: &str) -> Tree {
        let place = root().join("target/planted_bugs").join(name);
        let tree = Tree {
            folder: place.join("tree"),
            built: place.join("built"),
        };
        let _ = fs::remove_dir_all(&tree.folder);
        tree
    }

    fn whole() -> Tree {
        let tree = Tree::at("whole");
        let built = ["target", ".git", "fuzz/target"].map(Path::new);
        copy(root(), &tree.folder, &|path| !built.contains(&path));
        tree
    }

    fn part() -> Tree {
        let tree = Tree::at("part");
        copy(root(), &tree.folder, &|path| {
            let parts: Vec<_> = path.iter().filter_map(|part| part.to_str()).collect();
            match parts[..] {
                ["src", module, ..] => PART.contains(&module.trim_end_matches(".rs")),
                ["tests", test, ..] => {
                    PART_TESTS.contains(&test) || ["support", "vectors"].contains(&test)
                }
                [first, ..] => [
                    "src",
                    "tests",
                    "docs",
                    "systemd",
                    "schema.sql",
                    "Cargo.toml",
                    "Cargo.lock",
                ]
                .contains(&first),
                [] => false,
            }
        });
        let modules: Vec<_> = PART
            .iter()
            .map(|module| format!("pub mod {module};"))
            .collect();
        let part = format!("//! A part of settled.\n{}\n", modules.join("\n"));
        fs::write(tree.folder.join("src/lib.rs"), part).unwrap();
        let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
        let kept = manifest
            .split("\n\n")
            .filter(|paragraph| !paragraph.starts_with("[[bench]]"));
        fs::write(
            tree.folder.join("Cargo.toml"),
            kept.collect::<Vec<_>>().join("\n\n"),
        )
        .unwrap();
        tree
    }

    fn cargo(&self, bug: &Bug) -> Command {
        let mut cargo = Command::new(env!("CARGO"));
        cargo
            .current_dir(&self.folder)
            .env("CARGO_TARGET_DIR", &self.built)
            .args(["test", "--locked"]);
        match bug.target {
            "lib" => cargo.arg("--lib"),
            target => cargo.args(["--test", target]),
        };
        cargo
    }

    fn builds(&self, bug: &Bug) {
        let built = self
            .cargo(bug)
            .args(["--no-run", "--quiet"])
            .output()
            .unwrap();
        assert!(
            built.status.success(),
            "“{}” does not compile:\n{}",
            bug.name,
            String::from_utf8_lossy(&built.stderr)
        );
    }

    /// Runs the test of a bug in what is built.
    fn runs(&self, bug: &Bug) -> (End, String) {
        let mut cargo = self.cargo(bug);
        cargo.args(["--quiet", "--", "--exact", bug.test]);
        let mut child = cargo
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut out = child.stdout.take().unwrap();
        let said = std::thread::spawn(move || {
            let mut said = String::new();
            let _ = out.read_to_string(&mut said);
            said
        });
        let began = Instant::now();
        while child.try_wait().unwrap().is_none() {
            if began.elapsed() > PATIENCE {
                let _ = child.kill();
                return (End::Hung, String::new());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let said = said.join().unwrap();
        assert!(
            said.contains("running 1 test"),
            "{} is not one test:\n{said}",
            bug.test
        );
        let passed = said.contains("test result: ok. 1 passed");
        assert!(
            passed || said.contains("test result: FAILED. 0 passed; 1 failed"),
            "{}:\n{said}",
            bug.test
        );
        (if passed { End::Passed } else { End::Failed }, said)
    }
}

/// The line in which a test says what is wrong.
fn verdict(said: &str) -> &str {
    let mut lines = said
        .lines()
        .skip_while(|line| !line.contains("panicked at"));
    lines.nth(1).unwrap_or_default()
}

#[test]
#[ignore = "plants every bug in a copy of the tree, which takes half an hour; run tests/planted_bugs/run"]
fn every_bug_is_caught() {
    let only = std::env::var("SETTLED_BUGS").unwrap_or_default();
    let bugs: Vec<&Bug> = BUGS
        .iter()
        .filter(|bug| only.split('|').any(|part| bug.name.contains(part)))
        .collect();
    assert!(!bugs.is_empty(), "no bug is called {only:?}");
    let (whole, part) = (Tree::whole(), Tree::part());
    let tree = |bug: &Bug| if bug.in_part() { &part } else { &whole };

    let mut innocent: BTreeMap<(&str, &str), &Bug> = BTreeMap::new();
    innocent.extend(bugs.iter().map(|bug| ((bug.target, bug.test), *bug)));
    for bug in innocent.values() {
        tree(bug).builds(bug);
        let (end, said) = tree(bug).runs(bug);
        assert!(
            end == End::Passed,
            "{} fails without any bug and would catch nothing:\n{said}",
            bug.test
        );
    }
    println!("{} tests pass without a bug", innocent.len());

    let (mut caught, mut missed) = (0, Vec::new());
    for bug in bugs {
        let tree = tree(bug);
        let path = tree.folder.join(bug.file);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, bug.planted(&text).unwrap()).unwrap();
        tree.builds(bug);
        let (end, said) = tree.runs(bug);
        fs::write(&path, text).unwrap();
        match end {
            End::Passed => missed.push(bug.name),
            End::Failed | End::Hung => caught += 1,
        }
        match end {
            End::Passed => println!("MISSED  {}: {} {} passes", bug.name, bug.target, bug.test),
            End::Failed => println!(
                "caught  {}: {} {} ({})",
                bug.name,
                bug.target,
                bug.test,
                verdict(&said)
            ),
            End::Hung => println!(
                "caught  {}: {} {} does not come to its end",
                bug.name, bug.target, bug.test
            ),
        }
    }
    println!("{caught} bugs caught, {} missed", missed.len());
    assert!(missed.is_empty(), "nobody noticed: {missed:?}");
}
