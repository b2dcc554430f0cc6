//! [`Backoff`]: how long a user waits for the next engine after engines died young. Pure: the caller tells
//! the time.
//!
//! Why an engine died, and what becomes of its work, is not known here.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::job::User;

/// The first engine that dies young is replaced after this long: nobody notices.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// Pauses double up to this. A file that kills each engine costs a start every five seconds then.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// An engine that lived this long is no sign of trouble: it is replaced as if it were the first.
const YOUNG: Duration = Duration::from_secs(2);

/// Engines in a row that end before they are ready, after which waiting work is given up. The pauses between
/// them are 1.3 seconds together.
const FAILED_STARTS_MAX: u32 = 8;

/// A user of whom nothing was heard for this long is forgotten.
const KEPT: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug)]
struct Trouble {
    deaths_in_a_row: u32,
    failed_starts: u32,
    not_before: Instant,
}

/// Users whose engines died.
#[derive(Debug, Default)]
pub struct Backoff {
    users: BTreeMap<User, Trouble>,
}

impl Backoff {
    /// True if an engine may be started for this user now.
    pub fn may_start(&self, user: User, now: Instant) -> bool {
        self.users.get(&user).is_none_or(|trouble| trouble.not_before <= now)
    }

    /// An engine has ended after it had lived this long; `was_ready` says whether it ever took work.
    pub fn died(&mut self, user: User, lived: Duration, was_ready: bool, now: Instant) {
        let fresh = Trouble { deaths_in_a_row: 0, failed_starts: 0, not_before: now };
        let trouble = self.users.entry(user).or_insert(fresh);
        if was_ready && lived >= YOUNG {
            trouble.deaths_in_a_row = 0;
        }
        trouble.deaths_in_a_row = trouble.deaths_in_a_row.saturating_add(1);
        trouble.failed_starts = if was_ready { 0 } else { trouble.failed_starts.saturating_add(1) };
        let doublings = (trouble.deaths_in_a_row - 1).min(16);
        trouble.not_before = now + (FIRST_PAUSE * (1 << doublings)).min(PAUSE_MAX);
    }

    /// An engine of this user became ready: engines can be started.
    pub fn became_ready(&mut self, user: User) {
        if let Some(trouble) = self.users.get_mut(&user) {
            trouble.failed_starts = 0;
        }
    }

    /// True when waiting for another engine is hopeless. From here on, each further engine that cannot be
    /// started makes it so again.
    pub fn is_hopeless(&self, user: User) -> bool {
        self.users.get(&user).is_some_and(|trouble| trouble.failed_starts >= FAILED_STARTS_MAX)
    }

    /// When the next pause is over.
    pub fn next_start(&self, now: Instant) -> Option<Instant> {
        self.users.values().map(|trouble| trouble.not_before).filter(|&at| at > now).min()
    }

    /// Forgets trouble of long ago.
    pub fn tend(&mut self, now: Instant) {
        self.users.retain(|_, trouble| now < trouble.not_before + KEPT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: User = User { uid: 1, connection: None };
    const OTHER: User = User { uid: 2, connection: None };
    const MOMENT: Duration = Duration::from_millis(1);

    /// The pauses after deaths in a row.
    fn pauses(backoff: &mut Backoff, count: usize, was_ready: bool) -> Vec<Duration> {
        let mut now = Instant::now();
        let mut pauses = Vec::new();
        for _ in 0..count {
            backoff.died(ONE, MOMENT, was_ready, now);
            let next = backoff.next_start(now).unwrap();
            pauses.push(next - now);
            now = next;
        }
        pauses
    }

    #[test]
    fn pauses_double_up_to_their_limit() {
        let pauses = pauses(&mut Backoff::default(), 12, true);
        let millis: Vec<u128> = pauses.iter().map(Duration::as_millis).collect();
        assert_eq!(millis, [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5000, 5000, 5000]);
    }

    #[test]
    fn engine_that_lived_is_replaced_as_if_it_were_the_first() {
        let mut backoff = Backoff::default();
        pauses(&mut backoff, 6, true);
        let now = Instant::now();
        backoff.died(ONE, YOUNG, true, now);
        assert_eq!(backoff.next_start(now), Some(now + FIRST_PAUSE));
    }

    #[test]
    fn users_do_not_wait_for_each_other() {
        let mut backoff = Backoff::default();
        let now = Instant::now();
        backoff.died(ONE, MOMENT, true, now);
        assert!(!backoff.may_start(ONE, now));
        assert!(backoff.may_start(OTHER, now));
        assert!(backoff.may_start(ONE, now + FIRST_PAUSE));
    }

    #[test]
    fn engines_that_never_get_ready_are_hopeless_in_the_end() {
        let mut backoff = Backoff::default();
        pauses(&mut backoff, FAILED_STARTS_MAX as usize - 1, false);
        assert!(!backoff.is_hopeless(ONE));
        pauses(&mut backoff, 1, false);
        assert!(backoff.is_hopeless(ONE) && !backoff.is_hopeless(OTHER));
        backoff.became_ready(ONE);
        assert!(!backoff.is_hopeless(ONE));
    }

    #[test]
    fn engines_that_crash_at_work_are_never_hopeless() {
        let mut backoff = Backoff::default();
        pauses(&mut backoff, 50, true);
        assert!(!backoff.is_hopeless(ONE));
    }

    #[test]
    fn trouble_of_long_ago_is_forgotten() {
        let mut backoff = Backoff::default();
        let now = Instant::now();
        backoff.died(ONE, MOMENT, true, now);
        backoff.tend(now + KEPT);
        assert_eq!(backoff.users.len(), 1);
        backoff.tend(now + KEPT + PAUSE_MAX);
        assert!(backoff.users.is_empty());
        assert_eq!(backoff.next_start(now), None);
    }
}
