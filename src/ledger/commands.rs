//! Every change of the ledger, as a value with a typed reply.
//!
//! A command says what is to change and carries the time. Nothing outside the ledger holds a
//! transaction: the writer's queue carries commands, and the ledger executes each of them inside
//! the writer's next transaction. A command that fails undoes only itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::rows::{Consumer, Filter};
use crate::config::{Source, SourceRow, Sources};
use crate::model::{At, schedule};

/// A change of the ledger, with the type of its reply.
pub trait Command: Into<AnyCommand> {
    /// The reply of the ledger once the change is on disk.
    type Reply;

    /// The reply to a command of this type; `None` if `any` replies to another type.
    fn reply(any: AnyReply) -> Option<Self::Reply>;
}

/// Declares the enums of all commands and of all replies, and which reply belongs to which command.
macro_rules! commands {
    ($($name:ident => $reply:ty,)+) => {
        /// Any command: what the writer's queue carries and what a ledger executes.
        #[derive(Clone, Debug)]
        #[expect(missing_docs, reason = "each variant is documented as the struct in it")]
        pub enum AnyCommand { $($name($name),)+ }

        /// The reply to any command.
        #[derive(Clone, Debug)]
        #[expect(missing_docs, reason = "each variant holds the reply to the command of its name")]
        pub enum AnyReply { $($name($reply),)+ }

        $(
            impl From<$name> for AnyCommand {
                fn from(command: $name) -> AnyCommand {
                    AnyCommand::$name(command)
                }
            }

            impl Command for $name {
                type Reply = $reply;

                fn reply(any: AnyReply) -> Option<$reply> {
                    match any {
                        AnyReply::$name(reply) => Some(reply),
                        _ => None,
                    }
                }
            }
        )+
    };
}

commands! {
    Probe => (),
    CreateConsumer => Created,
    OpenConsumer => Option<Consumer>,
    Ack => Moved,
    Seek => Option<Consumer>,
    DeleteConsumer => Option<Deleted>,
    Park => Moved,
    RetryParked => usize,
    DropParked => usize,
    TrimRecords => Trimmed,
    TrimUnverified => usize,
    RemoveReports => usize,
    DropBodies => usize,
    ForgetSettlements => usize,
    Shrink => (),
    RegisterSources => BTreeMap<String, SourceRow>,
    ClampPolls => usize,
}

/// Changes nothing. Its reply shows that the writer takes commands and commits.
#[derive(Clone, Copy, Debug)]
pub struct Probe;

/// Creates a consumer at a position, unless one of this name exists.
#[derive(Clone, Debug)]
pub struct CreateConsumer {
    /// The consumer's name.
    pub name: String,
    /// The seq up to which everything counts as acknowledged.
    pub acked: i64,
    /// Which records it reads; fixed for its life.
    pub filter: Filter,
    /// How many records may be out unacknowledged; 0 means any number.
    pub window: u32,
    /// The time of creation.
    pub now: At,
}

/// The reply to [`CreateConsumer`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Created {
    /// The consumer of this name, whether it was created now or before.
    pub consumer: Consumer,
    /// Whether it was created now.
    pub new: bool,
}

/// Gives a consumer to a new reader, which supersedes the reader before it. Replies `None` if there
/// is no such consumer.
#[derive(Clone, Debug)]
pub struct OpenConsumer {
    /// The consumer's name.
    pub name: String,
    /// The time of opening.
    pub now: At,
}

/// Moves a consumer's position forward, never back. Invariant 9: the reply comes after the commit.
#[derive(Clone, Debug)]
pub struct Ack {
    /// The consumer's name.
    pub name: String,
    /// Everything up to this seq is done.
    pub seq: i64,
    /// The generation of the reader that acknowledges; `None` for a caller outside any reader.
    pub generation: Option<i64>,
    /// The time of the acknowledgement.
    pub now: At,
}

/// The result of an [`Ack`] or a [`Park`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moved {
    /// There is no consumer of this name.
    Unknown,
    /// The reader that asked has been superseded; this is the generation now.
    Stale(i64),
    /// No record has this number yet; this is the last that has.
    Beyond(i64),
    /// There is no such record, or retention removed it.
    Absent,
    /// As many events are parked as may be.
    Full,
    /// The position has moved, or was there already.
    Done {
        /// The position now.
        acked: i64,
        /// The seq of the last record.
        head: i64,
    },
}

/// Puts a consumer's position somewhere else and supersedes its readers. Replies `None` if there is
/// no such consumer.
#[derive(Clone, Debug)]
pub struct Seek {
    /// The consumer's name.
    pub name: String,
    /// The new position.
    pub seq: i64,
    /// The time of the change.
    pub now: At,
}

/// Deletes a consumer together with what it has parked. Replies `None` if there is no such consumer.
#[derive(Clone, Debug)]
pub struct DeleteConsumer {
    /// The consumer's name.
    pub name: String,
}

/// The reply to [`DeleteConsumer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deleted {
    /// How many parked events went with it.
    pub parked: i64,
    /// A generation that supersedes its readers.
    pub generation: i64,
}

/// Parks an event and moves the position past it, or notes that a parked event failed again.
#[derive(Clone, Debug)]
pub struct Park {
    /// The name of the consumer that parks it.
    pub name: String,
    /// The seq of the event.
    pub seq: i64,
    /// The generation of the reader that parks it; `None` for a caller outside any reader.
    pub generation: Option<i64>,
    /// How often the consumer has tried the event.
    pub attempts: u32,
    /// How the last attempt failed.
    pub error: String,
    /// How many events of one consumer may be parked.
    pub parked_max: i64,
    /// The time of the last attempt.
    pub now: At,
}

/// Marks parked events for another attempt. Replies how many.
#[derive(Clone, Debug)]
pub struct RetryParked {
    /// The consumer's name.
    pub name: String,
    /// Which event; `None` means every event that it has parked.
    pub seq: Option<i64>,
}

/// Drops parked events. Replies how many.
#[derive(Clone, Debug)]
pub struct DropParked {
    /// The consumer's name.
    pub name: String,
    /// Which event; `None` means every event that it has parked.
    pub seq: Option<i64>,
}

/// Removes the oldest records, never from the middle: what is left is always everything after one
/// position.
#[derive(Clone, Copy, Debug)]
pub struct TrimRecords {
    /// Records appended before this may go once every consumer has acknowledged them.
    pub before: At,
    /// While all records together have more bytes than this, the oldest go, acknowledged or not.
    pub bytes_max: i64,
    /// How many records one transaction looks at, so that other writes need not wait long.
    pub rows_max: u32,
}

/// The reply to [`TrimRecords`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trimmed {
    /// How many records were removed.
    pub rows: usize,
    /// There may be more to remove.
    pub more: bool,
    /// The names of consumers that lost records they had not acknowledged.
    pub overrun: Vec<String>,
    /// The names of consumers that alone keep records which are old enough to go.
    pub holding: Vec<String>,
}

/// How many unverified deliveries are kept, per source.
#[derive(Clone, Copy, Debug)]
pub struct UnverifiedLimits {
    /// At most so many deliveries.
    pub rows_max: i64,
    /// At most so many bytes of headers and bodies.
    pub bytes_max: i64,
}

/// Drops the oldest unverified deliveries of a source until the rest is within the limits. Replies
/// how many went.
#[derive(Clone, Copy, Debug)]
pub struct TrimUnverified {
    /// The row id of the source.
    pub source: i64,
    /// How many deliveries stay.
    pub limits: UnverifiedLimits,
}

/// Removes reports and their rows in timelines. Replies how many reports went.
#[derive(Clone, Debug)]
pub struct RemoveReports {
    /// The ids of the reports.
    pub ids: Vec<i64>,
}

/// Drops the bodies of reports; the rows stay. Replies how many rows there were.
#[derive(Clone, Debug)]
pub struct DropBodies {
    /// The ids of the reports.
    pub ids: Vec<i64>,
}

/// Forgets counts of settlements that no span of [`LOSS_SPANS`](super::LOSS_SPANS) reaches back to.
/// Replies how many rows went.
#[derive(Clone, Copy, Debug)]
pub struct ForgetSettlements {
    /// The end of every span.
    pub now: At,
}

/// Gives free pages at the end of the file back to the file system.
#[derive(Clone, Copy, Debug)]
pub struct Shrink {
    /// At most so many pages.
    pub pages: u32,
}

/// Gives each source a row, keeping the row of a name that has one.
#[derive(Clone, Debug)]
pub struct RegisterSources {
    /// Pairs of a source's name and the name of its provider.
    pub sources: Vec<(String, String)>,
    /// When a source that has no row yet counts as first configured.
    pub now: At,
}

/// Brings forward polls and timers that the clock would otherwise delay after it has been stepped
/// back. Replies how many polls were moved.
///
/// A poll of an open run moves if it is planned for later than its source's longest interval from
/// now, to some moment within that interval. A poll of a settled run moves if it is planned for
/// after `latest`. Timers of open runs that hold evidence of an end move to `now`, where the decision
/// sets them again.
#[derive(Clone, Debug)]
pub struct ClampPolls {
    /// The time.
    pub now: At,
    /// The latest time for which any rule could have planned a poll.
    pub latest: At,
    /// The row id of each source, and the longest interval between the polls of a run.
    pub sources: Vec<(i64, Duration)>,
}

impl ClampPolls {
    /// The command for these sources.
    pub fn of(sources: &Sources, now: At) -> ClampPolls {
        let interval = |source: &Arc<Source>| (source.id, source.config.policy(None).max_interval);
        ClampPolls {
            now,
            latest: now.plus(schedule::CHECKS[1] + Duration::from_secs(3600)),
            sources: sources.members().map(interval).collect(),
        }
    }
}
