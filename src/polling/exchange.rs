//! An exchange: the requests of one poll or one sweep, and the reports that come of the answers.
//!
//! Pure, as the providers are: an [`Exchange`] holds the answers so far, takes one more, and says
//! what comes next. It does not know what sends the request, nor when the rate limit allows it, so
//! the daemon and the simulation run the same exchanges.

use std::sync::Arc;

use crate::config::Source;
use crate::limits;
use crate::model::decide::Run;
use crate::model::observation::Claim;
use crate::model::{At, Kind, RunId};
use crate::providers::{ApiRequest, ApiResponse, ResponseClass, RunRef};
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
    /// The request under way is the canary, which shows whether the key works at all.
    canary: bool,
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
            canary: false,
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
        let exchange = Exchange {
            member: member.clone(),
            about: About::Key,
        };
        (exchange, canary(member))
    }

    /// Whether the next answer speaks for the account. A refusal of anything but the canary may
    /// concern one run, or one right that the key lacks.
    pub fn speaks_for_account(&self) -> bool {
        match &self.about {
            About::Run(exchange) => exchange.canary,
            About::Page(_) => false,
            About::Key => true,
        }
    }

    /// The report of what has been answered so far, if nothing more can be asked.
    pub fn cut_short(self, now: At) -> Option<Report> {
        match self.about {
            About::Run(exchange) if !exchange.answers.is_empty() => {
                Some(exchange.report(&self.member, now))
            }
            _ => None,
        }
    }

    /// Takes the answer to `request`, which came at `now`.
    pub fn go_on(self, request: ApiRequest, answer: ApiResponse, now: At) -> Next {
        let Exchange { member, about } = self;
        match about {
            About::Run(exchange) => exchange.go_on(member, request, answer, now),
            About::Page(page) => page.go_on(&member, request, answer, now),
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
            self.canary = further == canary(&member);
            return Next::Ask(
                Exchange {
                    member,
                    about: About::Run(self),
                },
                further,
            );
        }
        if !self.canary && self.is_refused(&member) {
            self.canary = true;
            let further = canary(&member);
            return Next::Ask(
                Exchange {
                    member,
                    about: About::Run(self),
                },
                further,
            );
        }
        Next::Report(self.report(&member, now), None)
    }

    /// The provider answers, but says nothing about the run: the run may be forbidden or broken, or
    /// the key may have been withdrawn. The canary tells which.
    fn is_refused(&self, member: &Source) -> bool {
        let refusal = |answer: &ApiResponse| {
            matches!(answer, ApiResponse::Http(response)
                if (400..500).contains(&response.status) && !matches!(response.status, 408 | 429))
        };
        let provider = member.config.provider;
        self.answers.iter().any(refusal)
            && provider
                .read_status(&self.run_ref(member), &self.answers, self.requested_at)
                .claim
                == Claim::Nothing
    }

    /// The report of all answers so far.
    fn report(self, member: &Source, now: At) -> Report {
        let RunExchange {
            run_id,
            kind,
            guessed,
            group_id,
            requested_at,
            paths,
            answers,
            canary: _,
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
        Report {
            source: member.id,
            at: now,
            meta,
            body: bodies.concat(),
        }
    }
}

/// The request that works whenever the key does.
fn canary(member: &Source) -> ApiRequest {
    let config = &member.config;
    config.provider.canary_request(&config.settings)
}

impl Page {
    fn go_on(
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
        let denied = matches!(
            source.provider.classify(&answer),
            ResponseClass::Denied { .. }
        );
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
        if denied {
            // A key may lack the right to list and do everything else: the canary decides about it.
            return Next::Report(report, Some(Exchange::probe(member)));
        }
        let next = next.filter(|_| number < limits::SWEEP_PAGES_MAX);
        Next::Report(
            report,
            next.and_then(|next| Exchange::page(member, Some(next), number + 1, now)),
        )
    }
}
