//! Cron expressions: the only file that names `cron` and `chrono`.
//!
//! The crate speaks Quartz, which differs from what people know in ways that fail in silence
//! (weekday 1 is Sunday, seconds are a must, `0 0 0 30 2 *` parses and never comes, both kinds of
//! day must match where classic cron takes either). So this file takes five fields or six, wants
//! weekdays by name, refuses what has two meanings and what never comes, and reckons in UTC.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::model::At;

/// A cron expression that has been read. Equal when the text is.
#[derive(Clone)]
pub struct Schedule {
    text: String,
    times: Arc<cron::Schedule>,
    gap: Duration,
}

/// An expression that was refused, with what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSchedule {
    /// Neither five fields nor six.
    #[error(
        "{text:?} has {count} fields; write 6 (second minute hour day month weekday) or 5 (without \
         the second), for example \"0 */5 * * * *\""
    )]
    Fields {
        /// The expression.
        text: String,
        /// How many it has.
        count: usize,
    },
    /// One field cannot be read.
    #[error("{text:?}: the {field} cannot be {value:?}; write {right}")]
    Field {
        /// The expression.
        text: String,
        /// Which field.
        field: &'static str,
        /// The text of the field.
        value: String,
        /// The values that the field accepts.
        right: &'static str,
    },
    /// Weekdays by number.
    #[error(
        "{text:?} gives its weekdays as numbers, and programs disagree on whether 1 is Sunday or \
         Monday; write names, for example \"Mon-Fri\""
    )]
    NumericWeekday {
        /// The expression.
        text: String,
    },
    /// Both kinds of day are restricted.
    #[error(
        "{text:?} restricts both the day of the month and the weekday, and programs disagree on \
         whether one or both must match; leave one of them \"*\""
    )]
    TwoDays {
        /// The expression.
        text: String,
    },
    /// There is no such moment.
    #[error("{text:?} never comes: no month that it names has such a day")]
    Never {
        /// The expression.
        text: String,
    },
}

/// The fields, with what may stand in them.
const FIELDS: [(&str, &str); 6] = [
    (
        "second",
        "\"*\", or 0 to 59, for example \"30\" or \"*/10\"",
    ),
    ("minute", "\"*\", or 0 to 59, for example \"0\" or \"*/5\""),
    ("hour", "\"*\", or 0 to 23, for example \"3\" or \"8-18\""),
    (
        "day of the month",
        "\"*\", or 1 to 31, for example \"1\" or \"1,15\"",
    ),
    (
        "month",
        "\"*\", or 1 to 12, or names, for example \"Jan\" or \"3-5\"",
    ),
    (
        "weekday",
        "\"*\", or names, for example \"Mon-Fri\" or \"Sat,Sun\"",
    ),
];

/// Gaps are measured from here (a Monday, 2024-01-01), so that the same text gives the same policy
/// after every start.
const REFERENCE: At = At(1_704_067_200_000);

/// Over so many firings the largest gap is looked for.
const FIRINGS: usize = 8;

impl Schedule {
    /// When polls may start unless configured: every minute.
    pub const POLL: &'static str = "0 * * * * *";
    /// When lists are read unless configured: every five minutes, half a minute off the polls.
    pub const SWEEP: &'static str = "30 */5 * * * *";

    /// Reads five fields (`minute hour day month weekday`) or six (the second first).
    pub fn parse(text: &str) -> Result<Schedule, BadSchedule> {
        let fields = six_fields(text)?;
        refuse_numeric_weekdays(text, &fields)?;
        let times = read(&fields).ok_or_else(|| culprit(text, &fields))?;
        refuse_two_days(text, &fields)?;
        let Some(gap) = largest_gap(&times) else {
            return Err(BadSchedule::Never {
                text: text.to_owned(),
            });
        };
        Ok(Schedule {
            text: text.to_owned(),
            times: Arc::new(times),
            gap,
        })
    }

    /// The first moment of this schedule that is later than `at`; `None` past the year 2100.
    pub fn next_after(&self, at: At) -> Option<At> {
        next(&self.times, at)
    }

    /// The longest pause between its next few firings.
    pub fn largest_gap(&self) -> Duration {
        self.gap
    }

    /// The text it was read from.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl PartialEq for Schedule {
    fn eq(&self, other: &Schedule) -> bool {
        self.text == other.text
    }
}

impl Eq for Schedule {}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.text)
    }
}

fn six_fields(text: &str) -> Result<[&str; 6], BadSchedule> {
    let found: Vec<&str> = text.split_whitespace().collect();
    match found[..] {
        [minute, hour, day, month, weekday] => Ok(["0", minute, hour, day, month, weekday]),
        [second, minute, hour, day, month, weekday] => {
            Ok([second, minute, hour, day, month, weekday])
        }
        _ => Err(BadSchedule::Fields {
            text: text.to_owned(),
            count: found.len(),
        }),
    }
}

fn refuse_numeric_weekdays(text: &str, [.., weekday]: &[&str; 6]) -> Result<(), BadSchedule> {
    if weekday.bytes().any(|byte| byte.is_ascii_digit()) {
        return Err(BadSchedule::NumericWeekday {
            text: text.to_owned(),
        });
    }
    Ok(())
}

fn refuse_two_days(text: &str, [.., day, _, weekday]: &[&str; 6]) -> Result<(), BadSchedule> {
    let any = |field: &str| matches!(field, "*" | "?");
    if !any(day) && !any(weekday) {
        return Err(BadSchedule::TwoDays {
            text: text.to_owned(),
        });
    }
    Ok(())
}

fn read(fields: &[&str; 6]) -> Option<cron::Schedule> {
    // A step of nothing would be read and make the crate go in circles.
    let stands_still = fields
        .iter()
        .flat_map(|field| field.split(','))
        .any(|part| {
            part.split_once('/')
                .is_some_and(|(_, step)| step.parse::<u32>().is_ok_and(|step| step == 0))
        });
    if stands_still {
        None
    } else {
        fields.join(" ").parse().ok()
    }
}

/// The crate draws a caret and says little; so each field is tried alone among stars.
fn culprit(text: &str, fields: &[&str; 6]) -> BadSchedule {
    let alone = |index: usize| {
        let mut stars = ["*"; 6];
        stars[index] = fields[index];
        read(&stars).is_none()
    };
    let index = (0..FIELDS.len()).find(|index| alone(*index)).unwrap_or(0);
    let (field, right) = FIELDS[index];
    BadSchedule::Field {
        text: text.to_owned(),
        field,
        value: fields[index].to_owned(),
        right,
    }
}

fn next(times: &cron::Schedule, at: At) -> Option<At> {
    let at: DateTime<Utc> = DateTime::from_timestamp_millis(at.0)?;
    times
        .after(&at)
        .next()
        .map(|next| At(next.timestamp_millis()))
}

/// `None` if it never fires at all.
fn largest_gap(times: &cron::Schedule) -> Option<Duration> {
    let mut last = next(times, REFERENCE)?;
    let mut gap = Duration::ZERO;
    for _ in 0..FIRINGS {
        let Some(this) = next(times, last) else { break };
        gap = gap.max(this.since(last));
        last = this;
    }
    Some(gap)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> At {
        At(text.parse::<jiff::Timestamp>().unwrap().as_millisecond())
    }

    fn after(cron: &str, moment: &str) -> String {
        Schedule::parse(cron)
            .unwrap()
            .next_after(at(moment))
            .unwrap()
            .rfc3339()
    }

    fn refused(cron: &str) -> String {
        Schedule::parse(cron).unwrap_err().to_string()
    }

    #[test]
    fn five_fields_are_six_at_second_zero() {
        assert_eq!(
            after("*/5 * * * *", "2026-11-21T08:00:00Z"),
            "2026-11-21T08:05:00.000Z"
        );
        assert_eq!(
            after("0 */5 * * * *", "2026-11-21T08:00:00Z"),
            "2026-11-21T08:05:00.000Z"
        );
    }

    #[test]
    fn the_next_moment_is_strictly_later_whatever_the_milliseconds() {
        assert_eq!(
            after("* * * * * *", "2026-11-21T08:00:00Z"),
            "2026-11-21T08:00:01.000Z"
        );
        assert_eq!(
            after("* * * * * *", "2026-11-21T08:00:00.001Z"),
            "2026-11-21T08:00:01.000Z"
        );
        assert_eq!(
            after("* * * * * *", "2026-11-21T08:00:00.999Z"),
            "2026-11-21T08:00:01.000Z"
        );
        assert_eq!(
            after(Schedule::POLL, "2026-11-21T07:59:59.999Z"),
            "2026-11-21T08:00:00.000Z"
        );
        assert_eq!(
            after(Schedule::SWEEP, "2026-11-21T08:00:30Z"),
            "2026-11-21T08:05:30.000Z"
        );
    }

    #[test]
    fn weekdays_are_the_days_they_are_called_in_utc() {
        assert_eq!(
            after("0 3 * * Mon", "2026-11-21T08:00:00Z"),
            "2026-11-23T03:00:00.000Z"
        );
        assert_eq!(
            after("0 3 ? * SUN", "2026-11-21T08:00:00Z"),
            "2026-11-22T03:00:00.000Z"
        );
    }

    #[test]
    fn a_leap_day_comes() {
        assert_eq!(
            after("0 0 29 2 *", "2026-11-21T08:00:00Z"),
            "2028-02-29T00:00:00.000Z"
        );
    }

    #[test]
    fn far_away_moments_have_no_next_and_do_not_panic() {
        let schedule = Schedule::parse(Schedule::POLL).unwrap();
        assert_eq!(schedule.next_after(At::NEVER), None);
        assert_eq!(schedule.next_after(at("2150-01-01T00:00:00Z")), None);
        assert!(schedule.next_after(At(0)).is_some());
    }

    #[test]
    fn the_largest_gap_is_that_of_the_next_few_firings() {
        let gap = |cron: &str| Schedule::parse(cron).unwrap().largest_gap().as_secs();
        assert_eq!(gap(Schedule::SWEEP), 300);
        assert_eq!(gap("0 9,17 * * *"), 16 * 3600);
        assert_eq!(gap("0 0 29 2 *"), 4 * 366 * 86_400 - 3 * 86_400);
    }

    #[test]
    fn a_schedule_is_its_text() {
        let schedule = Schedule::parse("30 */5 * * * *").unwrap();
        assert_eq!(schedule.to_string(), "30 */5 * * * *");
        assert_eq!(format!("{schedule:?}"), "\"30 */5 * * * *\"");
        assert_eq!(schedule, Schedule::parse(Schedule::SWEEP).unwrap());
        assert_ne!(schedule, Schedule::parse(Schedule::POLL).unwrap());
    }

    #[test]
    fn the_wrong_number_of_fields_is_refused_with_the_right_ones() {
        let right = "fields; write 6 (second minute hour day month weekday) or 5 (without the second), \
                     for example \"0 */5 * * * *\"";
        assert_eq!(refused("* * * *"), format!("\"* * * *\" has 4 {right}"));
        assert_eq!(
            refused("0 0 0 1 1 * 2020"),
            format!("\"0 0 0 1 1 * 2020\" has 7 {right}")
        );
        assert_eq!(refused("@hourly"), format!("\"@hourly\" has 1 {right}"));
        assert_eq!(refused(""), format!("\"\" has 0 {right}"));
    }

    #[test]
    fn weekdays_by_number_are_refused() {
        assert_eq!(
            refused("0 0 * * 1-5"),
            "\"0 0 * * 1-5\" gives its weekdays as numbers, and programs disagree on whether 1 is Sunday or \
             Monday; write names, for example \"Mon-Fri\""
        );
    }

    #[test]
    fn two_kinds_of_days_are_refused() {
        assert_eq!(
            refused("0 0 1 * Mon"),
            "\"0 0 1 * Mon\" restricts both the day of the month and the weekday, and programs disagree on \
             whether one or both must match; leave one of them \"*\""
        );
    }

    #[test]
    fn a_day_that_never_comes_is_refused() {
        assert_eq!(
            refused("0 0 30 2 *"),
            "\"0 0 30 2 *\" never comes: no month that it names has such a day"
        );
    }

    #[test]
    fn a_bad_field_is_named() {
        assert_eq!(
            refused("0 0 25 * * *"),
            "\"0 0 25 * * *\": the hour cannot be \"25\"; write \"*\", or 0 to 23, for example \"3\" or \"8-18\""
        );
        assert_eq!(
            refused("every minute or so please"),
            "\"every minute or so please\": the minute cannot be \"every\"; write \"*\", or 0 to 59, for example \
             \"0\" or \"*/5\""
        );
        for bad in [
            "*/0 * * * *",
            "* * 0 * *",
            "* * * 13 *",
            "* * * * Someday",
            "5-1 * * * *",
            "99999999999 * * * *",
            "0-4294967295 * * * *",
        ] {
            assert!(Schedule::parse(bad).is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn whatever_is_written_is_read_or_refused_without_a_panic(text in "[-0-9*/,?@LW#A-Za-z ]{0,24}") {
            if let Ok(schedule) = Schedule::parse(&text) {
                assert!(schedule.next_after(REFERENCE).is_some_and(|next| next > REFERENCE));
            }
        }

        #[test]
        fn six_fields_of_the_right_letters_are_too(fields in proptest::collection::vec("[0-9*/,-]{1,5}", 5)) {
            let _ = Schedule::parse(&format!("{} *", fields.join(" ")));
        }
    }
}
