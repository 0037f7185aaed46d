//! What asking costs the providers: how many calls an hour open runs take.

use std::time::Duration;

use settled::demo::life::{Answers, DemoSource, Life};
use settled::demo::plan::{Plan, Rates};
use settled::model::Kind;

use super::script::Script;
use super::{Simulation, number};

const HOUR: Duration = Duration::from_secs(3600);

/// The accounts, and a kind of run in each.
const ACCOUNTS: [(DemoSource, Kind); 7] = [
    (DemoSource::Skyvern, Kind::Workflow),
    (DemoSource::Tasks, Kind::Task),
    (DemoSource::Sessions, Kind::Session),
    (DemoSource::Runs, Kind::Agent),
    (DemoSource::Recipes, Kind::Recipe),
    (DemoSource::Jobs, Kind::Crawl),
    (DemoSource::Jobs, Kind::Agent),
];

/// A world in which so many runs are open and nothing happens for hours. A client has told of each.
fn still(source: DemoSource, kind: Kind, open: usize) -> Script {
    let mut plan = Plan::new(1, 3_000, &Rates::HONEST);
    let like =
        |life: &&Life| life.source == source && life.kind == kind && life.last_open().is_some();
    let like = plan
        .runs
        .iter()
        .find(like)
        .expect("a run of this kind")
        .clone();
    let life = |number: usize| Life {
        id: format!("{}{number:06}", &like.id[..like.id.len() - 6]),
        begins: Duration::ZERO,
        states: vec![(Duration::ZERO, *like.last_open().unwrap())],
        mail: Vec::new(),
        tracked: Some(Duration::from_secs(1)),
        replay: None,
        only_listed: false,
        answers: Answers::default(),
        ..like.clone()
    };
    plan.runs = (0..open).map(life).collect();
    (plan.ghosts, plan.throttles, plan.kills) = (Vec::new(), Vec::new(), Vec::new());
    Script::of(plan)
}

/// HttpClient in the second hour: pages of lists, and questions about runs.
fn calls(source: DemoSource, kind: Kind, open: usize) -> (u64, u64) {
    let mut sim = Simulation::new(still(source, kind, open));
    sim.play(HOUR).unwrap();
    let before = sim.asked.get(source.word()).copied().unwrap_or_default();
    sim.play(2 * HOUR).unwrap();
    let after = sim.asked[source.word()];
    (after.0 - before.0, after.1 - before.1)
}

/// `SETTLED_OPEN` says how many runs are open; `-- --nocapture` shows the figures.
#[test]
fn open_runs_cost_few_calls() {
    let open = number("SETTLED_OPEN").map_or(100, |open| usize::try_from(open).unwrap());
    for (source, kind) in ACCOUNTS {
        let (pages, questions) = calls(source, kind, open);
        println!(
            "{} {kind}: {open} open runs, {pages} pages of lists and {questions} questions an hour",
            source.word()
        );
        // Asked about one by one, each would take eleven. What a list shows as open is spared that;
        // Firecrawl lists no agents.
        let each = if (source, kind) == (DemoSource::Jobs, Kind::Agent) {
            12
        } else {
            2
        };
        assert!(questions <= each * open as u64, "too many questions");
        assert!(pages <= 60 * open.div_ceil(100) as u64, "too many pages");
    }
}
