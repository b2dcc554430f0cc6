//! Conversion and scaling by libswscale from a picture straight into the caller's memory, or another
//! picture's.
//!
//! What does not live here: when this way may be taken; see `engine::device::cpu`.

use std::ffi::c_int;
use std::ptr::{self, NonNull};

use ffmpeg_next::ffi as sys;

use super::PixelLayout;
use super::error::FfmpegError;
use super::picture::{Picture, PictureFormat};
use super::raw;

/// Gray values of sixteen bits in the machine's byte order.
#[cfg(target_endian = "little")]
const GRAY16: c_int = sys::AVPixelFormat::AV_PIX_FMT_GRAY16LE as c_int;
#[cfg(target_endian = "big")]
const GRAY16: c_int = sys::AVPixelFormat::AV_PIX_FMT_GRAY16BE as c_int;

/// From what to what a scaler converts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ScalerConfig {
    /// The pictures to convert.
    pub source: PictureFormat,
    /// The result.
    pub layout: PixelLayout,
    /// Columns of the result.
    pub width: i32,
    /// Rows of the result.
    pub height: i32,
}

impl ScalerConfig {
    /// To red, green and blue; the size stays.
    pub fn converting(source: PictureFormat, layout: PixelLayout) -> Self {
        ScalerConfig { source, layout, width: source.width, height: source.height }
    }

    /// No flags where the size stays: the library then takes its exact special converters where it has them.
    fn flags(&self) -> c_int {
        let is_scaling = (self.width, self.height) != (self.source.width, self.source.height);
        if is_scaling { sys::SWS_BILINEAR as c_int } else { 0 }
    }
}

/// Columns, rows and pixel format.
type Shape = (c_int, c_int, c_int);

/// libswscale's tables for one conversion.
struct Context(NonNull<sys::SwsContext>);

impl Context {
    fn new(source: Shape, target: Shape, flags: c_int) -> Result<Self, FfmpegError> {
        let ((source_width, source_height, source_format), (width, height, format)) = (source, target);
        // SAFETY: takes any numbers and checks them itself; null is checked.
        let context = unsafe {
            raw::sws_getContext(
                source_width,
                source_height,
                source_format,
                width,
                height,
                format,
                flags,
                ptr::null_mut(),
                ptr::null_mut(),
                ptr::null(),
            )
        };
        let invalid = || FfmpegError::new("prepare the conversion to RGB", sys::AVERROR(libc::EINVAL));
        NonNull::new(context).map(Context).ok_or_else(invalid)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: owned by self, used by nobody afterwards.
        unsafe { sys::sws_freeContext(self.0.as_ptr()) };
    }
}

/// A converter for pictures of one format.
pub struct Scaler {
    context: Context,
    config: ScalerConfig,
}

impl Scaler {
    /// Prepares the conversion, which computes tables.
    pub fn new(config: ScalerConfig) -> Result<Self, FfmpegError> {
        let ScalerConfig { source, layout, width, height } = config;
        let source_shape = (source.width, source.height, source.format);
        let context = Context::new(source_shape, (width, height, layout.format()), config.flags())?;
        let scaler = Scaler { context, config };
        scaler.set_color(source)?;
        Ok(scaler)
    }

    /// Uses the picture's own matrix and range instead of the library's assumption, which is BT.601.
    fn set_color(&self, source: PictureFormat) -> Result<(), FfmpegError> {
        let (mut inverse_table, mut table) = (ptr::null_mut(), ptr::null_mut());
        let (mut source_range, mut range) = (0, 0);
        let (mut brightness, mut contrast, mut saturation) = (0, 0, 0);
        // SAFETY: the context is alive and all outputs outlive the call.
        let code = unsafe {
            sys::sws_getColorspaceDetails(
                self.context.0.as_ptr(),
                &raw mut inverse_table,
                &raw mut source_range,
                &raw mut table,
                &raw mut range,
                &raw mut brightness,
                &raw mut contrast,
                &raw mut saturation,
            )
        };
        if code == -1 {
            return Err(FfmpegError::new("read the conversion's colours", sys::AVERROR(libc::EINVAL)));
        }
        if source.color_range != sys::AVColorRange::AVCOL_RANGE_UNSPECIFIED as c_int {
            source_range = c_int::from(source.color_range == sys::AVColorRange::AVCOL_RANGE_JPEG as c_int);
        }
        // SAFETY: takes any number and returns a static table.
        let coefficients = unsafe { sys::sws_getCoefficients(source.color_space) };
        // SAFETY: the context is alive; the tables are static.
        let code = unsafe {
            sys::sws_setColorspaceDetails(
                self.context.0.as_ptr(),
                coefficients,
                source_range,
                coefficients,
                range,
                brightness,
                contrast,
                saturation,
            )
        };
        if code == -1 {
            return Err(FfmpegError::new("set the conversion's colours", sys::AVERROR(libc::EINVAL)));
        }
        Ok(())
    }

    /// Converts a picture; rows of the result follow each other without gaps.
    ///
    /// # Panics
    /// Where the picture has another format than the scaler was made for, or the destination another size.
    pub fn convert(&mut self, picture: &Picture, destination: &mut [u8]) -> Result<(), FfmpegError> {
        let ScalerConfig { layout, width, height, .. } = self.config;
        let row_bytes = width as usize * layout.pixel_bytes();
        assert_eq!(destination.len(), row_bytes * height as usize, "the destination has another size");
        // SAFETY: the destination has room for all rows, as asserted.
        unsafe { self.write(picture, destination.as_mut_ptr(), row_bytes as c_int) }
    }

    /// Converts a picture into another one, which came from [`Picture::new`].
    ///
    /// # Panics
    /// Where the picture has another format than the scaler was made for, or the target than it makes.
    pub fn convert_to(&mut self, picture: &Picture, target: &mut Picture) -> Result<(), FfmpegError> {
        let ScalerConfig { layout, width, height, .. } = self.config;
        assert_eq!(
            target.format(),
            PictureFormat::rgb(layout, width, height),
            "the target has another format"
        );
        // SAFETY: the frame is alive.
        let (data, stride) = unsafe { ((*target.as_ptr()).data[0], (*target.as_ptr()).linesize[0]) };
        // SAFETY: pictures that were made with this format have room for all rows in their one plane.
        unsafe { self.write(picture, data, stride) }
    }

    /// # Safety
    /// At `target` there is room for the result's rows, `stride` bytes apart.
    unsafe fn write(&mut self, picture: &Picture, target: *mut u8, stride: c_int) -> Result<(), FfmpegError> {
        let ScalerConfig { source, height, .. } = self.config;
        assert_eq!(picture.format(), source, "the scaler was made for another format");
        let planes = [target, ptr::null_mut(), ptr::null_mut(), ptr::null_mut()];
        let strides = [stride, 0, 0, 0];
        let frame = picture.as_ptr();
        // SAFETY: the frame is alive.
        let (data, linesize) = unsafe { (&raw const (*frame).data, &raw const (*frame).linesize) };
        // SAFETY: the source planes have the format that the context was made for; the caller vouches for the
        // target.
        let rows = unsafe {
            sys::sws_scale(
                self.context.0.as_ptr(),
                data.cast(),
                linesize.cast(),
                0,
                source.height,
                planes.as_ptr(),
                strides.as_ptr(),
            )
        };
        if rows != height {
            return Err(FfmpegError::new("convert a picture to RGB", sys::AVERROR(libc::EINVAL)));
        }
        Ok(())
    }
}

/// Scales values of sixteen bits by libswscale, with the weights that it has for the luma of pictures of
/// these sizes: `width` of them in each row become `target.0`, and as many rows as there are become
/// `target.1`.
///
/// # Panics
/// Where the values are no whole number of rows, or there are none.
pub fn scale_gray(values: &[u16], width: usize, target: (usize, usize)) -> Result<Vec<u16>, FfmpegError> {
    let height = values.len() / width;
    assert!(!values.is_empty() && values.len() == width * height, "the values are no whole number of rows");
    let too_large = |_| FfmpegError::new("scale gray values", sys::AVERROR(libc::EINVAL));
    let shape = |(width, height): (usize, usize)| -> Result<Shape, FfmpegError> {
        let width = c_int::try_from(width).map_err(too_large)?;
        Ok((width, c_int::try_from(height).map_err(too_large)?, GRAY16))
    };
    let (source_shape, target_shape) = (shape((width, height))?, shape(target)?);
    let context = Context::new(source_shape, target_shape, sys::SWS_BILINEAR as c_int)?;
    let source = Picture::of_format(GRAY16, source_shape.0, source_shape.1)?;
    let result = Picture::of_format(GRAY16, target_shape.0, target_shape.1)?;
    for (row, values) in values.chunks_exact(width).enumerate() {
        // SAFETY: the picture has as many rows of two bytes for each value, and is not shared.
        unsafe { ptr::copy_nonoverlapping(values.as_ptr(), source.row_pointer(row).cast(), width) };
    }
    // SAFETY: both frames are alive.
    let (source_frame, result_frame) = unsafe { (&*source.as_ptr(), &*result.as_ptr()) };
    // SAFETY: the frames have the formats and sizes that the context was made for.
    let rows = unsafe {
        sys::sws_scale(
            context.0.as_ptr(),
            source_frame.data.as_ptr().cast(),
            source_frame.linesize.as_ptr(),
            0,
            source_shape.1,
            result_frame.data.as_ptr(),
            result_frame.linesize.as_ptr(),
        )
    };
    if rows != target_shape.1 {
        return Err(FfmpegError::new("scale gray values", sys::AVERROR(libc::EINVAL)));
    }
    let mut scaled = vec![0; target.0 * target.1];
    for (row, scaled) in scaled.chunks_exact_mut(target.0).enumerate() {
        // SAFETY: the picture has as many rows of two bytes for each value, all written above.
        unsafe { ptr::copy_nonoverlapping(result.row_pointer(row).cast(), scaled.as_mut_ptr(), target.0) };
    }
    Ok(scaled)
}
