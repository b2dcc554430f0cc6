//! The index of one stream, by reading all samples of the file once without decoding any.
//!
//! What does not live here: where the result is kept. The broker shares it and stores it.

use std::time::Instant;

use reeld_protocol::metadata::Rational;

use crate::engine::failure::Failure;
use crate::ffi::{FfmpegError, MediaInput, Packet};
use crate::link::index::{Index, IndexEntry};

/// The most samples of one stream, 38 days at 60 per second: what `Index::from_bytes` accepts.
const SAMPLES_MAX: usize = 200_000_000;

/// A scan on its way through a file.
pub struct Scan {
    input: MediaInput,
    stream: usize,
    time_base: Rational,
    packet: Packet,
    entries: Vec<IndexEntry>,
}

/// How far a scan is.
pub enum Scanned {
    /// All samples were read.
    Finished(Index),
    /// Its turn is over; more samples follow.
    Yielded,
}

impl Scan {
    /// Starts at the beginning of a freshly opened input.
    pub fn new(mut input: MediaInput, stream: usize) -> Result<Self, Failure> {
        let time_base = input.stream(stream).ok_or(Failure::NoSuchStream { stream })?.time_base();
        input.keep_only(stream);
        Ok(Scan { input, stream, time_base, packet: Packet::new()?, entries: Vec::new() })
    }

    /// Reads samples until the end or until `pause`, whichever comes first.
    pub fn step(&mut self, pause: Instant) -> Result<Scanned, Failure> {
        while self.input.read(&mut self.packet)? {
            if self.is_frame() {
                self.entries.try_reserve(1).map_err(|_| FfmpegError::out_of_memory("index the file"))?;
                self.entries.push(entry(&self.packet));
                if self.entries.len() > SAMPLES_MAX {
                    return Err(Failure::TooManySamples { limit: SAMPLES_MAX });
                }
            }
            if Instant::now() >= pause {
                return Ok(Scanned::Yielded);
            }
        }
        Ok(Scanned::Finished(Index::new(self.time_base, std::mem::take(&mut self.entries))))
    }

    /// Demuxers may hand out samples of other streams although they were asked not to; and samples that an
    /// edit list cuts off are decoded but never shown.
    fn is_frame(&self) -> bool {
        self.packet.stream_index() == self.stream && !self.packet.is_discarded()
    }
}

fn entry(packet: &Packet) -> IndexEntry {
    IndexEntry {
        pts: packet.pts_or_dts(),
        duration: packet.duration_ticks(),
        position: packet.byte_position().and_then(|position| i64::try_from(position).ok()).unwrap_or(-1),
        is_key: packet.is_keyframe(),
        is_reference: !packet.is_disposable(),
    }
}
