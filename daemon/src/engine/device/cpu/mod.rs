//! The CPU: FFmpeg's software decoders, and the ways to RGB whose results are TorchCodec's to the bit.
//!
//! What does not live here: FFmpeg's pointers; those stay in `ffi`.

mod convert;
mod recipe;
mod resize;
mod resizers;

pub use convert::Converters;

use super::{Decoder, Device, Look, Picture, Received, Sent};
use crate::engine::failure::Failure;
use crate::ffi::{self, BestStream, MediaInput, Packet};

/// The CPU as a device.
#[derive(Default)]
pub struct CpuDevice {
    converters: Converters,
}

impl Device for CpuDevice {
    type Picture = ffi::Picture;
    type Decoder = ffi::Decoder;

    fn open_decoder(
        &mut self,
        input: &MediaInput,
        stream: BestStream,
        thread_count: u16,
    ) -> Result<Self::Decoder, Failure> {
        Ok(ffi::Decoder::open(input, stream, thread_count.max(1))?)
    }

    fn convert(
        &mut self,
        picture: &Self::Picture,
        look: &Look,
        destination: &mut [u8],
    ) -> Result<(), Failure> {
        self.converters.convert(picture, look, destination)
    }
}

impl Picture for ffi::Picture {
    fn pts_ticks(&self) -> i64 {
        self.pts_or_dts()
    }

    fn duration_ticks(&self) -> i64 {
        self.duration_ticks()
    }

    fn bytes(&self) -> usize {
        self.bytes()
    }
}

impl Decoder for ffi::Decoder {
    type Picture = ffi::Picture;

    fn send(&mut self, packet: &Packet) -> Result<Sent, Failure> {
        Ok(if self.send(packet)? { Sent::Accepted } else { Sent::Invalid })
    }

    fn send_end(&mut self) -> Result<(), Failure> {
        Ok(self.send_end()?)
    }

    fn receive(&mut self) -> Result<Received<ffi::Picture>, Failure> {
        Ok(match self.receive()? {
            ffi::Received::Picture(picture) => Received::Picture(picture),
            ffi::Received::NeedsSample => Received::NeedsSample,
            ffi::Received::End => Received::End,
        })
    }

    fn flush(&mut self) {
        self.flush();
    }

    fn has_complained(&self) -> bool {
        self.has_complained()
    }

    fn held_back_count(&self) -> i64 {
        i64::from(self.reorder_count()) + i64::from(self.frame_thread_count()) - 1
    }

    fn weight_in_pictures(&self) -> u64 {
        // Motion vectors, tables and edges take about a quarter as much as the pictures that they belong to.
        let count = i64::from(self.reference_count()) + self.held_back_count() + 1;
        u64::try_from(count).unwrap_or(0) * 5 / 4
    }
}
