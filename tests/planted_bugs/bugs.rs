//! The bugs that are planted: one mistake each, as somebody might make it on a tired day, with the
//! test that must notice.
//!
//! `old` is in `file` exactly once. Edit it when the code moves; a bug that can no longer be made goes,
//! and another that can takes its place.

/// One mistake.
pub struct Bug {
    /// What goes wrong for people.
    pub name: &'static str,
    pub file: &'static str,
    pub old: &'static str,
    pub new: &'static str,
    /// Which target of `cargo test`: `lib`, or one of the folders in tests/.
    pub target: &'static str,
    /// The test in there that must fail.
    pub test: &'static str,
}

pub const BUGS: &[Bug] = &[
    // ── What is acknowledged is on disk ─────────────────────────────────────────────────────────────
    Bug {
        name: "acknowledge before the commit",
        file: "src/reconciler/handle.rs",
        old: "        let batch = match self.ledger.write_batch(reports, commands, (self.clock)()) {",
        new: "        for reply in &mut waiting {
            let early = match reply {
                Reply::Stored(tell) => std::mem::replace(tell, oneshot::channel().0),
                Reply::Processed(_) => continue,
            };
            let _ = early.send(Ok(0));
        }
        let batch = match self.ledger.write_batch(reports, commands, (self.clock)()) {",
        target: "ledger",
        test: "storing::a_commit_that_fails_is_acknowledged_to_nobody",
    },
    Bug {
        name: "reply to a command before it is committed",
        file: "src/reconciler/handle.rs",
        old: "        let batch = match self.ledger.write_batch(reports, commands, (self.clock)()) {",
        new: "        for caller in &mut callers {
            let early = std::mem::replace(caller, oneshot::channel().0);
            let consumer = crate::ledger::Consumer {
                name: \"c\".to_owned(),
                acked: 0,
                filter: crate::ledger::Filter::default(),
                window: 1,
                generation: 1,
                created_at: At(0),
                seen_at: At(0),
            };
            let created = crate::ledger::commands::Created {
                consumer,
                new: true,
            };
            let _ = early.send(Ok(AnyReply::CreateConsumer(created)));
        }
        let batch = match self.ledger.write_batch(reports, commands, (self.clock)()) {",
        target: "ledger",
        test: "storing::a_commit_that_fails_is_acknowledged_to_nobody",
    },
    Bug {
        name: "synchronous NORMAL instead of FULL",
        file: "src/ledger/sqlite/file.rs",
        old: "PRAGMA synchronous = FULL;",
        new: "PRAGMA synchronous = NORMAL;",
        target: "lib",
        test: "ledger::sqlite::file::tests::the_writer_writes_through_to_the_disk_and_so_does_its_successor",
    },
    Bug {
        name: "a delivery that could not be stored is answered 200",
        file: "src/ingest/mod.rs",
        old: "        let id = self.ledger.store(report).await.map_err(|refusal| {
            Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                \"not_stored\",
                refusal.to_string(),
            )
        })?;",
        new: "        let id = self.ledger.store(report).await.unwrap_or_default();",
        target: "ingest",
        test: "answers::what_cannot_be_stored_is_503_until_it_can",
    },
    Bug {
        name: "use a connection again after its fsync failed",
        file: "src/ledger/sqlite/mod.rs",
        old: "        self.suspect = true;
        let tx",
        new: "        let tx",
        target: "lib",
        test: "ledger::sqlite::tests::a_connection_that_failed_is_not_used_again_even_if_it_cannot_be_replaced",
    },
    Bug {
        name: "the 2xx of a delivery says nothing of its bytes",
        file: "src/ledger/sqlite/reports.rs",
        old: "                report.body,
            ])",
        new: "                String::from_utf8_lossy(&report.body).trim().as_bytes(),
            ])",
        target: "fuzz",
        test: "what_verifies_is_stored_byte_for_byte_whatever_it_says",
    },
    // ── What is on disk is processed, once ───────────────────────────────────────────────────────────
    Bug {
        name: "a report whose processing failed is left behind",
        file: "src/reconciler/mod.rs",
        old: "        self.behind |= processed.is_err();
",
        new: "",
        target: "ledger",
        test: "processing::a_report_that_panics_its_reader_is_set_aside_and_blocks_nobody",
    },
    Bug {
        name: "the mark of what is processed runs ahead",
        file: "src/process.rs",
        old: "decisions.reports.last().map(|(id, _)| *id);",
        new: "decisions.reports.last().map(|(id, _)| *id + 1);",
        target: "proof",
        test: "model::the_ledger_is_what_follows_from_what_was_reported",
    },
    Bug {
        name: "what an earlier process stored is not looked at",
        file: "src/ledger/sqlite/reports.rs",
        old: "SELECT id, attempts FROM reports WHERE id > (SELECT processed FROM meta) ORDER BY id LIMIT 1",
        new: "SELECT id, attempts FROM reports WHERE id > (SELECT reported FROM meta) ORDER BY id LIMIT 1",
        target: "ledger",
        test: "processing::what_was_promised_and_not_digested_is_digested_at_the_next_start",
    },
    Bug {
        name: "an attempt is counted after it was made",
        file: "src/reconciler/mod.rs",
        old: "                self.writer.count_attempt(id)?;
",
        new: "",
        target: "ledger",
        test: "processing::an_attempt_is_counted_on_disk_before_it_is_made",
    },
    Bug {
        name: "a command that fails leaves half of what it did",
        file: "src/ledger/sqlite/mod.rs",
        old: "\"ROLLBACK TO apart; RELEASE apart\"",
        new: "\"RELEASE apart\"",
        target: "ledger",
        test: "processing::a_command_that_fails_undoes_only_itself",
    },
    Bug {
        name: "what a failure took back is counted all the same",
        file: "src/ledger/sqlite/mod.rs",
        old: "            self.totals = before;
",
        new: "            drop(before);
",
        target: "lib",
        test: "ledger::sqlite::tests::numbers_that_a_failure_took_back_are_given_again",
    },
    // ── One completion, and the right one ───────────────────────────────────────────────────────────
    Bug {
        name: "a second completion is possible",
        file: "schema.sql",
        old: "CREATE UNIQUE INDEX one_completion_per_run",
        new: "CREATE INDEX one_completion_per_run",
        target: "ledger",
        test: "feed::sql_itself_refuses_a_second_completion",
    },
    Bug {
        name: "a settled run settles again instead of being amended",
        file: "src/model/decide.rs",
        old: "    let publication = Publication::Amendment {
        number: settled.amendments,
        previous,
    };",
        new: "    let _ = previous;
    let publication = Publication::Completion;",
        target: "model",
        test: "table::the_decision_table",
    },
    Bug {
        name: "amendments without end",
        file: "src/model/decide.rs",
        old: "    if settled.amendments == AMENDMENTS_MAX {",
        new: "    if settled.amendments == u32::MAX {",
        target: "model",
        test: "table::the_decision_table",
    },
    Bug {
        name: "the last to arrive is believed, not the strongest",
        file: "src/model/observation.rs",
        old: "        self.rank(answer_precedence) > other.rank(answer_precedence)",
        new: "        self.rank(answer_precedence) >= other.rank(answer_precedence) || self.received_at > other.received_at",
        target: "model",
        test: "enumeration::of_up_to_four_voices_the_strongest_is_believed_in_every_order",
    },
    Bug {
        name: "a row of a list is believed as a verdict",
        file: "src/model/decide.rs",
        old: "    if over {
        run.poll_now(at);
        return Effect::Hinted;
    }",
        new: "    if over {
        let end = evidence(Ending::needs_answer(Outcome::Succeeded), heard, at);
        let _ = run.settle(end, true, at);
        return Effect::Settled;
    }",
        target: "model",
        test: "table::the_decision_table",
    },
    Bug {
        name: "a hint settles",
        file: "src/model/decide.rs",
        old: "    if !observation.entitled() {
        return (None, run.hint(at));
    }",
        new: "    if !observation.entitled() && !matches!(observation.claim, Claim::Ended(_)) {
        return (None, run.hint(at));
    }",
        target: "model",
        test: "table::the_decision_table",
    },
    Bug {
        name: "a run that is retried is believed over",
        file: "src/providers/skyvern.rs",
        old: "            Some(Value::Bool(true)) => Some(State {",
        new: "            Some(Value::Bool(true)) if said.broken.is_some() => Some(State {",
        target: "providers",
        test: "skyvern::a_pending_retry_is_asked_about_after_its_next_attempt_begins",
    },
    Bug {
        name: "the first 404 is believed",
        file: "src/model/schedule.rs",
        old: "pub const MISSES_SPAN: Duration = Duration::from_secs(600);",
        new: "pub const MISSES_SPAN: Duration = Duration::ZERO;",
        target: "model",
        test: "table::the_decision_table",
    },
    Bug {
        name: "a 404 counts though nothing works with this key",
        file: "src/providers/mod.rs",
        old: "                && worked(canary)\n                && provider.classify(canary) == ResponseClass::Ok =>",
        new: "                && (worked(canary) || provider.classify(canary) != ResponseClass::Ok) =>",
        target: "providers",
        test: "skyvern::a_missing_task_is_missing_only_if_the_canary_worked",
    },
    Bug {
        name: "a run that was given up is called failed",
        file: "src/model/decide.rs",
        old: "        ending: Ending::needs_answer(Outcome::Indeterminate),",
        new: "        ending: Ending::needs_answer(Outcome::Failed),",
        target: "model",
        test: "table::the_decision_table",
    },
    // ── Who is believed ─────────────────────────────────────────────────────────────────────────────
    Bug {
        name: "the signature is compared with what the body parses to",
        file: "src/providers/skyvern.rs",
        old: "            .and_then(|signature| signature.signed_by(&keyring.signing, &[delivery.body]))
        {
            Some(key) => Proof::by(Verdict::Signed, key.clone()),",
        new: "            .and_then(|signature| {
                let parsed: Option<Value> = serde_json::from_slice(delivery.body).ok();
                let text = parsed.map(|parsed| parsed.to_string()).unwrap_or_default();
                signature.signed_by(&keyring.signing, &[text.as_bytes()])
            })
        {
            Some(key) => Proof::by(Verdict::Signed, key.clone()),",
        target: "providers",
        test: "skyvern::the_raw_bytes_are_signed_and_not_what_they_parse_to",
    },
    Bug {
        name: "an old timestamp is accepted",
        file: "src/providers/browser_use.rs",
        old: "    let fresh = now.0.abs_diff(sent) <= TOLERANCE_MS;",
        new: "    let fresh = now.0.saturating_sub(sent) >= 0 || now.0.abs_diff(sent) <= TOLERANCE_MS;",
        target: "providers",
        test: "browser_use::every_signature_vector_is_judged_as_it_says_at_its_own_now",
    },
    Bug {
        name: "only the first of several secrets is tried",
        file: "src/providers/signature.rs",
        old: "        keys.iter().fold(None, |found, key| {",
        new: "        keys.iter().take(1).fold(None, |found, key| {",
        target: "lib",
        test: "providers::signature::tests::the_matching_key_is_named",
    },
    Bug {
        name: "the path token suffices where a header is required too",
        file: "src/providers/smartbrowse.rs",
        old: "            && headers.iter().all(Option::is_some);",
        new: "            && (token.is_some() || headers.iter().all(Option::is_some));",
        target: "providers",
        test: "smartbrowse::everything_that_is_configured_must_match",
    },
    Bug {
        name: "the head of a body that was cut off is believed",
        file: "src/providers/skyvern.rs",
        old: "        if delivery.truncated {
            return Proof::without(Verdict::Truncated);
        }
        if keyring",
        new: "        if keyring",
        target: "providers",
        test: "skyvern::a_cut_off_body_verifies_as_nothing_and_is_at_most_a_hint",
    },
    // ── How we ask ──────────────────────────────────────────────────────────────────────────────────
    Bug {
        name: "Retry-After is ignored",
        file: "src/polling/rate_limit.rs",
        old: "            Some(span) => self.pause_for(span, PauseReason::RetryAfter, \"too many requests\", now),",
        new: "            Some(_) => {}",
        target: "lib",
        test: "polling::rate_limit::tests::nothing_is_granted_before_a_retry_after_has_passed",
    },
    Bug {
        name: "redirects are followed, and the key goes along",
        file: "src/polling/client.rs",
        old: "            .redirect(reqwest::redirect::Policy::none())",
        new: "            .redirect(reqwest::redirect::Policy::limited(5))",
        target: "polling",
        test: "redirects::a_redirect_is_not_followed",
    },
    Bug {
        name: "a refused key is tried on and on",
        file: "src/polling/rate_limit.rs",
        old: "                next_probe,
                probes: 0,
            });",
        new: "                next_probe,
                probes: 0,
            });
            self.breaker = None;",
        target: "lib",
        test: "polling::rate_limit::tests::an_open_breaker_grants_probes_and_nothing_else",
    },
    // ── The feed ────────────────────────────────────────────────────────────────────────────────────
    Bug {
        name: "record ids are not the same after a crash",
        file: "src/model/record.rs",
        old: "    let id = format!(\"{}:{suffix}\", about.key);",
        new: "    let id = format!(\"{}:{suffix}:{:p}\", about.key, Box::new(0_u8));",
        target: "ledger",
        test: "feed::the_same_history_gives_the_same_records",
    },
    Bug {
        name: "the cursor is told before what it stands for is delivered",
        file: "src/api/feed/stream.rs",
        old: "        let (line_type, cursor) = (format!(\"settled.feed.{kind}\"), self.cursor(self.position));",
        new: "        let (line_type, cursor) = (format!(\"settled.feed.{kind}\"), self.cursor(*self.head.borrow()));",
        target: "api",
        test: "events::a_line_of_the_streams_own_stands_for_what_was_sent_before_it",
    },
    Bug {
        name: "an event is acknowledged before its command has succeeded",
        file: "src/cli/consume.rs",
        old: "            let attempt = match &self.trying {",
        new: "            if let Some(end) = self.ack(&last, session).await? {
                return Ok(Some(end));
            }
            let attempt = match &self.trying {",
        target: "api",
        test: "consume::the_position_passes_no_event_whose_command_has_not_succeeded",
    },
    Bug {
        name: "the acknowledgement of a reader that was superseded counts",
        file: "src/ledger/sqlite/consumers.rs",
        old: "        if generation.is_some_and(|generation| generation != consumer.generation) {",
        new: "        if generation.is_some_and(|generation| generation > consumer.generation) {",
        target: "api",
        test: "consumers::a_newcomer_takes_over_and_the_old_reader_is_fenced",
    },
    Bug {
        name: "an acknowledgement moves the position back",
        file: "src/ledger/sqlite/consumers.rs",
        old: "        let acked = consumer.acked.max(*seq);",
        new: "        let acked = *seq;",
        target: "api",
        test: "consumers::an_ack_moves_forward_is_on_disk_and_never_moves_back",
    },
    Bug {
        name: "a restored copy goes on with the old epoch",
        file: "src/ledger/sqlite/file.rs",
        old: "UPDATE meta SET epoch = lower(hex(randomblob(4))), identity = ?1 WHERE identity <> ?1",
        new: "UPDATE meta SET identity = ?1 WHERE identity <> ?1",
        target: "ledger",
        test: "files::a_copy_is_another_feed_with_the_same_runs",
    },
    Bug {
        name: "retention takes what a consumer has not read",
        file: "src/ledger/sqlite/trimming.rs",
        old: "slowest.is_none_or(|slowest| seq <= slowest),",
        new: "slowest.is_none_or(|slowest| seq <= slowest.saturating_add(1_000)),",
        target: "api",
        test: "retention::age_waits_for_consumers",
    },
    Bug {
        name: "retention forgets that a run has settled",
        file: "src/ledger/sqlite/trimming.rs",
        old: "        let overrun = self.overrun(trimmed, last)?;",
        new: "        let overrun = self.overrun(trimmed, last)?;
        self.tx.execute(\"DELETE FROM records WHERE seq <= ?1\", [last])?;
        self.tx.execute(\"DELETE FROM timeline WHERE run IN (SELECT id FROM runs WHERE completion <= ?1)\", [last])?;
        self.tx.execute(\"DELETE FROM runs WHERE completion <= ?1 AND id NOT IN (SELECT run FROM records)\", [last])?;",
        target: "api",
        test: "retention::the_size_beats_consumers_and_says_so",
    },
    // ── Bounds and secrets ──────────────────────────────────────────────────────────────────────────
    Bug {
        name: "what is not authentic is kept without bound",
        file: "src/reconciler/mod.rs",
        old: "            if *rows * 20 >= limits.rows_max || bytes.saturating_mul(20) >= limits.bytes_max {",
        new: "            if *rows == i64::MAX || *bytes == i64::MAX {",
        target: "ledger",
        test: "processing::the_ring_is_bounded_in_rows",
    },
    Bug {
        name: "a secret that a payload quotes reaches the feed",
        file: "src/process.rs",
        old: "        if let Some(data) = redactor.redacted(&record.data) {",
        new: "        if let Some(data) = redactor.redacted(\"\") {",
        target: "ledger",
        test: "feed::a_secret_that_is_echoed_does_not_reach_the_feed",
    },
    Bug {
        name: "a secret is shown where somebody prints it",
        file: "src/secret.rs",
        old: "        f.write_str(\"Secret(…)\")",
        new: "        f.write_str(self.expose())",
        target: "lib",
        test: "secret::tests::a_secret_cannot_be_printed",
    },
    // ── Time in which nobody could ask, and one thing's error ─────────────────────────────────────
    Bug {
        name: "a run is given up for time in which nobody asked",
        file: "src/model/schedule.rs",
        old: "    between.min(if on_time {",
        new: "    between.max(if on_time {",
        target: "model",
        test: "table::the_decision_table",
    },
    Bug {
        name: "a hold that ended while the daemon was off settles without a poll",
        file: "src/model/decide.rs",
        old: "        if !at.policy.can_poll || at.now.since(until) <= schedule::LATE {",
        new: "        if !at.policy.can_poll || at.now >= until {",
        target: "model",
        test: "table::the_decision_table",
    },
    Bug {
        name: "runs that are all gone at once have ended",
        file: "src/model/decide.rs",
        old: "    if absent && forgotten {",
        new: "    if absent || absent && forgotten {",
        target: "model",
        test: "table::the_decision_table",
    },
    Bug {
        name: "one run's refusal condemns the account",
        file: "src/polling/exchange.rs",
        old: "            About::Run(exchange) => exchange.canary,",
        new: "            About::Run(_) => true,",
        target: "lib",
        test: "polling::exchange::tests::a_refusal_of_one_run_is_held_against_that_run_while_the_canary_works",
    },
    Bug {
        name: "a refused list condemns the account",
        file: "src/polling/exchange.rs",
        old: "            About::Page(_) => false,",
        new: "            About::Page(_) => true,",
        target: "lib",
        test: "polling::exchange::tests::a_list_that_is_refused_leaves_the_verdict_to_the_canary",
    },
    // ── What leaves, and who may ask ──────────────────────────────────────────────────────────────
    Bug {
        name: "metadata is redacted at its first level only",
        file: "src/model/observation.rs",
        old: "        Value::Object(fields) => Value::Object(sanitized_fields(fields, redact)),",
        new: "        Value::Object(fields) => Value::Object(fields),",
        target: "lib",
        test: "model::observation::tests::every_text_from_outside_is_redacted",
    },
    Bug {
        name: "a page of another site may change things through a bridged socket",
        file: "src/api/access.rs",
        old: "            (Some(site), _) => site == \"same-origin\",",
        new: "            (Some(site), _) => site != \"cross-site\",",
        target: "lib",
        test: "api::access::tests::a_change_comes_from_a_page_of_ours_or_from_no_browser",
    },
    Bug {
        name: "DNS rebinding reaches the sockets",
        file: "src/api/access.rs",
        old: "name.ends_with(\".localhost\")",
        new: "name.contains(\"localhost\")",
        target: "lib",
        test: "api::access::tests::a_name_that_dns_could_lead_here_is_refused_unless_it_is_configured",
    },
    Bug {
        name: "webhooks are acknowledged into a file that was removed",
        file: "src/ledger/sqlite/file.rs",
        old: "        if !same || self.log_id.is_some() && log != self.log_id {",
        new: "        if !same && false || self.log_id.is_some() && log != self.log_id {",
        target: "daemon",
        test: "replaced::nothing_is_acknowledged_into_a_file_that_the_path_no_longer_leads_to",
    },
];
