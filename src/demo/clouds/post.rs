//! The post: sends every letter of the plan at its time, and tries again as its sender would.

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::task::JoinSet;

use super::world::{Count, World};
use super::{Item, Letter, service};
use crate::demo::life::{Form, Life, Mail};

/// The result of one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// An answer with this status, and its text.
    Answered(u16, String),
    /// The receiver is not there, or does not answer in time.
    Broken(String),
}

impl Attempt {
    /// Whether the receiver took it.
    pub fn accepted(&self) -> bool {
        matches!(self, Attempt::Answered(200..=299, _))
    }
}

/// The client that carries the letters: no redirects, no proxy.
pub(super) fn carrier() -> reqwest::Client {
    let builder = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none());
    builder
        .pool_max_idle_per_host(64)
        .build()
        .unwrap_or_default()
}

/// One sending of one letter.
#[derive(Clone, Copy, Debug)]
struct Sending {
    at: Duration,
    run: usize,
    ghost: bool,
    letter: usize,
    copy: usize,
}

impl Sending {
    fn life<'a>(&self, world: &'a World) -> &'a Life {
        if self.ghost {
            &world.plan.ghosts[self.run]
        } else {
            &world.plan.runs[self.run]
        }
    }
}

/// Every sending of the plan, in the order of their times.
fn schedule(world: &World) -> Vec<Sending> {
    let runs = world
        .plan
        .runs
        .iter()
        .enumerate()
        .map(|(run, life)| (run, false, life));
    let ghosts = world
        .plan
        .ghosts
        .iter()
        .enumerate()
        .map(|(run, life)| (run, true, life));
    let mut all: Vec<Sending> = runs
        .chain(ghosts)
        .flat_map(|(run, ghost, life)| sendings(run, ghost, life).collect::<Vec<_>>())
        .collect();
    all.sort_by_key(|sending| sending.at);
    all
}

fn sendings(run: usize, ghost: bool, life: &Life) -> impl Iterator<Item = Sending> {
    let sent = life
        .mail
        .iter()
        .enumerate()
        .filter(|(_, mail)| !mail.dropped);
    sent.flat_map(move |(letter, mail)| {
        let sending = move |(copy, at): (usize, &Duration)| Sending {
            at: life.begins + *at,
            run,
            ghost,
            letter,
            copy,
        };
        mail.times.iter().enumerate().map(sending)
    })
}

/// Delivers everything, until the last letter has arrived or been given up.
pub(super) async fn deliver_all(world: Arc<World>) {
    let client = carrier();
    let dropped = world
        .plan
        .runs
        .iter()
        .flat_map(|life| &life.mail)
        .filter(|mail| mail.dropped)
        .count();
    world.tally.more(Count::WebhooksDropped, dropped as u64);
    let mut on_their_way = JoinSet::new();
    for sending in schedule(&world) {
        world.until(sending.at).await;
        world.post_one(true);
        on_their_way.spawn(deliver(client.clone(), Arc::clone(&world), sending));
        while on_their_way.try_join_next().is_some() {}
    }
    while on_their_way.join_next().await.is_some() {}
}

/// Delivers one letter.
async fn deliver(client: reqwest::Client, world: Arc<World>, sending: Sending) {
    let life = sending.life(&world);
    let mail = &life.mail[sending.letter];
    count(&world, mail, sending.copy);
    let last = attempts(&client, &world, life, mail, sending.letter).await;
    world.tally.add(match &last {
        Attempt::Answered(200..=299, _) => Count::WebhooksAccepted,
        Attempt::Answered(..) => Count::WebhooksRefused,
        Attempt::Broken(_) => Count::WebhooksUndelivered,
    });
    if last.accepted() && matches!(mail.form, Form::Forged(_)) {
        world.tally.add(Count::ForgedAccepted);
    }
    if last.accepted() && !sending.ghost {
        world.note_accepted(sending.run, sending.letter);
    }
    world.post_one(false);
}

/// Tries until the letter is taken or its sender gives up.
async fn attempts(
    client: &reqwest::Client,
    world: &World,
    life: &Life,
    mail: &Mail,
    number: usize,
) -> Attempt {
    let patience = service(life.source.cloud()).patience(life);
    let written_at = world.wall(life.begins + mail.times[0]);
    let mut attempt = 0;
    loop {
        let letter = world.letter(&Item {
            life,
            number,
            mail,
            written_at,
            attempt,
        });
        world.tally.add(Count::WebhookAttempts);
        let url = world.address(life.source, letter.path_token.as_deref());
        let tried = post(client, &url, letter, patience.timeout).await;
        let worth_it = match &tried {
            Attempt::Answered(status, _) => !tried.accepted() && (patience.retries)(*status),
            Attempt::Broken(_) => true,
        };
        let forged = matches!(mail.form, Form::Forged(_)); // whoever forges tries once
        match patience.pauses.get(attempt as usize) {
            Some(pause) if worth_it && !forged => tokio::time::sleep(*pause).await,
            _ => return tried,
        }
        attempt += 1;
    }
}

fn count(world: &World, mail: &Mail, copy: usize) {
    world.tally.add(Count::WebhooksSent);
    let kind = match mail.form {
        _ if copy > 0 => Some(Count::WebhooksRepeated),
        Form::Genuine => None,
        Form::Rewritten => Some(Count::WebhooksRewritten),
        Form::Poisoned(_) => Some(Count::WebhooksPoisoned),
        Form::Forged(_) => Some(Count::WebhooksForged),
        Form::Stale => Some(Count::WebhooksStale),
        Form::Ping => Some(Count::WebhooksPing),
    };
    if let Some(kind) = kind {
        world.tally.add(kind);
    }
}

/// Posts a letter once.
pub(super) async fn post(
    client: &reqwest::Client,
    url: &str,
    letter: Letter,
    timeout: Duration,
) -> Attempt {
    let mut headers = HeaderMap::new();
    for (name, value) in &letter.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            headers.insert(name, value);
        }
    }
    match client
        .post(url)
        .headers(headers)
        .body(letter.body)
        .timeout(timeout)
        .send()
        .await
    {
        Ok(response) => {
            let status = response.status().as_u16();
            Attempt::Answered(status, response.text().await.unwrap_or_default())
        }
        Err(error) => Attempt::Broken(
            if error.is_timeout() {
                "timed out"
            } else {
                "could not connect"
            }
            .to_owned(),
        ),
    }
}
