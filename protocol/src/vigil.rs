//! [`Vigil`]: whether a thread that waits for a message stays awake for a moment before it goes to sleep.
//!
//! To be woken takes a processor that has gone to sleep 5 to 50 us, and whoever wakes it nearly as much: more than
//! answering a request for a cached frame takes. Only the decision is made here; how to look for a message without
//! sleeping is the caller's matter, and so is the clock.

use std::time::Duration;

/// How long a thread stays awake at most. Longer than a cached frame takes, and short beside a wait that is worth
/// sleeping.
pub const AWAKE_FOR: Duration = Duration::from_micros(100);

/// A wait that may be as short as [`AWAKE_FOR`] without the wake-ups in it.
const QUICK: Duration = Duration::from_micros(400);

/// So many quick waits in a row make the next one likely to be quick.
const QUICK_COUNT_MIN: u32 = 8;

/// What staying awake in vain costs at most: one ten-thousandth of the time of a thread whose waits are all quick,
/// since each attempt in vain doubles how many of them must come before the next one.
const QUICK_COUNT_MAX: u32 = 4096;

/// What one wait in vain costs: it may be one of so many, since each of the others has saved about as much.
const VAIN_COST: u32 = 4;

/// With so much credit a thread goes to sleep only after eight waits in vain in a row, a millisecond altogether.
const CREDIT_MAX: u32 = 8 * VAIN_COST;

/// What one thread has learnt of its waits.
#[derive(Clone, Debug)]
pub struct Vigil {
    is_possible: bool,
    /// Quick waits in a row.
    quick_count: u32,
    /// How many it takes.
    needed_count: u32,
    /// How much may go wrong before it sleeps again.
    credit: u32,
}

impl Vigil {
    /// Of a thread that may run on so many processors. With one, whoever is waited for could not run meanwhile.
    pub fn new(processor_count: usize) -> Vigil {
        Vigil { is_possible: processor_count > 1, quick_count: 0, needed_count: QUICK_COUNT_MIN, credit: 0 }
    }

    /// Whether to stay awake for the next message, for [`AWAKE_FOR`] at most. Then [`Vigil::watched`] is to be told
    /// what came of it.
    pub fn is_worthwhile(&self) -> bool {
        self.is_possible && self.quick_count >= self.needed_count
    }

    /// The thread has slept for a message, so long.
    pub fn slept(&mut self, waited: Duration) {
        self.quick_count = if waited <= QUICK { self.quick_count.saturating_add(1) } else { 0 };
        self.credit = VAIN_COST;
    }

    /// The thread has stayed awake until a message came, so long, or in vain. That it took longer than allowed is
    /// as good as in vain: others want the processor.
    pub fn watched(&mut self, waited: Option<Duration>) {
        if waited.is_some_and(|waited| waited <= AWAKE_FOR) {
            self.credit = (self.credit + 1).min(CREDIT_MAX);
            if self.credit == CREDIT_MAX {
                self.needed_count = QUICK_COUNT_MIN;
            }
            return;
        }
        self.credit = self.credit.saturating_sub(VAIN_COST);
        if self.credit == 0 {
            self.quick_count = 0;
            self.needed_count = self.needed_count.saturating_mul(2).min(QUICK_COUNT_MAX);
        }
    }
}

impl Default for Vigil {
    /// Of a thread that may run on all processors of this process. Asks the system.
    fn default() -> Vigil {
        Vigil::new(std::thread::available_parallelism().map_or(1, usize::from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_micros(50);
    const LONG: Duration = Duration::from_millis(20);

    fn sleep(vigil: &mut Vigil, count: u32) {
        (0..count).for_each(|_| vigil.slept(SHORT));
    }

    #[test]
    fn quick_waits_make_it_worthwhile() {
        let mut vigil = Vigil::new(2);
        assert!(!vigil.is_worthwhile());
        sleep(&mut vigil, QUICK_COUNT_MIN);
        assert!(vigil.is_worthwhile());
    }

    #[test]
    fn one_processor_is_never_watched_on() {
        let mut vigil = Vigil::new(1);
        sleep(&mut vigil, QUICK_COUNT_MAX);
        assert!(!vigil.is_worthwhile());
    }

    #[test]
    fn one_long_wait_begins_anew() {
        let mut vigil = Vigil::new(2);
        sleep(&mut vigil, QUICK_COUNT_MIN);
        vigil.slept(LONG);
        assert!(!vigil.is_worthwhile());
        sleep(&mut vigil, QUICK_COUNT_MIN - 1);
        assert!(!vigil.is_worthwhile());
    }

    #[test]
    fn watching_in_vain_needs_twice_as_many_quick_waits_up_to_a_limit() {
        let mut vigil = Vigil::new(2);
        let mut needed = QUICK_COUNT_MIN;
        for vain in [None, Some(LONG)].into_iter().cycle().take(12) {
            sleep(&mut vigil, needed - 1);
            assert!(!vigil.is_worthwhile());
            sleep(&mut vigil, 1);
            assert!(vigil.is_worthwhile());
            vigil.watched(vain);
            needed = (2 * needed).min(QUICK_COUNT_MAX);
        }
    }

    #[test]
    fn credit_makes_up_for_some_waits_in_vain() {
        let mut vigil = Vigil::new(2);
        sleep(&mut vigil, QUICK_COUNT_MIN);
        for _ in 0..100 {
            (0..VAIN_COST).for_each(|_| vigil.watched(Some(SHORT)));
            vigil.watched(None);
            assert!(vigil.is_worthwhile());
        }
        vigil.watched(None);
        assert!(!vigil.is_worthwhile());
    }

    #[test]
    fn full_credit_lasts_for_eight_waits_in_vain_and_is_trusted_again() {
        let mut vigil = Vigil::new(2);
        sleep(&mut vigil, QUICK_COUNT_MIN);
        vigil.watched(None);
        sleep(&mut vigil, 2 * QUICK_COUNT_MIN);
        (0..CREDIT_MAX).for_each(|_| vigil.watched(Some(SHORT)));
        for _ in 0..8 {
            assert!(vigil.is_worthwhile());
            vigil.watched(None);
        }
        // The attempt before the last one is forgotten.
        sleep(&mut vigil, 2 * QUICK_COUNT_MIN - 1);
        assert!(!vigil.is_worthwhile());
        sleep(&mut vigil, 1);
        assert!(vigil.is_worthwhile());
    }
}
