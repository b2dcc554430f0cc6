//! Which stretches of video were decoded lately, so that one that is decoded again can be told. Pure.
//!
//! What does not live here: the pictures; see `picture_cache`.

use std::collections::VecDeque;

use super::picture_cache::StreamKey;

/// Stretches that are remembered: as many as a cache of 1 GiB can hold of 60 pictures at 480p.
const STRETCHES_MAX: usize = 64;

/// The starts of the stretches that were decoded last, the oldest first.
#[derive(Default)]
pub struct Revisits {
    starts: VecDeque<(StreamKey, i64)>,
}

impl Revisits {
    /// Notes that decoding begins at `start`. True if it did so not long ago.
    pub fn note(&mut self, stream: StreamKey, start: i64) -> bool {
        let visit = (stream, start);
        let known = self.starts.iter().position(|other| *other == visit);
        if let Some(position) = known {
            self.starts.remove(position);
        } else if self.starts.len() >= STRETCHES_MAX {
            self.starts.pop_front();
        }
        self.starts.push_back(visit);
        known.is_some()
    }
}

#[cfg(test)]
mod tests {
    use reeld_protocol::ids::StreamIndex;

    use super::*;
    use crate::link::CatalogId;

    const STREAM: StreamKey = (CatalogId(1), StreamIndex(0));

    #[test]
    fn second_visit_is_known() {
        let mut revisits = Revisits::default();
        assert!(!revisits.note(STREAM, 0));
        assert!(!revisits.note(STREAM, 30));
        assert!(revisits.note(STREAM, 0));
    }

    #[test]
    fn oldest_visit_is_forgotten() {
        let mut revisits = Revisits::default();
        for start in 0..=STRETCHES_MAX as i64 {
            assert!(!revisits.note(STREAM, start));
        }
        assert!(revisits.note(STREAM, 1));
        assert!(!revisits.note(STREAM, 0));
    }
}
