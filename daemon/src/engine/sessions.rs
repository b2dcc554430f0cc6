//! The sessions that are kept warm: a bounded set, from which a run takes the nearest one.
//!
//! What does not live here: opening and moving sessions; see `session`.

use reeld_protocol::ids::StreamIndex;

use super::device::Device;
use super::session::Session;
use crate::link::{CatalogId, RunStart, Target};

/// Sessions of one stream, those apart that runs under way come back for. Two let a random reader not disturb
/// a sequential one; each costs 6 MB at 720p.
const SESSIONS_PER_STREAM_MAX: usize = 2;

/// For how many later sessions a run's own is kept for it. A run comes back within a few turns or was cancelled.
const AWAITED_TURNS_MAX: u64 = 64;

/// The stream that a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionKey {
    /// The file.
    pub source: CatalogId,
    /// Its stream.
    pub stream: StreamIndex,
}

/// Warm sessions. One that is in use is not among them.
pub struct Sessions<D: Device> {
    /// The least recently used first.
    kept: Vec<Kept<D>>,
    count_max: usize,
    turn: u64,
}

struct Kept<D: Device> {
    key: SessionKey,
    session: Session<D>,
    /// Its run has only yielded and will come back for what is left, unless that takes longer than this turn.
    awaited_until: Option<u64>,
}

impl<D: Device> Sessions<D> {
    /// Keeps at most `count_max`, at least one.
    pub fn new(count_max: usize) -> Self {
        Sessions { kept: Vec::new(), count_max: count_max.max(1), turn: 0 }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.kept.len()
    }

    /// Takes the session from which the way to `target` is shortest; else one of the stream to seek with, if
    /// no more may be opened. None means: open one.
    pub fn take(&mut self, key: SessionKey, start: RunStart, target: Target) -> Option<Session<D>> {
        let nearest =
            self.positions(key).filter(|&position| self.kept[position].session.is_before(start, target));
        let nearest = nearest.max_by_key(|&position| self.kept[position].session.last_pts());
        let position = nearest.or_else(|| self.position_to_seek_with(key))?;
        Some(self.kept.remove(position).session)
    }

    /// Whether a new run could go on with a session that was left behind, or could have if it had not been cut. None for
    /// a run that only comes back for what is left.
    pub fn would_go_on(&self, key: SessionKey, start: RunStart, target: Target) -> Option<bool> {
        let mut would_go_on = false;
        for position in self.positions(key) {
            if self.kept[position].session.was_before(start, target) {
                if self.is_awaited(position) {
                    return None;
                }
                would_go_on = true;
            }
        }
        Some(would_go_on)
    }

    /// Keeps a session after its run. `is_awaited` says that the run is not finished.
    pub fn keep(&mut self, key: SessionKey, session: Session<D>, is_awaited: bool) {
        self.turn += 1;
        if self.kept.len() >= self.count_max {
            let position = (0..self.kept.len()).find(|&position| !self.is_awaited(position)).unwrap_or(0);
            self.kept.remove(position);
        }
        let awaited_until = is_awaited.then_some(self.turn + AWAITED_TURNS_MAX);
        self.kept.push(Kept { key, session, awaited_until });
    }

    /// Closes the sessions of a source.
    pub fn drop_source(&mut self, source: CatalogId) {
        self.kept.retain(|kept| kept.key.source != source);
    }

    /// Closes all.
    pub fn clear(&mut self) {
        self.kept.clear();
    }

    fn positions(&self, key: SessionKey) -> impl Iterator<Item = usize> {
        self.kept.iter().enumerate().filter(move |(_, kept)| kept.key == key).map(|(position, _)| position)
    }

    fn is_awaited(&self, position: usize) -> bool {
        self.kept[position].awaited_until.is_some_and(|turn| turn >= self.turn)
    }

    /// A session that no run comes back for. Never one that a run does: two runs that took it from each other
    /// in turn would decode for ever and arrive nowhere.
    fn position_to_seek_with(&self, key: SessionKey) -> Option<usize> {
        let is_spare = |position: &usize| !self.is_awaited(*position);
        let is_of_no_other_use = |position: &usize| self.kept[*position].session.is_cut();
        if let Some(position) = self.positions(key).filter(is_spare).find(is_of_no_other_use) {
            return Some(position);
        }
        let mut spare = self.positions(key).filter(is_spare);
        let first = spare.next()?;
        let spare_count = 1 + spare.count();
        (spare_count >= SESSIONS_PER_STREAM_MAX).then_some(first)
    }
}
