//! A list that comes in pages, each item as the exact JSON the daemon sent.

use std::marker::PhantomData;

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::api::types::{DeliveryList, ParkedList, RunList};
use crate::cli::client::{Client, ClientError, Target};
use crate::ledger::DamagedRow;

/// The most items that the daemon puts on one page.
const PAGE: u32 = 1_000;

/// One item of a list, not yet parsed.
pub type Item = Box<RawValue>;

/// A reply that is one page of a list.
pub trait PagedReply: DeserializeOwned {
    /// The items, the damaged rows, and where the next page begins.
    fn split(self) -> (Vec<Item>, Vec<DamagedRow>, Option<i64>);
}

impl PagedReply for RunList<Item> {
    fn split(self) -> (Vec<Item>, Vec<DamagedRow>, Option<i64>) {
        (self.runs, self.damaged, self.next)
    }
}

impl PagedReply for DeliveryList<Item> {
    fn split(self) -> (Vec<Item>, Vec<DamagedRow>, Option<i64>) {
        (self.deliveries, Vec::new(), self.next)
    }
}

impl PagedReply for ParkedList<Item> {
    fn split(self) -> (Vec<Item>, Vec<DamagedRow>, Option<i64>) {
        (self.parked, Vec::new(), self.next)
    }
}

/// Reads a list page by page.
pub struct Pages<'c, L> {
    client: &'c Client,
    target: Target,
    /// The parameter that takes `next`.
    position: &'static str,
    next: Option<i64>,
    left: u32,
    over: bool,
    /// Rows of the list that the daemon could not read.
    pub damaged: Vec<DamagedRow>,
    reply: PhantomData<L>,
}

impl<'c, L: PagedReply> Pages<'c, L> {
    /// At most `limit` items (`None`: all); `next` of a page goes into the parameter `position`.
    pub fn new(
        client: &'c Client,
        target: Target,
        position: &'static str,
        limit: Option<u32>,
    ) -> Pages<'c, L> {
        let left = limit.unwrap_or(u32::MAX);
        Pages {
            client,
            target,
            position,
            next: None,
            left,
            over: left == 0,
            damaged: Vec::new(),
            reply: PhantomData,
        }
    }

    /// The next page; `None` after the last.
    pub async fn page(&mut self) -> Result<Option<Vec<Item>>, ClientError> {
        if self.over || self.left == 0 {
            return Ok(None);
        }
        let target = self
            .target
            .clone()
            .with("limit", self.left.min(PAGE))
            .with_some(self.position, self.next);
        let (items, damaged, next) = self.client.get(target).await?.read::<L>()?.split();
        self.damaged.extend(damaged);
        self.next = next;
        self.over = next.is_none();
        let count = u32::try_from(items.len()).unwrap_or(u32::MAX);
        self.left = self.left.saturating_sub(count);
        Ok(Some(items))
    }

    /// Whether the limit was reached before the end of the list.
    pub fn cut_short(&self) -> bool {
        !self.over && self.left == 0
    }
}

/// Reads an item.
pub fn read<T: DeserializeOwned>(item: &Item) -> Result<T, ClientError> {
    serde_json::from_str(item.get()).map_err(ClientError::Unreadable)
}
