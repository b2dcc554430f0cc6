//! [`Job`]: a piece of work for an engine, as it waits in the queue and runs.

use reeld_protocol::Transforms;
use reeld_protocol::ids::StreamIndex;

use super::blame::Blame;
use super::engines::EngineKey;
use super::plan::compare_targets;
use super::queue::{Waiter, Work};
use crate::link::{
    CatalogId, LOOKS_PER_MESSAGE_MAX, LookIndex, Looks, Run, RunStart, WANTED_PER_MESSAGE_MAX, WantedPicture,
};

/// What a probe or a scan costs, in pixels: about a frame of full HD.
const HEADER_COST_PIXELS: u64 = 1920 * 1080;

/// Whose files and pictures these are: nothing is shared between two of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct User {
    /// User id as the kernel tells it.
    pub uid: u32,
    /// Set where the uid is one that the kernel could not map: then only the same connection is the same user.
    pub connection: Option<u64>,
}

/// A piece of work for an engine.
#[derive(Clone, Debug)]
pub struct Job {
    /// For whom.
    pub user: User,
    /// On which file.
    pub source: CatalogId,
    /// The engine that has begun it and can go on cheapest.
    pub pinned: Option<EngineKey>,
    /// Times that an engine ended it without having done anything.
    pub failure_count: u8,
    /// What engines suffered over it. For a run, its requests know that.
    pub blame: Blame,
    /// What.
    pub task: Task,
}

/// What to do with the file.
#[derive(Clone, Debug)]
pub enum Task {
    /// Read the header; who waits is known to the catalog.
    Probe {
        /// The client that came first.
        waiter: Waiter,
    },
    /// Index a stream; who waits is known to the catalog.
    Scan {
        /// The stream.
        stream: StreamIndex,
        /// The client that came first.
        waiter: Waiter,
    },
    /// Decode pictures.
    Decode(Decode),
}

/// A run and everyone who waits for something out of it.
#[derive(Clone, Debug)]
pub struct Decode {
    /// The stream.
    pub stream: StreamIndex,
    /// Where decoding may begin.
    pub start: RunStart,
    /// In the order of their targets; none in a run that decodes ahead, as long as nobody joins it.
    pub pictures: Vec<(WantedPicture, Waiter)>,
    /// What they name by position; at most [`LOOKS_PER_MESSAGE_MAX`].
    pub looks: Vec<Transforms>,
    /// Pixels of one picture.
    pub frame_pixels: u64,
    /// Pictures that have to be decoded, about.
    pub decode_count: u64,
    /// Codec threads, a hint.
    pub thread_count: u16,
}

/// What makes two runs the same run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RunKey {
    source: CatalogId,
    stream: StreamIndex,
    keyframe_pts: i64,
}

impl Job {
    /// The message for the engine.
    pub fn run(&self, decode: &Decode, thread_count: u16) -> Run {
        Run {
            source: self.source,
            stream: decode.stream,
            start: decode.start,
            wanted: decode.pictures.iter().map(|(picture, _)| *picture).collect(),
            looks: decode.looks(),
            thread_count,
        }
    }

    /// A number that spreads runs over engines: equal for what profits from the same warm decoder.
    pub fn affinity(&self) -> u64 {
        let position = match &self.task {
            Task::Decode(Decode { start: RunStart::Keyframe(pts), .. }) => *pts as u64,
            Task::Decode(Decode { start: RunStart::Demuxer, .. })
            | Task::Probe { .. }
            | Task::Scan { .. } => 0,
        };
        mix(mix(self.source.0) ^ position)
    }

    /// True for a run that nobody waits for.
    pub fn is_ahead(&self) -> bool {
        match &self.task {
            Task::Decode(decode) => decode.pictures.is_empty(),
            Task::Probe { .. } | Task::Scan { .. } => false,
        }
    }

    /// Pixels that are decoded for it, about.
    pub fn cost_pixels(&self) -> u64 {
        match &self.task {
            Task::Probe { .. } | Task::Scan { .. } => HEADER_COST_PIXELS,
            Task::Decode(decode) => decode.frame_pixels.saturating_mul(decode.decode_count.max(1)),
        }
    }
}

/// Spreads numbers evenly: the finaliser of splitmix64.
pub fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

impl Decode {
    /// Takes more pictures, keeping the order of targets. False, and nothing taken, if they are too many.
    pub fn extend(&mut self, more: &Decode) -> bool {
        if self.pictures.len() + more.pictures.len() > WANTED_PER_MESSAGE_MAX {
            return false;
        }
        let mut looks = Vec::new();
        let (Some(mut pictures), Some(others)) = (self.renamed(&mut looks), more.renamed(&mut looks)) else {
            return false;
        };
        pictures.extend(others);
        pictures.sort_by(|(one, _), (other, _)| compare_targets(one.target, other.target));
        (self.pictures, self.looks) = (pictures, looks);
        true
    }

    /// The looks as an engine is told them.
    pub fn looks(&self) -> Looks {
        self.looks.iter().map(|transforms| transforms.as_slice().to_vec()).collect()
    }

    /// The pictures, naming their looks by position in `looks`, which takes up those that it does not have. None
    /// where they are too many.
    fn renamed(&self, looks: &mut Vec<Transforms>) -> Option<Vec<(WantedPicture, Waiter)>> {
        let mut names = vec![None; self.looks.len()];
        let mut pictures = self.pictures.clone();
        for (picture, _) in &mut pictures {
            let index = usize::from(picture.destination.look.0);
            let name = match *names.get(index)? {
                Some(name) => name,
                None => name_in(looks, self.looks.get(index)?)?,
            };
            names[index] = Some(name);
            picture.destination.look = name;
        }
        Some(pictures)
    }
}

/// The position of a look in a list, at whose end it is put if need be. None where the list is full.
fn name_in(looks: &mut Vec<Transforms>, look: &Transforms) -> Option<LookIndex> {
    let position = looks.iter().position(|other| other == look).unwrap_or(looks.len());
    if position == LOOKS_PER_MESSAGE_MAX {
        return None;
    }
    if position == looks.len() {
        looks.push(look.clone());
    }
    u8::try_from(position).ok().map(LookIndex)
}

impl Work for Job {
    type Key = RunKey;

    fn join_key(&self) -> Option<RunKey> {
        match &self.task {
            Task::Decode(Decode { stream, start: RunStart::Keyframe(pts), .. }) => {
                Some(RunKey { source: self.source, stream: *stream, keyframe_pts: *pts })
            }
            // Without an index two runs may lie hours apart, and a header is read once anyway.
            Task::Decode(Decode { start: RunStart::Demuxer, .. })
            | Task::Probe { .. }
            | Task::Scan { .. } => None,
        }
    }

    fn join(&mut self, other: Job) -> Option<Job> {
        let (Task::Decode(ours), Task::Decode(theirs)) = (&mut self.task, &other.task) else {
            return Some(other);
        };
        if !ours.extend(theirs) {
            return Some(other);
        }
        ours.decode_count = ours.decode_count.max(theirs.decode_count);
        ours.thread_count = ours.thread_count.max(theirs.thread_count);
        self.pinned = self.pinned.or(other.pinned);
        None
    }

    fn waiters(&self) -> Vec<Waiter> {
        match &self.task {
            Task::Probe { waiter } | Task::Scan { waiter, .. } => vec![*waiter],
            Task::Decode(decode) => decode.pictures.iter().map(|(_, waiter)| *waiter).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use reeld_protocol::Transform;
    use reeld_protocol::message::Dtype;

    use super::*;
    use crate::link::{ArenaKey, Destination, Target, WantedId};

    const WAITER: Waiter = Waiter { client: 1, priority: 0, deadline_millis: None };

    fn crop(left: u32) -> Transforms {
        Transforms::new([Transform::Crop { top: 0, left, height: 1, width: 1 }]).unwrap()
    }

    /// A run with a picture for each of these looks.
    fn decode(looks: impl Iterator<Item = u32>) -> Decode {
        let looks: Vec<Transforms> = looks.map(crop).collect();
        let picture = |position: usize| {
            let destination = Destination {
                arena: ArenaKey(0),
                pixels_offset: 0,
                pts_offset: 0,
                duration_offset: 0,
                height: 1,
                width: 1,
                dtype: Dtype::Uint8,
                look: LookIndex(position as u8),
            };
            (WantedPicture { id: WantedId(0), target: Target::AtOrAfter(0), destination }, WAITER)
        };
        Decode {
            stream: StreamIndex(0),
            start: RunStart::Keyframe(0),
            pictures: (0..looks.len()).map(picture).collect(),
            looks,
            frame_pixels: 1,
            decode_count: 1,
            thread_count: 1,
        }
    }

    /// The look of each picture, as the engine finds it.
    fn found(decode: &Decode) -> Vec<Transforms> {
        let look = |picture: &WantedPicture| decode.looks[usize::from(picture.destination.look.0)].clone();
        decode.pictures.iter().map(|(picture, _)| look(picture)).collect()
    }

    #[test]
    fn pictures_of_joined_runs_keep_their_looks() {
        let mut ours = decode([1, 2].into_iter());
        assert!(ours.extend(&decode([2, 3, 1, 4].into_iter())));
        assert_eq!(found(&ours), [1, 2, 2, 3, 1, 4].map(crop));
        assert_eq!(ours.looks, [1, 2, 3, 4].map(crop));
    }

    #[test]
    fn looks_that_no_picture_has_any_more_make_room() {
        let mut ours = decode(0..LOOKS_PER_MESSAGE_MAX as u32);
        let more = decode([100].into_iter());
        let before = found(&ours);
        assert!(!ours.extend(&more));
        assert_eq!(found(&ours), before);
        ours.pictures.remove(0);
        assert!(ours.extend(&more));
        assert_eq!(found(&ours), [&before[1..], &[crop(100)]].concat());
    }
}
