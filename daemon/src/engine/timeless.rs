//! The times of a stream whose format has none. FFmpeg numbers its samples while it reads from the file's begin, often
//! in decoding order, and the nth picture that comes out gets the nth smallest number, as in the index. Pure.
//!
//! What does not live here: which formats those are; that is `ffi`'s.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Numbers that are kept for pictures to come. Decoders hold back some dozens; more pile up only where samples
/// bring no pictures.
const AHEAD_MAX: usize = 4096;

/// A stream that is read from its begin on, without a seek.
#[derive(Debug)]
pub struct Timeless {
    /// The numbers of samples whose pictures did not come out yet.
    ahead: BinaryHeap<Reverse<i64>>,
    is_intra_only: bool,
    has_begun: bool,
}

impl Timeless {
    /// Nothing is read yet.
    pub fn new(is_intra_only: bool) -> Self {
        Timeless { ahead: BinaryHeap::new(), is_intra_only, has_begun: false }
    }

    /// True if pictures come in the samples' order, with their numbers, and need no other.
    pub fn is_intra_only(&self) -> bool {
        self.is_intra_only
    }

    /// True if something was read, or may have been.
    pub fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// From now on something may be read.
    pub fn begin(&mut self) {
        self.has_begun = true;
    }

    /// The decoder took a sample of this number.
    pub fn expect(&mut self, number: i64) {
        if self.is_intra_only {
            return;
        }
        if self.ahead.len() == AHEAD_MAX {
            self.ahead.pop();
        }
        self.ahead.push(Reverse(number));
    }

    /// The number of the picture that has come out; none where its own is right.
    pub fn number(&mut self) -> Option<i64> {
        self.ahead.pop().map(|Reverse(number)| number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_get_numbers_in_order_whatever_the_order_of_samples() {
        let mut timeless = Timeless::new(false);
        for number in [0, 3, 1, 2] {
            timeless.expect(number);
        }
        assert_eq!([(); 5].map(|()| timeless.number()), [Some(0), Some(1), Some(2), Some(3), None]);
    }

    #[test]
    fn lone_pictures_have_numbers_of_their_own() {
        let mut timeless = Timeless::new(true);
        timeless.expect(7);
        assert_eq!(timeless.number(), None);
    }

    #[test]
    fn samples_without_pictures_do_not_pile_up() {
        let mut timeless = Timeless::new(false);
        (0..2 * AHEAD_MAX as i64).for_each(|number| timeless.expect(number));
        assert_eq!(timeless.number(), Some(AHEAD_MAX as i64));
    }
}
