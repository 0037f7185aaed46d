//! Inquiries: polls of runs that are known only from a delivery that could not be verified.
//!
//! Such a delivery is a hint (invariant 7). It changes nothing, but it may be genuine all the same: an
//! old signature, a clock that is off, a key that is not configured. So the run that it names is polled
//! once with our own key, and the answer decides. Anybody can send deliveries, so inquiries are bounded:
//!
//! * Each source starts at most one inquiry per [`limits::INQUIRY_INTERVAL`], after a burst of
//!   [`limits::INQUIRY_BURST`], one at a time, and only when no known run waits for a poll and the rate
//!   limiter has tokens to spare.
//! * Each sender gets one per [`limits::INQUIRY_SENDER_INTERVAL`] and waits with a few at most.
//!   Deliveries whose signature is genuine come first and are exempt from this.
//! * No run is inquired about twice within [`limits::INQUIRY_REPEAT`].
//!
//! Pure: the inquiries and the time come in.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::ledger::changes::Inquiry;
use crate::limits;
use crate::model::{At, RunId};

/// The inquiries of one source that wait, and the budget for them.
#[derive(Debug)]
pub struct Inquiries {
    waiting: VecDeque<Waiting>,
    /// When each run was last inquired about.
    asked: BTreeMap<RunId, At>,
    /// When each sender last had an inquiry.
    senders: BTreeMap<Option<String>, At>,
    tokens: f64,
    filled_at: At,
}

#[derive(Clone, Debug)]
struct Waiting {
    inquiry: Inquiry,
    not_before: At,
    attempts: u32,
}

impl Inquiries {
    /// No inquiries, and a full budget.
    pub fn new(now: At) -> Inquiries {
        Inquiries {
            waiting: VecDeque::new(),
            asked: BTreeMap::new(),
            senders: BTreeMap::new(),
            tokens: limits::INQUIRY_BURST,
            filled_at: now,
        }
    }

    /// Takes an inquiry in, unless its run was inquired about lately, or too many wait.
    pub fn add(&mut self, inquiry: Inquiry, now: At) {
        self.forget(now);
        if self.asked.contains_key(&inquiry.run_id) {
            return;
        }
        let same = |waiting: &&mut Waiting| waiting.inquiry.run_id == inquiry.run_id;
        if let Some(waiting) = self.waiting.iter_mut().find(same) {
            // A forgery must not keep a genuine delivery about the same run behind others.
            if inquiry.genuine && !waiting.inquiry.genuine {
                waiting.inquiry = inquiry;
            }
            return;
        }
        let of_sender = |waiting: &&Waiting| waiting.inquiry.sender == inquiry.sender;
        let crowded =
            self.waiting.iter().filter(of_sender).count() >= limits::INQUIRIES_PER_SENDER_MAX;
        if crowded && !inquiry.genuine {
            return;
        }
        if self.waiting.len() >= limits::INQUIRIES_MAX {
            // A genuine delivery takes the place of one that is not.
            let forged = self.waiting.iter().rposition(|each| !each.inquiry.genuine);
            match forged.filter(|_| inquiry.genuine) {
                Some(last) => drop(self.waiting.remove(last)),
                None => return,
            }
        }
        self.waiting.push_back(Waiting {
            inquiry,
            not_before: now,
            attempts: 0,
        });
    }

    /// Whether an inquiry may start now, as far as its own budget goes.
    pub fn ready(&mut self, now: At) -> bool {
        self.forget(now);
        self.tokens >= 1.0 && self.position(now).is_some()
    }

    /// Takes the next inquiry out, and its token. `None` if none is [ready](Inquiries::ready).
    pub fn next(&mut self, now: At) -> Option<StartedInquiry> {
        if !self.ready(now) {
            return None;
        }
        let Waiting {
            inquiry, attempts, ..
        } = self.waiting.remove(self.position(now)?)?;
        self.tokens -= 1.0;
        self.asked.insert(inquiry.run_id.clone(), now);
        self.senders.insert(inquiry.sender.clone(), now);
        Some(StartedInquiry {
            inquiry,
            attempts: attempts + 1,
        })
    }

    /// Puts an inquiry back that the provider could not be reached for. It is dropped after a few
    /// attempts.
    pub fn put_back(&mut self, started: StartedInquiry, now: At) {
        let StartedInquiry { inquiry, attempts } = started;
        if attempts >= limits::INQUIRY_ATTEMPTS_MAX || self.waiting.len() >= limits::INQUIRIES_MAX {
            return;
        }
        self.asked.remove(&inquiry.run_id);
        self.waiting.push_back(Waiting {
            inquiry,
            not_before: now.plus(limits::INQUIRY_RETRY * attempts),
            attempts,
        });
    }

    /// Which of the waiting comes next: genuine ones first, then the sender that has waited longest.
    fn position(&self, now: At) -> Option<usize> {
        let may_go = |waiting: &Waiting| {
            let rested = self
                .senders
                .get(&waiting.inquiry.sender)
                .is_none_or(|last| now.since(*last) >= limits::INQUIRY_SENDER_INTERVAL);
            waiting.not_before <= now && (waiting.inquiry.genuine || rested)
        };
        let order = |waiting: &Waiting| {
            let last = self.senders.get(&waiting.inquiry.sender).copied();
            (!waiting.inquiry.genuine, last)
        };
        let candidates = self.waiting.iter().enumerate();
        candidates
            .filter(|(_, waiting)| may_go(waiting))
            .min_by_key(|(position, waiting)| (order(waiting), *position))
            .map(|(position, _)| position)
    }

    /// Brings the budget up to `now` and forgets what no longer counts. If the clock was set back,
    /// everything that lies in the future is forgotten.
    fn forget(&mut self, now: At) {
        let recent = |at: At, span: Duration| at <= now && now.since(at) < span;
        self.asked
            .retain(|_, at| recent(*at, limits::INQUIRY_REPEAT));
        self.senders
            .retain(|_, at| recent(*at, limits::INQUIRY_SENDER_INTERVAL));
        for waiting in &mut self.waiting {
            let latest = now.plus(limits::INQUIRY_RETRY * limits::INQUIRY_ATTEMPTS_MAX);
            waiting.not_before = waiting.not_before.min(latest);
        }
        let gained =
            now.since(self.filled_at).as_secs_f64() / limits::INQUIRY_INTERVAL.as_secs_f64();
        self.tokens = (self.tokens + gained).min(limits::INQUIRY_BURST);
        self.filled_at = now;
    }
}

/// An inquiry that is under way.
#[derive(Clone, Debug)]
pub struct StartedInquiry {
    /// The run and where it was named.
    pub inquiry: Inquiry,
    /// How often it has been started, this time included.
    attempts: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: At = At(1_795_248_000_000);

    fn inquiry(run: &str, sender: &str, genuine: bool) -> Inquiry {
        Inquiry {
            source: 1,
            run_id: RunId::new(run).unwrap(),
            kind: None,
            group_id: None,
            genuine,
            sender: Some(sender.to_owned()),
        }
    }

    fn later(seconds: u64) -> At {
        START.plus(Duration::from_secs(seconds))
    }

    fn next(inquiries: &mut Inquiries, at: At) -> Option<String> {
        let started = inquiries.next(at)?;
        Some(started.inquiry.run_id.as_str().to_owned())
    }

    #[test]
    fn a_run_is_inquired_about_once_in_a_while() {
        let mut inquiries = Inquiries::new(START);
        inquiries.add(inquiry("a", "x", false), START);
        inquiries.add(inquiry("a", "y", false), START);
        assert_eq!(next(&mut inquiries, START).as_deref(), Some("a"));
        inquiries.add(inquiry("a", "y", true), later(300));
        assert_eq!(next(&mut inquiries, later(300)), None);
        inquiries.add(inquiry("a", "y", true), later(601));
        assert_eq!(next(&mut inquiries, later(601)).as_deref(), Some("a"));
    }

    #[test]
    fn a_flood_from_one_sender_leaves_room_for_others() {
        let mut inquiries = Inquiries::new(START);
        for run in 0..1_000 {
            inquiries.add(inquiry(&format!("forged{run}"), "flood", false), START);
        }
        inquiries.add(inquiry("real", "other", false), START);
        inquiries.add(inquiry("stale", "flood", true), START);
        assert_eq!(next(&mut inquiries, START).as_deref(), Some("stale"));
        assert_eq!(next(&mut inquiries, START).as_deref(), Some("real"));
        assert_eq!(
            next(&mut inquiries, START),
            None,
            "the flood has had its turn"
        );
    }

    #[test]
    fn a_flood_from_everywhere_stays_within_the_rate() {
        let mut inquiries = Inquiries::new(START);
        let mut started = 0;
        for second in 0..600 {
            for sender in 0..50 {
                let run = format!("run{second}-{sender}");
                let sender = format!("{second}.{sender}");
                inquiries.add(inquiry(&run, &sender, false), later(second));
            }
            started += std::iter::from_fn(|| inquiries.next(later(second))).count();
        }
        assert!((100..=126).contains(&started), "{started}");
        inquiries.add(inquiry("genuine", "late", true), later(606));
        assert_eq!(next(&mut inquiries, later(606)).as_deref(), Some("genuine"));
    }

    #[test]
    fn what_could_not_be_asked_is_asked_again_a_few_times() {
        let mut inquiries = Inquiries::new(START);
        inquiries.add(inquiry("a", "x", false), START);
        let (mut at, mut attempts) = (START, 0);
        while at < later(7_200) {
            if let Some(started) = inquiries.next(at) {
                attempts += 1;
                inquiries.put_back(started, at);
            }
            at = at.plus(Duration::from_secs(1));
        }
        assert_eq!(attempts, limits::INQUIRY_ATTEMPTS_MAX);
    }

    #[test]
    fn a_clock_that_is_set_back_stops_no_inquiry() {
        let mut inquiries = Inquiries::new(later(7_200));
        inquiries.add(inquiry("a", "x", false), later(7_200));
        let started = inquiries.next(later(7_200)).unwrap();
        inquiries.put_back(started, later(7_200));
        inquiries.add(inquiry("b", "x", false), START);
        assert_eq!(next(&mut inquiries, START).as_deref(), Some("b"));
    }
}
