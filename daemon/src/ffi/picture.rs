//! One decoded picture in the codec's own pixel format, as a reference to memory that the decoder owns.
//!
//! What does not live here: conversion to RGB; see `scaler` and `filter`.

use std::ffi::c_int;
use std::ptr::{NonNull, addr_of};

use ffmpeg_next::ffi as sys;
use reeld_protocol::metadata::Rational;

use super::PixelLayout;
use super::error::{FfmpegError, check};
use super::stream::rational;

/// A decoded picture. Dropping the last one gives the memory back to its decoder's pool.
pub struct Picture(NonNull<sys::AVFrame>);

/// Everything about a picture that a conversion depends on, besides its pixels. Plain numbers of FFmpeg's, so
/// that values unknown to the bindings can be compared and passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PictureFormat {
    /// Pixels.
    pub width: i32,
    /// Pixels.
    pub height: i32,
    /// Pixel format.
    pub format: c_int,
    /// Colour matrix.
    pub color_space: c_int,
    /// Full or limited range.
    pub color_range: c_int,
}

/// A part of a picture, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The first row.
    pub top: usize,
    /// The first column.
    pub left: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl PictureFormat {
    /// Red, green and blue.
    pub fn rgb(layout: PixelLayout, width: i32, height: i32) -> Self {
        PictureFormat {
            width,
            height,
            format: layout.format(),
            color_space: sys::AVColorSpace::AVCOL_SPC_RGB as c_int,
            color_range: sys::AVColorRange::AVCOL_RANGE_UNSPECIFIED as c_int,
        }
    }
}

impl Picture {
    /// A picture to be written by a scaler, with rows as long as vector instructions like them.
    pub fn new(layout: PixelLayout, width: i32, height: i32) -> Result<Self, FfmpegError> {
        let picture = Picture::of_format(layout.format(), width, height)?;
        // SAFETY: allocated above and not shared.
        let frame = unsafe { &mut *picture.as_ptr() };
        frame.colorspace = sys::AVColorSpace::AVCOL_SPC_RGB;
        frame.color_range = sys::AVColorRange::AVCOL_RANGE_UNSPECIFIED;
        Ok(picture)
    }

    /// A picture of these pixels, row by row.
    ///
    /// # Panics
    /// Where there are more or fewer of them.
    pub fn of_pixels(
        layout: PixelLayout,
        width: i32,
        height: i32,
        pixels: &[u8],
    ) -> Result<Self, FfmpegError> {
        let picture = Picture::new(layout, width, height)?;
        let row_bytes = width as usize * layout.pixel_bytes();
        assert_eq!(pixels.len(), row_bytes * height as usize, "the pixels are of another size");
        for (row, pixels) in pixels.chunks_exact(row_bytes).enumerate() {
            // SAFETY: the picture has as many rows of as many bytes, and is not shared.
            unsafe { picture.row_pointer(row).copy_from_nonoverlapping(pixels.as_ptr(), row_bytes) };
        }
        Ok(picture)
    }

    /// A picture of any format, with nothing said about its colours.
    pub(super) fn of_format(format: c_int, width: i32, height: i32) -> Result<Self, FfmpegError> {
        let picture = Picture::empty()?;
        // SAFETY: allocated above and not shared.
        let frame = unsafe { &mut *picture.as_ptr() };
        frame.format = format;
        frame.width = width;
        frame.height = height;
        // SAFETY: format and size are set, as the function wants it, and there are no buffers yet.
        let code = unsafe { sys::av_frame_get_buffer(picture.as_ptr(), 0) };
        check("get memory for a picture", code)?;
        Ok(picture)
    }

    /// An empty holder for a decoder or filter to fill.
    pub(super) fn empty() -> Result<Self, FfmpegError> {
        // SAFETY: takes nothing; null is checked.
        let frame = unsafe { sys::av_frame_alloc() };
        NonNull::new(frame).map(Picture).ok_or_else(|| FfmpegError::out_of_memory("hold a picture"))
    }

    /// Presentation time in ticks of the stream, else the decoding time of its sample.
    pub fn pts_or_dts(&self) -> i64 {
        // SAFETY: the frame is alive as long as self.
        let (pts, dts) = unsafe { ((*self.as_ptr()).pts, (*self.as_ptr()).pkt_dts) };
        if pts == sys::AV_NOPTS_VALUE { dts } else { pts }
    }

    /// How long the picture is shown, in ticks of the stream; 0 where unknown.
    pub fn duration_ticks(&self) -> i64 {
        // SAFETY: the frame is alive as long as self.
        unsafe { (*self.as_ptr()).pkt_duration }
    }

    /// What conversions depend on.
    pub fn format(&self) -> PictureFormat {
        let frame = self.as_ptr();
        PictureFormat {
            // SAFETY: the frame is alive as long as self.
            width: unsafe { (*frame).width },
            // SAFETY: as above.
            height: unsafe { (*frame).height },
            // SAFETY: as above.
            format: unsafe { (*frame).format },
            // SAFETY: as above; read as an integer, whatever its value.
            color_space: unsafe { addr_of!((*frame).colorspace).cast::<c_int>().read() },
            // SAFETY: as above; read as an integer, whatever its value.
            color_range: unsafe { addr_of!((*frame).color_range).cast::<c_int>().read() },
        }
    }

    /// Width to height of one pixel.
    pub fn sample_aspect_ratio(&self) -> Rational {
        // SAFETY: the frame is alive as long as self.
        rational(unsafe { (*self.as_ptr()).sample_aspect_ratio })
    }

    /// Bytes of memory that this picture keeps alive.
    pub fn bytes(&self) -> usize {
        // SAFETY: the frame is alive as long as self.
        let buffers = unsafe { (*self.as_ptr()).buf };
        let sizes = buffers.iter().filter_map(|buffer| NonNull::new(*buffer)).map(|buffer| {
            // SAFETY: a frame's buffers live as long as the frame.
            unsafe { (*buffer.as_ptr()).size }
        });
        sizes.sum()
    }

    /// Copies a window of the one plane of a picture of red, green and blue row by row into `destination`.
    ///
    /// # Panics
    /// Where the picture is laid out otherwise, the window reaches beyond it, or the destination has another size.
    pub fn copy_window(&self, layout: PixelLayout, window: Window, destination: &mut [u8]) {
        let format = self.format();
        assert_eq!(format.format, layout.format(), "the picture is laid out otherwise");
        let Window { top, left, height, width } = window;
        let (picture_height, picture_width) = (format.height.max(0) as usize, format.width.max(0) as usize);
        assert!(top + height <= picture_height && left + width <= picture_width, "the window is too large");
        let row_bytes = width * layout.pixel_bytes();
        assert_eq!(destination.len(), row_bytes * height, "the destination has another size than the window");
        if row_bytes == 0 {
            return;
        }
        let skipped_bytes = left * layout.pixel_bytes();
        // SAFETY: the frame is alive as long as self.
        let (data, stride) = unsafe { ((*self.as_ptr()).data[0], (*self.as_ptr()).linesize[0]) };
        let stride = stride as isize;
        assert!(stride.unsigned_abs() >= skipped_bytes + row_bytes, "the picture's rows are too short");
        for (row, target) in destination.chunks_exact_mut(row_bytes).enumerate() {
            let offset = (top + row) as isize * stride + skipped_bytes as isize;
            // SAFETY: rows lie `stride` bytes apart, for as many rows as the picture is high.
            let source = unsafe { data.offset(offset) };
            // SAFETY: each row has as many readable bytes, as asserted; the memory is not the destination's.
            unsafe { source.copy_to_nonoverlapping(target.as_mut_ptr(), row_bytes) };
        }
    }

    /// One row of the one plane of a picture of red, green and blue.
    ///
    /// # Panics
    /// Where the picture is laid out otherwise, or has fewer rows.
    pub fn row(&self, layout: PixelLayout, row: usize) -> &[u8] {
        let format = self.format();
        assert_eq!(format.format, layout.format(), "the picture is laid out otherwise");
        assert!(row < format.height.max(0) as usize, "the picture has no such row");
        let row_bytes = format.width.max(0) as usize * layout.pixel_bytes();
        // SAFETY: the frame is alive as long as self.
        let stride = unsafe { (*self.as_ptr()).linesize[0] };
        assert!(stride.unsigned_abs() as usize >= row_bytes, "the picture's rows are too short");
        // SAFETY: the row has as many bytes, which nobody writes to as long as the picture can be read.
        unsafe { std::slice::from_raw_parts(self.row_pointer(row), row_bytes) }
    }

    /// Where a row of the first plane begins.
    ///
    /// # Safety
    /// The picture has a first plane, with so many rows.
    pub(super) unsafe fn row_pointer(&self, row: usize) -> *mut u8 {
        // SAFETY: the frame is alive as long as self.
        let (data, stride) = unsafe { ((*self.as_ptr()).data[0], (*self.as_ptr()).linesize[0]) };
        // SAFETY: rows lie `stride` bytes apart, and there is such a one, as the caller vouches for.
        unsafe { data.offset(row as isize * stride as isize) }
    }

    pub(super) fn as_ptr(&self) -> *mut sys::AVFrame {
        self.0.as_ptr()
    }
}

impl Drop for Picture {
    fn drop(&mut self) {
        let mut frame = self.as_ptr();
        // SAFETY: owned by self, used by nobody afterwards.
        unsafe { sys::av_frame_free(&raw mut frame) };
    }
}
