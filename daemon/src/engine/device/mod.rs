//! What decodes samples, owns the pictures' memory and converts them: one implementation per kind of
//! hardware, chosen when the engine starts.
//!
//! What does not live here: which samples to feed and which pictures to keep; that is `session`'s.

pub mod cpu;

use reeld_protocol::message::Dtype;
use reeld_protocol::{Transform, Transforms};

use super::failure::Failure;
use super::media::Rotation;
use crate::ffi::{BestStream, MediaInput, Packet};

/// A kind of hardware. An engine has exactly one.
pub trait Device {
    /// A decoded picture in the codec's own pixel format, in memory that this device can reach.
    type Picture: Picture;
    /// A live codec context.
    type Decoder: Decoder<Picture = Self::Picture>;

    /// A decoder for one stream of an open input.
    fn open_decoder(
        &mut self,
        input: &MediaInput,
        stream: BestStream,
        thread_count: u16,
    ) -> Result<Self::Decoder, Failure>;

    /// Writes a picture as red, green, blue into `destination`, which is exactly as long as `look` needs.
    /// Never reads from it.
    fn convert(
        &mut self,
        picture: &Self::Picture,
        look: &Look,
        destination: &mut [u8],
    ) -> Result<(), Failure>;
}

/// A decoded picture.
pub trait Picture {
    /// When it is shown, in stream ticks.
    fn pts_ticks(&self) -> i64;
    /// How long, in stream ticks; 0 where unknown.
    fn duration_ticks(&self) -> i64;
    /// Memory that it keeps alive.
    fn bytes(&self) -> usize;
}

/// A live codec context. The order of calls is FFmpeg's: receive until a sample is needed, then send one.
pub trait Decoder {
    /// What comes out.
    type Picture;

    /// Gives it a sample.
    fn send(&mut self, packet: &Packet) -> Result<Sent, Failure>;
    /// Says that no more samples come.
    fn send_end(&mut self) -> Result<(), Failure>;
    /// Asks for the next picture in presentation order.
    fn receive(&mut self) -> Result<Received<Self::Picture>, Failure>;
    /// Forgets everything, after a seek.
    fn flush(&mut self);
    /// Whether it found something wrong with a sample since it was flushed last. It may have made up what is missing
    /// from whatever it had.
    fn has_complained(&self) -> bool;
    /// How many pictures it may hold back before the first comes out.
    fn held_back_count(&self) -> i64;
    /// How many pictures take as much memory as it does, about.
    fn weight_in_pictures(&self) -> u64;
}

/// What a decoder answers when it is asked for a picture.
pub enum Received<P> {
    /// The next one.
    Picture(P),
    /// It needs another sample first.
    NeedsSample,
    /// All pictures are out.
    End,
}

/// What a decoder answers when it is given a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It took it.
    Accepted,
    /// The bytes make no sense to it. Whether that is an error depends on what came before.
    Invalid,
}

/// How a frame shall look.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Look {
    /// How pictures of this stream are turned.
    pub rotation: Rotation,
    /// What is done to the turned picture.
    pub transforms: Transforms,
    /// Pixels after all transforms.
    pub width: u32,
    /// Pixels after all transforms.
    pub height: u32,
    /// Type of the values.
    pub dtype: Dtype,
}

impl Look {
    /// Bytes of one frame.
    pub fn frame_bytes(&self) -> u64 {
        u64::from(self.width) * u64::from(self.height) * 3 * self.dtype.bytes()
    }

    /// Refuses a picture of which this look makes another size than there is room for: where its own is not
    /// what the header says and no resizing makes up for it.
    pub fn check_size(&self, coded_size: (i32, i32)) -> Result<(), Failure> {
        let (width, height) = self.rotation.apply(coded_size);
        let size = (u32::try_from(width).unwrap_or(0), u32::try_from(height).unwrap_or(0));
        let (width, height) = self.transforms.as_slice().iter().try_fold(size, size_after)?;
        if (width, height) == (self.width, self.height) {
            return Ok(());
        }
        Err(Failure::OtherSize { width, height, expected_width: self.width, expected_height: self.height })
    }
}

/// Width and height after a transform. A crop that would begin too far right or down begins earlier.
fn size_after((width, height): (u32, u32), transform: &Transform) -> Result<(u32, u32), Failure> {
    let (result_height, result_width) = transform.result_size();
    match transform {
        Transform::Resize { .. } => {}
        Transform::Crop { .. } | Transform::CenterCrop { .. } => {
            if result_width > width || result_height > height {
                let (crop_width, crop_height) = (result_width, result_height);
                return Err(Failure::SmallerThanCrop { width, height, crop_width, crop_height });
            }
        }
    }
    Ok((result_width, result_height))
}
