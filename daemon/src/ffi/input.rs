//! An open media file: its streams, its samples in the container's order, and seeking.
//!
//! What does not live here: the choice of where to seek; that is `engine::session`.

use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::ptr::{self, NonNull};

use ffmpeg_next::ffi as sys;

use super::error::{FfmpegError, check};
use super::file_io::{Deadline, FileIo};
use super::findings::Findings;
use super::headers;
use super::packet::Packet;
use super::raw;
use super::stream::Stream;

/// Formats that are nothing but samples, one after the other, and `obu`, `av1`: FFmpeg makes times up while it reads
/// from the begin, and after a seek it makes up others, or cannot seek. No flag of its public interface tells them:
/// `AVFMT_NOTIMESTAMPS` is set for three of them. Image sequences, whose names end in `_pipe`, are alike.
const TIMELESS_FORMATS: &[&str] = &[
    "av1",
    "avs2",
    "avs3",
    "bitpacked",
    "cavsvideo",
    "dirac",
    "dnxhd",
    "evc",
    "h261",
    "h263",
    "h264",
    "hevc",
    "image2pipe",
    "ingenient",
    "ipu",
    "m4v",
    "mjpeg",
    "mjpeg_2000",
    "mpegvideo",
    "mpjpeg",
    "obu",
    "rawvideo",
    "v210",
    "v210x",
    "vc1",
    "vvc",
];

/// An open container. One thread at a time.
pub struct MediaInput {
    context: NonNull<sys::AVFormatContext>,
    is_timeless: bool,
    /// When the next sample of a timeless format is decoded, if not even FFmpeg makes a time up.
    next_ticks: i64,
    // Dropped after the context: fields go in order, and `drop` closes the context first.
    _io: FileIo,
}

/// FFmpeg's preference among the streams of one kind, with the decoder that it would use.
#[derive(Clone, Copy)]
pub struct BestStream {
    /// Absolute index.
    pub index: usize,
    pub(super) codec: NonNull<sys::AVCodec>,
}

impl BestStream {
    /// True for FFmpeg's own decoder of H.264, and not a wrapper.
    pub(super) fn is_native_h264(&self) -> bool {
        // SAFETY: codecs and their names are static.
        unsafe { CStr::from_ptr((*self.codec.as_ptr()).name) == c"h264" }
    }
}

impl MediaInput {
    /// Opens the file and finds out what its streams are, for which a few pictures may be decoded.
    pub fn open(file: OwnedFd, deadline: &Deadline) -> Result<Self, FfmpegError> {
        let twin = file.try_clone().map_err(|error| FfmpegError::from_io("open the file", &error))?;
        let mut input = MediaInput::open_container(file, deadline)?;
        if headers::may_tell(&input) {
            headers::tell(&mut input, MediaInput::open_container(twin, deadline)?)?;
        }
        input.look()?;
        Ok(input)
    }

    /// Opens a file of which is known what a look into it finds.
    pub fn open_again(file: OwnedFd, deadline: &Deadline, findings: &Findings) -> Result<Self, FfmpegError> {
        let mut input = MediaInput::open_container(file, deadline)?;
        if !findings.tell(&mut input)? {
            input.look()?;
        }
        Ok(input)
    }

    /// What is known now, for opening the file again. None where that has to be found out each time.
    pub fn findings(&self) -> Option<Findings> {
        Findings::of(self)
    }

    pub(super) fn open_container(file: OwnedFd, deadline: &Deadline) -> Result<Self, FfmpegError> {
        let io = FileIo::new(file, deadline.clone())?;
        // SAFETY: takes nothing; null is checked.
        let context = unsafe { sys::avformat_alloc_context() };
        let Some(allocated) = NonNull::new(context) else {
            return Err(FfmpegError::out_of_memory("open the file"));
        };
        // SAFETY: freshly allocated and not shared.
        unsafe { (*context).pb = io.as_ptr() };
        // SAFETY: as above.
        unsafe { (*context).interrupt_callback = io.interrupt() };
        if let Err(error) = forbid_nested_files(allocated) {
            // SAFETY: allocated above, never opened, used by nobody afterwards.
            unsafe { sys::avformat_free_context(context) };
            return Err(error);
        }
        let mut context = context;
        // SAFETY: the context is allocated and has its I/O; a failure frees it, but not the I/O.
        let code =
            unsafe { sys::avformat_open_input(&raw mut context, ptr::null(), ptr::null(), ptr::null_mut()) };
        check("open the file", code)?;
        let mut input = MediaInput { context: allocated, is_timeless: false, next_ticks: 0, _io: io };
        let format = input.format_name();
        input.is_timeless = TIMELESS_FORMATS.contains(&format.as_str()) || format.ends_with("_pipe");
        Ok(input)
    }

    pub(super) fn look(&mut self) -> Result<(), FfmpegError> {
        // SAFETY: the context is open; no options.
        let code = unsafe { sys::avformat_find_stream_info(self.as_ptr(), ptr::null_mut()) };
        check("find out what the streams are", code)?;
        Ok(())
    }

    /// True where samples have times only if the file is read from its begin, and those may be in decoding order.
    pub fn is_timeless(&self) -> bool {
        self.is_timeless
    }

    /// Short name of the container format.
    pub fn format_name(&self) -> String {
        // SAFETY: an open input has a format.
        let format = unsafe { (*self.as_ptr()).iformat };
        // SAFETY: formats are static.
        let name = unsafe { (*format).name };
        // SAFETY: the name is a static string or null.
        unsafe { raw::static_name(name) }.unwrap_or_default()
    }

    /// The container's duration in microseconds, where the header tells it.
    pub fn duration_micros(&self) -> Option<i64> {
        // SAFETY: the context is open.
        let duration = unsafe { (*self.as_ptr()).duration };
        (duration > 0).then_some(duration)
    }

    /// The container's bits per second, where known.
    pub fn bit_rate(&self) -> Option<i64> {
        // SAFETY: the context is open.
        let bit_rate = unsafe { (*self.as_ptr()).bit_rate };
        (bit_rate > 0).then_some(bit_rate)
    }

    /// How many streams there are by now; some containers reveal more while they are read.
    pub fn stream_count(&self) -> usize {
        // SAFETY: the context is open.
        unsafe { (*self.as_ptr()).nb_streams as usize }
    }

    /// One stream.
    pub fn stream(&self, index: usize) -> Option<Stream<'_>> {
        if index >= self.stream_count() {
            return None;
        }
        // SAFETY: the context is open and the index is below the count.
        let stream = unsafe { *(*self.as_ptr()).streams.add(index) };
        // SAFETY: streams live as long as the context, which self outlives.
        NonNull::new(stream).map(|stream| unsafe { Stream::new(stream) })
    }

    /// All streams.
    pub fn streams(&self) -> impl Iterator<Item = Stream<'_>> {
        (0..self.stream_count()).filter_map(|index| self.stream(index))
    }

    /// The video stream that FFmpeg prefers, or the given one if it is a video stream with a decoder.
    pub fn best_video_stream(&self, wanted: Option<usize>) -> Option<BestStream> {
        self.best_stream(sys::AVMediaType::AVMEDIA_TYPE_VIDEO as i32, wanted)
    }

    /// The audio stream that FFmpeg prefers.
    pub fn best_audio_stream(&self) -> Option<BestStream> {
        self.best_stream(sys::AVMediaType::AVMEDIA_TYPE_AUDIO as i32, None)
    }

    fn best_stream(&self, media_type: i32, wanted: Option<usize>) -> Option<BestStream> {
        let wanted = match wanted {
            Some(index) => i32::try_from(index).ok()?,
            None => -1,
        };
        let mut codec = ptr::null();
        // SAFETY: the context is open and the codec pointer outlives the call.
        let index =
            unsafe { raw::av_find_best_stream(self.as_ptr(), media_type, wanted, -1, &raw mut codec, 0) };
        let index = usize::try_from(index).ok()?;
        NonNull::new(codec.cast_mut()).map(|codec| BestStream { index, codec })
    }

    /// Asks the demuxer to leave out the samples of all other streams. It may still hand some out.
    pub fn keep_only(&mut self, index: usize) {
        for other in 0..self.stream_count() {
            let discard = if other == index {
                sys::AVDiscard::AVDISCARD_DEFAULT
            } else {
                sys::AVDiscard::AVDISCARD_ALL
            };
            // SAFETY: the context is open and the index is below the count.
            let stream = unsafe { *(*self.as_ptr()).streams.add(other) };
            // SAFETY: streams live as long as the context.
            unsafe { (*stream).discard = discard };
        }
    }

    /// Reads the next sample of any stream. False at the end of the file.
    pub fn read(&mut self, packet: &mut Packet) -> Result<bool, FfmpegError> {
        packet.clear();
        // SAFETY: the context is open and the packet is alive and empty.
        let code = unsafe { sys::av_read_frame(self.as_ptr(), packet.as_ptr()) };
        if code == sys::AVERROR_EOF {
            return Ok(false);
        }
        check("read the next sample", code)?;
        if self.is_timeless {
            packet.set_missing_dts(self.next_ticks);
            self.next_ticks = packet.pts_or_dts().saturating_add(packet.duration_ticks().max(1));
        }
        Ok(true)
    }

    /// Goes to the last point at or before `pts_ticks` from which decoding can start.
    pub fn seek(&mut self, index: usize, pts_ticks: i64) -> Result<(), FfmpegError> {
        let stream = i32::try_from(index).unwrap_or(-1);
        // SAFETY: the context is open; FFmpeg checks the stream.
        let code =
            unsafe { sys::avformat_seek_file(self.as_ptr(), stream, i64::MIN, pts_ticks, pts_ticks, 0) };
        check("seek", code)?;
        Ok(())
    }

    /// A number that is equal for times that the container's own index puts after the same keyframe; none
    /// where it has no such index. The number means nothing else: containers count differently.
    pub fn keyframe_mark(&self, index: usize, pts_ticks: i64) -> Option<i32> {
        let stream = self.stream(index)?;
        // SAFETY: the stream belongs to the open context.
        let mark =
            unsafe { sys::av_index_search_timestamp(stream.as_ptr(), pts_ticks, sys::AVSEEK_FLAG_BACKWARD) };
        (mark >= 0).then_some(mark)
    }

    /// About when the keyframe is shown that the container's own index puts before a time, in ticks.
    pub fn keyframe_before(&self, index: usize, pts_ticks: i64) -> Option<i64> {
        let mark = self.keyframe_mark(index, pts_ticks)?;
        // SAFETY: the stream belongs to the open context; null is checked.
        let entry = unsafe { sys::avformat_index_get_entry(self.stream(index)?.as_ptr(), mark).as_ref() };
        entry.map(|entry| entry.timestamp)
    }

    pub(super) fn as_ptr(&self) -> *mut sys::AVFormatContext {
        self.context.as_ptr()
    }
}

impl Drop for MediaInput {
    fn drop(&mut self) {
        let mut context = self.as_ptr();
        // SAFETY: open, owned by self, used by nobody afterwards. Leaves our own I/O alone.
        unsafe { sys::avformat_close_input(&raw mut context) };
    }
}

/// Playlists and reference files could make the demuxer open other files or hosts; an empty list of
/// protocols refuses them all.
fn forbid_nested_files(context: NonNull<sys::AVFormatContext>) -> Result<(), FfmpegError> {
    // SAFETY: the context begins with its class, as options require; both strings end with NUL.
    let code =
        unsafe { sys::av_opt_set(context.as_ptr().cast(), c"protocol_whitelist".as_ptr(), c"".as_ptr(), 0) };
    check("forbid nested files", code)?;
    Ok(())
}
