//! [`Turns`]: how long the turns of the broker's loop take. Whoever adds a call to the loop that waits for
//! something sees it here.
//!
//! The status report shows it; nothing is decided by it.

use std::time::Duration;

/// A turn is done in microseconds, and no call in it takes a millisecond. Ten are a fault of ours, or a machine
/// that has no processor time for the daemon.
const SLOW: Duration = Duration::from_millis(10);

/// All turns since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turns {
    /// Those that were slow.
    pub slow_count: u64,
    /// The longest.
    pub longest: Duration,
}

impl Turns {
    /// A turn took this long.
    pub fn add(&mut self, took: Duration) {
        self.longest = self.longest.max(took);
        if took >= SLOW {
            self.slow_count += 1;
            // One a second at most would be enough, and slow turns are rarer than that.
            tracing::warn!(micros = took.as_micros() as u64, "a turn of the broker's loop was slow");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_turns_are_counted_and_the_longest_is_kept() {
        let mut turns = Turns::default();
        for millis in [1, 30, 10, 2] {
            turns.add(Duration::from_millis(millis));
        }
        assert_eq!(turns, Turns { slow_count: 2, longest: Duration::from_millis(30) });
    }
}
