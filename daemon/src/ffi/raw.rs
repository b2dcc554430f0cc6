//! FFmpeg functions declared anew with plain integers where C has enums. The generated bindings use Rust
//! enums there, and a codec or pixel format that a newer library knows and they do not would be undefined
//! behaviour. A C enum without negative values is an `int` to the ABI of every target that FFmpeg supports. A
//! `va_list` is passed as a pointer on all of them, and called differently in each one's bindings.
//!
//! What does not live here: other functions; those are used as generated.

use std::ffi::{CStr, c_char, c_int, c_void};

use ffmpeg_next::ffi as sys;

/// What FFmpeg calls with each line of its log: context, level, format, arguments.
pub type LogCallback = unsafe extern "C" fn(*mut c_void, c_int, *const c_char, *mut c_void);

unsafe extern "C" {
    pub fn av_log_set_callback(callback: Option<LogCallback>);
    pub fn av_log_default_callback(
        context: *mut c_void,
        level: c_int,
        format: *const c_char,
        arguments: *mut c_void,
    );
    pub fn avcodec_get_name(codec_id: c_int) -> *const c_char;
    pub fn avcodec_descriptor_get(codec_id: c_int) -> *const sys::AVCodecDescriptor;
    pub fn av_get_pix_fmt_name(format: c_int) -> *const c_char;
    pub fn av_pix_fmt_desc_get(format: c_int) -> *const sys::AVPixFmtDescriptor;
    pub fn av_get_sample_fmt_name(format: c_int) -> *const c_char;
    pub fn av_color_primaries_name(primaries: c_int) -> *const c_char;
    pub fn av_color_space_name(space: c_int) -> *const c_char;
    pub fn av_color_transfer_name(transfer: c_int) -> *const c_char;
    pub fn av_find_best_stream(
        context: *mut sys::AVFormatContext,
        media_type: c_int,
        wanted_stream: c_int,
        related_stream: c_int,
        decoder: *mut *const sys::AVCodec,
        flags: c_int,
    ) -> c_int;
    pub fn sws_getContext(
        source_width: c_int,
        source_height: c_int,
        source_format: c_int,
        width: c_int,
        height: c_int,
        format: c_int,
        flags: c_int,
        source_filter: *mut sys::SwsFilter,
        filter: *mut sys::SwsFilter,
        parameters: *const f64,
    ) -> *mut sys::SwsContext;
}

/// Copies a static string of FFmpeg; none where it has no name for a value.
///
/// # Safety
/// `name` is null or points to a string that ends with NUL.
pub unsafe fn static_name(name: *const c_char) -> Option<String> {
    if name.is_null() {
        return None;
    }
    // SAFETY: not null, and the caller vouches for the end.
    let name = unsafe { CStr::from_ptr(name) };
    Some(name.to_string_lossy().into_owned())
}
