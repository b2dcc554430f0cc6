//! Converting pictures into frames, with the prepared converters of the last few picture formats and looks.
//!
//! What does not live here: which means a look needs; see `recipe`.

use std::collections::VecDeque;

use reeld_protocol::message::Dtype;
use reeld_protocol::metadata::Rational;

use super::recipe::{Means, Recipe};
use super::resizers::Resizers;
use crate::engine::device::Look;
use crate::engine::failure::Failure;
use crate::ffi::{
    FfmpegError, FilterGraph, FilterGraphConfig, Picture, PictureFormat, PixelLayout, Scaler, ScalerConfig,
    Window,
};

/// Converters that are kept. A stream needs one or two; making one costs 0.1 to 1 ms, keeping it some 100 KB.
const CONVERTERS_MAX: usize = 16;

/// Memory for steps on the way that is kept for the next picture: enough for 8K. A look may need far more
/// once.
const SCRATCH_BYTES_MAX: usize = 256 << 20;

/// Filters pass times through; the ticks' length has no influence on pixels.
const TIME_BASE: Rational = Rational { numerator: 1, denominator: 1_000_000 };

/// Prepared conversions, the most recently used first.
#[derive(Default)]
pub struct Converters {
    converters: VecDeque<(Key, Converter)>,
    /// Sixteen-bit values on their way to floating point. Never the destination: that is only written.
    scratch: Vec<u8>,
    /// The converted picture on its way to another size.
    between: Option<Picture>,
    resizers: Resizers,
}

/// What a converter is made for.
#[derive(Clone, PartialEq, Eq)]
struct Key {
    source: PictureFormat,
    layout: PixelLayout,
    means: Means,
}

enum Converter {
    Direct(Scaler),
    /// The second scaler is made where libswscale has to resize.
    Resized {
        conversion: Scaler,
        resizing: ScalerConfig,
        scaler: Option<Scaler>,
    },
    Filtered(FilterGraph),
}

impl Converters {
    /// Converts a picture, with a converter that is prepared already if possible.
    pub fn convert(&mut self, picture: &Picture, look: &Look, destination: &mut [u8]) -> Result<(), Failure> {
        let source = picture.format();
        look.check_size((source.width, source.height))?;
        let layout = match look.dtype {
            Dtype::Uint8 => PixelLayout::Rgb24,
            Dtype::Float32 => PixelLayout::Rgb48,
        };
        let Recipe { means, window } = Recipe::new((source.width, source.height), look, layout);
        self.prepare(Key { source, layout, means }, picture)?;
        let Converters { converters, scratch, between, resizers } = self;
        let Some((_, converter)) = converters.front_mut() else {
            return Ok(());
        };
        let mut work = Work { picture, layout, window, between, resizers };
        match look.dtype {
            Dtype::Uint8 => converter.write(&mut work, destination)?,
            Dtype::Float32 => {
                let bytes = window.width * window.height * layout.pixel_bytes();
                let out_of_memory = |_| FfmpegError::out_of_memory("convert a picture to floating point");
                scratch.try_reserve(bytes.saturating_sub(scratch.len())).map_err(out_of_memory)?;
                scratch.resize(bytes, 0);
                converter.write(&mut work, scratch)?;
                scale_to_unit(scratch, destination);
            }
        }
        self.shed();
        Ok(())
    }

    /// Brings the converter for `key` to the front, making it if need be.
    fn prepare(&mut self, key: Key, picture: &Picture) -> Result<(), Failure> {
        match self.converters.iter().position(|(other, _)| *other == key) {
            Some(0) => {}
            Some(position) => {
                if let Some(converter) = self.converters.remove(position) {
                    self.converters.push_front(converter);
                }
            }
            None => {
                self.converters.truncate(CONVERTERS_MAX - 1);
                let converter = Converter::new(&key, picture)?;
                self.converters.push_front((key, converter));
            }
        }
        Ok(())
    }

    /// Gives back what an unusually large frame has taken.
    fn shed(&mut self) {
        if self.scratch.capacity() > SCRATCH_BYTES_MAX {
            self.scratch = Vec::new();
        }
        self.between.take_if(|between| between.bytes() > SCRATCH_BYTES_MAX);
    }
}

/// One conversion: from which picture to which part of what is made of it.
struct Work<'a> {
    picture: &'a Picture,
    layout: PixelLayout,
    window: Window,
    between: &'a mut Option<Picture>,
    resizers: &'a mut Resizers,
}

impl Work<'_> {
    /// A picture for the converted pixels at the source's size: the last one's, where it has that size.
    /// Beside it, what resizes it.
    fn between(&mut self) -> Result<(&mut Picture, &mut Resizers), FfmpegError> {
        let PictureFormat { width, height, .. } = self.picture.format();
        let format = PictureFormat::rgb(self.layout, width, height);
        let picture = match self.between.take().filter(|between| between.format() == format) {
            Some(between) => between,
            None => Picture::new(self.layout, width, height)?,
        };
        Ok((self.between.insert(picture), self.resizers))
    }
}

impl Converter {
    fn new(key: &Key, picture: &Picture) -> Result<Self, Failure> {
        let &Key { source, layout, ref means } = key;
        Ok(match means {
            Means::Direct => Converter::Direct(Scaler::new(ScalerConfig::converting(source, layout))?),
            &Means::Resized { width, height } => {
                let conversion = Scaler::new(ScalerConfig::converting(source, layout))?;
                let between = PictureFormat::rgb(layout, source.width, source.height);
                let resizing = ScalerConfig { source: between, layout, width, height };
                Converter::Resized { conversion, resizing, scaler: None }
            }
            Means::Filtered(filters) => Converter::Filtered(FilterGraph::new(FilterGraphConfig {
                source,
                sample_aspect_ratio: picture.sample_aspect_ratio(),
                time_base: TIME_BASE,
                filters,
            })?),
        })
    }

    fn write(&mut self, work: &mut Work<'_>, destination: &mut [u8]) -> Result<(), Failure> {
        let Work { picture, layout, window, .. } = *work;
        match self {
            Converter::Direct(scaler) => scaler.convert(picture, destination)?,
            Converter::Resized { conversion, resizing, scaler } => {
                let (between, resizers) = work.between()?;
                conversion.convert_to(picture, between)?;
                if let Some(resizer) = resizers.resizer(*resizing) {
                    *scaler = None;
                    resizer.resize(|row| between.row(layout, row), destination);
                } else {
                    let scaler = match scaler {
                        Some(scaler) => scaler,
                        None => scaler.insert(Scaler::new(*resizing)?),
                    };
                    scaler.convert(between, destination)?;
                }
            }
            Converter::Filtered(graph) => graph.convert(picture)?.copy_window(layout, window, destination),
        }
        Ok(())
    }
}

/// Sixteen-bit values as floating point from 0 to 1, by the same division as torch.
fn scale_to_unit(values: &[u8], destination: &mut [u8]) {
    let (values, _) = values.as_chunks::<2>();
    let (targets, _) = destination.as_chunks_mut::<4>();
    for (value, target) in values.iter().zip(targets) {
        let value = f32::from(u16::from_ne_bytes(*value)) / 65535.0;
        *target = value.to_ne_bytes();
    }
}

#[cfg(test)]
mod tests {
    use reeld_protocol::{Transform, Transforms};

    use super::*;
    use crate::engine::media::Rotation;

    #[test]
    fn resized_pictures_stay_what_libswscale_made_of_the_first() {
        let pixels: Vec<u8> =
            (0..3 * 640 * 360u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 21) as u8).collect();
        let picture = Picture::of_pixels(PixelLayout::Rgb24, 640, 360, &pixels).unwrap();
        let transforms = Transforms::new(&[Transform::Resize { height: 224, width: 224 }][..]).unwrap();
        let look =
            Look { rotation: Rotation::None, transforms, width: 224, height: 224, dtype: Dtype::Uint8 };
        let mut converters = Converters::default();
        let mut frame = || {
            let mut frame = vec![0; 3 * 224 * 224];
            converters.convert(&picture, &look, &mut frame).unwrap();
            frame
        };
        let first = frame();
        assert!((0..12).all(|_| frame() == first));
    }

    #[test]
    fn sixteen_bits_become_the_unit_interval() {
        let values: Vec<u8> = [0u16, 1, 32768, 65535].iter().flat_map(|value| value.to_ne_bytes()).collect();
        let mut destination = vec![0xff; 16];
        scale_to_unit(&values, &mut destination);
        let (floats, _) = destination.as_chunks::<4>();
        let floats: Vec<f32> = floats.iter().map(|bytes| f32::from_ne_bytes(*bytes)).collect();
        assert_eq!(floats, [0.0, 1.0 / 65535.0, 32768.0 / 65535.0, 1.0]);
    }
}
