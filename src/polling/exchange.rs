//! An exchange: the requests of one poll or one sweep, and the reports that come of the answers.
//!
//! Pure, as the providers are: an [`Exchange`] holds the answers so far, takes one more, and says
//! what comes next. It does not know what sends the request, nor when the rate limit allows it, so
//! the daemon and the simulation run the same exchanges.

use std::sync::Arc;

use crate::config::Source;
use crate::limits;
use crate::model::decide::Run;
use crate::model::{At, Kind, RunId};
use crate::providers::{ApiRequest, ApiResponse, RunRef};
use crate::report::{Meta, PollMeta, Report, ResponseMeta, SweepMeta};

/// A poll of one run, one page of a sweep, or a probe of the API key, while it is under way.
pub struct Exchange {
    member: Arc<Source>,
    about: About,
}

enum About {
    Run(RunExchange),
    Page(Page),
    /// A probe: does the key work again?
    Key,
}

/// A poll of one run: its status, and the follow-up requests that the provider needs to read it.
struct RunExchange {
    run_id: RunId,
    kind: Kind,
    guessed: bool,
    group_id: Option<String>,
    requested_at: At,
    paths: Vec<String>,
    answers: Vec<ApiResponse>,
}

/// One page of the provider's list; `number` counts from 1 and bounds the sweep.
struct Page {
    token: Option<String>,
    number: usize,
    requested_at: At,
}

/// How an exchange continues after an answer.
pub enum Next {
    /// Send one more request; there is nothing to report yet.
    Ask(Exchange, ApiRequest),
    /// Store this report, then send the further request if there is one.
    Report(Report, Option<(Exchange, ApiRequest)>),
    /// The exchange is over and leaves no report.
    Done,
}

impl Exchange {
    /// Begins a poll of a run at `now`: the exchange and its first request.
    pub fn about(
        member: &Arc<Source>,
        run_id: &RunId,
        run: &Run,
        now: At,
    ) -> (Exchange, ApiRequest) {
        let source = &member.config;
        let exchange = RunExchange {
            run_id: run_id.clone(),
            kind: run
                .kind
                .unwrap_or_else(|| source.provider.kind_of(run_id, &source.settings)),
            guessed: run.kind.is_none() && source.provider.guesses_kind(),
            group_id: run.detail.group_id.clone(),
            requested_at: now,
            paths: Vec::new(),
            answers: Vec::new(),
        };
        let request = source.provider.status_request(&exchange.run_ref(member));
        (
            Exchange {
                member: member.clone(),
                about: About::Run(exchange),
            },
            request,
        )
    }

    /// Begins a sweep at the first page of the provider's list. `None`: the provider has no list,
    /// or the source no API key.
    pub fn sweep(member: &Arc<Source>, now: At) -> Option<(Exchange, ApiRequest)> {
        member.config.api_key.as_ref()?;
        Exchange::page(member, None, 1, now)
    }

    fn page(
        member: &Arc<Source>,
        token: Option<String>,
        number: usize,
        now: At,
    ) -> Option<(Exchange, ApiRequest)> {
        let request = member
            .config
            .provider
            .list_request(token.as_deref(), &member.config.settings)?;
        let page = Page {
            token,
            number,
            requested_at: now,
        };
        Some((
            Exchange {
                member: member.clone(),
                about: About::Page(page),
            },
            request,
        ))
    }

    /// Begins a probe that finds out whether the key works again.
    pub fn probe(member: &Arc<Source>) -> (Exchange, ApiRequest) {
        let request = member
            .config
            .provider
            .canary_request(&member.config.settings);
        (
            Exchange {
                member: member.clone(),
                about: About::Key,
            },
            request,
        )
    }

    /// Takes the answer to `request`, which came at `now`.
    pub fn go_on(self, request: ApiRequest, answer: ApiResponse, now: At) -> Next {
        let Exchange { member, about } = self;
        match about {
            About::Run(exchange) => exchange.go_on(member, request, answer, now),
            About::Page(page) => page.write_batch(&member, request, answer, now),
            About::Key => Next::Done,
        }
    }
}

impl RunExchange {
    fn run_ref<'a>(&'a self, member: &'a Source) -> RunRef<'a> {
        RunRef {
            run_id: &self.run_id,
            kind: self.kind,
            guessed: self.guessed,
            group_id: self.group_id.as_deref(),
            settings: &member.config.settings,
        }
    }

    fn go_on(
        mut self,
        member: Arc<Source>,
        request: ApiRequest,
        answer: ApiResponse,
        now: At,
    ) -> Next {
        self.paths.push(request.path);
        self.answers.push(answer);
        if self.answers.len() < limits::QUESTIONS_PER_POLL_MAX
            && let Some(further) = member
                .config
                .provider
                .follow_up(&self.run_ref(&member), &self.answers)
        {
            return Next::Ask(
                Exchange {
                    member,
                    about: About::Run(self),
                },
                further,
            );
        }
        let RunExchange {
            run_id,
            kind,
            guessed,
            group_id,
            requested_at,
            paths,
            answers,
        } = self;
        let split = paths
            .into_iter()
            .zip(answers)
            .map(|(path, answer)| ResponseMeta::split(path, answer));
        let (answers, bodies): (Vec<_>, Vec<_>) = split.unzip();
        let meta = Meta::Poll(PollMeta {
            run_id,
            kind,
            guessed,
            group_id,
            requested_at,
            answers,
        });
        Next::Report(
            Report {
                source: member.id,
                at: now,
                meta,
                body: bodies.concat(),
            },
            None,
        )
    }
}

impl Page {
    fn write_batch(
        self,
        member: &Arc<Source>,
        request: ApiRequest,
        answer: ApiResponse,
        now: At,
    ) -> Next {
        let Page {
            token,
            number,
            requested_at,
        } = self;
        let source = &member.config;
        let next = source
            .provider
            .read_list(token.as_deref(), &answer, &source.settings, requested_at)
            .next;
        let (answer, body) = ResponseMeta::split(request.path, answer);
        let meta = Meta::Sweep(SweepMeta {
            page: token,
            requested_at,
            answer,
        });
        let report = Report {
            source: member.id,
            at: now,
            meta,
            body,
        };
        let next = next.filter(|_| number < limits::SWEEP_PAGES_MAX);
        Next::Report(
            report,
            next.and_then(|next| Exchange::page(member, Some(next), number + 1, now)),
        )
    }
}
