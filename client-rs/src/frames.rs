//! [`Frames`]: the pixels and times that a request brought, in shared memory or in a private copy.
//!
//! How they got there, and when a copy is made, is not known here.

use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::{Arc, Weak};

use reeld_protocol::message::Dtype;

use crate::error::Error;
use crate::layout::PartPlace;
use crate::memory::Memory;
use crate::ticket::Ticket;

#[cfg(target_endian = "big")]
compile_error!("times lie in shared memory in little-endian byte order and are read in place");

/// The result of one request: for each of its parts N frames of H × W pixels of C values, and for each
/// frame when it begins and how long it lasts.
///
/// The pixels usually lie in memory that is shared with the daemon and were not copied. They are this
/// process's alone, for reading and writing, until the last clone of the `Frames` is dropped; that may
/// happen in any thread and never blocks. Pixels of a `Frames` stay readable when the daemon goes away.
///
/// ```
/// # reeld_tests::enter_example_folder();
/// let video = reeld_client::Video::open("clip.mp4")?;
/// let mut frames = video.frames_in_range(0..10)?;
/// assert_eq!(frames.len(), 10 * 180 * 320 * 3);
/// let part = frames.part(0).unwrap();
/// assert_eq!(part.pts_seconds()[9], 0.36);
/// assert!(!frames.is_copied());
/// frames.pixels_mut(0).unwrap().fill(255);
/// # Ok::<(), reeld_client::Error>(())
/// ```
///
/// A clone is cheap and shows the same memory. Dereferencing gives the pixels of the first part, which for
/// all methods of [`crate::Video`] is the only one.
#[derive(Clone, Debug)]
pub struct Frames {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    memory: Memory,
    parts: Vec<PartPlace>,
}

impl Frames {
    /// The places must have been checked against the memory's length.
    pub(crate) fn new(memory: Memory, parts: Vec<PartPlace>) -> Frames {
        Frames { inner: Arc::new(Inner { memory, parts }) }
    }

    /// A private copy of the same frames.
    pub(crate) fn copied(&self) -> Frames {
        Frames::new(Memory::copy_of(self.inner.memory.bytes()), self.inner.parts.clone())
    }

    /// Number of parts: one per pair of video and wanted frames of the request.
    pub fn part_count(&self) -> usize {
        self.inner.parts.len()
    }

    /// One part, in the order of the request.
    pub fn part(&self, index: usize) -> Option<FramesPart<'_>> {
        let place = self.inner.parts.get(index)?;
        Some(FramesPart { memory: &self.inner.memory, place })
    }

    /// All parts, in the order of the request.
    pub fn parts(&self) -> impl ExactSizeIterator<Item = FramesPart<'_>> {
        self.inner.parts.iter().map(|place| FramesPart { memory: &self.inner.memory, place })
    }

    /// Number of frames of all parts together.
    pub fn frame_count(&self) -> usize {
        self.inner.parts.iter().map(|place| place.frame_count).sum()
    }

    /// True where the pixels were copied into private memory, because this process keeps more than half of
    /// its quota of shared memory.
    pub fn is_copied(&self) -> bool {
        match &self.inner.memory {
            Memory::Leased(_) => false,
            Memory::Private(_) => true,
        }
    }

    /// The addresses of the shared mapping that the pixels lie in; none for a private copy. It is the same
    /// mapping for all results in one arena, which shows that nothing was copied.
    pub fn arena_addresses(&self) -> Option<std::ops::Range<usize>> {
        match &self.inner.memory {
            Memory::Leased(lease) => {
                let start = lease.arena().address().as_ptr() as usize;
                Some(start..start + lease.arena().bytes() as usize)
            }
            Memory::Private(_) => None,
        }
    }

    /// The addresses of the memory that all of these frames lie in, and nothing else.
    pub fn addresses(&self) -> std::ops::Range<usize> {
        let start = self.inner.memory.address().as_ptr() as usize;
        start..start + self.inner.memory.len()
    }

    /// A ticket for these frames, with which another process of this user may have them too, without a copy. What
    /// either of them writes the other sees. Waits for the daemon's word, some 50 microseconds.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] if the frames lie in private memory, or were inherited by a fork;
    /// [`Error::LimitReached`] if this process has handed on as much as it may, which is half of its quota;
    /// [`Error::DaemonUnavailable`] if the daemon that they came from is gone. Then send a copy.
    pub fn ticket(&self) -> Result<Ticket, Error> {
        let claim = match &self.inner.memory {
            Memory::Leased(lease) => lease.claim(),
            Memory::Private(_) => None,
        };
        let Some((lease, link)) = claim else {
            let message = "these frames lie in memory that is this process's alone; send a copy";
            return Err(Error::InvalidRequest(message.into()));
        };
        let number = link.issue_ticket(lease)?;
        let parts = self.inner.parts.iter().map(PartPlace::layout).collect();
        Ok(Ticket { instance: link.welcome().instance, number, parts })
    }

    /// Knows these frames without keeping them.
    pub fn downgrade(&self) -> WeakFrames {
        WeakFrames { inner: Arc::downgrade(&self.inner) }
    }

    /// The pixels of one part, for writing. None where the part does not exist or clones of this `Frames`
    /// show the same memory.
    pub fn pixels_mut(&mut self, part: usize) -> Option<&mut [u8]> {
        let inner = Arc::get_mut(&mut self.inner)?;
        let place = *inner.parts.get(part)?;
        let pixels = inner.memory.bytes_mut().get_mut(place.pixels_offset..)?;
        pixels.get_mut(..place.frame_bytes * place.frame_count)
    }
}

/// Knows [`Frames`] for as long as somebody has them.
#[derive(Clone, Debug)]
pub struct WeakFrames {
    inner: Weak<Inner>,
}

impl WeakFrames {
    /// The frames, if somebody still has them.
    pub fn upgrade(&self) -> Option<Frames> {
        self.inner.upgrade().map(|inner| Frames { inner })
    }
}

impl Deref for Frames {
    type Target = [u8];

    /// The pixels of the first part.
    fn deref(&self) -> &[u8] {
        self.part(0).map_or(&[], |part| part.pixels())
    }
}

/// The frames of one part of a request: all have the same size.
#[derive(Clone, Copy, Debug)]
pub struct FramesPart<'a> {
    memory: &'a Memory,
    place: &'a PartPlace,
}

impl<'a> FramesPart<'a> {
    /// Number of frames, N.
    pub fn frame_count(&self) -> usize {
        self.place.frame_count
    }

    /// Rows, H.
    pub fn height(&self) -> usize {
        self.place.height
    }

    /// Columns, W.
    pub fn width(&self) -> usize {
        self.place.width
    }

    /// Values per pixel, C: red, green, blue.
    pub fn channels(&self) -> usize {
        self.place.channels
    }

    /// Type of the values.
    pub fn dtype(&self) -> Dtype {
        self.place.dtype
    }

    /// (N, H, W, C).
    pub fn shape(&self) -> [usize; 4] {
        [self.place.frame_count, self.place.height, self.place.width, self.place.channels]
    }

    /// N × H × W × C values without gaps, in this machine's byte order.
    pub fn pixels(&self) -> &'a [u8] {
        self.bytes(self.place.pixels_offset, self.place.frame_bytes * self.place.frame_count)
    }

    /// The same as numbers between 0 and 1; none unless the dtype is [`Dtype::Float32`].
    pub fn pixels_f32(&self) -> Option<&'a [f32]> {
        let pixels = self.pixels();
        match self.place.dtype {
            Dtype::Uint8 => None,
            Dtype::Float32 => {
                // SAFETY: the place was checked to be aligned to 4 bytes, and every bit pattern is an f32.
                Some(unsafe { std::slice::from_raw_parts(pixels.as_ptr().cast(), pixels.len() / 4) })
            }
        }
    }

    /// The address of the first pixel, for handing the memory to other libraries without a copy. It is
    /// valid for reading and writing while a clone of the [`Frames`] lives; who writes through it must
    /// know that nobody else of this process uses the memory then.
    pub fn address(&self) -> NonNull<u8> {
        // SAFETY: the offset was checked to be inside the memory.
        unsafe { self.memory.address().add(self.place.pixels_offset) }
    }

    /// When each frame begins, in seconds: N values.
    pub fn pts_seconds(&self) -> &'a [f64] {
        self.times(self.place.pts_offset)
    }

    /// How long each frame lasts, in seconds: N values.
    pub fn duration_seconds(&self) -> &'a [f64] {
        self.times(self.place.durations_offset)
    }

    /// One frame.
    pub fn frame(&self, index: usize) -> Option<Frame<'a>> {
        let pts_seconds = *self.pts_seconds().get(index)?;
        let duration_seconds = *self.duration_seconds().get(index)?;
        let offset = self.place.pixels_offset + index * self.place.frame_bytes;
        let pixels = self.bytes(offset, self.place.frame_bytes);
        Some(Frame { pixels, place: self.place, pts_seconds, duration_seconds })
    }

    /// All frames, in the order in which they were asked for.
    pub fn frames(&self) -> impl Iterator<Item = Frame<'a>> + use<'a> {
        let part = *self;
        (0..part.frame_count()).filter_map(move |index| part.frame(index))
    }

    fn bytes(&self, offset: usize, length: usize) -> &'a [u8] {
        // Within bounds since `PartPlace::check`.
        &self.memory.bytes()[offset..offset + length]
    }

    fn times(&self, offset: usize) -> &'a [f64] {
        let bytes = self.bytes(offset, self.place.frame_count * size_of::<f64>());
        // SAFETY: the place was checked to be aligned to 8 bytes, and every bit pattern is an f64.
        unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), self.place.frame_count) }
    }
}

/// One frame.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    pixels: &'a [u8],
    place: &'a PartPlace,
    pts_seconds: f64,
    duration_seconds: f64,
}

impl<'a> Frame<'a> {
    /// H × W × C values without gaps.
    pub fn pixels(&self) -> &'a [u8] {
        self.pixels
    }

    /// Rows, H.
    pub fn height(&self) -> usize {
        self.place.height
    }

    /// Columns, W.
    pub fn width(&self) -> usize {
        self.place.width
    }

    /// Values per pixel, C.
    pub fn channels(&self) -> usize {
        self.place.channels
    }

    /// Type of the values.
    pub fn dtype(&self) -> Dtype {
        self.place.dtype
    }

    /// When the frame begins, in seconds.
    pub fn pts_seconds(&self) -> f64 {
        self.pts_seconds
    }

    /// How long the frame lasts, in seconds.
    pub fn duration_seconds(&self) -> f64 {
        self.duration_seconds
    }
}

#[cfg(test)]
mod tests {
    use reeld_protocol::message::PartLayout;

    use super::*;

    fn frames() -> Frames {
        let layout = PartLayout {
            frame_count: 2,
            height: 1,
            width: 2,
            channels: 3,
            dtype: Dtype::Uint8,
            pixels_offset: 0,
            pts_offset: 16,
            durations_offset: 32,
        };
        let mut slot: Vec<u8> = (0..16).collect();
        for time in [0.5f64, 1.5, 1.0, 2.0] {
            slot.extend(time.to_le_bytes());
        }
        let place = PartPlace::check(&layout, slot.len()).unwrap();
        Frames::new(Memory::copy_of(&slot), vec![place])
    }

    #[test]
    fn pixels_and_times_are_where_the_layout_says() {
        let frames = frames();
        let part = frames.part(0).unwrap();
        assert_eq!(part.shape(), [2, 1, 2, 3]);
        assert_eq!(&frames[..], (0..12).collect::<Vec<u8>>());
        assert_eq!(part.pts_seconds(), [0.5, 1.5]);
        let last = part.frames().last().unwrap();
        assert_eq!(last.pixels(), [6, 7, 8, 9, 10, 11]);
        assert_eq!((last.pts_seconds(), last.duration_seconds()), (1.5, 2.0));
        assert!(part.frame(2).is_none());
    }

    #[test]
    fn pixels_are_writable_unless_shared() {
        let mut frames = frames();
        frames.pixels_mut(0).unwrap()[0] = 99;
        assert_eq!(frames[0], 99);
        let clone = frames.clone();
        assert!(frames.pixels_mut(0).is_none());
        drop(clone);
        assert!(frames.pixels_mut(1).is_none());
    }

    #[test]
    fn copy_has_memory_of_its_own() {
        let frames = frames();
        let copy = frames.copied();
        assert_eq!(&copy[..], &frames[..]);
        assert_ne!(copy.part(0).unwrap().address(), frames.part(0).unwrap().address());
    }
}
