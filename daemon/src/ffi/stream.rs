//! What the container's header says about one stream, field by field.
//!
//! What does not live here: interpretation. Fallbacks and rounding are `engine::media::probe`'s.

use std::ffi::c_int;
use std::marker::PhantomData;
use std::ptr::{NonNull, addr_of};

use ffmpeg_next::ffi as sys;
use reeld_protocol::metadata::{MediaType, Rational};

use super::raw;

/// A stream of an open input.
#[derive(Clone, Copy)]
pub struct Stream<'input> {
    stream: NonNull<sys::AVStream>,
    input: PhantomData<&'input sys::AVFormatContext>,
}

impl Stream<'_> {
    /// # Safety
    /// The stream belongs to an open context that outlives the result.
    pub(super) unsafe fn new(stream: NonNull<sys::AVStream>) -> Self {
        Stream { stream, input: PhantomData }
    }

    /// What the stream carries.
    pub fn media_type(self) -> MediaType {
        // SAFETY: parameters live as long as the stream; read as an integer, whatever its value.
        let media_type = unsafe { addr_of!((*self.parameters()).codec_type).cast::<c_int>().read() };
        const VIDEO: c_int = sys::AVMediaType::AVMEDIA_TYPE_VIDEO as c_int;
        const AUDIO: c_int = sys::AVMediaType::AVMEDIA_TYPE_AUDIO as c_int;
        const SUBTITLE: c_int = sys::AVMediaType::AVMEDIA_TYPE_SUBTITLE as c_int;
        const DATA: c_int = sys::AVMediaType::AVMEDIA_TYPE_DATA as c_int;
        const ATTACHMENT: c_int = sys::AVMediaType::AVMEDIA_TYPE_ATTACHMENT as c_int;
        match media_type {
            VIDEO => MediaType::Video,
            AUDIO => MediaType::Audio,
            SUBTITLE => MediaType::Subtitle,
            DATA => MediaType::Data,
            ATTACHMENT => MediaType::Attachment,
            _ => MediaType::Unknown,
        }
    }

    /// FFmpeg's name of the codec; "none" where it knows none.
    pub fn codec_name(self) -> String {
        // SAFETY: parameters live as long as the stream; read as an integer, whatever its value.
        let codec = unsafe { addr_of!((*self.parameters()).codec_id).cast::<c_int>().read() };
        // SAFETY: takes any number and returns a static string.
        unsafe { raw::static_name(raw::avcodec_get_name(codec)) }.unwrap_or_default()
    }

    /// What the container says to the decoder beforehand, such as parameter sets.
    pub fn decoder_header(&self) -> &[u8] {
        // SAFETY: parameters live as long as the stream.
        let (data, size) = unsafe { ((*self.parameters()).extradata, (*self.parameters()).extradata_size) };
        let Some(size) = usize::try_from(size).ok().filter(|_| !data.is_null()) else { return &[] };
        // SAFETY: so many bytes lie there, for as long as the stream lives and self borrows it.
        unsafe { std::slice::from_raw_parts(data, size) }
    }

    /// True if no picture of the codec refers to another.
    pub fn is_intra_only(self) -> bool {
        // SAFETY: parameters live as long as the stream; read as an integer, whatever its value.
        let codec = unsafe { addr_of!((*self.parameters()).codec_id).cast::<c_int>().read() };
        is_intra_only(codec)
    }

    /// Length of a tick in seconds.
    pub fn time_base(self) -> Rational {
        // SAFETY: the stream is alive.
        rational(unsafe { (*self.as_ptr()).time_base })
    }

    /// First presentation time in ticks, where the header or the first samples tell it.
    pub fn start_ticks(self) -> Option<i64> {
        // SAFETY: the stream is alive.
        let start = unsafe { (*self.as_ptr()).start_time };
        (start != sys::AV_NOPTS_VALUE).then_some(start)
    }

    /// Duration in ticks, where known.
    pub fn duration_ticks(self) -> Option<i64> {
        // SAFETY: the stream is alive.
        let duration = unsafe { (*self.as_ptr()).duration };
        (duration > 0).then_some(duration)
    }

    /// Number of frames that the header counts; none where it does not.
    pub fn frame_count(self) -> Option<i64> {
        // SAFETY: the stream is alive.
        let count = unsafe { (*self.as_ptr()).nb_frames };
        (count > 0).then_some(count)
    }

    /// FFmpeg's guess at the lowest frame rate that fits all timestamps.
    pub fn base_frame_rate(self) -> Rational {
        // SAFETY: the stream is alive.
        rational(unsafe { (*self.as_ptr()).r_frame_rate })
    }

    /// Bits per second; 0 where unknown.
    pub fn bit_rate(self) -> i64 {
        // SAFETY: parameters live as long as the stream.
        unsafe { (*self.parameters()).bit_rate }
    }

    /// Width and height in pixels, before rotation.
    pub fn coded_size(self) -> (i32, i32) {
        // SAFETY: parameters live as long as the stream.
        unsafe { ((*self.parameters()).width, (*self.parameters()).height) }
    }

    /// Width to height of one pixel.
    pub fn sample_aspect_ratio(self) -> Rational {
        // SAFETY: parameters live as long as the stream.
        rational(unsafe { (*self.parameters()).sample_aspect_ratio })
    }

    /// Degrees counter-clockwise of the display matrix; none where there is no valid one.
    pub fn rotation_degrees(self) -> Option<f64> {
        let matrix = self.display_matrix()?;
        // SAFETY: reads nine integers.
        let degrees = unsafe { sys::av_display_rotation_get(matrix.as_ptr()) };
        (!degrees.is_nan()).then_some(degrees)
    }

    /// Name of the colour primaries, where specified.
    pub fn color_primaries(self) -> Option<String> {
        // SAFETY: parameters live as long as the stream; read as an integer, whatever its value.
        let value = unsafe { addr_of!((*self.parameters()).color_primaries).cast::<c_int>().read() };
        if value == sys::AVColorPrimaries::AVCOL_PRI_UNSPECIFIED as c_int {
            return None;
        }
        // SAFETY: takes any number and returns a static string or null.
        unsafe { raw::static_name(raw::av_color_primaries_name(value)) }
    }

    /// Name of the colour matrix, where specified.
    pub fn color_space(self) -> Option<String> {
        // SAFETY: parameters live as long as the stream; read as an integer, whatever its value.
        let value = unsafe { addr_of!((*self.parameters()).color_space).cast::<c_int>().read() };
        if value == sys::AVColorSpace::AVCOL_SPC_UNSPECIFIED as c_int {
            return None;
        }
        // SAFETY: takes any number and returns a static string or null.
        unsafe { raw::static_name(raw::av_color_space_name(value)) }
    }

    /// Name of the transfer characteristic, where specified.
    pub fn color_transfer(self) -> Option<String> {
        // SAFETY: parameters live as long as the stream; read as an integer, whatever its value.
        let value = unsafe { addr_of!((*self.parameters()).color_trc).cast::<c_int>().read() };
        if value == sys::AVColorTransferCharacteristic::AVCOL_TRC_UNSPECIFIED as c_int {
            return None;
        }
        // SAFETY: takes any number and returns a static string or null.
        unsafe { raw::static_name(raw::av_color_transfer_name(value)) }
    }

    /// Name of the coded pixel format of a video stream.
    pub fn pixel_format(self) -> Option<String> {
        // SAFETY: takes any number and returns a static string or null.
        unsafe { raw::static_name(raw::av_get_pix_fmt_name(self.format())) }
    }

    /// Bits of one value of that pixel format's first component: luma, red, or what there is.
    pub fn bit_depth(self) -> Option<u32> {
        // SAFETY: takes any number and returns a static description or null.
        let description = unsafe { raw::av_pix_fmt_desc_get(self.format()).as_ref() };
        description.and_then(|description| u32::try_from(description.comp[0].depth).ok())
    }

    /// Name of the sample format of an audio stream.
    pub fn sample_format(self) -> Option<String> {
        // SAFETY: takes any number and returns a static string or null.
        unsafe { raw::static_name(raw::av_get_sample_fmt_name(self.format())) }
    }

    /// Audio samples per second.
    pub fn sample_rate(self) -> i32 {
        // SAFETY: parameters live as long as the stream.
        unsafe { (*self.parameters()).sample_rate }
    }

    /// Number of audio channels.
    pub fn channel_count(self) -> i32 {
        // SAFETY: parameters live as long as the stream.
        unsafe { (*self.parameters()).ch_layout.nb_channels }
    }

    pub(super) fn as_ptr(self) -> *mut sys::AVStream {
        self.stream.as_ptr()
    }

    pub(super) fn parameters(self) -> *const sys::AVCodecParameters {
        // SAFETY: the stream is alive; its parameters are made with it.
        unsafe { (*self.as_ptr()).codecpar }
    }

    fn format(self) -> c_int {
        // SAFETY: parameters live as long as the stream.
        unsafe { (*self.parameters()).format }
    }

    fn display_matrix(self) -> Option<[i32; 9]> {
        let mut size = 0;
        // SAFETY: the stream is alive and the size outlives the call.
        let data = unsafe {
            sys::av_stream_get_side_data(
                self.as_ptr(),
                sys::AVPacketSideDataType::AV_PKT_DATA_DISPLAYMATRIX,
                &raw mut size,
            )
        };
        if data.is_null() || size < size_of::<[i32; 9]>() {
            return None;
        }
        // SAFETY: at least nine integers lie there; nothing is assumed about their alignment.
        Some(unsafe { data.cast::<[i32; 9]>().read_unaligned() })
    }
}

pub(super) fn rational(value: sys::AVRational) -> Rational {
    Rational { numerator: value.num, denominator: value.den }
}

/// True if no picture of this codec refers to another.
pub(super) fn is_intra_only(codec: c_int) -> bool {
    // SAFETY: takes any number and returns a static description or null.
    let description = unsafe { raw::avcodec_descriptor_get(codec) };
    // SAFETY: static where it is not null; only an integer is read of it.
    NonNull::new(description.cast_mut()).is_some_and(
        |description| unsafe { (*description.as_ptr()).props } & sys::AV_CODEC_PROP_INTRA_ONLY != 0,
    )
}
