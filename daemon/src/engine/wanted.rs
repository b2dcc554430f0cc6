//! The pictures that a run still has to bring, and the rule by which a decoded picture is one of them. Pure.
//!
//! What does not live here: where to seek for them; that is `session`'s.

use reeld_protocol::Transforms;
use reeld_protocol::metadata::Rational;

use super::failure::Failure;
use crate::link::{Looks, Target, WantedPicture};

/// When a picture is shown, in stream ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// From here.
    pub pts: i64,
    /// For so long; 0 where unknown.
    pub duration: i64,
    /// The largest end of the pictures that came out before it since decoding began: usually its own begin. Where
    /// some of these were not decoded, as large as can be.
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

/// A picture that somebody waits for, and what is done to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// Which, and where to.
    pub picture: WantedPicture,
    /// After it was turned upright.
    pub transforms: Transforms,
}

impl Wanted {
    /// The pictures of one message, each with the transforms that it names by position.
    pub fn all(pictures: Vec<WantedPicture>, looks: Looks) -> Result<Vec<Wanted>, Failure> {
        let looks: Result<Vec<Transforms>, _> = looks.into_iter().map(Transforms::new).collect();
        let looks = looks.map_err(|error| Failure::Look(error.to_string()))?;
        let dress = |picture: WantedPicture| {
            let index = picture.destination.look;
            let transforms = looks.get(usize::from(index.0)).cloned();
            let transforms = transforms.ok_or_else(|| Failure::Look(format!("there is no {index:?}")))?;
            Ok(Wanted { picture, transforms })
        };
        pictures.into_iter().map(dress).collect()
    }
}

/// What is still wanted, in the order of the cursors.
#[derive(Debug)]
pub struct Pending {
    time_base: Rational,
    wanted: Vec<Wanted>,
}

impl Pending {
    /// Sorts, whatever order it comes in: the rest relies on it.
    pub fn new(time_base: Rational, wanted: Vec<Wanted>) -> Self {
        let mut pending = Pending { time_base, wanted };
        pending.sort();
        pending
    }

    /// Adds more.
    pub fn extend(&mut self, wanted: impl IntoIterator<Item = Wanted>) {
        self.wanted.extend(wanted);
        self.sort();
    }

    /// The one to decode for next.
    pub fn first(&self) -> Option<&Wanted> {
        self.wanted.first()
    }

    /// The one that is reached last.
    pub fn last(&self) -> Option<&Wanted> {
        self.wanted.last()
    }

    /// True if each is known by its pts, and that is one of these.
    pub fn are_all_among(&self, pts: &[i64]) -> bool {
        let is_among = |wanted: &Wanted| match wanted.picture.target {
            Target::AtOrAfter(target) => pts.contains(&target),
            Target::PlayedAt(_) => false,
        };
        self.wanted.iter().all(is_among)
    }

    /// Takes out what a picture satisfies.
    pub fn take_satisfied(&mut self, shown: Shown) -> Vec<Wanted> {
        let time_base = self.time_base;
        self.take_if(|wanted| shown.satisfies(wanted.picture.target, time_base))
    }

    /// Takes out what `condition` is true for.
    pub fn take_if(&mut self, mut condition: impl FnMut(&Wanted) -> bool) -> Vec<Wanted> {
        self.wanted.extract_if(.., |wanted| condition(wanted)).collect()
    }

    /// Takes out the first.
    pub fn take_first(&mut self) -> Vec<Wanted> {
        self.wanted.drain(..self.wanted.len().min(1)).collect()
    }

    /// Takes out everything.
    pub fn take_all(&mut self) -> Vec<Wanted> {
        std::mem::take(&mut self.wanted)
    }

    fn sort(&mut self) {
        let time_base = self.time_base;
        self.wanted.sort_by_key(|wanted| cursor(wanted.picture.target, time_base));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use reeld_protocol::Transform;
    use reeld_protocol::message::Dtype;

    use super::*;
    use crate::link::{ArenaKey, Destination, LookIndex, WantedId};

    const TIME_BASE: Rational = Rational { numerator: 1, denominator: 10 };

    fn wanted(id: u64, target: Target) -> Wanted {
        let destination = Destination {
            arena: ArenaKey(0),
            pixels_offset: 0,
            pts_offset: 0,
            duration_offset: 0,
            height: 0,
            width: 0,
            dtype: Dtype::Uint8,
            look: LookIndex(0),
        };
        let picture = WantedPicture { id: WantedId(id), target, destination };
        Wanted { picture, transforms: Transforms::default() }
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
    fn each_picture_gets_the_transforms_that_it_names() {
        let resize = vec![Transform::Resize { height: 4, width: 6 }];
        let mut named = wanted(0, Target::AtOrAfter(0)).picture;
        named.destination.look = LookIndex(1);
        let dressed = Wanted::all(vec![named], vec![vec![], resize.clone()]).unwrap();
        assert_eq!(dressed[0].transforms.as_slice(), resize);
        named.destination.look = LookIndex(2);
        assert!(matches!(Wanted::all(vec![named], vec![vec![], resize]), Err(Failure::Look(_))));
    }

    #[test]
    fn one_picture_satisfies_all_that_it_is_at_or_after() {
        let all = [5, 30, 10].map(|pts| wanted(pts as u64, Target::AtOrAfter(pts)));
        let mut pending = Pending::new(TIME_BASE, all.to_vec());
        let ids: Vec<u64> =
            pending.take_satisfied(shown(10, 1)).iter().map(|wanted| wanted.picture.id.0).collect();
        assert_eq!(ids, [5, 10]);
        assert_eq!(pending.first().map(|wanted| wanted.picture.id.0), Some(30));
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
                    found[wanted.picture.id.0 as usize] = Some(position);
                }
            }
            for wanted in all {
                let WantedPicture { id, target, .. } = wanted.picture;
                let searched = pictures.iter().position(|picture| picture.satisfies(target, TIME_BASE));
                prop_assert_eq!(found[id.0 as usize], searched);
            }
        }
    }
}
