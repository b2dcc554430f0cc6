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

/// Sessions, however small: each has a demuxer with the tables of its file.
const COUNT_MAX: usize = 8;

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
    bytes_max: u64,
    turn: u64,
}

struct Kept<D: Device> {
    key: SessionKey,
    session: Session<D>,
    /// Its run has only yielded and will come back for what is left, unless that takes longer than this turn.
    awaited_until: Option<u64>,
}

impl<D: Device> Sessions<D> {
    /// Keeps as many as take about `bytes_max`, but always the one that was used last.
    pub fn new(bytes_max: u64) -> Self {
        Sessions { kept: Vec::new(), bytes_max, turn: 0 }
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
        let awaited_until = is_awaited.then_some(self.turn + AWAITED_TURNS_MAX);
        self.kept.push(Kept { key, session, awaited_until });
        while let Some(position) = self.position_to_close() {
            self.kept.remove(position);
        }
    }

    fn position_to_close(&self) -> Option<usize> {
        let weigh = |position: usize| {
            let bytes = self.kept[position].session.bytes();
            Weighed { bytes, is_awaited: self.is_awaited(position) }
        };
        surplus(&(0..self.kept.len()).map(weigh).collect::<Vec<_>>(), self.bytes_max)
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

/// What tells whether a session is kept.
#[derive(Clone, Copy, Debug)]
struct Weighed {
    bytes: u64,
    is_awaited: bool,
}

/// Which of these is to be closed: the first that no run comes back for, where they are too many or too large. Never the
/// last one. One that a run comes back for only where they are too many: how many runs are under way is bounded, and
/// large ones that pushed each other out would begin again at every turn.
fn surplus(kept: &[Weighed], bytes_max: u64) -> Option<usize> {
    let (_, others) = kept.split_last()?;
    let is_spare = |session: &Weighed| !session.is_awaited;
    let bytes = kept.iter().fold(0, |sum: u64, session| sum.saturating_add(session.bytes));
    if kept.len() > COUNT_MAX {
        return Some(others.iter().position(is_spare).unwrap_or(0));
    }
    if bytes > bytes_max { others.iter().position(is_spare) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Closes what is too much, and returns what is left, by its number.
    fn left(kept: &[(u64, bool)], bytes_max: u64) -> Vec<usize> {
        let mut kept: Vec<(usize, Weighed)> =
            kept.iter().map(|&(bytes, is_awaited)| Weighed { bytes, is_awaited }).enumerate().collect();
        loop {
            let weighed: Vec<Weighed> = kept.iter().map(|(_, session)| *session).collect();
            let Some(position) = surplus(&weighed, bytes_max) else { break };
            kept.remove(position);
        }
        kept.into_iter().map(|(number, _)| number).collect()
    }

    #[test]
    fn oldest_ones_go_until_the_rest_fits() {
        assert_eq!(left(&[(5, false), (5, false), (5, false)], 15), [0, 1, 2]);
        assert_eq!(left(&[(5, false), (5, false), (5, false)], 14), [1, 2]);
        assert_eq!(left(&[(1, false), (5, false), (20, false)], 8), [2]);
        assert_eq!(left(&[], 0), []);
    }

    #[test]
    fn those_that_runs_come_back_for_stay_however_large() {
        assert_eq!(left(&[(50, true), (5, false), (50, true), (50, true)], 10), [0, 2, 3]);
        assert_eq!(left(&[(50, true), (1, false)], 10), [0, 1]);
    }

    #[test]
    fn small_ones_are_bounded_in_number() {
        let spare = vec![(0, false); COUNT_MAX + 3];
        assert_eq!(left(&spare, 10), (3..COUNT_MAX + 3).collect::<Vec<_>>());
        let mut awaited = vec![(0, true); COUNT_MAX + 1];
        assert_eq!(left(&awaited, 10)[0], 1);
        awaited[7].1 = false;
        assert!(!left(&awaited, 10).contains(&7));
    }
}
