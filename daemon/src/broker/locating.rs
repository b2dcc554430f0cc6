//! Finding the frames of a request: pure work on an index, and reading of lists that came in memory. Small
//! requests are done on the loop's thread; large ones, and all that brought a descriptor, by a helper.
//!
//! What becomes of the request is the matter of `frames`.

use std::os::fd::OwnedFd;

use reeld_protocol::error::WireError;
use reeld_protocol::message::{Dtype, MemoryRange, Wanted};
use reeld_protocol::{SealedMemfd, Transforms};

use super::client::OpenedSource;
use super::plan::{FRAMES_PER_REQUEST_MAX, PlanError, Selection};
use super::reply;
use super::requests::PlannedPart;

/// Frames that are found on the loop's thread, which takes some hundred microseconds.
const SMALL_COUNT_MAX: u64 = 4096;

/// What a request wants of one source, as it came.
#[derive(Clone, Debug)]
pub struct Sought {
    /// Where.
    pub source: OpenedSource,
    /// What.
    pub wanted: Wanted,
    /// Type of the values.
    pub dtype: Dtype,
    /// What is done to the upright pictures.
    pub transforms: Transforms,
}

/// True if so few frames are wanted that finding them takes no time to speak of.
pub fn is_small(parts: &[Sought]) -> bool {
    let count = |part: &Sought| match &part.wanted {
        Wanted::Indices(indices) => indices.len() as u64,
        &Wanted::IndexRange { start, stop, step } => stop.saturating_sub(start) / step.max(1),
        Wanted::PlayedAt(_) => 1,
        Wanted::PlayedAtEach(times) => times.len() as u64,
        Wanted::PlayedInRange { .. } => part.source.timeline.num_frames().unwrap_or(u64::MAX),
        // Files are looked at by helpers alone; without one, there is nothing to find.
        Wanted::IndicesInMemory(_) | Wanted::PlayedAtEachInMemory(_) => 0,
    };
    parts.iter().map(count).fold(0, u64::saturating_add) <= SMALL_COUNT_MAX
}

/// Finds the frames of all parts. Consumes the descriptors that came with the request.
pub fn locate(parts: &[Sought], fds: Vec<OwnedFd>) -> Result<Vec<PlannedPart>, WireError> {
    let memory = accept_memory(fds)?;
    let mut planned = Vec::with_capacity(parts.len());
    let mut frame_count = 0;
    for Sought { source, wanted, dtype, transforms } in parts {
        let selection = select(wanted, memory.as_ref())?;
        let located = source.timeline.locate(source.stream, &selection);
        let located = located.map_err(|error| reply::from_plan(&error))?;
        frame_count += located.len() as u64;
        if frame_count > FRAMES_PER_REQUEST_MAX {
            return Err(reply::from_plan(&PlanError::TooManyFrames { count: frame_count }));
        }
        let &OpenedSource { catalog, stream, height, width, thread_count, .. } = source;
        let size = transforms.size_after((height, width));
        let size = size.map_err(|error| reply::invalid(error.to_string()))?;
        planned.push(PlannedPart {
            source: catalog,
            stream,
            located,
            picture_pixels: u64::from(height) * u64::from(width),
            transforms: transforms.clone(),
            height: size.0,
            width: size.1,
            dtype: *dtype,
            thread_count,
        });
    }
    Ok(planned)
}

fn accept_memory(mut fds: Vec<OwnedFd>) -> Result<Option<SealedMemfd>, WireError> {
    let Some(fd) = fds.pop() else { return Ok(None) };
    if !fds.is_empty() {
        return Err(reply::invalid("at most one memory file may come with GetFrames"));
    }
    let memory = SealedMemfd::from_peer(fd);
    memory.map(Some).map_err(|error| reply::invalid(format!("the memory file with the request: {error}")))
}

/// The selection that a part means, with what lies in memory read.
fn select(wanted: &Wanted, memory: Option<&SealedMemfd>) -> Result<Selection, WireError> {
    Ok(match wanted {
        Wanted::Indices(indices) => Selection::Indices(indices.clone()),
        &Wanted::IndexRange { start, stop, step } => Selection::IndexRange { start, stop, step },
        &Wanted::PlayedAt(seconds) => Selection::PlayedAt(seconds),
        Wanted::PlayedAtEach(times) => Selection::PlayedAtEach(times.clone()),
        &Wanted::PlayedInRange { start, stop } => Selection::PlayedInRange { start, stop },
        &Wanted::IndicesInMemory(range) => {
            let words = read_words(memory, range)?;
            Selection::Indices(words.into_iter().map(i64::from_le_bytes).collect())
        }
        &Wanted::PlayedAtEachInMemory(range) => {
            let words = read_words(memory, range)?;
            Selection::PlayedAtEach(words.into_iter().map(f64::from_le_bytes).collect())
        }
    })
}

fn read_words(memory: Option<&SealedMemfd>, range: MemoryRange) -> Result<Vec<[u8; 8]>, WireError> {
    let memory = memory.ok_or_else(|| reply::invalid("the request names memory, but none came with it"))?;
    if range.count > FRAMES_PER_REQUEST_MAX {
        return Err(reply::from_plan(&PlanError::TooManyFrames { count: range.count }));
    }
    memory.read_words(range.offset_bytes, range.count).map_err(|error| reply::invalid(error.to_string()))
}
