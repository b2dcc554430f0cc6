//! Reads a media file through a passed file descriptor: `pread` only, so that neither the shared file offset
//! moves nor a truncated file can kill the process, as a mapping would.
//!
//! What does not live here: opening files. Paths never reach FFmpeg.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::rc::Rc;
use std::slice;
use std::time::Instant;

use ffmpeg_next::ffi as sys;

use super::error::FfmpegError;

/// Bytes per read. FFmpeg's own file protocol uses 32 KiB. Opening and scanning 180 MB took 88 ms with 32 KiB,
/// 79 with 64 KiB, 64 with 256 KiB; one seek to a picture of 50 KB read 287, 351 and 927 KB. Seeks are the rule.
const BUFFER_BYTES: usize = 64 * 1024;

/// The moment after which reading fails, shared between an input and whoever drives it.
#[derive(Clone, Debug, Default)]
pub struct Deadline(Rc<Cell<Option<Instant>>>);

impl Deadline {
    /// Moves the deadline; none lifts it.
    pub fn set(&self, deadline: Option<Instant>) {
        self.0.set(deadline);
    }

    fn is_over(&self) -> bool {
        self.0.get().is_some_and(|deadline| Instant::now() >= deadline)
    }
}

/// A file as FFmpeg's demuxers read it. Owns the descriptor, the buffer and FFmpeg's context of both.
pub(super) struct FileIo {
    context: NonNull<sys::AVIOContext>,
    /// Owned; FFmpeg holds the same pointer for its callbacks.
    reader: NonNull<Reader>,
}

struct Reader {
    file: OwnedFd,
    size: i64,
    position: i64,
    deadline: Deadline,
}

impl FileIo {
    pub fn new(file: OwnedFd, deadline: Deadline) -> Result<Self, FfmpegError> {
        let size = rustix::fs::fstat(&file)
            .map_err(|error| FfmpegError::new("read the file's size", -error.raw_os_error()))?
            .st_size;
        let reader = NonNull::from(Box::leak(Box::new(Reader { file, size, position: 0, deadline })));
        // SAFETY: av_malloc takes any size and may return null, which is checked.
        let buffer = unsafe { sys::av_malloc(BUFFER_BYTES) };
        // SAFETY: the buffer has the given length and was made by av_malloc, as required; the opaque pointer
        // stays valid until drop; the callbacks match the declared types.
        let context = unsafe {
            sys::avio_alloc_context(
                buffer.cast(),
                BUFFER_BYTES as c_int,
                0,
                reader.as_ptr().cast(),
                Some(read),
                None,
                Some(seek),
            )
        };
        match NonNull::new(context) {
            Some(context) if !buffer.is_null() => Ok(FileIo { context, reader }),
            context => {
                let mut context = context.map_or(std::ptr::null_mut(), NonNull::as_ptr);
                // SAFETY: accepts null; nobody else holds the context.
                unsafe { sys::avio_context_free(&raw mut context) };
                // SAFETY: accepts null; without a context nobody else holds the buffer.
                unsafe { sys::av_free(buffer) };
                // SAFETY: made by Box::leak above and used by nobody else.
                drop(unsafe { Box::from_raw(reader.as_ptr()) });
                Err(FfmpegError::out_of_memory("open the file"))
            }
        }
    }

    pub fn as_ptr(&self) -> *mut sys::AVIOContext {
        self.context.as_ptr()
    }

    /// What FFmpeg asks in its longer loops: whether to give up.
    pub fn interrupt(&self) -> sys::AVIOInterruptCB {
        sys::AVIOInterruptCB { callback: Some(is_interrupted), opaque: self.reader.as_ptr().cast() }
    }
}

impl Drop for FileIo {
    fn drop(&mut self) {
        let mut context = self.context.as_ptr();
        // SAFETY: the context is alive; FFmpeg may have exchanged the buffer, so its own pointer is freed.
        let buffer = unsafe { &raw mut (*context).buffer };
        // SAFETY: the buffer came from av_malloc; av_freep clears the pointer.
        unsafe { sys::av_freep(buffer.cast()) };
        // SAFETY: alive, and nobody uses it afterwards.
        unsafe { sys::avio_context_free(&raw mut context) };
        // SAFETY: made by Box::leak in `new`; the callbacks cannot come any more.
        drop(unsafe { Box::from_raw(self.reader.as_ptr()) });
    }
}

/// # Safety
/// Called by FFmpeg only, with the `Reader` of `FileIo::new` and a buffer of `length` bytes.
unsafe extern "C" fn read(opaque: *mut c_void, buffer: *mut u8, length: c_int) -> c_int {
    // SAFETY: FFmpeg calls back from within one call of the single thread that owns the input.
    let reader = unsafe { &mut *opaque.cast::<Reader>() };
    if reader.deadline.is_over() {
        return sys::AVERROR_EXIT;
    }
    let Ok(length) = usize::try_from(length) else {
        return sys::AVERROR(libc::EINVAL);
    };
    // SAFETY: FFmpeg vouches for the length; the bytes need not be initialised.
    let buffer = unsafe { slice::from_raw_parts_mut(buffer.cast::<MaybeUninit<u8>>(), length) };
    loop {
        match rustix::io::pread(&reader.file, &mut *buffer, reader.position as u64) {
            Ok(([], _)) => return sys::AVERROR_EOF,
            Ok((filled, _)) => {
                reader.position += filled.len() as i64;
                return filled.len() as c_int;
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return -error.raw_os_error(),
        }
    }
}

/// # Safety
/// Called by FFmpeg only, with the `Reader` of `FileIo::new`.
unsafe extern "C" fn seek(opaque: *mut c_void, offset: i64, whence: c_int) -> i64 {
    // SAFETY: FFmpeg calls back from within one call of the single thread that owns the input.
    let reader = unsafe { &mut *opaque.cast::<Reader>() };
    let base = match whence & !sys::AVSEEK_FORCE {
        sys::AVSEEK_SIZE => return reader.size,
        libc::SEEK_SET => 0,
        libc::SEEK_CUR => reader.position,
        libc::SEEK_END => reader.size,
        _ => return i64::from(sys::AVERROR(libc::EINVAL)),
    };
    match base.checked_add(offset) {
        Some(position) if position >= 0 => {
            reader.position = position;
            position
        }
        Some(_) | None => i64::from(sys::AVERROR(libc::EINVAL)),
    }
}

/// # Safety
/// Called by FFmpeg only, with the `Reader` of `FileIo::new`.
unsafe extern "C" fn is_interrupted(opaque: *mut c_void) -> c_int {
    // SAFETY: as for `read`; only shared access is needed.
    let deadline = unsafe { &(*opaque.cast::<Reader>()).deadline };
    c_int::from(deadline.is_over())
}
