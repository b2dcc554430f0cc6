//! FFmpeg's error codes as one type that says what was tried.
//!
//! What does not live here: what an error means for a request; that is `engine::error`.

use std::ffi::{CStr, c_char, c_int};

use ffmpeg_next::ffi as sys;

/// A call that FFmpeg answered with a negative number.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("could not {action}: {reason}")]
pub struct FfmpegError {
    /// What was tried, as a verb phrase.
    pub action: &'static str,
    /// FFmpeg's number.
    pub code: c_int,
    /// FFmpeg's words for it.
    pub reason: String,
}

impl FfmpegError {
    /// The error for a negative return value.
    pub(super) fn new(action: &'static str, code: c_int) -> Self {
        FfmpegError { action, code, reason: describe(code) }
    }

    /// True where memory was short. A decoder whose threads find no room for their stacks says "try again".
    pub fn is_out_of_memory(&self) -> bool {
        self.code == sys::AVERROR(libc::ENOMEM)
            || (self.code == sys::AVERROR(libc::EAGAIN) && self.action == "open the decoder")
    }

    /// The error of a system call that belongs to the same work.
    pub fn from_io(action: &'static str, error: &std::io::Error) -> Self {
        FfmpegError::new(action, sys::AVERROR(error.raw_os_error().unwrap_or(libc::EIO)))
    }

    /// The error for a null pointer where memory was asked for.
    pub fn out_of_memory(action: &'static str) -> Self {
        FfmpegError::new(action, sys::AVERROR(libc::ENOMEM))
    }
}

/// Turns a negative return value into an error.
pub(super) fn check(action: &'static str, code: c_int) -> Result<c_int, FfmpegError> {
    if code < 0 { Err(FfmpegError::new(action, code)) } else { Ok(code) }
}

fn describe(code: c_int) -> String {
    let mut text: [c_char; 128] = [0; 128];
    // SAFETY: the buffer outlives the call and its length is passed along; the result ends with NUL.
    unsafe { sys::av_strerror(code, text.as_mut_ptr(), text.len()) };
    // SAFETY: av_strerror writes a NUL within the buffer in every case.
    let text = unsafe { CStr::from_ptr(text.as_ptr()) };
    text.to_string_lossy().into_owned()
}
