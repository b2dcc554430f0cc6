//! The pictures that a run still has to bring, and the rule by which a decoded picture is one of them. Pure.
//!
//! What does not live here: where to seek for them; that is `session`'s.

use reeld_protocol::metadata::Rational;

use crate::link::{Target, WantedPicture};

/// When a picture is shown, in stream ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// From here.
    pub pts: i64,
    /// For so long; 0 where unknown.
    pub duration: i64,
    /// The largest end of the pictures that came out before it since decoding began: usually its own begin.
    pub earlier_end: i64,
}

impl Shown {
    /// The tick at which it goes.
    pub fn end(self) -> i64 {
        self.pts.saturating_add(self.duration)
    }

    /// True if this is the picture that `target` means, given that none before it was.
    pub fn satisfies(self, target: Target, time_base: Rational) -> bool {
        match target {
            Target::AtOrAfter(pts) => self.pts >= pts,
            // Compared as seconds, like TorchCodec, so that rounding falls on the same side.
            Target::PlayedAt(seconds) => {
                time_base.seconds(self.pts) > seconds || seconds < time_base.seconds(self.end())
            }
        }
    }
}

/// The tick that decoding has to lead to.
pub fn cursor(target: Target, time_base: Rational) -> i64 {
    match target {
        Target::AtOrAfter(pts) => pts,
        Target::PlayedAt(seconds) => time_base.ticks_at(seconds),
    }
}

/// What is still wanted, in the order of the cursors.
#[derive(Debug)]
pub struct Pending {
    time_base: Rational,
    wanted: Vec<WantedPicture>,
}

impl Pending {
    /// Sorts, whatever order it comes in: the rest relies on it.
    pub fn new(time_base: Rational, wanted: Vec<WantedPicture>) -> Self {
        let mut pending = Pending { time_base, wanted };
        pending.sort();
        pending
    }

    /// Adds more.
    pub fn extend(&mut self, wanted: impl IntoIterator<Item = WantedPicture>) {
        self.wanted.extend(wanted);
        self.sort();
    }

    /// The one to decode for next.
    pub fn first(&self) -> Option<&WantedPicture> {
        self.wanted.first()
    }

    /// Takes out what a picture satisfies.
    pub fn take_satisfied(&mut self, shown: Shown) -> Vec<WantedPicture> {
        let time_base = self.time_base;
        self.take_if(|wanted| shown.satisfies(wanted.target, time_base))
    }

    /// Takes out what `condition` is true for.
    pub fn take_if(&mut self, mut condition: impl FnMut(&WantedPicture) -> bool) -> Vec<WantedPicture> {
        self.wanted.extract_if(.., |wanted| condition(wanted)).collect()
    }

    /// Takes out the first.
    pub fn take_first(&mut self) -> Vec<WantedPicture> {
        self.wanted.drain(..self.wanted.len().min(1)).collect()
    }

    /// Takes out everything.
    pub fn take_all(&mut self) -> Vec<WantedPicture> {
        std::mem::take(&mut self.wanted)
    }

    fn sort(&mut self) {
        let time_base = self.time_base;
        self.wanted.sort_by_key(|wanted| cursor(wanted.target, time_base));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use reeld_protocol::message::Dtype;

    use super::*;
    use crate::link::{ArenaKey, Destination, WantedId};

    const TIME_BASE: Rational = Rational { numerator: 1, denominator: 10 };

    fn wanted(id: u64, target: Target) -> WantedPicture {
        let destination = Destination {
            arena: ArenaKey(0),
            pixels_offset: 0,
            pts_offset: 0,
            duration_offset: 0,
            height: 0,
            width: 0,
            dtype: Dtype::Uint8,
        };
        WantedPicture { id: WantedId(id), target, destination }
    }

    fn shown(pts: i64, duration: i64) -> Shown {
        Shown { pts, duration, earlier_end: i64::MIN }
    }

    fn played_at(seconds: f64, shown: Shown) -> bool {
        shown.satisfies(Target::PlayedAt(seconds), TIME_BASE)
    }

    #[test]
    fn picture_is_played_from_its_begin_to_before_its_end() {
        assert!(played_at(1.0, shown(10, 5)));
        assert!(played_at(1.49, shown(10, 5)));
        assert!(!played_at(1.5, shown(10, 5)));
    }

    #[test]
    fn gap_is_played_by_the_picture_after_it() {
        assert!(played_at(0.7, shown(10, 5)));
    }

    #[test]
    fn picture_without_duration_is_never_played_at_its_begin() {
        assert!(!played_at(1.0, shown(10, 0)));
    }

    #[test]
    fn one_picture_satisfies_all_that_it_is_at_or_after() {
        let all = [5, 30, 10].map(|pts| wanted(pts as u64, Target::AtOrAfter(pts)));
        let mut pending = Pending::new(TIME_BASE, all.to_vec());
        let ids: Vec<u64> = pending.take_satisfied(shown(10, 1)).iter().map(|wanted| wanted.id.0).collect();
        assert_eq!(ids, [5, 10]);
        assert_eq!(pending.first().map(|wanted| wanted.id.0), Some(30));
    }

    proptest! {
        #[test]
        fn pictures_in_order_bring_what_a_search_for_each_target_finds(
            mut times in proptest::collection::vec((0..200i64, 0..8i64), 1..40),
            targets in proptest::collection::vec((any::<bool>(), 0..220i64), 1..40),
        ) {
            times.sort_unstable();
            let pictures: Vec<Shown> = times.iter().map(|&(pts, duration)| shown(pts, duration)).collect();
            let all = targets.iter().enumerate().map(|(id, &(is_time, value))| {
                let target =
                    if is_time { Target::PlayedAt(value as f64 / 10.0) } else { Target::AtOrAfter(value) };
                wanted(id as u64, target)
            });
            let mut pending = Pending::new(TIME_BASE, all.clone().collect());
            let mut found = vec![None; targets.len()];
            for (position, picture) in pictures.iter().enumerate() {
                for wanted in pending.take_satisfied(*picture) {
                    found[wanted.id.0 as usize] = Some(position);
                }
            }
            for wanted in all {
                let searched = pictures.iter().position(|picture| picture.satisfies(wanted.target, TIME_BASE));
                prop_assert_eq!(found[wanted.id.0 as usize], searched);
            }
        }
    }
}
