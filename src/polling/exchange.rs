//! Errands: what a source's provider is asked, question by question, and the reports that come of it.
//!
//! Pure, as the dialects are: an [`Errand`] holds what has been answered so far, takes one more answer,
//! and says what is next. Who sends the question, and when the pace lets it go, is not known here, so
//! the daemon and a simulation run the same errands.

use std::sync::Arc;

use crate::limits;
use crate::model::decide::Run;
use crate::model::{At, Kind, RunId};
use crate::providers::{Answer, Question, Subject};
use crate::reconciler::Member;
use crate::report::{AnswerHead, Head, PollHead, Report, SweepHead};

/// Something that is being asked of a source's provider.
pub struct Errand {
    member: Arc<Member>,
    about: About,
}

enum About {
    Run(Inquiry),
    Page(Page),
    /// Whether the key works again.
    Key,
}

/// About one run: its state, and whatever the dialect must know beside it.
struct Inquiry {
    run_id: RunId,
    kind: Kind,
    guessed: bool,
    group_id: Option<String>,
    requested_at: At,
    paths: Vec<String>,
    answers: Vec<Answer>,
}

/// One page of the provider's list.
struct Page {
    token: Option<String>,
    number: usize,
    requested_at: At,
}

/// What comes after an answer.
pub enum Next {
    /// One more question, before there is anything to report.
    Ask(Errand, Question),
    /// A report, and perhaps a further question once it is handed in.
    Report(Report, Option<(Errand, Question)>),
    /// Nothing.
    Done,
}

impl Errand {
    /// To learn about a run, as of `now`.
    pub fn about(member: &Arc<Member>, run_id: &RunId, run: &Run, now: At) -> (Errand, Question) {
        let source = &member.source;
        let inquiry = Inquiry {
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
        let question = source.provider.status_question(&inquiry.subject(member));
        (
            Errand {
                member: member.clone(),
                about: About::Run(inquiry),
            },
            question,
        )
    }

    /// To read the provider's list from its first page on. `None`: it has none, or we have no key.
    pub fn sweep(member: &Arc<Member>, now: At) -> Option<(Errand, Question)> {
        member.source.api_key.as_ref()?;
        Errand::page(member, None, 1, now)
    }

    fn page(
        member: &Arc<Member>,
        token: Option<String>,
        number: usize,
        now: At,
    ) -> Option<(Errand, Question)> {
        let question = member
            .source
            .provider
            .list_question(token.as_deref(), &member.source.settings)?;
        let page = Page {
            token,
            number,
            requested_at: now,
        };
        Some((
            Errand {
                member: member.clone(),
                about: About::Page(page),
            },
            question,
        ))
    }

    /// To find out whether the key works again.
    pub fn probe(member: &Arc<Member>) -> (Errand, Question) {
        let question = member
            .source
            .provider
            .canary_question(&member.source.settings);
        (
            Errand {
                member: member.clone(),
                about: About::Key,
            },
            question,
        )
    }

    /// Goes on after the answer to `question`, which came at `now`.
    pub fn go_on(self, question: Question, answer: Answer, now: At) -> Next {
        let Errand { member, about } = self;
        match about {
            About::Run(inquiry) => inquiry.go_on(member, question, answer, now),
            About::Page(page) => page.turn(&member, question, answer, now),
            About::Key => Next::Done,
        }
    }
}

impl Inquiry {
    fn subject<'a>(&'a self, member: &'a Member) -> Subject<'a> {
        Subject {
            run_id: &self.run_id,
            kind: self.kind,
            guessed: self.guessed,
            group_id: self.group_id.as_deref(),
            settings: &member.source.settings,
        }
    }

    fn go_on(mut self, member: Arc<Member>, question: Question, answer: Answer, now: At) -> Next {
        self.paths.push(question.path);
        self.answers.push(answer);
        if self.answers.len() < limits::QUESTIONS_PER_POLL_MAX
            && let Some(further) = member
                .source
                .provider
                .follow_up(&self.subject(&member), &self.answers)
        {
            return Next::Ask(
                Errand {
                    member,
                    about: About::Run(self),
                },
                further,
            );
        }
        let Inquiry {
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
            .map(|(path, answer)| AnswerHead::split(path, answer));
        let (answers, bodies): (Vec<_>, Vec<_>) = split.unzip();
        let head = Head::Poll(PollHead {
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
                head,
                body: bodies.concat(),
            },
            None,
        )
    }
}

impl Page {
    fn turn(self, member: &Arc<Member>, question: Question, answer: Answer, now: At) -> Next {
        let Page {
            token,
            number,
            requested_at,
        } = self;
        let source = &member.source;
        let next = source
            .provider
            .read_list(token.as_deref(), &answer, &source.settings, requested_at)
            .next;
        let (answer, body) = AnswerHead::split(question.path, answer);
        let head = Head::Sweep(SweepHead {
            page: token,
            requested_at,
            answer,
        });
        let report = Report {
            source: member.id,
            at: now,
            head,
            body,
        };
        let next = next.filter(|_| number < limits::SWEEP_PAGES_MAX);
        Next::Report(
            report,
            next.and_then(|next| Errand::page(member, Some(next), number + 1, now)),
        )
    }
}
