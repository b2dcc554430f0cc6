//! What is checked of a hint before it is sent, and how much of it is: a hint brings no answer, and so no error.
//!
//! What the daemon makes of it is not known here.

use reeld_protocol::message::{PREFETCH_FRAMES_MAX, Wanted};

use crate::error::Error;
use crate::video_metadata::VideoMetadata;

/// Refuses frames that cannot be: as the daemon would where it is asked for them.
pub(crate) fn check(wanted: &Wanted, metadata: &VideoMetadata) -> Result<(), Error> {
    match wanted {
        Wanted::Indices(indices) => indices.iter().try_for_each(|&index| check_index(index, metadata)),
        &Wanted::IndexRange { start, stop, step } => {
            if step == 0 || start > stop {
                let message = format!("a range from {start} to {stop} in steps of {step} is not valid");
                return Err(Error::InvalidRequest(message));
            }
            let last = stop.checked_sub(1).filter(|_| start < stop);
            last.map_or(Ok(()), |last| check_index(i64::try_from(last).unwrap_or(i64::MAX), metadata))
        }
        Wanted::PlayedAt(seconds) => check_time(*seconds, metadata),
        Wanted::PlayedAtEach(times) => times.iter().try_for_each(|&seconds| check_time(seconds, metadata)),
        // What is wrong with it is said where the frames are asked for.
        Wanted::PlayedInRange { .. } | Wanted::IndicesInMemory(_) | Wanted::PlayedAtEachInMemory(_) => Ok(()),
    }
}

/// The first of them, as many as a hint may be for.
pub(crate) fn shortened(wanted: Wanted) -> Wanted {
    match wanted {
        Wanted::Indices(mut indices) => {
            indices.truncate(PREFETCH_FRAMES_MAX);
            Wanted::Indices(indices)
        }
        Wanted::PlayedAtEach(mut times) => {
            times.truncate(PREFETCH_FRAMES_MAX);
            Wanted::PlayedAtEach(times)
        }
        Wanted::IndexRange { .. }
        | Wanted::PlayedAt(_)
        | Wanted::PlayedInRange { .. }
        | Wanted::IndicesInMemory(_)
        | Wanted::PlayedAtEachInMemory(_) => wanted,
    }
}

fn check_index(asked: i64, metadata: &VideoMetadata) -> Result<(), Error> {
    let stream = metadata.stream_index();
    let Some(num_frames) = metadata.frame_count() else { return Ok(()) };
    let count = i64::try_from(num_frames).unwrap_or(i64::MAX);
    let index = if asked < 0 { asked.saturating_add(count) } else { asked };
    if index < 0 {
        return Err(Error::FrameIndex(format!(
            "Invalid frame index={index} for stream_index={stream}; negative indices must have an absolute value \
             less than the number of frames, and the number of frames must be known."
        )));
    }
    if index >= count {
        return Err(Error::FrameIndex(format!(
            "Invalid frame index={index} for stream_index={stream}; must be less than {num_frames}"
        )));
    }
    Ok(())
}

fn check_time(seconds: f64, metadata: &VideoMetadata) -> Result<(), Error> {
    let (begin, end) =
        (metadata.begin_stream_seconds(), metadata.end_stream_seconds().unwrap_or(f64::INFINITY));
    // Written so that NaN is refused.
    if seconds >= begin && seconds < end {
        return Ok(());
    }
    Err(Error::TimeOutOfRange(format!(
        "Invalid pts in seconds: {seconds}; the stream plays from {begin} to {end} seconds"
    )))
}
