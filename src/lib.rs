//! settled: exactly one completion per run.
//!
//! A run is one unit of work in somebody else's cloud. It ends with a webhook that may be lost,
//! late, repeated, reordered, forged or never sent. settled stores every webhook before it answers
//! it, asks the provider about every run still open, and appends one completion per run to a feed.
//!
//! # The nouns
//!
//! A **report** is whatever reached us, stored as it came. An **observation** is what a provider's
//! dialect says the report means for one run. A **decision** is what we conclude from it. A
//! **record** is a line of the feed.
//!
//! ```text
//!  provider ──webhook──▶ receiver ─report──▶┐
//!                                           ├─▶ reconciler: record → observe → decide → append ──▶ feed ──▶ consumers
//!  provider ◀──GET────── poller ◀─due runs──┤              (one thread, one write connection)
//!           ──answer───▶        ──report───▶┘
//! ```
//!
//! # The invariants, and where each is kept
//!
//! 1. A webhook answered 2xx is on disk, fsynced, with bytes, headers and verdict: [`receiver`]
//!    answers after [`reconciler::Handle::store`], which returns after the commit.
//! 2. At most one completion per run, for ever: a unique index and a trigger in `schema.sql`.
//! 3. A decision, the run's state, the record and the mark that the report is processed are one
//!    transaction: [`reconciler`].
//! 4. Everything meets in one place, and the decision is a pure function: [`run::decide::decide`].
//! 5. The phase never goes back and the order of arrival never matters: [`run::decide`],
//!    [`run::observation::Evidence`].
//! 6. Nothing is guessed: what nobody said ends as [`run::Outcome::Indeterminate`].
//! 7. A hint changes nothing but when the run is polled next: [`run::decide`].
//! 8. The same seq never names two records, a record is visible only after its commit, a restored
//!    database has a new epoch: [`store`].
//! 9. A 200 to an ack means that the position is on disk: the feed's handlers write through
//!    [`reconciler::Handle::write`].
//! 10. Secrets never leave: [`secret`], and [`reconciler`] redacts what is appended.
//!
//! # The rooms, in the order in which data walks
//!
//! * [`run`], pure: the words, the observation, the decision, when to ask, the record.
//! * [`providers`], pure: one dialect per file, verification, pace.
//! * [`report`], [`store`]: what is kept, and the one file it is kept in. All SQL is here.
//! * [`reconciler`]: the writer's thread.
//! * [`exchange`], pure: what a provider is asked, question by question.
//! * [`receiver`], [`poller`], [`feed`]: webhooks in, questions out, records out. They do not know
//!   each other.
//! * [`http`], [`calls`]: our accept loop, and our calls to others.
//! * [`daemon`]: what starts and stops when, and every spawn. [`config`], [`calendar`], [`limits`],
//!   [`secret`], [`telemetry`]: what it is told.
//! * [`cli`], [`demo`]: the commands, and four clouds that lie.
//!
//! Deliberately absent: a trait with one implementer; async in the pure rooms and the store; a
//! broadcast channel (streams are woken by a number and read rows); random ids; a clock that is
//! read anywhere but in [`daemon`].

pub mod api;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod demo;
pub mod ingest;
pub mod ledger;
pub mod limits;
pub mod model;
pub mod polling;
pub mod process;
pub mod providers;
pub mod reconciler;
pub mod report;
pub mod retention;
pub mod secret;
pub mod server;
