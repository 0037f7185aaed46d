//! An exchange: the requests of one poll or one sweep, and the reports that come of the answers.
//!
//! Pure, as the providers are: an [`Exchange`] holds the answers so far, takes one more, and says
//! what comes next. It does not know what sends the request, nor when the rate limit allows it, so
//! the daemon and the simulation run the same exchanges.

use std::sync::Arc;

use crate::config::Source;
use crate::ledger::changes::Inquiry;
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
        Exchange::of_run(member, run_id, run.kind, run.detail.group_id.clone(), now)
    }

    /// Begins a poll of a run that is known only from a delivery that could not be verified.
    pub fn inquiry(member: &Arc<Source>, inquiry: &Inquiry, now: At) -> (Exchange, ApiRequest) {
        let group_id = inquiry.group_id.clone();
        Exchange::of_run(member, &inquiry.run_id, inquiry.kind, group_id, now)
    }

    fn of_run(
        member: &Arc<Source>,
        run_id: &RunId,
        kind: Option<Kind>,
        group_id: Option<String>,
        now: At,
    ) -> (Exchange, ApiRequest) {
        let source = &member.config;
        let exchange = RunExchange {
            run_id: run_id.clone(),
            kind: kind.unwrap_or_else(|| source.provider.kind_of(run_id, &source.settings)),
            guessed: kind.is_none() && source.provider.guesses_kind(),
            group_id,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{SourceConfig, SourceRow};
    use crate::model::{SourceName, Via};
    use crate::providers::{REGISTRY, Reading, Response, Settings};
    use crate::report::Meta;
    use crate::secret::{Key, Secret, SecretLabel};

    const NOW: At = At(1_700_000_000_000);

    /// A source of each provider, in each generation of its API.
    fn sources() -> Vec<Arc<Source>> {
        let mut sources = Vec::new();
        for provider in REGISTRY {
            let apis = provider.apis().iter().map(|api| Some((*api).to_owned()));
            let apis: Vec<_> = apis.chain([None]).collect();
            for api in apis {
                let key = Key {
                    label: SecretLabel("api_key".to_owned()),
                    secret: Secret::new("a-key-of-the-tests"),
                };
                let name = SourceName::new("source").unwrap();
                let mut config = SourceConfig::new(name, *provider).with_keys(Some(key), []);
                config.settings = Settings { api };
                let row = SourceRow {
                    id: 1,
                    since: At(0),
                };
                sources.push(Arc::new(Source::new(row, Arc::new(config))));
            }
        }
        sources
    }

    fn run() -> Run {
        serde_json::from_str(
            r#"{"known_since":0,"found_by":"operator","detail":{},"progress":"waiting",
            "webhooks":{"count":0},"polls":0,"overdue":false,"statuses":0,"phase":{"open":{}}}"#,
        )
        .unwrap()
    }

    fn http(status: u16) -> ApiResponse {
        ApiResponse::Http(Response {
            status,
            headers: vec![("content-type".to_owned(), "application/json".to_owned())],
            body: b"{\"detail\":\"no\"}".to_vec(),
            truncated: false,
        })
    }

    /// Answers every request but the canary with `status`, and the canary with `canary`. Gives the
    /// report, and whether each answer spoke for the account.
    fn polled(source: &Arc<Source>, status: u16, canary_status: u16) -> (Report, Vec<bool>) {
        let run_id = RunId::new("8d2c0a3e-5b1f-4e0a-9c59-1f2e3d4c5b6a").unwrap();
        let (mut exchange, mut request) = Exchange::about(source, &run_id, &run(), NOW);
        let mut spoke = Vec::new();
        loop {
            let asks_canary = request == canary(source);
            spoke.push(exchange.speaks_for_account());
            let answer = http(if asks_canary { canary_status } else { status });
            match exchange.go_on(request, answer, NOW) {
                Next::Ask(on, further) => (exchange, request) = (on, further),
                Next::Report(report, None) => return (report, spoke),
                _ => panic!("a poll ends with its report"),
            }
        }
    }

    fn claim(source: &Source, report: &Report) -> Claim {
        let config = &source.config;
        match report.read(config.provider, &config.settings) {
            Reading::Said(mut observations) => observations.remove(0).claim,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_refusal_of_one_run_is_held_against_that_run_while_the_canary_works() {
        for source in sources() {
            let name = (source.config.provider.name(), &source.config.settings.api);
            for status in [400, 401, 402, 403, 409, 422] {
                let (report, spoke) = polled(&source, status, 200);
                let (last, others) = spoke.split_last().unwrap();
                assert!(
                    *last,
                    "{name:?} {status}: the canary speaks for the account"
                );
                assert!(
                    !others.contains(&true),
                    "{name:?} {status}: and nothing else does"
                );
                assert_eq!(
                    claim(&source, &report),
                    Claim::Withheld,
                    "{name:?} {status}"
                );
            }
        }
    }

    #[test]
    fn a_canary_that_is_refused_too_condemns_the_key_and_says_nothing_of_the_run() {
        for source in sources() {
            for status in [401, 403] {
                let (report, spoke) = polled(&source, status, status);
                assert_eq!(spoke.last(), Some(&true));
                assert_eq!(claim(&source, &report), Claim::Nothing);
            }
        }
    }

    #[test]
    fn trouble_of_the_service_and_silence_ask_no_canary() {
        for source in sources() {
            for status in [408, 429, 500, 502, 503] {
                let (report, spoke) = polled(&source, status, 200);
                assert!(!spoke.contains(&true), "{status}");
                assert_eq!(claim(&source, &report), Claim::Nothing, "{status}");
            }
        }
    }

    #[test]
    fn a_list_that_is_refused_leaves_the_verdict_to_the_canary() {
        for source in sources() {
            let Some((exchange, request)) = Exchange::sweep(&source, NOW) else {
                continue;
            };
            assert!(!exchange.speaks_for_account());
            let Next::Report(report, Some((exchange, request))) =
                exchange.go_on(request, http(403), NOW)
            else {
                panic!("a refused list is reported, and the canary is asked");
            };
            assert_eq!(report.meta.via(), Via::Sweep);
            assert!(exchange.speaks_for_account());
            assert_eq!(request, canary(&source));
            assert!(matches!(
                exchange.go_on(request, http(200), NOW),
                Next::Done
            ));
        }
    }

    #[test]
    fn what_was_answered_before_the_breaker_opened_is_reported() {
        let sources = sources();
        let run_id = RunId::new("r").unwrap();
        let (exchange, _) = Exchange::about(&sources[0], &run_id, &run(), NOW);
        assert!(
            exchange.cut_short(NOW).is_none(),
            "nothing was answered yet"
        );
        let (exchange, request) = Exchange::about(&sources[0], &run_id, &run(), NOW);
        let Next::Ask(exchange, _) = exchange.go_on(request, http(404), NOW) else {
            panic!("a 404 is followed by another request");
        };
        let report = exchange.cut_short(NOW).unwrap();
        let Meta::Poll(meta) = &report.meta else {
            panic!("a poll is reported as one");
        };
        assert_eq!(meta.answers[0].status, Some(404));
    }
}
