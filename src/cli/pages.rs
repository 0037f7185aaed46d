//! A list that comes in pages, each item as the exact JSON the daemon sent.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::cli::client::{Client, ClientError, Target};
use crate::ledger::DamagedRow;

/// The most the daemon puts on one page.
const PAGE: u32 = 1_000;

/// One item of a list, unread.
pub type Item = Box<RawValue>;

/// Reads a list page by page.
pub struct Pages<'c> {
    client: &'c Client,
    target: Target,
    /// The field that holds the items.
    items: &'static str,
    /// The parameter that takes `next`.
    position: &'static str,
    next: Option<i64>,
    left: u32,
    over: bool,
    /// Rows of the list that the daemon could not read.
    pub damaged: Vec<DamagedRow>,
}

impl<'c> Pages<'c> {
    /// At most `limit` items (`None`: all) of the field `items`, going on by the parameter `position`.
    pub fn new(
        client: &'c Client,
        target: Target,
        (items, position): (&'static str, &'static str),
        limit: Option<u32>,
    ) -> Pages<'c> {
        let left = limit.unwrap_or(u32::MAX);
        Pages {
            client,
            target,
            items,
            position,
            next: None,
            left,
            over: left == 0,
            damaged: Vec::new(),
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
        let fields: BTreeMap<String, Item> = self.client.get(target).await?.read()?;
        let items: Vec<Item> = field(fields.get(self.items))?;
        self.damaged
            .extend(field::<Option<Vec<DamagedRow>>>(fields.get("damaged"))?.unwrap_or_default());
        self.next = field(fields.get("next"))?;
        self.over = self.next.is_none();
        self.left = self
            .left
            .saturating_sub(u32::try_from(items.len()).unwrap_or(u32::MAX));
        Ok(Some(items))
    }

    /// Whether the limit was reached before the end of the list.
    pub fn cut_short(&self) -> bool {
        !self.over && self.left == 0
    }
}

/// Reads a field; one that is not there reads as `null`.
fn field<T: DeserializeOwned>(value: Option<&Item>) -> Result<T, ClientError> {
    serde_json::from_str(value.map_or("null", |value| value.get())).map_err(ClientError::Unreadable)
}

/// Reads an item.
pub fn read<T: DeserializeOwned>(item: &Item) -> Result<T, ClientError> {
    serde_json::from_str(item.get()).map_err(ClientError::Unreadable)
}
