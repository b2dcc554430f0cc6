//! What a session has passed since its last seek, and what it can still reach by going on. Pure.
//!
//! What does not live here: the demuxer and the decoder; see `session`.

use reeld_protocol::metadata::Rational;

use super::wanted::Shown;
use crate::link::Target;

/// What happened since the last seek.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// The tick that was sought: decoding began at or before it.
    pub origin: i64,
    /// The latest keyframe whose sample the decoder has.
    pub keyframe: Option<i64>,
    /// The last picture that came out.
    pub last: Option<Shown>,
    /// The largest pts that came out or was skipped; the last one's, except in streams with broken times.
    pub pts_max: i64,
    /// The largest end of the pictures that came out or were skipped.
    pub end_max: i64,
    /// Pictures that came out or were skipped.
    pub count: u64,
    /// A sample was left out.
    pub has_skipped: bool,
    /// No samples are left to feed.
    pub is_draining: bool,
    /// The stream goes on, but the decoder was told that it does not, and cannot be gone on with.
    pub is_cut: bool,
}

impl Way {
    pub fn from(origin: i64) -> Way {
        Way {
            origin,
            keyframe: None,
            last: None,
            pts_max: i64::MIN,
            end_max: i64::MIN,
            count: 0,
            has_skipped: false,
            is_draining: false,
            is_cut: false,
        }
    }

    pub fn show(&mut self, pts: i64, duration: i64) -> Shown {
        // Of a way that was cut, pictures before this one may be missing.
        let earlier_end = if self.is_cut { i64::MAX } else { self.end_max };
        let shown = Shown { pts, duration, earlier_end };
        self.last = Some(shown);
        self.pass(shown);
        shown
    }

    pub fn pass(&mut self, shown: Shown) {
        self.count += 1;
        self.pts_max = self.pts_max.max(shown.pts);
        self.end_max = self.end_max.max(shown.end());
    }

    /// True while no picture came out or was skipped that `target` could mean, or that lies behind it.
    pub fn has_not_passed(&self, target: Target, time_base: Rational) -> bool {
        match target {
            Target::AtOrAfter(pts) => self.pts_max < pts,
            Target::PlayedAt(seconds) => {
                time_base.seconds(self.pts_max) <= seconds && time_base.seconds(self.end_max) <= seconds
            }
        }
    }

    /// True if going forward from here passes all pictures after `keyframe` that did not come out yet, and
    /// few before it: at most those that the decoder holds back.
    pub fn is_at(&self, keyframe: i64) -> bool {
        if self.last.is_some_and(|last| last.pts >= keyframe) {
            return true;
        }
        let has_keyframe = self.keyframe.is_some_and(|fed| fed >= keyframe);
        let is_next = self.last.is_some_and(|last| last.end() >= keyframe);
        self.origin == keyframe || (self.origin < keyframe && (has_keyframe || is_next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME_BASE: Rational = Rational { numerator: 1, denominator: 10 };

    fn way(origin: i64, keyframe: Option<i64>, shown: &[(i64, i64)]) -> Way {
        let mut way = Way { keyframe, ..Way::from(origin) };
        for &(pts, duration) in shown {
            way.show(pts, duration);
        }
        way
    }

    #[test]
    fn fresh_way_has_passed_nothing() {
        assert!(way(20, None, &[]).has_not_passed(Target::AtOrAfter(20), TIME_BASE));
        assert!(way(20, None, &[]).is_at(20));
    }

    #[test]
    fn shown_picture_is_passed_and_the_next_is_not() {
        let way = way(0, Some(0), &[(0, 5), (5, 5)]);
        assert!(!way.has_not_passed(Target::AtOrAfter(5), TIME_BASE));
        assert!(way.has_not_passed(Target::AtOrAfter(6), TIME_BASE));
        assert!(!way.has_not_passed(Target::PlayedAt(0.9), TIME_BASE));
        assert!(way.has_not_passed(Target::PlayedAt(1.0), TIME_BASE));
    }

    #[test]
    fn broken_times_count_as_passed() {
        let way = way(0, Some(0), &[(0, 5), (20, 5), (10, 5)]);
        assert!(!way.has_not_passed(Target::AtOrAfter(15), TIME_BASE));
    }

    #[test]
    fn last_picture_before_a_keyframe_leads_on_to_it() {
        assert!(way(0, Some(0), &[(0, 5), (5, 5)]).is_at(10));
        assert!(!way(0, Some(0), &[(0, 5)]).is_at(10));
    }

    #[test]
    fn keyframe_that_the_decoder_holds_is_reached_without_a_seek() {
        assert!(way(0, Some(30), &[(0, 5)]).is_at(30));
    }

    #[test]
    fn way_that_began_after_a_keyframe_does_not_lead_to_it() {
        // The decoder has a later keyframe and has shown nothing: pictures after the earlier one are lost.
        assert!(!way(40, Some(40), &[]).is_at(30));
    }
}
