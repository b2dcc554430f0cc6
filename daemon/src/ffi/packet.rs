//! One encoded sample as the demuxer hands it out.
//!
//! What does not live here: which samples count as frames; that is `engine::media::scan`.

use std::ptr::NonNull;

use ffmpeg_next::ffi as sys;

use super::error::FfmpegError;

/// A reusable holder of one sample.
pub struct Packet(NonNull<sys::AVPacket>);

impl Packet {
    /// An empty holder.
    pub fn new() -> Result<Self, FfmpegError> {
        // SAFETY: takes nothing; null is checked.
        let packet = unsafe { sys::av_packet_alloc() };
        NonNull::new(packet).map(Packet).ok_or_else(|| FfmpegError::out_of_memory("hold a sample"))
    }

    /// True if it brings parameters that count instead of the header's.
    pub fn has_new_header(&self) -> bool {
        let kind = sys::AVPacketSideDataType::AV_PKT_DATA_NEW_EXTRADATA;
        // SAFETY: the packet is alive; the size is not asked for.
        !unsafe { sys::av_packet_get_side_data(self.as_ptr(), kind, std::ptr::null_mut()) }.is_null()
    }

    /// The stream that the sample belongs to.
    pub fn stream_index(&self) -> usize {
        // SAFETY: the packet is alive as long as self.
        let index = unsafe { (*self.as_ptr()).stream_index };
        usize::try_from(index).unwrap_or(usize::MAX)
    }

    /// Presentation time in ticks, else decoding time: some containers store only the latter.
    pub fn pts_or_dts(&self) -> i64 {
        // SAFETY: the packet is alive as long as self.
        let (pts, dts) = unsafe { ((*self.as_ptr()).pts, (*self.as_ptr()).dts) };
        if pts == sys::AV_NOPTS_VALUE { dts } else { pts }
    }

    /// Presentation time in ticks; none where the container does not store it.
    pub fn pts(&self) -> Option<i64> {
        // SAFETY: the packet is alive as long as self.
        Some(unsafe { (*self.as_ptr()).pts }).filter(|&pts| pts != sys::AV_NOPTS_VALUE)
    }

    /// The sample's bytes.
    pub fn data(&self) -> &[u8] {
        // SAFETY: the packet is alive as long as self.
        let (data, size) = unsafe { ((*self.as_ptr()).data, (*self.as_ptr()).size) };
        let Some(size) = usize::try_from(size).ok().filter(|_| !data.is_null()) else { return &[] };
        // SAFETY: so many bytes lie there until the packet is cleared or filled, which needs it exclusively.
        unsafe { std::slice::from_raw_parts(data, size) }
    }

    /// How long the picture is shown, in ticks; 0 where unknown.
    pub fn duration_ticks(&self) -> i64 {
        // SAFETY: the packet is alive as long as self.
        unsafe { (*self.as_ptr()).duration }
    }

    /// Where the sample begins in the file; none where the container does not tell.
    pub fn byte_position(&self) -> Option<u64> {
        // SAFETY: the packet is alive as long as self.
        u64::try_from(unsafe { (*self.as_ptr()).pos }).ok()
    }

    /// True where decoding can start here.
    pub fn is_keyframe(&self) -> bool {
        self.has_flag(sys::AV_PKT_FLAG_KEY)
    }

    /// True where the sample is decoded but never shown, as edit lists have it.
    pub fn is_discarded(&self) -> bool {
        self.has_flag(sys::AV_PKT_FLAG_DISCARD)
    }

    /// True where the container says that no other picture depends on this one.
    pub fn is_disposable(&self) -> bool {
        self.has_flag(sys::AV_PKT_FLAG_DISPOSABLE)
    }

    /// Gives a time to a sample that has none.
    pub(super) fn set_missing_dts(&mut self, ticks: i64) {
        if self.pts_or_dts() == sys::AV_NOPTS_VALUE {
            // SAFETY: the packet is alive and not shared.
            unsafe { (*self.as_ptr()).dts = ticks };
        }
    }

    /// Lets go of the sample; the holder stays.
    pub(super) fn clear(&mut self) {
        // SAFETY: the packet is alive; unref of an empty one does nothing.
        unsafe { sys::av_packet_unref(self.as_ptr()) };
    }

    pub(super) fn as_ptr(&self) -> *mut sys::AVPacket {
        self.0.as_ptr()
    }

    fn has_flag(&self, flag: i32) -> bool {
        // SAFETY: the packet is alive as long as self.
        unsafe { (*self.as_ptr()).flags & flag != 0 }
    }
}

impl Drop for Packet {
    fn drop(&mut self) {
        let mut packet = self.as_ptr();
        // SAFETY: owned by self, used by nobody afterwards.
        unsafe { sys::av_packet_free(&raw mut packet) };
    }
}
