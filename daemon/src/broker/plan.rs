//! From what a request wants to what has to be decoded. Pure: an index or a header in, runs out.
//!
//! Who decodes a run, and when, is decided by `queue` and `engines`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use reeld_protocol::ids::StreamIndex;
use reeld_protocol::metadata::{ContentMetadata, EffectiveMetadata, Rational};

use crate::link::index::Index;
use crate::link::{RunStart, Target, WANTED_PER_MESSAGE_MAX};

/// The most frames of one request. A million frames of the smallest sizes are still a result of gigabytes.
pub const FRAMES_PER_REQUEST_MAX: u64 = 1 << 20;

/// Why a request cannot be planned.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// Behind the last frame.
    #[error("Invalid frame index={index} for stream_index={stream}; must be less than {num_frames}")]
    IndexTooLarge {
        /// As asked, or counted from the end.
        index: i64,
        /// The stream.
        stream: StreamIndex,
        /// How many frames it has.
        num_frames: u64,
    },
    /// Before the first frame.
    #[error(
        "Invalid frame index={index} for stream_index={stream}; negative indices must have an absolute value \
         less than the number of frames, and the number of frames must be known."
    )]
    IndexTooSmall {
        /// As asked, plus the number of frames.
        index: i64,
        /// The stream.
        stream: StreamIndex,
    },
    /// Before the stream's begin or not before its end.
    #[error("Invalid pts in seconds: {seconds}; the stream plays from {begin} to {end} seconds")]
    Time {
        /// As asked.
        seconds: f64,
        /// The first frame's time.
        begin: f64,
        /// The end, infinite where not known.
        end: f64,
    },
    /// A range that runs backwards, or a step of 0.
    #[error("a range from {start} to {stop} in steps of {step} is not valid")]
    Range {
        /// As asked.
        start: u64,
        /// As asked.
        stop: u64,
        /// As asked.
        step: u64,
    },
    /// More than anyone can want at once.
    #[error(
        "{count} frames are over the limit of {FRAMES_PER_REQUEST_MAX} in one request; ask for fewer at a time"
    )]
    TooManyFrames {
        /// As asked.
        count: u64,
    },
    /// Approximate mode has nothing to calculate with.
    #[error(
        "approximate mode needs the average frame rate, and the file's header does not tell it; open the video \
         with seek_mode=\"exact\""
    )]
    NoFrameRate,
    /// Approximate mode knows no keyframes.
    #[error("approximate mode does not know the keyframes; open the video with seek_mode=\"exact\"")]
    NoIndex,
}

/// What a request wants of one source: [`reeld_protocol::message::Wanted`], with what lay in memory read.
#[derive(Clone, Debug, PartialEq)]
pub enum Selection {
    /// These frames; negative ones count from the end.
    Indices(Vec<i64>),
    /// Every `step`th frame from `start` on, below `stop`.
    IndexRange {
        /// The first.
        start: u64,
        /// Below this.
        stop: u64,
        /// At least 1.
        step: u64,
    },
    /// The frame that covers this time, else the next.
    PlayedAt(f64),
    /// For each time the frame on display.
    PlayedAtEach(Vec<f64>),
    /// All frames on display in this range.
    PlayedInRange {
        /// Seconds.
        start: f64,
        /// Seconds.
        stop: f64,
    },
}

/// Where the frames of a stream are: by index, or by arithmetic on the header.
#[derive(Clone, Debug)]
pub enum Timeline {
    /// A scan has found all frames.
    Exact {
        /// Where they are.
        index: Arc<Index>,
        /// What the index says about the stream as a whole.
        content: ContentMetadata,
    },
    /// A client says where the frames are. Believed for what this client asks by index, and no further: no picture is
    /// kept or shown under a time that it does not have itself.
    Mapped {
        /// Where they are said to be.
        index: Arc<Index>,
        /// What that says about the stream as a whole.
        content: ContentMetadata,
        /// What the header says, which bounds times that are looked for among the pictures themselves.
        header: EffectiveMetadata,
    },
    /// The header is believed.
    Approximate {
        /// What the header says.
        effective: EffectiveMetadata,
        /// Ticks are this fraction of a second.
        time_base: Rational,
    },
}

/// One wanted frame, found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Located {
    /// Which picture.
    pub target: Target,
    /// Where decoding may begin for it.
    pub start: RunStart,
    /// How many pictures come before it from there, itself included; 1 where that is not known.
    pub decode_count: u64,
}

/// One run of a request: the rows of its result that come out of it.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedRun {
    /// Where decoding may begin.
    pub start: RunStart,
    /// Row in the result and picture, in the order of the targets; at most [`WANTED_PER_MESSAGE_MAX`].
    pub rows: Vec<(usize, Target)>,
    /// Pictures that have to be decoded for it, about.
    pub decode_count: u64,
}

impl Timeline {
    /// The timeline of a stream that was scanned.
    pub fn exact(index: Arc<Index>) -> Timeline {
        let content = index.content();
        Timeline::Exact { index, content }
    }

    /// The timeline of a stream whose frames a client has listed.
    pub fn mapped(index: Arc<Index>, header: EffectiveMetadata) -> Timeline {
        let content = index.content();
        Timeline::Mapped { index, content, header }
    }

    /// Frames that are kept for one client alone.
    pub fn private_frame_count(&self) -> u64 {
        match self {
            Timeline::Mapped { index, .. } => index.entries.len() as u64,
            Timeline::Exact { .. } | Timeline::Approximate { .. } => 0,
        }
    }

    /// Finds all frames of a selection, one entry per row of the result.
    pub fn locate(&self, stream: StreamIndex, selection: &Selection) -> Result<Vec<Located>, PlanError> {
        match selection {
            Selection::Indices(indices) => {
                check_count(indices.len() as u64)?;
                indices.iter().map(|&index| self.at_index(self.resolve(stream, index)?)).collect()
            }
            &Selection::IndexRange { start, stop, step } => {
                if step == 0 || start > stop {
                    return Err(PlanError::Range { start, stop, step });
                }
                check_count((stop - start).div_ceil(step))?;
                if let Some(last) = stop.checked_sub(1).filter(|_| start < stop) {
                    self.resolve(stream, i64::try_from(last).unwrap_or(i64::MAX))?;
                }
                (start..stop).step_by(step as usize).map(|index| self.at_index(index)).collect()
            }
            &Selection::PlayedAt(seconds) => Ok(vec![self.played_at(seconds)?]),
            Selection::PlayedAtEach(times) => {
                check_count(times.len() as u64)?;
                let index = |&time| self.on_display(self.check_time(time)?);
                let indices: Result<Vec<u64>, PlanError> = times.iter().map(index).collect();
                let resolved = indices?.into_iter().map(|index| self.resolve(stream, index as i64));
                resolved.map(|index| self.at_index(index?)).collect()
            }
            &Selection::PlayedInRange { start, stop } => {
                let frames = self.in_range(start, stop)?;
                check_count(frames.end.saturating_sub(frames.start))?;
                frames.map(|index| self.at_index(self.resolve(stream, index as i64)?)).collect()
            }
        }
    }

    /// The indices of keyframes from a frame on, ascending, as many as that at most.
    pub fn key_frames(&self, from: u64, count_max: usize) -> Result<Vec<u64>, PlanError> {
        let Timeline::Exact { index, .. } = self else { return Err(PlanError::NoIndex) };
        let first = index.keyframes.partition_point(|&frame| u64::from(frame) < from);
        Ok(index.keyframes[first..].iter().take(count_max).map(|&frame| frame.into()).collect())
    }

    /// Number of frames, where known.
    pub fn num_frames(&self) -> Option<u64> {
        match self {
            Timeline::Exact { content, .. } | Timeline::Mapped { content, .. } => Some(content.num_frames),
            Timeline::Approximate { effective, .. } => effective.num_frames,
        }
    }

    fn begin_and_end(&self) -> (f64, f64) {
        match self {
            Timeline::Exact { content, .. } | Timeline::Mapped { content, .. } => {
                (content.begin_stream_seconds, content.end_stream_seconds)
            }
            Timeline::Approximate { effective, .. } => header_begin_and_end(effective),
        }
    }

    /// Counts negative indices from the end and refuses what is outside.
    fn resolve(&self, stream: StreamIndex, asked: i64) -> Result<u64, PlanError> {
        let num_frames = self.num_frames();
        let from_end = |count: u64| asked.saturating_add(i64::try_from(count).unwrap_or(i64::MAX));
        let index = if asked < 0 { num_frames.map_or(asked, from_end) } else { asked };
        let Ok(frame) = u64::try_from(index) else {
            return Err(PlanError::IndexTooSmall { index, stream });
        };
        match num_frames {
            Some(num_frames) if frame >= num_frames => {
                Err(PlanError::IndexTooLarge { index, stream, num_frames })
            }
            Some(_) | None => Ok(frame),
        }
    }

    fn check_time(&self, seconds: f64) -> Result<f64, PlanError> {
        check_time(seconds, self.begin_and_end())
    }

    fn at_index(&self, frame: u64) -> Result<Located, PlanError> {
        match self {
            Timeline::Exact { index, .. } | Timeline::Mapped { index, .. } => {
                Ok(exact_at(index, frame as usize))
            }
            Timeline::Approximate { effective, time_base } => {
                let fps = effective.average_fps.ok_or(PlanError::NoFrameRate)?;
                let seconds = effective.begin_stream_seconds + frame as f64 / fps;
                Ok(by_demuxer(Target::AtOrAfter(time_base.nearest_ticks(seconds))))
            }
        }
    }

    /// The first frame with begin <= seconds < begin + duration, or begin > seconds, from the keyframe on
    /// where decoding for that time begins. Without an index of ours, the pictures themselves tell.
    fn played_at(&self, seconds: f64) -> Result<Located, PlanError> {
        let index = match self {
            Timeline::Exact { index, .. } => index,
            Timeline::Mapped { header, .. } | Timeline::Approximate { effective: header, .. } => {
                let seconds = check_time(seconds, header_begin_and_end(header))?;
                return Ok(by_demuxer(Target::PlayedAt(seconds)));
            }
        };
        let seconds = self.check_time(seconds)?;
        let time_base = index.time_base;
        let keyframe = keyframe_before(index, time_base.ticks_at(seconds));
        let first = keyframe.map_or(0, |position| index.keyframes[position] as usize);
        let covers = |pts: i64, duration: i64| {
            let begin = time_base.seconds(pts);
            begin > seconds || (begin <= seconds && seconds < time_base.seconds(pts.saturating_add(duration)))
        };
        // Frames well before the time cannot cover it unless they last very long; still each is looked at,
        // because durations are whatever the container says.
        let found = index.entries[first..].iter().position(|entry| covers(entry.pts, entry.duration));
        let last = index.entries.len() - 1;
        Ok(exact_at(index, found.map_or(last, |offset| first + offset)))
    }

    /// The index of the frame on display at a time inside the stream: a frame is shown until the next begins.
    fn on_display(&self, seconds: f64) -> Result<u64, PlanError> {
        match self {
            Timeline::Exact { index, .. } | Timeline::Mapped { index, .. } => {
                Ok(first_ending_after(index, seconds) as u64)
            }
            Timeline::Approximate { effective, .. } => {
                let fps = effective.average_fps.ok_or(PlanError::NoFrameRate)?;
                Ok(((seconds - effective.begin_stream_seconds) * fps).floor().max(0.0) as u64)
            }
        }
    }

    /// The indices of all frames on display in [start, stop).
    fn in_range(&self, start: f64, stop: f64) -> Result<Range<u64>, PlanError> {
        let (begin, end) = self.begin_and_end();
        if start == stop {
            return Ok(0..0);
        }
        if !(start >= begin && start < end) {
            return Err(PlanError::Time { seconds: start, begin, end });
        }
        if !(start < stop && stop <= end) {
            return Err(PlanError::Time { seconds: stop, begin, end });
        }
        let first = self.on_display(start)?;
        let behind = match self {
            Timeline::Exact { index, .. } | Timeline::Mapped { index, .. } => {
                let time_base = index.time_base;
                index.entries.partition_point(|entry| time_base.seconds(entry.pts) < stop) as u64
            }
            Timeline::Approximate { effective, .. } => {
                let fps = effective.average_fps.ok_or(PlanError::NoFrameRate)?;
                ((stop - effective.begin_stream_seconds) * fps).ceil().max(0.0) as u64
            }
        };
        Ok(first..behind.max(first))
    }
}

/// Groups located frames into runs: one per keyframe start, sorted by target.
pub fn plan(located: &[Located]) -> Vec<PlannedRun> {
    let mut groups: BTreeMap<StartKey, Vec<(usize, Located)>> = BTreeMap::new();
    for (row, &located) in located.iter().enumerate() {
        groups.entry(StartKey::of(located.start)).or_default().push((row, located));
    }
    let mut runs = Vec::new();
    for group in groups.values_mut() {
        group.sort_by(|(_, one), (_, other)| compare_targets(one.target, other.target));
        for rows in group.chunks(WANTED_PER_MESSAGE_MAX) {
            runs.push(PlannedRun {
                start: rows[0].1.start,
                rows: rows.iter().map(|(row, located)| (*row, located.target)).collect(),
                decode_count: rows.iter().map(|(_, located)| located.decode_count).max().unwrap_or(1),
            });
        }
    }
    runs
}

/// The order in which pictures come out of a decoder.
pub fn compare_targets(one: Target, other: Target) -> std::cmp::Ordering {
    match (one, other) {
        (Target::AtOrAfter(one), Target::AtOrAfter(other)) => one.cmp(&other),
        (Target::PlayedAt(one), Target::PlayedAt(other)) => one.total_cmp(&other),
        // Never in one run: a time is only handed on where there is no index, and then alone.
        (Target::AtOrAfter(_), Target::PlayedAt(_)) => std::cmp::Ordering::Less,
        (Target::PlayedAt(_), Target::AtOrAfter(_)) => std::cmp::Ordering::Greater,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum StartKey {
    Demuxer,
    Keyframe(i64),
}

impl StartKey {
    fn of(start: RunStart) -> StartKey {
        match start {
            RunStart::Keyframe(pts) => StartKey::Keyframe(pts),
            RunStart::Demuxer => StartKey::Demuxer,
        }
    }
}

fn header_begin_and_end(header: &EffectiveMetadata) -> (f64, f64) {
    (header.begin_stream_seconds, header.end_stream_seconds.unwrap_or(f64::INFINITY))
}

fn check_time(seconds: f64, (begin, end): (f64, f64)) -> Result<f64, PlanError> {
    // Written so that NaN is refused.
    if seconds >= begin && seconds < end { Ok(seconds) } else { Err(PlanError::Time { seconds, begin, end }) }
}

fn check_count(count: u64) -> Result<(), PlanError> {
    if count > FRAMES_PER_REQUEST_MAX { Err(PlanError::TooManyFrames { count }) } else { Ok(()) }
}

fn by_demuxer(target: Target) -> Located {
    Located { target, start: RunStart::Demuxer, decode_count: 1 }
}

/// Position in `keyframes` of the last keyframe that is not shown after `pts`.
fn keyframe_before(index: &Index, pts: i64) -> Option<usize> {
    let behind = index.keyframes.partition_point(|&frame| index.entries[frame as usize].pts <= pts);
    behind.checked_sub(1)
}

fn exact_at(index: &Index, frame: usize) -> Located {
    let pts = index.entries[frame].pts;
    let target = Target::AtOrAfter(pts);
    match keyframe_before(index, pts) {
        // The keyframe that is needed was cut away by an edit list: the demuxer knows where it is.
        None => Located { target, start: RunStart::Demuxer, decode_count: frame as u64 + 1 },
        Some(position) => {
            let keyframe = index.keyframes[position] as usize;
            let start = RunStart::Keyframe(index.entries[keyframe].pts);
            Located { target, start, decode_count: (frame - keyframe) as u64 + 1 }
        }
    }
}

/// The first frame whose successor begins after the time; the last frame has none and is shown for ever.
fn first_ending_after(index: &Index, seconds: f64) -> usize {
    let successors = &index.entries[1.min(index.entries.len())..];
    successors.partition_point(|next| index.time_base.seconds(next.pts) <= seconds)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::link::index::IndexEntry;

    const STREAM: StreamIndex = StreamIndex(0);

    fn index(frames: &[(i64, i64, bool)]) -> Index {
        let entry = |&(pts, duration, is_key): &(i64, i64, bool)| IndexEntry {
            pts,
            duration,
            position: -1,
            is_key,
            is_reference: true,
        };
        Index::new(Rational { numerator: 1, denominator: 10 }, frames.iter().map(entry).collect())
    }

    fn exact(frames: &[(i64, i64, bool)]) -> Timeline {
        Timeline::exact(Arc::new(index(frames)))
    }

    fn approximate(num_frames: Option<u64>) -> Timeline {
        let effective = EffectiveMetadata {
            num_frames,
            average_fps: Some(25.0),
            duration_seconds: Some(2.0),
            begin_stream_seconds: 1.0,
            end_stream_seconds: Some(3.0),
        };
        Timeline::Approximate { effective, time_base: Rational { numerator: 1, denominator: 1000 } }
    }

    fn targets(timeline: &Timeline, selection: &Selection) -> Vec<Target> {
        let located = timeline.locate(STREAM, selection).unwrap();
        located.into_iter().map(|located| located.target).collect()
    }

    fn mapped(frames: &[(i64, i64, bool)]) -> Timeline {
        let header = EffectiveMetadata {
            num_frames: Some(100),
            average_fps: Some(10.0),
            duration_seconds: Some(10.0),
            begin_stream_seconds: 0.0,
            end_stream_seconds: Some(10.0),
        };
        Timeline::mapped(Arc::new(index(frames)), header)
    }

    #[test]
    fn mapped_frames_are_found_by_the_mapping_within_its_own_bounds() {
        let timeline = mapped(&[(5, 1, true), (7, 1, false)]);
        assert_eq!(targets(&timeline, &Selection::Indices(vec![-1, 0])), [7, 5].map(Target::AtOrAfter));
        assert_eq!(targets(&timeline, &Selection::PlayedAtEach(vec![0.65])), [Target::AtOrAfter(5)]);
        assert!(timeline.locate(STREAM, &Selection::Indices(vec![2])).is_err());
        assert!(timeline.locate(STREAM, &Selection::PlayedAtEach(vec![0.9])).is_err());
        assert_eq!(timeline.private_frame_count(), 2);
    }

    #[test]
    fn time_in_a_mapped_stream_is_left_to_the_pictures_within_the_headers_bounds() {
        let timeline = mapped(&[(5, 1, true), (7, 1, false)]);
        let located = timeline.locate(STREAM, &Selection::PlayedAt(9.0)).unwrap();
        assert_eq!(located, [by_demuxer(Target::PlayedAt(9.0))]);
        for outside in [-0.1, 10.0, f64::NAN] {
            assert!(timeline.locate(STREAM, &Selection::PlayedAt(outside)).is_err());
        }
    }

    #[test]
    fn mapping_without_keyframes_leaves_the_way_to_the_demuxer() {
        let located = mapped(&[(5, 1, false)]).locate(STREAM, &Selection::Indices(vec![0])).unwrap();
        assert_eq!((located[0].start, located[0].target), (RunStart::Demuxer, Target::AtOrAfter(5)));
    }

    #[test]
    fn frame_past_end_is_index_error() {
        let timeline = exact(&[(0, 1, true), (1, 1, false)]);
        let error = timeline.locate(STREAM, &Selection::Indices(vec![0, 2])).unwrap_err();
        assert_eq!(error.to_string(), "Invalid frame index=2 for stream_index=0; must be less than 2");
    }

    #[test]
    fn negative_index_counts_from_the_end() {
        let timeline = exact(&[(0, 1, true), (1, 1, false)]);
        assert_eq!(targets(&timeline, &Selection::Indices(vec![-1, -2])), [1, 0].map(Target::AtOrAfter));
        let error = timeline.locate(STREAM, &Selection::Indices(vec![-3])).unwrap_err();
        assert_eq!(error, PlanError::IndexTooSmall { index: -1, stream: STREAM });
        assert!(timeline.locate(STREAM, &Selection::Indices(vec![i64::MIN])).is_err());
    }

    #[test]
    fn nan_is_outside_every_stream() {
        let timeline = exact(&[(0, 1, true)]);
        assert!(timeline.locate(STREAM, &Selection::PlayedAt(f64::NAN)).is_err());
        assert!(timeline.locate(STREAM, &Selection::PlayedAtEach(vec![f64::NAN])).is_err());
        assert!(timeline.locate(STREAM, &Selection::PlayedInRange { start: f64::NAN, stop: 0.1 }).is_err());
        assert!(timeline.locate(STREAM, &Selection::PlayedInRange { start: 0.0, stop: f64::NAN }).is_err());
    }

    #[test]
    fn frame_before_the_first_keyframe_is_left_to_the_demuxer() {
        let timeline = exact(&[(0, 1, false), (1, 1, true)]);
        let located = timeline.locate(STREAM, &Selection::Indices(vec![0, 1])).unwrap();
        assert_eq!(located[0].start, RunStart::Demuxer);
        assert_eq!(located[1].start, RunStart::Keyframe(1));
    }

    #[test]
    fn gap_shows_the_frame_before_it_by_display_and_the_one_after_it_by_cover() {
        let timeline = exact(&[(0, 1, true), (10, 1, false)]);
        assert_eq!(targets(&timeline, &Selection::PlayedAtEach(vec![0.5])), [Target::AtOrAfter(0)]);
        assert_eq!(targets(&timeline, &Selection::PlayedAt(0.5)), [Target::AtOrAfter(10)]);
    }

    #[test]
    fn time_just_before_a_keyframe_is_covered_by_the_frame_before_it() {
        let timeline = exact(&[(0, 10, true), (10, 10, true)]);
        let before = 1f64.next_down();
        assert_eq!(targets(&timeline, &Selection::PlayedAt(before)), [Target::AtOrAfter(0)]);
        assert_eq!(targets(&timeline, &Selection::PlayedAt(1.0)), [Target::AtOrAfter(10)]);
    }

    #[test]
    fn empty_ranges_want_nothing() {
        let timeline = exact(&[(0, 1, true)]);
        assert!(targets(&timeline, &Selection::IndexRange { start: 1, stop: 1, step: 1 }).is_empty());
        assert!(targets(&timeline, &Selection::PlayedInRange { start: 0.05, stop: 0.05 }).is_empty());
        assert!(targets(&timeline, &Selection::Indices(vec![])).is_empty());
    }

    #[test]
    fn billion_frames_are_refused_before_they_are_listed() {
        let timeline = approximate(None);
        let selection = Selection::IndexRange { start: 0, stop: 1_000_000_000, step: 1 };
        let error = timeline.locate(STREAM, &selection).unwrap_err();
        assert_eq!(error, PlanError::TooManyFrames { count: 1_000_000_000 });
    }

    #[test]
    fn approximate_index_is_arithmetic() {
        let timeline = approximate(Some(50));
        assert_eq!(targets(&timeline, &Selection::Indices(vec![0, 49])), [1000, 2960].map(Target::AtOrAfter));
        assert_eq!(targets(&timeline, &Selection::PlayedAt(1.5)), [Target::PlayedAt(1.5)]);
        assert_eq!(targets(&timeline, &Selection::PlayedAtEach(vec![1.05])), [Target::AtOrAfter(1040)]);
        let range = Selection::PlayedInRange { start: 1.0, stop: 1.1 };
        assert_eq!(targets(&timeline, &range), [1000, 1040, 1080].map(Target::AtOrAfter));
    }

    #[test]
    fn long_run_is_cut_at_the_message_limit() {
        let frames: Vec<(i64, i64, bool)> = (0..2000).map(|pts| (pts, 1, pts == 0)).collect();
        let located = exact(&frames).locate(STREAM, &Selection::IndexRange { start: 0, stop: 2000, step: 1 });
        let lengths: Vec<usize> = plan(&located.unwrap()).iter().map(|run| run.rows.len()).collect();
        assert_eq!(lengths, [800, 800, 400]);
    }

    /// Strictly growing pts with gaps, some keyframes.
    fn streams() -> impl Strategy<Value = Vec<(i64, i64, bool)>> {
        prop::collection::vec((1..5i64, 0..5i64, prop::bool::weighted(0.3)), 1..40).prop_map(|steps| {
            let mut pts = 0;
            let advance = |(step, duration, is_key): (i64, i64, bool)| {
                pts += step;
                (pts, duration, is_key)
            };
            steps.into_iter().map(advance).collect()
        })
    }

    proptest! {
        #[test]
        fn plan_covers_each_row_once_and_in_order(
            frames in streams(),
            picks in prop::collection::vec(0..1000usize, 0..60),
        ) {
            let indices: Vec<i64> = picks.iter().map(|pick| (pick % frames.len()) as i64).collect();
            let located = exact(&frames).locate(STREAM, &Selection::Indices(indices.clone())).unwrap();
            let runs = plan(&located);
            let mut rows: Vec<usize> = runs.iter().flat_map(|run| run.rows.iter().map(|row| row.0)).collect();
            rows.sort_unstable();
            prop_assert_eq!(rows, (0..indices.len()).collect::<Vec<_>>());
            for run in &runs {
                prop_assert!(run.rows.windows(2).all(|pair| compare_targets(pair[0].1, pair[1].1).is_le()));
            }
        }

        #[test]
        fn start_is_the_last_keyframe_before_by_brute_force(frames in streams(), pick in 0..1000usize) {
            let frame = pick % frames.len();
            let located = exact(&frames).locate(STREAM, &Selection::Indices(vec![frame as i64])).unwrap();
            let slow = frames[..=frame].iter().rev().find(|(_, _, is_key)| *is_key);
            let expected = slow.map_or(RunStart::Demuxer, |(pts, _, _)| RunStart::Keyframe(*pts));
            prop_assert_eq!(located[0].start, expected);
            prop_assert_eq!(located[0].target, Target::AtOrAfter(frames[frame].0));
        }

        #[test]
        fn time_on_display_is_found_by_brute_force(frames in streams(), at in 0.0..1.0f64) {
            let timeline = exact(&frames);
            let (begin, end) = timeline.begin_and_end();
            let seconds = begin + (end - begin) * at;
            prop_assume!(seconds < end);
            let shown = frames.iter().rposition(|(pts, _, _)| *pts as f64 / 10.0 <= seconds).unwrap();
            let found = targets(&timeline, &Selection::PlayedAtEach(vec![seconds]));
            prop_assert_eq!(found, vec![Target::AtOrAfter(frames[shown].0)]);
        }

        #[test]
        fn range_on_display_is_found_by_brute_force(frames in streams(), ends in (0.0..1.0f64, 0.0..=1.0f64)) {
            let timeline = exact(&frames);
            let (begin, end) = timeline.begin_and_end();
            let start = begin + (end - begin) * ends.0.min(ends.1);
            let stop = begin + (end - begin) * ends.0.max(ends.1);
            prop_assume!(start < stop && stop <= end);
            let shown_until = |i: usize| frames.get(i + 1).map_or(f64::INFINITY, |next| next.0 as f64 / 10.0);
            let slow: Vec<Target> = (0..frames.len())
                .filter(|&i| (frames[i].0 as f64 / 10.0) < stop && shown_until(i) > start)
                .map(|i| Target::AtOrAfter(frames[i].0))
                .collect();
            prop_assert_eq!(targets(&timeline, &Selection::PlayedInRange { start, stop }), slow);
        }
    }
}
