//! Everything that can go wrong in an engine, as one enum, and what the broker is told of it.
//!
//! What does not live here: wire codes for clients; those are the broker's.

use reeld_protocol::arena::ArenaError;

use crate::ffi::FfmpegError;
use crate::link::{ArenaKey, CatalogId, EngineError};

/// Why a job, or one wanted picture of it, failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure {
    /// FFmpeg refused something about the file.
    #[error(transparent)]
    Ffmpeg(#[from] FfmpegError),
    /// The container has fewer streams.
    #[error("there is no stream {stream}")]
    NoSuchStream {
        /// As asked for.
        stream: usize,
    },
    /// Not video, or a codec that this build has no decoder for.
    #[error("no decoder for stream {stream} ({codec})")]
    NoDecoder {
        /// As asked for.
        stream: usize,
        /// FFmpeg's name.
        codec: String,
    },
    /// The stream ended before the picture came.
    #[error("Requested next frame while there are no more frames: the stream is shorter than the file says")]
    NoMorePictures,
    /// The picture does not fit where the header said it would.
    #[error("the picture has {width}x{height} pixels, the header says {expected_width}x{expected_height}")]
    OtherSize {
        /// As it would be delivered.
        width: u32,
        /// As it would be delivered.
        height: u32,
        /// What there is room for.
        expected_width: u32,
        /// What there is room for.
        expected_height: u32,
    },
    /// The picture is smaller than what shall be cut out of it: its size differs from the header's.
    #[error("the picture has {width}x{height} pixels where {crop_width}x{crop_height} are to be cut out")]
    SmallerThanCrop {
        /// What is cropped.
        width: u32,
        /// What is cropped.
        height: u32,
        /// What shall be left.
        crop_width: u32,
        /// What shall be left.
        crop_height: u32,
    },
    /// More memory than this process may use, even with nothing else in it.
    #[error(
        "this needs more than the {memory_mib} MiB of memory that a decoding process may use (engine_memory_mib)"
    )]
    OutOfMemory {
        /// The limit.
        memory_mib: u64,
    },
    /// The file did not come over: this process may not open more.
    #[error(
        "the decoding process may not open more files; close some sources, or raise its limit of open files"
    )]
    NoDescriptors,
    /// A file with more samples than an index can hold.
    #[error("more than {limit} samples")]
    TooManySamples {
        /// The limit.
        limit: usize,
    },
    /// The file was written to since it was opened.
    #[error("the file was changed")]
    SourceChanged,
    /// A job names a source that was not added, or was dropped.
    #[error("source {0:?} is not known")]
    UnknownSource(CatalogId),
    /// A destination names an arena that was not added, or was dropped.
    #[error("arena {0:?} is not known")]
    UnknownArena(ArenaKey),
    /// An arena that cannot be mapped, or a destination outside of one.
    #[error("{0}")]
    Arena(String),
    /// A message names transforms that it does not have, or none that are allowed.
    #[error("{0}")]
    Look(String),
    /// A defect of ours.
    #[error("panic: {0}")]
    Panic(String),
}

impl From<ArenaError> for Failure {
    fn from(error: ArenaError) -> Self {
        Failure::Arena(error.to_string())
    }
}

impl Failure {
    /// True where memory was short: with less in it, this process might do it.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Failure::Ffmpeg(error) if error.is_out_of_memory())
    }

    /// What the broker is told, with a sentence of at most `sentence_bytes_max` bytes.
    pub fn report(&self, sentence_bytes_max: usize) -> EngineError {
        let sentence = cut(self.to_string(), sentence_bytes_max);
        match self {
            Failure::NoDecoder { .. } => EngineError::Unsupported(sentence),
            Failure::SourceChanged => EngineError::SourceChanged,
            Failure::NoDescriptors => EngineError::LimitReached(sentence),
            Failure::Ffmpeg(_)
            | Failure::NoSuchStream { .. }
            | Failure::NoMorePictures
            | Failure::OtherSize { .. }
            | Failure::SmallerThanCrop { .. }
            | Failure::OutOfMemory { .. }
            | Failure::TooManySamples { .. } => EngineError::Media(sentence),
            Failure::UnknownSource(_)
            | Failure::UnknownArena(_)
            | Failure::Arena(_)
            | Failure::Look(_)
            | Failure::Panic(_) => EngineError::Internal(sentence),
        }
    }
}

fn cut(mut sentence: String, bytes_max: usize) -> String {
    if sentence.len() > bytes_max {
        let end = (0..=bytes_max).rev().find(|end| sentence.is_char_boundary(*end)).unwrap_or(0);
        sentence.truncate(end);
    }
    sentence
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentence_is_cut_between_characters() {
        assert_eq!(cut("naïve".to_owned(), 3), "na");
        assert_eq!(cut("naïve".to_owned(), 4), "naï");
        assert_eq!(cut("short".to_owned(), 60), "short");
    }

    #[test]
    fn changed_source_keeps_its_meaning() {
        assert_eq!(Failure::SourceChanged.report(60), EngineError::SourceChanged);
    }
}
