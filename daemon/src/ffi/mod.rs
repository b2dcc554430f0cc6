//! The only place that touches raw FFmpeg: small owning types with a safe face.
//!
//! What does not live here: any rule about which picture is wanted, or how pictures look. Those are the
//! engine's; this room only makes sure that pointers are freed once and that no foreign enum value becomes
//! a Rust enum.

mod decoder;
mod error;
mod file_io;
mod filter;
mod findings;
mod headers;
mod input;
mod log;
mod packet;
mod picture;
mod raw;
mod room;
mod scaler;
mod stream;

pub use decoder::{Decoder, Received};
pub use error::FfmpegError;
pub use file_io::Deadline;
pub use filter::{FilterGraph, FilterGraphConfig};
pub use findings::Findings;
pub use input::{BestStream, MediaInput};
pub use log::set_log_verbose;
pub use packet::Packet;
pub use picture::{Picture, PictureFormat, Window};
pub use scaler::{Scaler, ScalerConfig, scale_gray};
pub use stream::Stream;

use ffmpeg_next::ffi as sys;

/// How a converted pixel is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PixelLayout {
    /// Red, green, blue; one byte each.
    Rgb24,
    /// Red, green, blue; two bytes each, in the machine's byte order.
    Rgb48,
}

impl PixelLayout {
    /// FFmpeg's number of the format.
    fn format(self) -> i32 {
        match self {
            PixelLayout::Rgb24 => sys::AVPixelFormat::AV_PIX_FMT_RGB24 as i32,
            #[cfg(target_endian = "little")]
            PixelLayout::Rgb48 => sys::AVPixelFormat::AV_PIX_FMT_RGB48LE as i32,
            #[cfg(target_endian = "big")]
            PixelLayout::Rgb48 => sys::AVPixelFormat::AV_PIX_FMT_RGB48BE as i32,
        }
    }

    /// Bytes of one pixel.
    pub fn pixel_bytes(self) -> usize {
        match self {
            PixelLayout::Rgb24 => 3,
            PixelLayout::Rgb48 => 6,
        }
    }
}

/// Names and versions of the linked libraries, as `libavcodec 59.37.100`.
pub fn library_versions() -> Vec<String> {
    // SAFETY: the version functions take nothing and return a constant.
    let versions = unsafe {
        [
            ("libavutil", sys::avutil_version()),
            ("libavcodec", sys::avcodec_version()),
            ("libavformat", sys::avformat_version()),
            ("libavfilter", sys::avfilter_version()),
            ("libswscale", sys::swscale_version()),
        ]
    };
    versions
        .iter()
        .map(|(name, version)| {
            format!("{name} {}.{}.{}", version >> 16, (version >> 8) & 0xff, version & 0xff)
        })
        .collect()
}
