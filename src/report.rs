//! Reports: every input in the form in which it is stored, and how each kind is read into
//! observations. The JSON of the metadata is a format: see `docs/formats.md` before changing it.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::limits;
use crate::model::observation::{Claim, Detail, Observation};
use crate::model::{At, Kind, RunId, Trust, Via};
use crate::providers::{
    ApiResponse, Headers, Provider, Reading, Response, ResponseClass, RunRef, Settings, Verdict,
    Webhook,
};
use crate::secret::{SecretLabel, TokenDigest};

/// One input: what is stored before anything parses it.
#[derive(Clone, Debug)]
pub struct Report {
    /// Row id of the source it belongs to.
    pub source: i64,
    /// When it arrived.
    pub at: At,
    /// Everything about it but its bytes.
    pub meta: Meta,
    /// The raw bytes.
    pub body: Vec<u8>,
}

/// Everything about a report but its bytes: what it is, and what is needed to read it again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Meta {
    /// An HTTP request on a webhook endpoint.
    Webhook(WebhookMeta),
    /// The signed payload out of a provider's retry answer; headers as the provider reported them.
    Replay(WebhookMeta),
    /// Answers about one run, in the order of the requests. The body is their bodies joined.
    Poll(PollMeta),
    /// One page of a provider's list of runs.
    Sweep(SweepMeta),
    /// One of settled's own limits has passed for a run.
    Clock {
        /// The run.
        run_id: RunId,
    },
    /// A client has asked settled to track a run.
    Track(TrackMeta),
}

/// Everything about a delivery but its body.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WebhookMeta {
    /// The headers as received, names in lower case.
    pub headers: Headers,
    /// Digest of the path segment after the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_token: Option<TokenDigest>,
    /// The result of the verification.
    pub verdict: Verdict,
    /// The label of the secret that matched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretLabel>,
    /// The body exceeded the limit, and only its beginning is kept.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    /// The peer's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
}

/// The requests about a run, and their answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PollMeta {
    /// The run that was polled.
    pub run_id: RunId,
    /// The kind that it was polled as.
    pub kind: Kind,
    /// See [`RunRef::guessed`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub guessed: bool,
    /// The group it was known to belong to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_id: Option<String>,
    /// When the first request was sent.
    pub requested_at: At,
    /// The answers without their bodies.
    pub answers: Vec<ResponseMeta>,
}

/// One answer without its body.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResponseMeta {
    /// The path that was requested.
    pub path: String,
    /// The HTTP status; `None` if there was no response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Why there was no response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    /// Those of the response headers that are kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Headers,
    /// How many bytes of the report's body are this answer's.
    #[serde(default)]
    pub bytes: usize,
    /// The body was cut off.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
}

/// One request for a page of a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SweepMeta {
    /// The token of this page, as the page before gave it; `None` for the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page: Option<String>,
    /// When it was sent.
    pub requested_at: At,
    /// The answer without its body.
    pub answer: ResponseMeta,
}

/// The facts that a client gives about a run that it tracks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrackMeta {
    /// The provider's id of it.
    pub run_id: RunId,
    /// The kind of the run, where the client or the id tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// The group it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_id: Option<String>,
    /// The metadata that the completion repeats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<serde_json::Map<String, serde_json::Value>>,
}

impl Meta {
    /// How the report came in.
    pub fn via(&self) -> Via {
        match self {
            Meta::Webhook(_) => Via::Webhook,
            Meta::Replay(_) => Via::Replay,
            Meta::Poll(_) => Via::Poll,
            Meta::Sweep(_) => Via::Sweep,
            Meta::Clock { .. } => Via::Clock,
            Meta::Track(_) => Via::Operator,
        }
    }

    /// Where in a body of `length` bytes the provider's own JSON stands: all of a delivery's body, or
    /// the first answer that was a success.
    pub fn payload_range(&self, length: usize) -> Range<usize> {
        let Meta::Poll(meta) = self else {
            return 0..length;
        };
        let mut from = 0;
        for answer in &meta.answers {
            let to = (from + answer.bytes).min(length);
            if answer.status.is_some_and(|status| status < 300) {
                return from..to;
            }
            from = to;
        }
        0..0
    }

    /// The delivery, if it is one.
    pub fn webhook(&self) -> Option<&WebhookMeta> {
        match self {
            Meta::Webhook(meta) | Meta::Replay(meta) => Some(meta),
            _ => None,
        }
    }
}

impl ResponseMeta {
    /// Response headers that are kept.
    const KEPT: [&'static str; 4] = ["date", "retry-after", "content-type", "x-request-id"];

    /// Splits an answer into what goes into the meta and what goes into the body.
    pub fn split(path: String, answer: ApiResponse) -> (ResponseMeta, Vec<u8>) {
        let empty = ResponseMeta {
            path,
            status: None,
            failed: None,
            headers: Vec::new(),
            bytes: 0,
            truncated: false,
        };
        match answer {
            ApiResponse::Failed { what } => (
                ResponseMeta {
                    failed: Some(what),
                    ..empty
                },
                Vec::new(),
            ),
            ApiResponse::Http(response) => {
                let headers = response
                    .headers
                    .into_iter()
                    .filter(|(name, _)| Self::KEPT.contains(&name.as_str()))
                    .collect();
                let (bytes, truncated) = (response.body.len(), response.truncated);
                (
                    ResponseMeta {
                        status: Some(response.status),
                        headers,
                        bytes,
                        truncated,
                        ..empty
                    },
                    response.body,
                )
            }
        }
    }

    /// The answer again, taking its share off the front of `body`.
    fn join(&self, body: &mut &[u8]) -> ApiResponse {
        let (mine, rest) = body.split_at(self.bytes.min(body.len()));
        *body = rest;
        match self.status {
            None => ApiResponse::Failed {
                what: self.failed.clone().unwrap_or_default(),
            },
            Some(status) => ApiResponse::Http(Response {
                status,
                headers: self.headers.clone(),
                body: mine.to_vec(),
                truncated: self.truncated,
            }),
        }
    }
}

impl PollMeta {
    /// Whether the last of several requests was the canary, and it worked: then the provider
    /// answers, and the key is accepted.
    fn canary_worked(
        &self,
        provider: &dyn Provider,
        settings: &Settings,
        answers: &[ApiResponse],
    ) -> bool {
        let canary = provider.canary_request(settings).path;
        let asked =
            self.answers.len() > 1 && self.answers.last().is_some_and(|last| last.path == canary);
        asked
            && answers.last().is_some_and(|answer| {
                matches!(answer, ApiResponse::Http(response) if response.status < 300)
                    && provider.classify(answer) == ResponseClass::Ok
            })
    }

    /// The answers again, from the report's body.
    pub fn answers(&self, mut body: &[u8]) -> Vec<ApiResponse> {
        self.answers
            .iter()
            .map(|meta| meta.join(&mut body))
            .collect()
    }
}

impl Report {
    /// The observations in it, as its provider reads them. The texts in it are as they came; see
    /// [`Detail::sanitized`].
    pub fn read(&self, provider: &dyn Provider, settings: &Settings) -> Reading {
        match &self.meta {
            Meta::Webhook(meta) if !meta.verdict.authentic() => {
                // The writer calls this, and any sender can post such a body: it reads no more than
                // the head, where the run's id is, whatever the body's size.
                let read = self.body.len().min(limits::UNPROVEN_READ_BYTES);
                provider.read_webhook(&Webhook {
                    body: &self.body[..read],
                    truncated: meta.truncated || read < self.body.len(),
                    trust: meta.verdict.trust(),
                    via: Via::Webhook,
                    received_at: self.at,
                    settings,
                })
            }
            Meta::Webhook(meta) | Meta::Replay(meta) => provider.read_webhook(&Webhook {
                body: &self.body,
                truncated: meta.truncated,
                trust: meta.verdict.trust(),
                via: self.meta.via(),
                received_at: self.at,
                settings,
            }),
            Meta::Poll(meta) => {
                let group_id = meta.group_id.as_deref();
                let run_ref = RunRef {
                    run_id: &meta.run_id,
                    kind: meta.kind,
                    guessed: meta.guessed,
                    group_id,
                    settings,
                };
                let answers = meta.answers(&self.body);
                let mut observation = provider.read_status(&run_ref, &answers, meta.requested_at);
                let canary_worked = || meta.canary_worked(provider, settings, &answers);
                if observation.claim == Claim::Nothing && canary_worked() {
                    observation.claim = Claim::Withheld;
                }
                Reading::Said(vec![observation])
            }
            Meta::Sweep(meta) => {
                let answer = meta.answer.join(&mut self.body.as_slice());
                let listing =
                    provider.read_list(meta.page.as_deref(), &answer, settings, meta.requested_at);
                match listing.gap {
                    Some(gap) => Reading::Counted(listing.runs, gap),
                    None => Reading::Said(listing.runs),
                }
            }
            Meta::Clock { run_id } => Reading::Said(vec![self.ours(
                run_id,
                None,
                Claim::TimerFired,
                Detail::default(),
            )]),
            Meta::Track(meta) => {
                let detail = Detail {
                    group_id: meta.group_id.clone(),
                    metadata: meta.metadata.clone(),
                    ..Detail::default()
                };
                Reading::Said(vec![self.ours(
                    &meta.run_id,
                    meta.kind,
                    Claim::Tracked,
                    detail,
                )])
            }
        }
    }

    /// An observation that needs no provider to read it.
    fn ours(
        &self,
        run_id: &RunId,
        kind: Option<Kind>,
        claim: Claim,
        detail: Detail,
    ) -> Observation {
        Observation {
            run_id: run_id.clone(),
            kind,
            claim,
            trust: Trust::Authoritative,
            via: self.meta.via(),
            requested_at: self.at,
            poll_after: None,
            detail,
        }
    }

    /// Whether this is a poll that the provider answered, if only with "no such run": no request failed
    /// for want of a connection, for too many requests, or for trouble of the service.
    pub fn answered(&self) -> bool {
        let answered = |answer: &ResponseMeta| {
            let status = answer.status.unwrap_or(u16::MAX);
            status < 500 && !matches!(status, 401 | 408 | 429)
        };
        matches!(&self.meta, Meta::Poll(meta) if meta.answers.iter().all(answered))
    }

    /// The provider's own JSON in it; see [`Meta::payload_range`].
    pub fn payload(&self) -> &[u8] {
        &self.body[self.meta.payload_range(self.body.len())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::providers::browser_use::BrowserUse;
    use crate::providers::firecrawl::Firecrawl;
    use crate::providers::skyvern::Skyvern;
    use crate::providers::smartbrowse::SmartBrowse;

    fn runs_named(provider: &dyn Provider, verdict: Verdict, body: &[u8]) -> Option<Vec<String>> {
        let report = Report {
            source: 1,
            at: At(1_700_000_000_000),
            meta: Meta::Webhook(WebhookMeta {
                headers: Vec::new(),
                path_token: None,
                verdict,
                secret: None,
                truncated: false,
                peer: None,
            }),
            body: body.to_vec(),
        };
        match report.read(provider, &Settings::default()) {
            Reading::Said(said) => Some(said.iter().map(|one| one.run_id.to_string()).collect()),
            _ => None,
        }
    }

    #[test]
    fn of_an_unproven_body_only_the_head_is_read() {
        const ID: &str = "4f5a0cf2-1f0a-4e5f-9a55-0c2f6f1b7a11";
        let cases: [(&dyn Provider, String); 4] = [
            (
                &Skyvern,
                format!(r#"{{"run_id":"{ID}","status":"completed","#),
            ),
            (
                &BrowserUse,
                format!(
                    r#"{{"type":"agent.task.status_update","payload":{{"task_id":"{ID}","status":"finished"}},"#
                ),
            ),
            (
                &Firecrawl,
                format!(r#"{{"type":"crawl.completed","id":"{ID}","success":true,"#),
            ),
            (
                &SmartBrowse,
                format!(r#"{{"run_id":"{ID}","status":"completed","#),
            ),
        ];
        let keys = |count: usize| -> String {
            let keys: Vec<_> = (0..count).map(|n| format!("\"{n}\":0,")).collect();
            keys.concat()
        };
        // More than the head, and less than what Browser Use's own bound leaves unread.
        let many = keys(12_000);
        assert!(many.len() > limits::UNPROVEN_READ_BYTES && many.len() < 200 << 10);
        for (provider, start) in cases {
            let whole = format!("{start}{many}\"last\":0}}");
            let broken = format!("{start}{many}\"last\":}}");
            let small = format!("{start}{}\"last\":}}", keys(10));
            let named = Some(vec![ID.to_owned()]);
            for verdict in [Verdict::NoSecret, Verdict::Unsigned, Verdict::BadSignature] {
                for body in [&whole, &broken] {
                    assert_eq!(
                        runs_named(provider, verdict, body.as_bytes()),
                        named,
                        "what stands behind the head makes no difference: {start}"
                    );
                }
                assert_eq!(runs_named(provider, verdict, small.as_bytes()), None);
            }
            assert_eq!(
                runs_named(provider, Verdict::Signed, whole.as_bytes()),
                named
            );
            assert_eq!(
                runs_named(provider, Verdict::Signed, broken.as_bytes()),
                None
            );
        }
    }
}
