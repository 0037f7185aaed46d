//! settled: exactly one completion per run.
//!
//! A run is one unit of work at a provider of browser or scraping agents. It ends with a webhook that
//! may be lost, late, repeated, reordered, forged or never sent. settled stores every webhook before
//! it answers, polls the provider for every open run, and appends one completion per run to a feed.
//! `docs/ARCHITECTURE.md` is the map of the code, with the glossary; this page has the invariants.
//!
//! # The nouns
//!
//! A **report** is whatever reaches settled, stored as received. An **observation** is the
//! provider's reading of a report: one claim about one run. A **decision** is what settled concludes
//! from it. A **record** is a line of the feed.
//!
//! ```text
//!  provider ──webhook──▶ ingest ───report──▶┐
//!                                           ├─▶ reconciler: store → process → commit ──▶ feed ──▶ consumers
//!  provider ◀──request── polling ◀─due runs─┤         (one thread, one write connection)
//!           ──answer───▶         ──report──▶┘
//! ```
//!
//! # The invariants, and where each is kept
//!
//! 1. A webhook answered 2xx is on disk, fsynced, with bytes, headers and verdict: [`ingest`]
//!    answers after [`reconciler::Handle::store`], which returns after the commit.
//! 2. At most one completion per run, for ever: a unique index and a trigger in `schema.sql`.
//! 3. A decision, the run's state, the record and the mark that the report is processed are one
//!    transaction: [`process`] makes one change set of them, and [`reconciler`] commits it.
//! 4. All reports meet in one place, and the decision is a pure function:
//!    [`model::decide::decide`].
//! 5. The phase never goes back, and the order of arrival never matters: [`model::decide`],
//!    [`model::observation::Evidence`].
//! 6. settled guesses nothing: a run that vanished or passed its limits ends as
//!    [`model::Outcome::Indeterminate`], with a reason.
//! 7. A hint changes nothing but when a known run is polled next: [`model::decide`]. One about an
//!    unknown run leads to at most one poll of it, whose answer decides: [`polling::inquiry`].
//! 8. The same seq never names two records, a record is visible only after its commit, and a restored
//!    database has a new epoch: [`ledger`].
//! 9. A 200 to an ack means that the position is on disk: [`api`] answers after
//!    [`reconciler::Handle::execute`], which returns after the commit.
//! 10. Secrets never leave the process: [`secret`], and [`process`] redacts what providers wrote.
//! 11. No run ends by time in which the provider could not be asked:
//!     [`model::decide::Watched`].
//! 12. The daemon never writes into a file that its path no longer leads to: the writer of [`ledger`]
//!     checks that before each commit.
//!
//! # The modules, from the top of the tree down
//!
//! * [`cli`]: the commands, one file each. [`daemon`]: what starts and stops when, and the clock.
//! * [`api`]: the Unix sockets. [`ingest`]: webhooks in. [`polling`]: polls out. These do not know
//!   each other.
//! * [`retention`]: what is removed when. [`demo`]: simulated clouds that check the daemon.
//! * [`reconciler`]: the single writer. [`mod@process`], pure: what a batch of reports leads to.
//! * [`ledger`]: the database; the only module with SQL. [`server`]: the accept loop.
//! * [`report`], pure: what is stored of each kind of input. [`config`]: the configuration.
//! * [`providers`], pure: one provider per file. [`model`], pure: words, observation, decision,
//!   poll schedule, record. [`limits`]: every bound. [`secret`]: secrets and their redaction.
//!
//! A module imports only modules below it; `tests/architecture` checks this.

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
