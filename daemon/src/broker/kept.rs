//! Which engine has which pictures in its cache, as far as can be told from what it has delivered: a run all of
//! whose pictures one engine has is left to that one, even if another is idle. Pure.
//!
//! Engines do not say what they drop. But they drop first what was used first, as is done here: where one had to
//! decode what it should have had, whatever it was asked for before that is taken to be gone as well.
//!
//! What does not live here: the pictures; see `engine::picture_cache`.

use std::collections::{BTreeMap, HashMap};

use reeld_protocol::ids::StreamIndex;

use super::engines::EngineKey;
use crate::link::{CatalogId, Target};

/// Pictures that are remembered of one engine: more than fit into a cache of 4 GiB at 224x224. They take 4 MiB.
const PICTURES_MAX: usize = 1 << 15;

/// One picture of a file: its stream and pts.
type PictureKey = (StreamIndex, i64);

/// Counts deliveries.
type Turn = u64;

/// What engines are taken to have.
#[derive(Debug, Default)]
pub struct KeptPictures {
    /// Who delivered a picture last, and when.
    files: HashMap<CatalogId, HashMap<PictureKey, (EngineKey, Turn)>>,
    /// The pictures of each engine, the one that was delivered longest ago first.
    engines: BTreeMap<EngineKey, BTreeMap<Turn, (CatalogId, PictureKey)>>,
    next_turn: Turn,
}

impl KeptPictures {
    /// The engine that has all of these pictures, if there is one.
    pub fn engine_with(
        &self,
        (source, stream): (CatalogId, StreamIndex),
        targets: impl Iterator<Item = Target>,
    ) -> Option<EngineKey> {
        let places = self.files.get(&source)?;
        let mut found = None;
        for target in targets {
            let (engine, _) = places.get(&(stream, pts_of(target)?))?;
            if *found.get_or_insert(*engine) != *engine {
                return None;
            }
        }
        found
    }

    /// An engine has delivered these, for which it `has_decoded` at least one picture.
    pub fn delivered(
        &mut self,
        engine: EngineKey,
        (source, stream): (CatalogId, StreamIndex),
        targets: impl Iterator<Item = Target> + Clone,
        has_decoded: bool,
    ) {
        let keys = targets.filter_map(|target| Some((stream, pts_of(target)?)));
        if has_decoded {
            self.forget_what_is_gone(engine, source, keys.clone());
        }
        for key in keys {
            self.next_turn += 1;
            let place = (engine, self.next_turn);
            if let Some((engine, turn)) = self.files.entry(source).or_default().insert(key, place)
                && let Some(pictures) = self.engines.get_mut(&engine)
            {
                pictures.remove(&turn);
            }
            let pictures = self.engines.entry(engine).or_default();
            pictures.insert(self.next_turn, (source, key));
            if pictures.len() > PICTURES_MAX
                && let Some((_, oldest)) = pictures.pop_first()
            {
                self.forget(oldest);
            }
        }
    }

    /// If the engine should have had all of these, one of them was dropped, and with it all that are older.
    fn forget_what_is_gone(
        &mut self,
        engine: EngineKey,
        source: CatalogId,
        keys: impl Iterator<Item = PictureKey>,
    ) {
        let Some(places) = self.files.get(&source) else { return };
        let turn_of = |key| places.get(&key).filter(|place| place.0 == engine).map(|place| place.1);
        let turns: Option<Vec<Turn>> = keys.map(turn_of).collect();
        let Some(oldest) = turns.and_then(|turns| turns.into_iter().min()) else { return };
        let Some(pictures) = self.engines.get_mut(&engine) else { return };
        let younger = pictures.split_off(&oldest);
        for picture in std::mem::replace(pictures, younger).into_values() {
            self.forget(picture);
        }
    }

    /// An engine is gone, and its cache with it.
    pub fn forget_engine(&mut self, engine: EngineKey) {
        for picture in self.engines.remove(&engine).unwrap_or_default().into_values() {
            self.forget(picture);
        }
    }

    /// Engines have dropped all pictures of a file.
    pub fn forget_source(&mut self, source: CatalogId) {
        for (engine, turn) in self.files.remove(&source).unwrap_or_default().into_values() {
            if let Some(pictures) = self.engines.get_mut(&engine) {
                pictures.remove(&turn);
            }
        }
    }

    /// Of a picture that its engine has no more.
    fn forget(&mut self, (source, key): (CatalogId, PictureKey)) {
        if let Some(places) = self.files.get_mut(&source) {
            places.remove(&key);
            if places.is_empty() {
                self.files.remove(&source);
            }
        }
    }
}

/// None where it takes the pictures themselves to tell which one is meant.
fn pts_of(target: Target) -> Option<i64> {
    match target {
        Target::AtOrAfter(pts) => Some(pts),
        Target::PlayedAt(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: (CatalogId, StreamIndex) = (CatalogId(1), StreamIndex(0));
    const ONE: EngineKey = EngineKey(1);
    const OTHER: EngineKey = EngineKey(2);

    fn targets(pts: std::ops::Range<i64>) -> impl Iterator<Item = Target> + Clone {
        pts.map(Target::AtOrAfter)
    }

    #[test]
    fn run_is_left_to_the_engine_that_has_all_of_it() {
        let mut kept = KeptPictures::default();
        kept.delivered(ONE, STREAM, targets(0..4), true);
        kept.delivered(OTHER, STREAM, targets(4..8), true);
        assert_eq!(kept.engine_with(STREAM, targets(1..3)), Some(ONE));
        assert_eq!(kept.engine_with(STREAM, targets(4..8)), Some(OTHER));
        assert_eq!(kept.engine_with(STREAM, targets(3..5)), None);
        assert_eq!(kept.engine_with(STREAM, targets(7..9)), None);
        assert_eq!(kept.engine_with((CatalogId(2), StreamIndex(0)), targets(1..3)), None);
        assert_eq!(kept.engine_with(STREAM, [Target::PlayedAt(0.0)].into_iter()), None);
        assert_eq!(kept.engine_with(STREAM, targets(0..0)), None);
    }

    #[test]
    fn last_delivery_counts() {
        let mut kept = KeptPictures::default();
        kept.delivered(ONE, STREAM, targets(0..4), true);
        kept.delivered(OTHER, STREAM, targets(2..4), true);
        assert_eq!(kept.engine_with(STREAM, targets(2..4)), Some(OTHER));
        kept.forget_engine(OTHER);
        assert_eq!(kept.engine_with(STREAM, targets(2..4)), None);
        assert_eq!(kept.engine_with(STREAM, targets(0..2)), Some(ONE));
    }

    #[test]
    fn what_was_dropped_takes_what_is_older_with_it() {
        let mut kept = KeptPictures::default();
        for begin in [0, 10, 20] {
            kept.delivered(ONE, STREAM, targets(begin..begin + 10), true);
        }
        kept.delivered(ONE, STREAM, targets(0..10), false);
        kept.delivered(ONE, STREAM, targets(20..30), true);
        assert_eq!(kept.engine_with(STREAM, targets(10..20)), None, "used before what was dropped");
        assert_eq!(kept.engine_with(STREAM, targets(0..10)), Some(ONE), "used after it");
        assert_eq!(kept.engine_with(STREAM, targets(20..30)), Some(ONE), "decoded again");
    }

    #[test]
    fn run_of_which_only_a_part_was_there_says_nothing() {
        let mut kept = KeptPictures::default();
        kept.delivered(ONE, STREAM, targets(0..10), true);
        kept.delivered(ONE, STREAM, targets(10..20), true);
        kept.delivered(ONE, STREAM, targets(15..25), true);
        assert_eq!(kept.engine_with(STREAM, targets(0..25)), Some(ONE));
    }

    #[test]
    fn pictures_of_a_file_that_is_closed_are_gone() {
        let mut kept = KeptPictures::default();
        let other = (CatalogId(2), StreamIndex(0));
        kept.delivered(ONE, STREAM, targets(0..4), true);
        kept.delivered(ONE, other, targets(0..4), true);
        kept.forget_source(STREAM.0);
        assert_eq!(kept.engine_with(STREAM, targets(0..1)), None);
        assert_eq!(kept.engine_with(other, targets(0..4)), Some(ONE));
    }

    #[test]
    fn oldest_pictures_make_room() {
        let mut kept = KeptPictures::default();
        kept.delivered(ONE, STREAM, targets(0..PICTURES_MAX as i64 + 1), true);
        assert_eq!(kept.engine_with(STREAM, targets(0..1)), None);
        assert_eq!(kept.engine_with(STREAM, targets(1..PICTURES_MAX as i64 + 1)), Some(ONE));
        kept.forget_engine(ONE);
        assert!(kept.files.is_empty() && kept.engines.is_empty());
    }
}
