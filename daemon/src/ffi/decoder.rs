//! One live codec context: samples in, pictures out.
//!
//! What does not live here: reading samples and choosing among pictures; that is `engine::session`.

use std::ffi::c_int;
use std::ptr::{self, NonNull, addr_of};
use std::sync::atomic::{AtomicBool, Ordering};

use ffmpeg_next::ffi as sys;

use super::error::{FfmpegError, check};
use super::input::{BestStream, MediaInput};
use super::packet::Packet;
use super::picture::Picture;
use super::room::has_room;
use super::stream::{Stream, is_intra_only};

/// A decoder of one video stream.
pub struct Decoder {
    context: NonNull<sys::AVCodecContext>,
    // Kept between calls that yield no picture, which are about half of them.
    spare: Option<Picture>,
    // Set by `log`, from the codec's threads as well; the context's `opaque` points to it.
    complaint: Box<AtomicBool>,
}

/// What a decoder answers when it is asked for a picture.
pub enum Received {
    /// The next picture in presentation order.
    Picture(Picture),
    /// It needs another sample first.
    NeedsSample,
    /// All pictures are out.
    End,
}

impl Decoder {
    /// A decoder for the stream, as FFmpeg chose it.
    pub fn open(input: &MediaInput, best: BestStream, thread_count: u16) -> Result<Self, FfmpegError> {
        let stream = input
            .stream(best.index)
            .ok_or_else(|| FfmpegError::new("find the stream", sys::AVERROR(libc::EINVAL)))?;
        // SAFETY: codecs are static.
        let context = unsafe { sys::avcodec_alloc_context3(best.codec.as_ptr()) };
        let context = NonNull::new(context).ok_or_else(|| FfmpegError::out_of_memory("make a decoder"))?;
        let complaint = Box::new(AtomicBool::new(false));
        let decoder = Decoder { context, spare: None, complaint };
        // SAFETY: both are alive.
        let code = unsafe { sys::avcodec_parameters_to_context(decoder.as_ptr(), stream.parameters()) };
        check("set up the decoder", code)?;
        // SAFETY: the stream is alive.
        let time_base = unsafe { (*stream.as_ptr()).time_base };
        // SAFETY: the context is alive and not yet open, so that its fields may be set.
        unsafe { (*decoder.as_ptr()).thread_count = i32::from(thread_count) };
        // SAFETY: as above.
        unsafe { (*decoder.as_ptr()).pkt_timebase = time_base };
        // SAFETY: as above. The flag outlives the context, which is freed first.
        unsafe { (*decoder.as_ptr()).opaque = ptr::from_ref(&*decoder.complaint).cast_mut().cast() };
        // SAFETY: the context was made for this codec; no options.
        let code = unsafe { sys::avcodec_open2(decoder.as_ptr(), best.codec.as_ptr(), ptr::null_mut()) };
        check("open the decoder", code)?;
        Ok(decoder)
    }

    /// Gives a sample to the decoder. False where its bytes make no sense to it; whether that is an error
    /// depends on what came before.
    pub fn send(&mut self, packet: &Packet) -> Result<bool, FfmpegError> {
        // SAFETY: both are alive; the decoder makes its own reference.
        let code = unsafe { sys::avcodec_send_packet(self.as_ptr(), packet.as_ptr()) };
        if code < 0 && !self.has_room() {
            return Err(FfmpegError::out_of_memory("decode a sample"));
        }
        if code == sys::AVERROR_INVALIDDATA {
            return Ok(false);
        }
        check("decode a sample", code)?;
        Ok(true)
    }

    /// Has the decoder read a sample as far as to where a picture would begin. True if it came there: then it knows
    /// what a picture would be like. It is of no other use afterwards.
    pub fn read_headers(&mut self, packet: &Packet) -> bool {
        // SAFETY: the context is alive, and no thread but this one uses it.
        unsafe { (*self.as_ptr()).get_buffer2 = Some(refuse_memory) };
        // SAFETY: both are alive. What it answers does not matter.
        unsafe { sys::avcodec_send_packet(self.as_ptr(), packet.as_ptr()) };
        // SAFETY: read as an integer, whatever its value.
        unsafe { addr_of!((*self.as_ptr()).pix_fmt).cast::<c_int>().read() >= 0 }
    }

    /// Tells a stream's parameters as they are known by now.
    pub fn copy_parameters_to(&self, stream: Stream<'_>) -> Result<(), FfmpegError> {
        // SAFETY: the stream is alive and nobody else uses it meanwhile; so is the context.
        let code =
            unsafe { sys::avcodec_parameters_from_context((*stream.as_ptr()).codecpar, self.as_ptr()) };
        check("tell what the stream is", code)?;
        Ok(())
    }

    /// The error for a sample that was not accepted, where that is one.
    pub fn invalid_sample() -> FfmpegError {
        FfmpegError::new("decode a sample", sys::AVERROR_INVALIDDATA)
    }

    /// Says that no more samples come, so that the decoder puts out what it holds back.
    pub fn send_end(&mut self) -> Result<(), FfmpegError> {
        // SAFETY: the context is alive; null stands for the end.
        let code = unsafe { sys::avcodec_send_packet(self.as_ptr(), ptr::null()) };
        check("drain the decoder", code)?;
        Ok(())
    }

    /// Asks for the next picture.
    pub fn receive(&mut self) -> Result<Received, FfmpegError> {
        let picture = match self.spare.take() {
            Some(picture) => picture,
            None => Picture::empty()?,
        };
        // SAFETY: both are alive; the decoder empties the picture first.
        let code = unsafe { sys::avcodec_receive_frame(self.as_ptr(), picture.as_ptr()) };
        if code >= 0 {
            return Ok(Received::Picture(picture));
        }
        self.spare = Some(picture);
        if code == sys::AVERROR(libc::EAGAIN) {
            Ok(Received::NeedsSample)
        } else if code == sys::AVERROR_EOF {
            Ok(Received::End)
        } else if self.has_room() {
            Err(FfmpegError::new("decode a picture", code))
        } else {
            Err(FfmpegError::out_of_memory("decode a picture"))
        }
    }

    /// Forgets all samples and pictures, to go on after a seek.
    pub fn flush(&mut self) {
        // SAFETY: the context is alive and open.
        unsafe { sys::avcodec_flush_buffers(self.as_ptr()) };
        // Some decoders, HEVC's among them, still put out a picture of before the flush.
        while let Ok(Received::Picture(_)) = self.receive() {}
        self.complaint.store(false, Ordering::Relaxed);
    }

    /// True if FFmpeg had something to say of this decoder since the last flush. It marks damaged pictures as such, but only
    /// when they come out, and pictures that refer to them may come out before.
    pub fn has_complained(&self) -> bool {
        self.complaint.load(Ordering::Relaxed)
    }

    /// How many pictures the decoder holds back to put them into order.
    pub fn reorder_count(&self) -> i32 {
        // SAFETY: the context is alive.
        unsafe { (*self.as_ptr()).has_b_frames }.max(0)
    }

    /// How many pictures others may refer to: what an H.264 stream says, none where each stands alone, and else as many
    /// as AV1 and VP9 have places for.
    pub fn reference_count(&self) -> i32 {
        // SAFETY: the context is alive; the codec's number is read as an integer, whatever its value.
        let (codec, count) =
            unsafe { (addr_of!((*self.as_ptr()).codec_id).cast::<c_int>().read(), (*self.as_ptr()).refs) };
        if codec == sys::AVCodecID::AV_CODEC_ID_H264 as c_int {
            count.max(1)
        } else if is_intra_only(codec) {
            0
        } else {
            8
        }
    }

    /// How many threads work on a picture each at the same time; 1 where they share one picture.
    pub fn frame_thread_count(&self) -> i32 {
        // SAFETY: the context is alive.
        let (kind, count) = unsafe { ((*self.as_ptr()).active_thread_type, (*self.as_ptr()).thread_count) };
        if kind & sys::FF_THREAD_FRAME == 0 { 1 } else { count.max(1) }
    }

    /// False where this process may not have what such a decoder needs. Asked after a failure: many decoders
    /// answer a picture that finds no memory as if the sample were damaged.
    fn has_room(&self) -> bool {
        // SAFETY: the context is alive.
        let (width, height) = unsafe { ((*self.as_ptr()).width, (*self.as_ptr()).height) };
        let picture_count = self.frame_thread_count() + self.reorder_count() + 2;
        let factors = [width, height, picture_count].map(|factor| usize::try_from(factor).unwrap_or(0));
        // Three planes in full, of one byte a value: more bits or fewer values are within the estimate.
        let bytes = factors.into_iter().try_fold(3usize, usize::checked_mul);
        bytes.is_some_and(|bytes| bytes == 0 || has_room(bytes))
    }

    fn as_ptr(&self) -> *mut sys::AVCodecContext {
        self.context.as_ptr()
    }
}

/// Instead of memory for a picture.
///
/// # Safety
/// Called by FFmpeg; touches nothing.
unsafe extern "C" fn refuse_memory(_: *mut sys::AVCodecContext, _: *mut sys::AVFrame, _: c_int) -> c_int {
    sys::AVERROR(libc::ENOMEM)
}

impl Drop for Decoder {
    fn drop(&mut self) {
        let mut context = self.as_ptr();
        // SAFETY: owned by self, used by nobody afterwards. Pictures keep their memory by reference counts.
        unsafe { sys::avcodec_free_context(&raw mut context) };
    }
}
