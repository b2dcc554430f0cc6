//! What FFmpeg writes to its log: noise about foreign files, except that it tells which decoder met something
//! wrong.
//!
//! What does not live here: what follows from that; see `engine::session`.

use std::ffi::{c_char, c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};

use ffmpeg_next::ffi as sys;

use super::raw;

/// Decoders say at this level that they make up what is missing. Of sound streams they say nothing there.
const COMPLAINT_LEVEL: c_int = sys::AV_LOG_INFO;
/// Bits of a level above the lowest eight are a colour.
const LEVEL_MASK: c_int = 0xff;

/// Listens to FFmpeg's log from now on, and says whether its lines go to standard error as well.
pub fn set_log_verbose(is_verbose: bool) {
    let level = if is_verbose { sys::AV_LOG_VERBOSE } else { sys::AV_LOG_QUIET };
    // SAFETY: sets a global integer, which FFmpeg reads atomically.
    unsafe { sys::av_log_set_level(level) };
    // SAFETY: sets a global pointer, which FFmpeg reads atomically, to a function that may be called from any thread.
    unsafe { raw::av_log_set_callback(Some(listen)) };
}

/// # Safety
/// Called by FFmpeg: `context` is null or points to a pointer to a class.
unsafe extern "C" fn listen(
    context: *mut c_void,
    level: c_int,
    format: *const c_char,
    arguments: *mut c_void,
) {
    if level & LEVEL_MASK <= COMPLAINT_LEVEL && !context.is_null() {
        // SAFETY: what FFmpeg logs for begins with its class.
        let class = unsafe { context.cast::<*const sys::AVClass>().read() };
        // SAFETY: returns a constant.
        if class == unsafe { sys::avcodec_get_class() } {
            // SAFETY: it is of the class of codec contexts.
            let flag = unsafe { (*context.cast::<sys::AVCodecContext>()).opaque }.cast::<AtomicBool>();
            // SAFETY: set by `Decoder::open` alone, for as long as the context lives; else null.
            if let Some(flag) = unsafe { flag.as_ref() } {
                flag.store(true, Ordering::Relaxed);
            }
        }
    }
    // SAFETY: hands on what it was given.
    unsafe { raw::av_log_default_callback(context, level, format, arguments) };
}
