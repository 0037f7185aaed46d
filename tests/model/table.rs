//! The decision table, one row per line.
//!
//! Columns: what the row says; the policy; what the run lived through; what is heard; the effect;
//! what is published; when to ask next; when to wake next. Times are counted from the first moment
//! of the story, with `+` from what is heard. `!` is urgent, `curve` anywhere the curve may lie,
//! `-` nothing. A wake of `~` is one of the ordinary limits, a day away or more.

use std::time::Duration;

use settled::model::At;
use settled::model::decide::{Arrivals, Effect, Publication};

use super::dsl::{DAY, HOUR, MINUTE, RunRef, START, policy, span};

#[rustfmt::skip]
const TABLE: &str = "
# ── A run nobody told us of ─────────────────────────────────────────────────────────────────────
a hint opens nothing                                      | auto   |  | 0 hint:succeeded!     | no run  | - | - | -
a hint that a run goes on opens nothing                   | auto   |  | 0 hint:running        | no run  | - | - | -
a 404 opens nothing                                       | auto   |  | 0 get:404             | no run  | - | - | -
a failed question opens nothing                           | auto   |  | 0 get:5xx             | no run  | - | - | -
our own clock opens nothing                               | auto   |  | 0 clock:timer         | no run  | - | - | -
a client opens it                                         | auto   |  | 0 client:track        | opened  | - | +20s | ~
a list that shows it open opens it                        | auto   |  | 0 list:open           | opened  | - | +20s | ~
a list spares it its first question for a while           | lists  |  | 0 list:open           | opened  | - | +10m | ~
a list that shows it over opens it and polls               | auto   |  | 0 list:over           | opened  | - | now! | ~
what a list shows as over from before we came is history  | auto   |  | 0 list:history        | no run  | - | - | -
a webhook that something ended opens it and polls          | auto   |  | 0 secret:history        | opened  | - | now! | ~
a signed status opens it                                  | auto   |  | 0 signed:running      | status  | status 1 | +20s | ~
a signed end settles it at once                           | auto   |  | 0 signed:succeeded!   | settled | succeeded by webhook | - | -
an insufficient end is held and asked about               | auto   |  | 0 secret:failed       | held    | - | now! | +1m
an answered end settles it                                | auto   |  | 0 get:failed          | settled | failed by poll | - | -
a replayed end settles it as a replay                     | auto   |  | 0 replay:failed!      | settled | failed by replay | - | -

# ── An open run hears that it goes on ───────────────────────────────────────────────────────────
an answer that it runs is news once                       | auto   | 0 client:track | 20 get:running | status | status 1 | curve | ~
the same answer again is no news                          | auto   | 0 client:track; 20 get:running | 60 get:running | unchanged | - | curve | ~
a later status is news                                    | auto   | 0 signed:waiting | 5 signed:running | status | status 2 | +15s | ~
a late lower status is ignored                            | auto   | 0 signed:running | 5 signed:waiting | unchanged | - | +15s | ~
an answer may lower the status                            | auto   | 0 signed:running | 5 get:waiting | status | status 2 | curve | ~
the provider's next attempt is waited for                 | auto   | 0 client:track | 5 signed:running+30m | status | status 1 | +30m | ~
so it is after an answer                                  | auto   | 0 client:track | 5 get:running+30m | status | status 1 | +30m | ~
tracking a known run changes nothing                      | auto   | 0 client:track | 5 client:track | unchanged | - | +15s | ~
a failed question is repeated on the curve                | auto   | 0 client:track | 20 get:5xx | unchanged | - | curve | ~
a list that shows it open spares it a question            | lists  | 0 client:track | 5 list:open | unchanged | - | +10m | ~
a list spares no run for ever                             | lists  | 0 client:track; 5 get:running; 49m list:open | 50m list:open | unchanged | - | +5s | ~
a list that shows it over polls now                        | auto   | 0 client:track | 5 list:over | hinted | - | now! | ~
nobody is asked without a key                             | mute   | 0 client:track | 5 list:over | hinted | - | - | ~

# ── Hints ───────────────────────────────────────────────────────────────────────────────────────
a hint brings the next question forward                   | auto   | 0 client:track | 5 hint:succeeded! | hinted | - | now! | ~
a hint settles nothing and withdraws nothing              | auto   | 0 secret:failed; 1 get:running; 2 get:running | 3 hint:running | hinted | - | now! | +57s
a second hint within half a minute does nothing           | auto   | 0 client:track; 5 hint:failed; 6 get:running | 30 hint:failed | ignored | - | curve | ~
half a minute after it the next one counts                | auto   | 0 client:track; 5 hint:failed; 6 get:running | 35 hint:failed | hinted | - | now! | ~
a hint for a run that is about to be asked is ignored     | auto   | 0 list:over | 5 hint:failed | ignored | - | -5s! | ~
a hint without a key is ignored                           | mute   | 0 client:track | 5 hint:failed | ignored | - | - | ~
a hint does nothing to a settled run                      | auto   | 0 signed:failed! | 5 hint:succeeded! | ignored | - | - | -

# ── An open run hears a webhook say that it ended ───────────────────────────────────────────────
auto: a sufficient one settles                            | auto   | 0 client:track | 5 signed:failed!  | settled | failed by webhook | - | -
auto: an insufficient one is held                         | auto   | 0 client:track | 5 signed:failed   | held | - | now! | +1m
auto: without a key there is nothing to wait for          | mute   | 0 client:track | 5 signed:failed   | settled | failed by webhook unconfirmed | - | -
always: a sufficient one is held                          | always | 0 client:track | 5 signed:failed!  | held | - | now! | +1m
always: an insufficient one is held                       | always | 0 client:track | 5 signed:failed   | held | - | now! | +1m
always: without a key it settles unconfirmed              | always+mute | 0 client:track | 5 signed:failed! | settled | failed by webhook unconfirmed | - | -
never: a sufficient one settles                           | never  | 0 client:track | 5 signed:failed!  | settled | failed by webhook | - | -
never: an insufficient one settles, and as confirmed      | never  | 0 client:track | 5 secret:failed   | settled | failed by webhook | - | -
never: without a key too                                  | never+mute | 0 client:track | 5 secret:failed | settled | failed by webhook | - | -
its repetition is held no longer                          | auto   | 0 secret:failed | 50 secret:failed | held | - | now! | +10s
another end is held no longer                             | auto   | 0 secret:failed | 50 secret:succeeded | held | - | now! | +10s
a stronger one in the same hold no longer                 | auto   | 0 secret:failed | 50 signed:succeeded | held | - | now! | +10s
a sufficient one ends the hold                            | auto   | 0 secret:failed | 50 signed:succeeded! | settled | succeeded by webhook | - | -

# ── A held webhook hears an answer ──────────────────────────────────────────────────────────────
an agreeing answer settles it                             | auto   | 0 secret:failed | 1 get:failed | settled | failed by webhook | - | -
another end in the answer is believed instead             | auto   | 0 secret:succeeded | 1 get:cancelled | settled | cancelled by webhook | - | -
running is lag, and asked again soon                      | auto   | 0 secret:failed | 1 get:running | status | status 1 | +1s! | +59s
running twice is asked again a little later               | auto   | 0 secret:failed; 1 get:running | 2 get:running | unchanged | - | +2s! | +58s
running five times is asked again after half a minute     | auto   | 0 secret:failed; 1 get:running; 2 get:running; 4 get:running; 9 get:running | 10 get:running | unchanged | - | +30s! | +50s
a sixth answer that it runs changes nothing about that    | auto   | 0 secret:failed; 1 get:running; 2 get:running; 4 get:running; 9 get:running; 10 get:running | 11 get:running | unchanged | - | +30s! | +49s
a 404 is lag                                              | auto   | 0 secret:failed | 1 get:404 | missed | - | +1s! | +59s
a failure is no evidence                                  | auto   | 0 secret:failed | 1 get:5xx | unchanged | - | +1s! | +59s
the clock before the time says nothing                    | auto   | 0 secret:failed | 59 clock:timer | unchanged | - | -59s! | +1s
at the time it settles unconfirmed                        | auto   | 0 secret:failed | 60 clock:timer | settled | failed by webhook unconfirmed | +10m | -
though an answer said running                             | auto   | 0 secret:failed; 1 get:running | 60 clock:timer | settled | failed by webhook unconfirmed | +10m | -
though an answer said 404                                 | auto   | 0 secret:failed; 1 get:404 | 60 clock:timer | settled | failed by webhook unconfirmed | +10m | -
though the questions failed                               | auto   | 0 secret:failed; 1 get:5xx | 60 clock:timer | settled | failed by webhook unconfirmed | +10m | -
the strongest of those held is believed                   | auto   | 0 signed:succeeded; 1 secret:failed; 2 signed:cancelled | 60 clock:timer | settled | succeeded by webhook unconfirmed | +10m | -
also when it came after a weaker one                      | auto   | 0 secret:failed; 1 signed:succeeded | 60 clock:timer | settled | succeeded by webhook unconfirmed | +10m | -

# ── Grace ───────────────────────────────────────────────────────────────────────────────────────
the same answer after it settles                          | grace  | 0 client:track; 20 get:failed | 80 get:failed | settled | failed by poll | - | -
running withdraws it                                      | grace  | 0 get:running; 20 get:failed | 80 get:running | withdrawn | - | curve | ~
a webhook that agrees settles it                          | grace  | 0 client:track; 20 get:failed | 30 signed:failed! | settled | failed by webhook | - | -
a webhook that would not do alone is held beside it       | grace  | 0 client:track; 20 get:failed | 30 secret:failed | held | - | now! | +1m
a webhook that contradicts is held, and asked about       | grace  | 0 client:track; 20 get:failed | 30 signed:succeeded! | held | - | now! | +1m
the next answer decides for the webhook                   | grace  | 0 client:track; 20 get:failed; 30 signed:succeeded! | 31 get:succeeded | settled | succeeded by webhook | - | -
or for the first answer once its grace is over            | grace  | 0 client:track; 20 get:failed; 30 signed:succeeded! | 80 get:failed | settled | failed by webhook | - | -
under never a contradicting webhook is held all the same  | never+grace | 0 client:track; 20 get:failed | 30 secret:succeeded | held | - | now! | +1m
a sufficient webhook that is held is seconded at once     | always+grace | 0 signed:failed! | 1 get:failed | settled | failed by webhook | - | -
an insufficient one is not, and waits out the grace       | grace  | 0 secret:failed | 1 get:failed | held | - | +1m! | +2m
which its own time does not cut short                     | grace  | 0 secret:failed; 1 get:failed | 60 clock:timer | unchanged | - | +1s! | +61s
the same answer after it settles both                     | grace  | 0 secret:failed; 1 get:failed | 61 get:failed | settled | failed by webhook | - | -
another one after it begins a new grace                   | grace  | 0 secret:cancelled; 1 get:cancelled | 61 get:failed | held | - | +1m! | +2m
running after it leaves the webhook, whose time is over   | grace  | 0 secret:cancelled; 1 get:cancelled | 61 get:running | status | status 1 | +2s! | -1s
without a second answer they settle unconfirmed           | grace  | 0 secret:failed; 1 get:failed | 121 clock:timer | settled | failed by webhook unconfirmed | +10m | -
a webhook after the answer waits for one of its own       | grace  | 0 get:failed; 1 secret:failed | 61 clock:timer | settled | failed by webhook unconfirmed | +10m | -

# ── Misses ──────────────────────────────────────────────────────────────────────────────────────
a young run's 404 is lag                                  | auto   | 0 client:track | 20 get:404 | missed | - | +1s | ~
a young run's 404s do not count                           | auto   | 0 client:track; 20 get:404; 30 get:404; 40 get:404; 11m get:404 | 16m get:404 | missed | - | +5m | ~
a first miss is looked at again after five minutes        | auto   | 0 client:track | 60 get:404 | missed | - | +5m | ~
three misses within ten minutes are no absence            | auto   | 0 client:track; 60 get:404; 5m get:404 | 10m get:404 | missed | - | +5m | ~
two misses ten minutes apart are none                     | auto   | 0 client:track; 1m get:404 | 11m get:404 | missed | - | +5m | ~
three misses in ten minutes are                           | auto   | 0 client:track; 1m get:404; 6m get:404 | 11m get:404 | settled | indeterminate by inferred unconfirmed provider_gone | +10m | -
a real answer begins the count anew                       | auto   | 0 client:track; 1m get:404; 6m get:404; 7m get:running | 11m get:404 | missed | - | +5m | ~
a failed question neither counts nor resets               | auto   | 0 client:track; 1m get:404; 6m get:5xx; 11m get:404 | 16m get:404 | settled | indeterminate by inferred unconfirmed provider_gone | +10m | -
failed questions alone never count                        | auto   | 0 client:track; 1m get:5xx; 6m get:5xx; 11m get:5xx | 16m get:5xx | unchanged | - | curve | ~
a running webhook does not reset the count                | auto   | 0 client:track; 1m get:404; 6m get:404; 7m signed:running | 11m get:404 | settled | indeterminate by inferred unconfirmed provider_gone | +10m | -
a run that was there is not gone if no run is found       | auto   | 0 get:running; 1h get:404; 65m get:404 | 71m get:404 | missed | - | +5m | ~
it is once another run is found                           | auto   | 0 get:running; 1h get:404; 62m other:found; 65m get:404 | 71m get:404 | settled | indeterminate by inferred unconfirmed provider_gone | +10m | -

# ── Deadlines ───────────────────────────────────────────────────────────────────────────────────
before the deadline nothing is said                       | auto   | 0 client:track | 23h clock:timer | unchanged | - | -82780s | +1h
past the deadline a run is overdue                        | auto   | 0 client:track | 24h clock:timer | overdue | - | -86380s | +6d
an overdue run is asked about less often                  | hasty  | 0 client:track; 20 get:running; 50 get:running; 1m clock:timer | 90 get:running | unchanged | - | hourly | ~
a clock that jumps ahead makes no poll rare               | auto   | 0 client:track; 20 get:running; 25h clock:timer | 25h1s get:running | unchanged | - | curve | ~
nor does a stop of a month                                | auto   | 0 client:track; 20 get:running | 30d get:running | unchanged | - | curve | -29d
a hint counts after the clock was set back                | auto   | 1h client:track; 61m hint:failed; 62m get:running | 30m hint:failed | hinted | - | now! | ~
a jump of the clock does not spread misses                | auto   | 0 client:track; 1m get:404; 26h get:404 | 26h1m get:404 | missed | - | +5m | -121m
one answer after an outage does not use up a short limit  | short  | 0 client:track; 20 get:running; 40 get:running; 41 get:5xx | 1h get:running | unchanged | - | curve | +40s
answers that come when they are due do                    | short  | 0 client:track; 20 get:running; 50 get:running; 80 get:running | 2m get:running | settled | indeterminate by inferred unconfirmed deadline_exceeded | +10m | -
an overdue run settles like any other                     | auto   | 0 client:track; 24h clock:timer | 25h signed:succeeded! | settled | succeeded by webhook | - | -
past give_up there is one last question                   | auto   | 0 client:track; 1d clock:timer | 7d clock:timer | unchanged | - | now! | +1m
answers for as long as give_up end it                      | brief  | 0 client:track; 1h get:running; 2h get:running | 3h get:running | settled | indeterminate by inferred unconfirmed deadline_exceeded | +10m | -
time without an answer hardly counts                      | brief  | 0 client:track; 1h get:running; 3d clock:timer | 3d1s get:running | unchanged | - | curve | +1h
a forbidden run is given up too                           | brief  | 0 client:track; 1h get:403; 2h get:403 | 3h get:403 | settled | indeterminate by inferred unconfirmed deadline_exceeded | +10m | -
failures count while other runs are answered               | brief  | 0 client:track; 1h other:found; 1h1s get:5xx; 2h other:found; 2h1s get:5xx; 3h1s other:found | 3h2s get:5xx | settled | indeterminate by inferred unconfirmed deadline_exceeded | +10m | -
failures alone do not                                     | brief  | 0 client:track; 1h get:5xx; 2h get:5xx; 3h get:5xx | 9h get:5xx | unchanged | - | curve | +1m
a failed one does not                                     | auto   | 0 client:track; 1d clock:timer; 7d clock:timer; 7d10s get:5xx | 7d60s clock:timer | unchanged | - | now! | +1m
an end in it is believed                                  | auto   | 0 client:track; 1d clock:timer; 7d clock:timer | 7d10s get:succeeded | settled | succeeded by poll | - | -
without an answer nothing ends                            | auto   | 0 client:track; 1d clock:timer; 7d clock:timer | 30d clock:timer | unchanged | - | now! | +1m
a webhook does not move the timer                         | auto   | 0 client:track; 1d clock:timer; 7d clock:timer | 7d20s signed:running | status | status 1 | -20s! | +40s
an answer after a long silence is not the last            | auto   | 0 client:track; 1d clock:timer; 6d get:running | 7d get:running | unchanged | - | curve | ~
without a key there is no last question                   | mute   | 0 client:track; 1d clock:timer | 7d clock:timer | settled | indeterminate by inferred unconfirmed deadline_exceeded | - | -
without a key a webhook gets an hour after a stop         | mute   | 0 client:track; 1d clock:timer | 8d clock:timer | unchanged | - | - | +1h
and no more than that                                     | mute   | 0 client:track; 1d clock:timer; 8d clock:timer | 8d1h clock:timer | settled | indeterminate by inferred unconfirmed deadline_exceeded | - | -
what is held gets one poll after a stop                   | patient | 0 client:track; 1d clock:timer; 6d23h55m secret:failed | 7d1h clock:timer | unchanged | - | now! | +1m
and is believed after that                                | patient | 0 client:track; 1d clock:timer; 6d23h55m secret:failed; 7d1h clock:timer | 7d1h10m clock:timer | settled | failed by webhook unconfirmed | +10m | -
so does an answered end in its grace                      | grace  | 0 client:track; 20 get:failed | 1h clock:timer | unchanged | - | now! | +1m

# ── A settled run ───────────────────────────────────────────────────────────────────────────────
its own end again confirms                                | auto   | 0 signed:failed! | 5 signed:failed! | confirmed | - | - | -
a running webhook is ignored                              | auto   | 0 signed:failed! | 5 signed:running | ignored | - | - | -
a running answer changes nothing                          | auto   | 0 get:failed | 5 get:running | unchanged | - | - | -
a 404 changes nothing                                     | auto   | 0 get:failed | 5 get:404 | unchanged | - | - | -
a list changes nothing                                    | auto   | 0 get:failed | 5 list:over | ignored | - | - | -
tracking it changes nothing                               | auto   | 0 get:failed | 5 client:track | ignored | - | - | -
the clock changes nothing                                 | auto   | 0 get:failed | 5 clock:timer | ignored | - | - | -
another end in an answer amends                           | auto   | 0 signed:failed! | 5 get:succeeded | amended | amendment 1: failed was wrong, succeeded | - | -
a later answer amends an earlier one                      | auto   | 0 get:failed | 5 get:succeeded | amended | amendment 1: failed was wrong, succeeded | - | -
a signed webhook amends an unsigned one, and is asked about | never | 0 secret:failed | 5 signed:succeeded | amended | amendment 1: failed was wrong, succeeded | now! | -
of equal webhooks the graver is believed                  | auto   | 0 signed:cancelled! | 5 signed:failed! | amended | amendment 1: cancelled was wrong, failed | now! | -
a weaker one is disputed, and asked about                 | auto   | 0 signed:failed! | 5 signed:succeeded! | disputed | - | now! | -
an unsigned one against an answer too                     | auto   | 0 get:failed | 5 secret:succeeded | disputed | - | now! | -
the answer decides for what was published                 | auto   | 0 signed:failed!; 5 signed:succeeded! | 6 get:failed | confirmed | - | - | -
or against it                                             | auto   | 0 signed:failed!; 5 signed:succeeded! | 6 get:succeeded | amended | amendment 1: failed was wrong, succeeded | - | -
the fourth dispute is not asked about                     | auto   | 0 signed:failed!; 1 signed:succeeded!; 2 get:failed; 3 signed:succeeded!; 4 get:failed; 5 signed:succeeded!; 6 get:failed | 7 signed:succeeded! | disputed | - | - | -
what was inferred is corrected by any entitled evidence      | brief  | 0 client:track; 1h get:running; 2h get:running; 3h get:running | 9d secret:failed | amended | amendment 1: indeterminate was wrong, failed | now! | -
what was inferred overtakes no answer                     | brief  | 0 client:track; 1h get:running; 2h get:running; 3h get:running | 9d get@1h:failed | amended | amendment 1: indeterminate was wrong, failed | - | -
three amendments and no more                              | auto   | 0 get:failed; 1 get:succeeded; 2 get:failed; 3 get:succeeded | 4 get:failed | exhausted | - | - | -

# ── A word that covers two outcomes ─────────────────────────────────────────────────────────────
a covering answer confirms the finer end                  | auto   | 0 signed:cancelled! | 5 get:failed~cancelled | confirmed | - | - | -
a held finer end keeps its outcome                        | auto   | 0 secret:cancelled | 1 get:failed~cancelled | settled | cancelled by webhook | - | -
what is not covered contradicts                           | auto   | 0 get:failed~cancelled | 5 signed:succeeded! | disputed | - | now! | -
a refined end is refined once                             | auto   | 0 get:failed~cancelled; 5 signed:cancelled!; 6 get:failed~cancelled | 7 signed:cancelled! | confirmed | - | - | -

# ── The first answer ────────────────────────────────────────────────────────────────────────────
the first answer is believed though it comes second       | first  | 9 get@9:succeeded | 10 get@8:cancelled | amended | amendment 1: succeeded was wrong, cancelled | - | -

# ── Looking again at what nobody confirmed ──────────────────────────────────────────────────────
the first look finds nothing new, the next is tomorrow    | auto   | 0 secret:failed; 60 clock:timer | 11m get:running | unchanged | - | +1430m | -
nor by a failed question                                  | auto   | 0 secret:failed; 60 clock:timer | 11m get:5xx | unchanged | - | +10m | -
two looks and no more                                     | auto   | 0 secret:failed; 60 clock:timer; 11m get:running | 24h1m get:running | unchanged | - | - | -
an agreeing look ends the looking                         | auto   | 0 secret:failed; 60 clock:timer | 11m get:failed | confirmed | - | - | -
a contradicting look too                                  | auto   | 0 secret:failed; 60 clock:timer | 11m get:succeeded | amended | amendment 1: failed was wrong, succeeded | - | -

# ── Of what is held the strongest is believed ────────────────────────────────────────────────────
a sufficient webhook does not override a stronger one     | auto   | 0 signed:failed | 1 signed:succeeded! | held | - | now! | +59s
nor one that is held, without a key                       | mute   | 0 client:track | 1 signed:succeeded! | settled | succeeded by webhook | - | -
an answer that waited outlives the webhook that agreed    | grace  | 0 client:track; 20 get:succeeded; 30 signed:succeeded! | 31 signed:failed! | disputed | - | now! | -

# ── Answers are ordered by their questions, and none waits for ever ──────────────────────────────
an answered end is held                                   | grace  | 0 client:track | 20 get:failed | held | - | +1m! | +2m
the same answer within the grace changes nothing          | grace  | 0 client:track; 20 get:failed | 50 get:failed | held | - | +30s! | +90s
another end starts the grace anew                         | grace  | 0 client:track; 20 get:failed | 80 get:succeeded | held | - | +1m! | +2m
a running webhook does not                                | grace  | 0 signed:running; 20 get:failed | 30 signed:running | unchanged | - | +50s! | +110s
a failed second question is repeated soon                 | grace  | 0 client:track; 20 get:failed | 80 get:5xx | unchanged | - | +1s! | +1m
an end that an answer told is not held for ever           | grace  | 0 client:track; 20 get:failed; 80 get:5xx | 140 clock:timer | settled | failed by poll unconfirmed | +10m | -
an old answer does not withdraw a newer one               | grace  | 0 get:running; 20 get@20:failed | 21 get@10:running | unchanged | - | +59s! | +119s
an old answer does not replace a newer one                | grace  | 0 client:track; 20 get@20:failed | 21 get@10:succeeded | held | - | +59s! | +119s
nor is it the second answer                               | grace  | 0 client:track; 20 get@20:failed | 85 get@10:failed | held | - | +5s! | +55s
a failed second question is repeated ever later           | grace  | 0 client:track; 20 get:failed; 80 get:5xx | 90 get:5xx | unchanged | - | +10s! | +50s
a run that is gone after its end waits no longer          | grace  | 0 client:track; 2m get:failed | 3m get:404 | missed | - | +1s! | +1m
a 404 late in a long hold is asked again soon             | patient | 0 client:track; 2m secret:failed | 4m get:404 | missed | - | +1s! | +8m
with the first answer believed, a second end settles it   | first+grace | 0 client:track; 20 get:cancelled | 80 get:succeeded | settled | cancelled by poll | - | -
without a key an answer waits for no second               | mute+grace | 0 client:track | 20 get:failed | settled | failed by poll | - | -

# ── A settled run is asked about when that can change something ──────────────────────────────────
a provider that forgets is not believed later             | first  | 0 get:cancelled | 5 get:succeeded | ignored | - | - | -
the last answer is believed though it comes first         | auto   | 9 get@9:succeeded | 10 get@8:cancelled | ignored | - | - | -
the look of today is not spent by an answer on its way    | auto   | 0 secret:failed; 60 clock:timer | 61 get@59:running | unchanged | - | +10m | -
nobody is looked at for ever                              | auto   | 0 secret:failed; 60 clock:timer; 11m get:running | 49h get:5xx | unchanged | - | - | -
an answer that a webhook has overtaken is asked for again  | auto   | 0 client:track; 4 signed:failed! | 5 get@3:succeeded | amended | amendment 1: failed was wrong, succeeded | +1s! | -
and the new answer decides                                | auto   | 0 client:track; 4 signed:failed!; 5 get@3:succeeded | 7 get@6:failed | amended | amendment 2: succeeded was wrong, failed | - | -
not where it was another answer that came in between      | auto   | 0 client:track; 10 get@1:failed | 11 get@5:succeeded | amended | amendment 1: failed was wrong, succeeded | - | -
so it is where the webhook was only held                  | auto   | 0 client:track; 4 secret:failed | 5 get@3:succeeded | settled | succeeded by webhook | now! | -
not where the question was asked after it                 | auto   | 0 client:track; 4 secret:failed | 5 get@4:succeeded | settled | succeeded by webhook | - | -
a dispute is asked about until it is answered             | auto   | 0 get:failed; 5 signed:succeeded! | 6 get:5xx | unchanged | - | +1s! | -
an answer to an older question does not end it            | auto   | 0 get:failed; 5 signed:succeeded! | 6 get@4:failed | confirmed | - | +1s! | -
one to a question of that very moment does                | auto   | 0 get:failed; 5 signed:succeeded! | 6 get@5:failed | confirmed | - | - | -
and the longer a dispute lasts, the more rarely           | auto   | 0 get:failed; 5 signed:succeeded!; 6 get:5xx | 65 get:5xx | unchanged | - | +1m! | -
after almost two days it is asked about still             | auto   | 0 get:failed; 5 signed:succeeded! | 47h get:5xx | unchanged | - | +5m! | -
after two days no more                                    | auto   | 0 get:failed; 5 signed:succeeded! | 48h5s get:5xx | unchanged | - | - | -
nobody polls what no answer can change                     | first  | 0 get:failed | 5 signed:succeeded! | disputed | - | - | -

# ── A finer word refines whenever it came ────────────────────────────────────────────────────────
a covered end refines the answer before it                | auto   | 0 get:failed~cancelled | 5 signed:cancelled! | amended | amendment 1: failed was wrong, cancelled | - | -
a finer webhook refines an answer that waits              | grace  | 0 client:track; 20 get:failed~cancelled | 30 signed:cancelled! | settled | cancelled by webhook | - | -
a held finer webhook is seconded by the coarser answer    | always+grace | 0 signed:cancelled! | 1 get:failed~cancelled | settled | cancelled by webhook | - | -
a finer end is remembered when another was believed since | auto   | 0 signed:cancelled!; 1 signed:succeeded! | 2 get:failed~cancelled | amended | amendment 2: succeeded was wrong, cancelled | - | -
a finer end after an unconfirmed answer leaves its checks | grace | 0 client:track; 20 get:failed~cancelled; 140 clock:timer | 150 signed:cancelled! | amended | amendment 1: failed was wrong, cancelled | +590s | -
a finer answer of a provider that forgets keeps the first one's place | first | 20 get@20:failed~cancelled; 30 get@30:cancelled | 31 get@25:succeeded | ignored | - | - | -

# ── Lists and clocks ─────────────────────────────────────────────────────────────────────────────
a list that shows the run resets the misses               | auto   | 0 client:track; 1m get:404; 6m get:404; 7m list:open | 11m get:404 | missed | - | +5m | ~
a clock stepped back holds nothing longer: a webhook      | auto   | 1h secret:failed | 0 secret:failed | held | - | now! | +1m
a clock stepped back holds nothing longer: an answer      | grace  | 0 client:track; 1h get:failed | 0 get:5xx | unchanged | - | +1m! | +2m
";

#[test]
fn the_decision_table() {
    let mut wrong = Vec::new();
    let rows = TABLE
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    for row in rows {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [sentence, policy, before, heard, effect, says, ask, wake] = cells[..] else {
            panic!("a row has eight cells: {row}")
        };
        let found = row_of(policy, before, heard);
        let wanted = [effect, says, ask, wake];
        for (index, (found, wanted)) in found.cells.iter().zip(wanted).enumerate() {
            let fits = match (index, wanted) {
                (2, "curve") => {
                    found.starts_with('+')
                        && !found.ends_with('!')
                        && found_span(found) <= 6 * MINUTE
                }
                (2, "hourly") => {
                    found.starts_with('+')
                        && found_span(found) >= 40 * MINUTE
                        && found_span(found) <= 2 * HOUR
                }
                (3, "~") => found.starts_with('+') && found_span(found) >= DAY / 2,
                _ => found == wanted,
            };
            if !fits {
                let column = ["effect", "published", "ask", "wake"][index];
                wrong.push(format!(
                    "{sentence} ({policy}): {column} is {found:?}, not {wanted:?}"
                ));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} cells are wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

struct Found {
    cells: [String; 4],
}

fn row_of(words: &str, before: &str, heard: &str) -> Found {
    let policy = policy(words);
    let mut subject = RunRef::under(&policy);
    subject.lives(before);
    let (publish, effect) = subject.hears_step(heard);
    let says = publish.map_or("-".to_owned(), |publish| said(&subject, publish));
    let effect = if subject.run.is_none() {
        "no run".to_owned()
    } else {
        Effect::word(effect).to_owned()
    };
    let run = subject.run.as_ref();
    let ask = run.and_then(|run| run.poll).map_or("-".to_owned(), |plan| {
        format!(
            "{}{}",
            relative(plan.at, subject.now),
            if plan.urgent { "!" } else { "" }
        )
    });
    let wake = run
        .and_then(|run| run.wake_at)
        .map_or("-".to_owned(), |at| relative(at, subject.now));
    Found {
        cells: [effect, says, ask, wake],
    }
}

fn said(subject: &RunRef<'_>, publish: Publication) -> String {
    match (publish, subject.settled()) {
        (Publication::Status(number), None) => format!("status {number}"),
        (Publication::Completion, Some(settled)) => {
            let unconfirmed = if settled.confirmed {
                ""
            } else {
                " unconfirmed"
            };
            let reason = settled
                .belief
                .detail
                .reason
                .as_deref()
                .map(|reason| format!(" {reason}"))
                .unwrap_or_default();
            format!(
                "{} by {}{unconfirmed}{reason}",
                settled.belief.ending.outcome, settled.origin
            )
        }
        (Publication::Amendment { number, previous }, Some(settled)) => {
            format!(
                "amendment {number}: {previous} was wrong, {}",
                settled.belief.ending.outcome
            )
        }
        (publish, _) => format!("{publish:?} does not fit the phase"),
    }
}

/// `now`, `+90s`, `-5s`.
fn relative(at: At, now: At) -> String {
    let ahead = at.since(now);
    match (at.cmp(&now), ahead) {
        (std::cmp::Ordering::Equal, _) => "now".to_owned(),
        (std::cmp::Ordering::Less, _) => format!("-{}", text(now.since(at))),
        (std::cmp::Ordering::Greater, ahead) => format!("+{}", text(ahead)),
    }
}

fn text(span: Duration) -> String {
    let millis = span.subsec_millis();
    let unit = [(86_400, "d"), (3600, "h"), (60, "m")]
        .into_iter()
        .find(|(seconds, _)| {
            millis == 0 && span.as_secs() > 0 && span.as_secs().is_multiple_of(*seconds)
        });
    match unit {
        Some((seconds, unit)) => format!("{}{unit}", span.as_secs() / seconds),
        None => format!("{}s", span.as_secs()),
    }
}

fn found_span(found: &str) -> Duration {
    span(found.trim_start_matches('+').trim_end_matches('!'))
}

#[test]
fn authentic_webhooks_are_counted_and_hints_are_not() {
    let policy = policy("auto");
    let mut subject = RunRef::under(&policy);
    subject.lives("0 signed:running; 5 secret:failed; 6 hint:failed; 9 signed:failed; 10 get:failed; 12 hint:failed");
    let last = Some(START.plus(span("9")));
    assert_eq!(
        subject.run.unwrap().webhooks,
        Arrivals {
            count: 3,
            first: Some(START),
            last
        }
    );
}

#[test]
fn of_the_same_webhook_twice_the_first_is_published() {
    let policy = policy("auto");
    let mut subject = RunRef::under(&policy);
    subject.lives("0 secret:failed; 5 secret:failed; 60 clock:timer");
    assert_eq!(subject.settled().unwrap().belief.report, 1);
}

#[test]
fn an_inferred_end_keeps_the_last_word_of_the_provider() {
    let policy = policy("auto");
    let mut subject = RunRef::under(&policy);
    subject.lives("0 signed:running; 1m get:404; 6m get:404; 11m get:404");
    let detail = &subject.settled().unwrap().belief.detail;
    assert_eq!(detail.reason.as_deref(), Some("provider_gone"));
    assert_eq!(detail.provider_status.as_deref(), Some("running"));
}

#[test]
fn the_story_begins_at_a_moment_that_is_not_zero() {
    assert_eq!(relative(START.plus(span("1h30m")), START), "+90m");
    assert_eq!(relative(START, START.plus(span("5"))), "-5s");
}
