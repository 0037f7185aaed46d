//! The four clouds on loopback: each answers like its provider, signs like it, and misbehaves as
//! the plan says.
//!
//! [`Clouds::start`] opens four HTTP servers over one [`World`]; nothing happens until
//! [`Clouds::begin`] starts the world's time. From then on what a status endpoint shows is a
//! function of the plan and the time, and [`post`] sends the mail. A cloud is a [`Service`]: pure
//! functions from a question, or a letter, to bytes.

mod browser_use;
mod clock;
mod firecrawl;
pub mod post;
mod reply;
mod serve;
mod skyvern;
mod smartbrowse;
mod world;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinSet;

pub use reply::{Ask, Reply, Transfer};
pub use world::{Count, Keys, Tally, World};

use super::dice::Dice;
use super::life::{Cloud, Form, Life, Mail, Poison};
use super::plan::Plan;
use crate::model::{At, schedule};

/// How deep a deeply nested body is: four times what most parsers take.
const DEPTH: usize = 512;

/// A cloud: how it answers and what it writes.
pub trait Service: Sync {
    /// Whether the question carries this cloud's key.
    fn authorized(&self, ask: &Ask, keys: &Keys) -> bool;

    /// The answer to a wrong key.
    fn refusal(&self, ask: &Ask) -> Reply;

    /// The answer to a request that comes too fast; `left` is how long that will last.
    fn overwhelmed(&self, left: Duration) -> Reply;

    /// An unexpected error.
    fn broken(&self) -> Reply;

    /// The proper answer to an authorized question.
    fn answer(&self, world: &World, ask: &Ask) -> Reply;

    /// A letter, without the receiver's address.
    fn letter(&self, world: &World, item: &Item<'_>) -> Letter;

    /// How long it waits after each failed attempt to deliver a letter about this run.
    fn patience(&self, life: &Life) -> Patience;
}

/// The service of a cloud.
pub fn service(cloud: Cloud) -> &'static dyn Service {
    match cloud {
        Cloud::Skyvern => &skyvern::Skyvern,
        Cloud::BrowserUse => &browser_use::BrowserUse,
        Cloud::SmartBrowse => &smartbrowse::SmartBrowse,
        Cloud::Firecrawl => &firecrawl::Firecrawl,
    }
}

/// A letter to be written.
#[derive(Clone, Copy, Debug)]
pub struct Item<'a> {
    /// About whom.
    pub life: &'a Life,
    /// Which of the run's letters it is.
    pub number: usize,
    /// The body and its form.
    pub mail: &'a Mail,
    /// When it was first written. Repetitions of the same bytes have the same time.
    pub written_at: At,
    /// Which attempt at delivery this is, from 0.
    pub attempt: u32,
}

impl Item<'_> {
    /// Whether somebody else writes it.
    pub fn forged(&self) -> bool {
        matches!(self.mail.form, Form::Forged(_))
    }
}

/// A letter ready to be posted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter {
    /// The path segment after the source's name.
    pub path_token: Option<String>,
    /// Every header but those that HTTP itself needs.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

/// How persistent a sender is. Times are scaled down with the lives of the runs.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Pauses before the second attempt, the third, …; none: one attempt only.
    pub pauses: &'static [Duration],
    /// Which HTTP statuses are worth another attempt. Broken connections always are.
    pub retries: fn(u16) -> bool,
    /// How long it waits for an answer.
    pub timeout: Duration,
}

/// The running clouds. Dropping them ends them.
#[derive(Debug)]
pub struct Clouds {
    world: Arc<World>,
    addresses: [SocketAddr; 4],
    tasks: JoinSet<()>,
}

impl Clouds {
    /// Opens the four servers. `hooks` is the receiver's address without a path, such as
    /// `http://127.0.0.1:8675`.
    pub async fn start(plan: Plan, hooks: &str) -> io::Result<Clouds> {
        let world = Arc::new(World::new(plan, hooks));
        let mut tasks = JoinSet::new();
        let mut addresses = Vec::new();
        for cloud in Cloud::ALL {
            let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
            addresses.push(listener.local_addr()?);
            tasks.spawn(serve::serve(listener, Arc::clone(&world), *cloud));
        }
        let addresses = addresses
            .try_into()
            .map_err(|_| io::Error::other("there are four clouds"))?;
        Ok(Clouds {
            world,
            addresses,
            tasks,
        })
    }

    /// Lets time begin: runs start, letters leave.
    pub fn begin(&mut self) {
        self.world.begin();
        self.tasks.spawn(post::deliver_all(Arc::clone(&self.world)));
    }

    /// The state of the clouds.
    pub fn world(&self) -> &Arc<World> {
        &self.world
    }

    /// Where a cloud is, without a trailing slash.
    pub fn address(&self, cloud: Cloud) -> String {
        let index = Cloud::ALL
            .iter()
            .position(|other| *other == cloud)
            .unwrap_or_default();
        format!("http://{}", self.addresses[index])
    }
}

/// A time without a zone, in microseconds, as Python's `isoformat` writes UTC.
fn naive(at: At) -> String {
    format!("{}000", at.rfc3339().trim_end_matches('Z'))
}

/// 64 digits that look like a signature.
fn random_hex(item: &Item<'_>) -> String {
    let mut dice = Dice::new(schedule::seed("forged", &item.life.id), item.number as u64);
    let bytes: Vec<u8> = (0..4).flat_map(|_| dice.bits().to_be_bytes()).collect();
    data_encoding::HEXLOWER.encode(&bytes)
}

/// A JSON object made unreadable by one more field.
fn poisoned(object: &str, poison: Poison) -> Vec<u8> {
    let mut body = object
        .strip_suffix('}')
        .unwrap_or(object)
        .as_bytes()
        .to_vec();
    match poison {
        Poison::Deep => {
            body.extend(b",\"deep\":");
            body.extend(b"[".repeat(DEPTH));
            body.extend(b"]".repeat(DEPTH));
        }
        Poison::NotUtf8 => body.extend(b",\"note\":\"caf\xe9 \xff\xfe\""),
        Poison::NotANumber => body.extend(b",\"score\":NaN"),
    }
    body.push(b'}');
    body
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::demo::life::{DemoSource, State};
    use crate::demo::plan::Rates;
    use crate::providers::signature::sign;

    /// Clouds that have been turning for so long, with nobody at the receiver's address.
    async fn clouds(runs: usize) -> Clouds {
        let mut clouds = Clouds::start(Plan::new(1, runs, &Rates::HONEST), "http://127.0.0.1:9")
            .await
            .unwrap();
        clouds.begin();
        clouds
    }

    fn key(clouds: &Clouds, cloud: Cloud) -> (&'static str, String) {
        let keys = &clouds.world().keys;
        match cloud {
            Cloud::Skyvern => ("x-api-key", keys.skyvern.clone()),
            Cloud::BrowserUse => ("X-Browser-Use-API-Key", keys.api_key(DemoSource::Tasks)),
            Cloud::SmartBrowse => ("X-API-Key", keys.smartbrowse.clone()),
            Cloud::Firecrawl => ("Authorization", format!("Bearer {}", keys.firecrawl)),
        }
    }

    async fn get(clouds: &Clouds, cloud: Cloud, path: &str) -> (u16, Value) {
        let (header, key) = key(clouds, cloud);
        let url = format!("{}{path}", clouds.address(cloud));
        let answer = post::carrier()
            .get(url)
            .header(header, key)
            .send()
            .await
            .unwrap();
        (
            answer.status().as_u16(),
            serde_json::from_str(&answer.text().await.unwrap()).unwrap_or_default(),
        )
    }

    /// A run that a plan of a hundred has, in its present state.
    fn some(clouds: &Clouds, source: DemoSource) -> (&Life, &State) {
        clouds
            .world()
            .listed(source)
            .last()
            .expect("of a hundred runs one has begun by now")
    }

    async fn when_runs_have_begun(clouds: &Clouds) {
        let have = |source: &DemoSource| clouds.world().listed(*source).next().is_some();
        while !DemoSource::ALL.iter().all(have) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test]
    async fn every_cloud_refuses_a_wrong_key_in_its_own_words() {
        let clouds = clouds(4).await;
        for (cloud, path, status, word) in [
            (Cloud::Skyvern, "/v1/runs", 403, "detail"),
            (Cloud::BrowserUse, "/api/v2/tasks", 401, "detail"),
            (Cloud::SmartBrowse, "/v1/smartbrowse/usage", 401, "error"),
            (Cloud::Firecrawl, "/v2/crawl/active", 401, "error"),
        ] {
            let url = format!("{}{path}", clouds.address(cloud));
            let answer = post::carrier()
                .get(url)
                .header(key(&clouds, cloud).0, "wrong")
                .send()
                .await
                .unwrap();
            assert_eq!(answer.status(), status, "{cloud}");
            let body: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
            assert!(body[word].is_string(), "{cloud}: {body}");
        }
    }

    #[tokio::test]
    async fn every_account_shows_its_runs_under_its_own_words() {
        let clouds = clouds(100).await;
        when_runs_have_begun(&clouds).await;
        for (source, path, word) in [
            (DemoSource::Skyvern, "/v1/runs/{}", "/status"),
            (DemoSource::Tasks, "/api/v2/tasks/{}/status", "/status"),
            (DemoSource::Tasks, "/api/v2/tasks/{}", "/status"),
            (DemoSource::Sessions, "/api/v3/sessions/{}", "/status"),
            (DemoSource::Runs, "/api/v4/runs/{}/status", "/status"),
            (
                DemoSource::Recipes,
                "/v1/smartbrowse/runs/{}",
                "/data/run_status",
            ),
        ] {
            let (life, _) = some(&clouds, source);
            let (status, body) = get(&clouds, source.cloud(), &path.replace("{}", &life.id)).await;
            let shown = body
                .pointer(word)
                .and_then(Value::as_str)
                .unwrap_or_default();
            assert_eq!(status, 200, "{source}: {body}");
            assert!(
                life.states.iter().any(|(_, state)| state.word == shown),
                "{source}: {body}"
            );
            let (status, _) = get(&clouds, source.cloud(), &path.replace("{}", "nobody")).await;
            assert_eq!(status, 404, "{source}");
        }
    }

    #[tokio::test]
    async fn every_kind_of_job_has_its_own_path() {
        let clouds = clouds(300).await;
        when_runs_have_begun(&clouds).await;
        for (kind, path) in [
            (
                crate::model::Kind::Crawl,
                "/v2/crawl/{}?skip=1000000&limit=1",
            ),
            (crate::model::Kind::BatchScrape, "/v2/batch/scrape/{}"),
            (crate::model::Kind::Extract, "/v2/extract/{}"),
            (crate::model::Kind::Agent, "/v2/agent/{}"),
        ] {
            let life = loop {
                match clouds
                    .world()
                    .listed(DemoSource::Jobs)
                    .find(|(life, _)| life.kind == kind)
                {
                    Some((life, _)) => break life,
                    None => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            };
            let (status, body) =
                get(&clouds, Cloud::Firecrawl, &path.replace("{}", &life.id)).await;
            assert_eq!(status, 200, "{kind}");
            assert!(
                life.states
                    .iter()
                    .any(|(_, state)| body["status"] == state.word),
                "{kind}: {body}"
            );
        }
    }

    #[tokio::test]
    async fn lists_page_through_every_run_once() {
        let clouds = clouds(200).await;
        while clouds.world().now() < Duration::from_secs(4) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let expected = |source| {
            clouds
                .world()
                .plan
                .runs
                .iter()
                .filter(|life| life.source == source)
                .count()
        };
        for (source, path, rows) in [
            (DemoSource::Skyvern, "/v1/runs?page_size=7&page=", ""),
            (
                DemoSource::Tasks,
                "/api/v2/tasks?pageSize=7&pageNumber=",
                "/items",
            ),
            (
                DemoSource::Sessions,
                "/api/v3/sessions?page_size=7&page=",
                "/sessions",
            ),
        ] {
            let mut seen = 0;
            for page in 1.. {
                let (_, body) = get(&clouds, source.cloud(), &format!("{path}{page}")).await;
                match body
                    .pointer(rows)
                    .and_then(Value::as_array)
                    .map_or(0, Vec::len)
                {
                    0 => break,
                    many => seen += many,
                }
            }
            assert_eq!(seen, expected(source), "{source}");
        }
        for (source, path, rows, next) in [
            (
                DemoSource::Runs,
                "/api/v4/sessions?limit=3",
                "sessions",
                "nextCursor",
            ),
            (
                DemoSource::Jobs,
                "/v2/team/activity?limit=7",
                "data",
                "cursor",
            ),
        ] {
            let (mut seen, mut cursor) = (0, String::new());
            loop {
                let (_, body) = get(&clouds, source.cloud(), &format!("{path}{cursor}")).await;
                seen += body[rows].as_array().map_or(0, Vec::len);
                match body[next].as_str() {
                    Some(next) => cursor = format!("&cursor={next}"),
                    None => break,
                }
            }
            assert_eq!(seen, expected(source), "{source}");
        }
    }

    #[tokio::test]
    async fn a_run_that_only_a_list_shows_lasts_until_one_has_shown_it() {
        let mut plan = Plan::new(1, 60, &Rates::HONEST);
        let mut chosen = plan.runs.remove(
            plan.runs
                .iter()
                .position(|life| life.source == DemoSource::Runs)
                .unwrap(),
        );
        chosen.only_listed = true;
        chosen.begins = Duration::ZERO;
        plan.runs = vec![chosen.clone()];
        let mut clouds = Clouds::start(plan, "http://127.0.0.1:9").await.unwrap();
        clouds.begin();
        clouds
            .world()
            .until(chosen.ends() + Duration::from_millis(50))
            .await;
        let open = |body: &Value| body["sessions"][0]["status"] == "running";
        let (_, canary) = get(&clouds, Cloud::BrowserUse, "/api/v4/sessions?limit=1").await;
        tokio::time::sleep(Duration::from_millis(150)).await;
        let (_, list) = get(&clouds, Cloud::BrowserUse, "/api/v4/sessions?limit=100").await;
        assert!(open(&canary) && open(&list), "{canary} {list}");
        tokio::time::sleep(Duration::from_millis(150)).await;
        let (_, list) = get(&clouds, Cloud::BrowserUse, "/api/v4/sessions?limit=100").await;
        assert!(!open(&list), "{list}");
    }

    fn header<'a>(letter: &'a Letter, name: &str) -> Option<&'a str> {
        letter
            .headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// Every letter of a plan, written.
    fn letters(world: &World) -> impl Iterator<Item = (&Life, &Mail, Letter)> {
        world.plan.runs.iter().flat_map(move |life| {
            life.mail.iter().enumerate().map(move |(number, mail)| {
                let written_at = At(1_795_247_302_144);
                (
                    life,
                    mail,
                    world.letter(&Item {
                        life,
                        number,
                        mail,
                        written_at,
                        attempt: 0,
                    }),
                )
            })
        })
    }

    #[test]
    fn letters_are_signed_as_their_senders_do_and_forged_ones_are_not() {
        let world = World::new(Plan::new(1, 2000, &Rates::default()), "");
        let keys = &world.keys;
        for (life, mail, letter) in letters(&world) {
            let canonical = browser_use::canonical(&String::from_utf8_lossy(&letter.body));
            let time = header(&letter, "x-browser-use-timestamp").unwrap_or_default();
            let timed = [time.as_bytes(), b".", canonical.as_bytes()];
            let by = |name: &str, secret: &str, signed: &[&[u8]]| {
                header(&letter, name) == Some(&sign(secret, signed))
            };
            let firecrawl = format!("sha256={}", sign(&keys.firecrawl_hooks, &[&letter.body]));
            let genuine = match life.source.cloud() {
                Cloud::Skyvern => by("x-skyvern-signature", &keys.skyvern, &[&letter.body]),
                Cloud::BrowserUse => {
                    by(
                        "x-webhook-signature",
                        &keys.browser_use_hooks,
                        &[&letter.body],
                    ) || by("x-browser-use-signature", &keys.browser_use_hooks, &timed)
                }
                Cloud::SmartBrowse => {
                    letter.path_token.as_ref() == Some(&keys.smartbrowse_path)
                        && header(&letter, "authorization") == Some(&keys.smartbrowse_header)
                }
                Cloud::Firecrawl => header(&letter, "x-firecrawl-signature") == Some(&firecrawl),
            };
            assert_eq!(
                genuine,
                !matches!(mail.form, Form::Forged(_)),
                "{} {mail:?}",
                life.source
            );
        }
    }

    #[test]
    fn stale_letters_are_an_hour_old_and_poisoned_ones_are_no_plain_json() {
        let world = World::new(Plan::new(1, 2000, &Rates::default()), "");
        for (_, mail, letter) in letters(&world) {
            let time = header(&letter, "x-browser-use-timestamp")
                .and_then(|time| time.parse::<i64>().ok());
            if mail.form == Form::Stale {
                assert_eq!(time, Some(1_795_247_302 - 3600), "{mail:?}");
            }
            let readable = serde_json::from_slice::<Value>(&letter.body).is_ok();
            assert_eq!(
                readable,
                !matches!(mail.form, Form::Poisoned(_)),
                "{mail:?}"
            );
        }
    }

    #[test]
    fn a_dispatcher_writes_other_bytes_with_the_same_id_for_each_attempt() {
        let world = World::new(Plan::new(1, 500, &Rates::HONEST), "");
        let attempt = |life, attempt| {
            let item = Item {
                life,
                number: 0,
                mail: &life.mail[0],
                written_at: At(0),
                attempt,
            };
            let body = world.letter(&item).body;
            let id = serde_json::from_slice::<Value>(&body).unwrap()["webhookId"].clone();
            (body, id)
        };
        let differ = world
            .plan
            .runs
            .iter()
            .filter(|life| life.source == DemoSource::Jobs && !life.mail.is_empty());
        let differ = differ.filter(|life| {
            let (first, second) = (attempt(life, 0), attempt(life, 1));
            assert_eq!(first.1, second.1);
            first.0 != second.0
        });
        assert!(differ.count() > 10);
    }
}
