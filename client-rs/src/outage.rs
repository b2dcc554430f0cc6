//! [`Outage`]: a stretch of time without a daemon, and when to look for one again.
//!
//! Plain arithmetic on moments that it is given: nothing is dialled and no clock is read here.

use std::time::{Duration, Instant};

/// How long calls look for a daemon that went away, unless the caller says otherwise. A service that is
/// restarted is back within a second or two, also on a busy machine and after a slow disk; after ten seconds
/// a person is needed, and an error that says so is worth more than a program that seems to hang.
pub(crate) const RECONNECT_FOR: Duration = Duration::from_secs(10);

/// The first pause between two looks. A supervisor needs about as long to start a process.
const PAUSE_MIN: Duration = Duration::from_millis(5);

/// The longest pause: a person does not notice it, and a node full of clients costs nothing by it.
const PAUSE_MAX: Duration = Duration::from_millis(250);

/// How long a refusal for want of permission may last. Whoever makes a socket gives it its group and mode a
/// moment later; what is still forbidden after a second is meant so.
const DENIAL_MAX: Duration = Duration::from_secs(1);

/// A time without a daemon.
#[derive(Debug)]
pub(crate) struct Outage {
    since: Instant,
    /// Why it began, as a sentence.
    reason: String,
    look_count: u32,
    denied_since: Option<Instant>,
}

impl Outage {
    pub(crate) fn new(now: Instant, reason: String) -> Outage {
        Outage { since: now, reason, look_count: 0, denied_since: None }
    }

    pub(crate) fn reason(&self) -> &str {
        &self.reason
    }

    pub(crate) fn look_count(&self) -> u32 {
        self.look_count
    }

    /// When calls give up; none where the clock does not reach that far.
    pub(crate) fn end(&self, window: Duration) -> Option<Instant> {
        self.since.checked_add(window)
    }

    /// Counts a look for a daemon. Returns how long to pause before it: the first one is made at once.
    pub(crate) fn next_pause(&mut self) -> Duration {
        let doublings = self.look_count.checked_sub(1);
        self.look_count = self.look_count.saturating_add(1);
        doublings.map_or(Duration::ZERO, |doublings| {
            PAUSE_MIN.saturating_mul(2u32.saturating_pow(doublings)).min(PAUSE_MAX)
        })
    }

    /// Notes whether a look ended for want of permission. True once that has lasted too long.
    pub(crate) fn note_denied(&mut self, now: Instant, is_denied: bool) -> bool {
        if !is_denied {
            self.denied_since = None;
            return false;
        }
        let since = *self.denied_since.get_or_insert(now);
        now.saturating_duration_since(since) >= DENIAL_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_begin_with_none_and_double_up_to_the_longest() {
        let mut outage = Outage::new(Instant::now(), String::new());
        let pauses: Vec<_> = (0..9).map(|_| outage.next_pause().as_millis()).collect();
        assert_eq!(pauses, [0, 5, 10, 20, 40, 80, 160, 250, 250]);
        outage.look_count = u32::MAX;
        assert_eq!(outage.next_pause(), PAUSE_MAX);
    }

    #[test]
    fn end_counts_from_the_loss_and_may_lie_beyond_the_clock() {
        let now = Instant::now();
        let outage = Outage::new(now, String::new());
        assert_eq!(outage.end(Duration::from_secs(3)), Some(now + Duration::from_secs(3)));
        assert_eq!(outage.end(Duration::MAX), None);
    }

    #[test]
    fn denial_counts_only_while_it_lasts() {
        let now = Instant::now();
        let mut outage = Outage::new(now, String::new());
        assert!(!outage.note_denied(now, true));
        assert!(!outage.note_denied(now + DENIAL_MAX / 2, false));
        assert!(!outage.note_denied(now + DENIAL_MAX, true));
        assert!(outage.note_denied(now + 2 * DENIAL_MAX, true));
    }
}
