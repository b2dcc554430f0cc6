//! Which conversion a picture needs, and the prepared converters of the last few picture formats.
//!
//! The rule is TorchCodec's, because the two ways differ in single values: libswscale directly where no
//! rotation is needed and the width is a multiple of 32, else a filter graph with libswscale inside.
//!
//! What does not live here: resizing and cropping; frames have the stream's own size.

use std::collections::VecDeque;

use reeld_protocol::message::Dtype;
use reeld_protocol::metadata::Rational;

use crate::engine::device::Look;
use crate::engine::failure::Failure;
use crate::engine::media::Rotation;
use crate::ffi::{FilterGraph, FilterGraphConfig, Picture, PictureFormat, PixelLayout, Scaler, ScalerConfig};

/// Converters that are kept. A stream needs one or two; making one costs 0.1 to 1 ms, keeping it some 100 KB.
const CONVERTERS_MAX: usize = 16;

/// libswscale's fast loops write whole vectors: rows of other widths would overrun into the next one.
const DIRECT_WIDTH_MULTIPLE: i32 = 32;

/// Filters pass times through; the ticks' length has no influence on pixels.
const TIME_BASE: Rational = Rational { numerator: 1, denominator: 1_000_000 };

/// Prepared conversions, the most recently used first.
#[derive(Default)]
pub struct Converters {
    converters: VecDeque<(Key, Converter)>,
    /// Sixteen-bit values on their way to floating point. Never the destination: that is only written.
    scratch: Vec<u8>,
}

/// What a converter is made for.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    source: PictureFormat,
    rotation: Rotation,
    layout: PixelLayout,
}

enum Converter {
    Direct(Scaler),
    Filtered(FilterGraph),
}

impl Converters {
    /// Converts a picture, with a converter that is prepared already if possible.
    pub fn convert(&mut self, picture: &Picture, look: Look, destination: &mut [u8]) -> Result<(), Failure> {
        let source = picture.format();
        look.check_size((source.width, source.height))?;
        let layout = match look.dtype {
            Dtype::Uint8 => PixelLayout::Rgb24,
            Dtype::Float32 => PixelLayout::Rgb48,
        };
        let key = Key { source, rotation: look.rotation, layout };
        self.prepare(key, picture)?;
        let Some((_, converter)) = self.converters.front_mut() else {
            return Ok(());
        };
        let row_bytes = look.width as usize * layout.pixel_bytes();
        match look.dtype {
            Dtype::Uint8 => converter.write(picture, row_bytes, destination),
            Dtype::Float32 => {
                self.scratch.resize(row_bytes * look.height as usize, 0);
                converter.write(picture, row_bytes, &mut self.scratch)?;
                scale_to_unit(&self.scratch, destination);
                Ok(())
            }
        }
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
                self.converters.push_front((key, Converter::new(key, picture)?));
            }
        }
        Ok(())
    }
}

impl Converter {
    fn new(key: Key, picture: &Picture) -> Result<Self, Failure> {
        let Key { source, rotation, layout } = key;
        if rotation == Rotation::None && source.width % DIRECT_WIDTH_MULTIPLE == 0 {
            return Ok(Converter::Direct(Scaler::new(ScalerConfig { source, layout })?));
        }
        let graph = FilterGraph::new(FilterGraphConfig {
            source,
            sample_aspect_ratio: picture.sample_aspect_ratio(),
            time_base: TIME_BASE,
            filters: filters(layout, rotation),
        })?;
        Ok(Converter::Filtered(graph))
    }

    fn write(&mut self, picture: &Picture, row_bytes: usize, destination: &mut [u8]) -> Result<(), Failure> {
        match self {
            Converter::Direct(scaler) => scaler.convert(picture, destination)?,
            Converter::Filtered(graph) => graph.convert(picture)?.copy_rows(row_bytes, destination),
        }
        Ok(())
    }
}

/// Rotation comes after the conversion, as in TorchCodec: turning YUV first would move the chroma samples.
fn filters(layout: PixelLayout, rotation: Rotation) -> &'static str {
    match (layout, rotation) {
        (PixelLayout::Rgb24, Rotation::None) => "format=rgb24",
        (PixelLayout::Rgb24, Rotation::CounterClockwise) => "format=rgb24,transpose=cclock",
        (PixelLayout::Rgb24, Rotation::Half) => "format=rgb24,hflip,vflip",
        (PixelLayout::Rgb24, Rotation::Clockwise) => "format=rgb24,transpose=clock",
        (PixelLayout::Rgb48, Rotation::None) => "format=rgb48",
        (PixelLayout::Rgb48, Rotation::CounterClockwise) => "format=rgb48,transpose=cclock",
        (PixelLayout::Rgb48, Rotation::Half) => "format=rgb48,hflip,vflip",
        (PixelLayout::Rgb48, Rotation::Clockwise) => "format=rgb48,transpose=clock",
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
    use super::*;

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
