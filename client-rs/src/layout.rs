//! [`PartPlace`]: where one part's pixels and times lie in a slot, checked once, so that it cannot be wrong.
//!
//! What the daemon says is not believed: a broken daemon must not make this process read elsewhere.

use reeld_protocol::message::{Dtype, PartLayout};

/// A part's layout after its check against the slot's length.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PartPlace {
    pub(crate) frame_count: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) channels: usize,
    pub(crate) dtype: Dtype,
    pub(crate) frame_bytes: usize,
    pub(crate) pixels_offset: usize,
    pub(crate) pts_offset: usize,
    pub(crate) durations_offset: usize,
}

impl PartPlace {
    /// The same as it travels.
    pub(crate) fn layout(&self) -> PartLayout {
        PartLayout {
            frame_count: self.frame_count as u64,
            height: self.height as u32,
            width: self.width as u32,
            channels: self.channels as u32,
            dtype: self.dtype,
            pixels_offset: self.pixels_offset as u64,
            pts_offset: self.pts_offset as u64,
            durations_offset: self.durations_offset as u64,
        }
    }

    /// Checks that all of a part lies in a slot of that length, aligned for its values; none where not.
    /// The slot itself must be aligned to 8 bytes.
    pub(crate) fn check(layout: &PartLayout, slot_bytes: usize) -> Option<PartPlace> {
        let values = u64::from(layout.height)
            .checked_mul(u64::from(layout.width))?
            .checked_mul(u64::from(layout.channels))?;
        let frame_bytes = values.checked_mul(layout.dtype.bytes())?;
        let pixels_bytes = frame_bytes.checked_mul(layout.frame_count)?;
        let times_bytes = layout.frame_count.checked_mul(size_of::<f64>() as u64)?;
        let place = |offset: u64, bytes: u64, alignment: u64| {
            let is_inside = offset.checked_add(bytes)? <= slot_bytes as u64;
            (is_inside && offset.is_multiple_of(alignment)).then_some(offset as usize)
        };
        Some(PartPlace {
            frame_count: usize::try_from(layout.frame_count).ok()?,
            height: layout.height as usize,
            width: layout.width as usize,
            channels: layout.channels as usize,
            dtype: layout.dtype,
            frame_bytes: usize::try_from(frame_bytes).ok()?,
            pixels_offset: place(layout.pixels_offset, pixels_bytes, layout.dtype.bytes())?,
            pts_offset: place(layout.pts_offset, times_bytes, 8)?,
            durations_offset: place(layout.durations_offset, times_bytes, 8)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> PartLayout {
        PartLayout {
            frame_count: 2,
            height: 4,
            width: 5,
            channels: 3,
            dtype: Dtype::Uint8,
            pixels_offset: 0,
            pts_offset: 120,
            durations_offset: 136,
        }
    }

    #[test]
    fn part_that_fills_its_slot_is_accepted() {
        let place = PartPlace::check(&layout(), 152).unwrap();
        assert_eq!((place.frame_bytes, place.durations_offset), (60, 136));
        assert!(PartPlace::check(&layout(), 151).is_none());
    }

    #[test]
    fn part_with_overflowing_sizes_is_refused() {
        let huge = PartLayout { height: u32::MAX, width: u32::MAX, channels: u32::MAX, ..layout() };
        assert!(PartPlace::check(&huge, usize::MAX).is_none());
        let many = PartLayout { frame_count: u64::MAX, ..layout() };
        assert!(PartPlace::check(&many, usize::MAX).is_none());
        let beyond = PartLayout { pixels_offset: u64::MAX - 3, ..layout() };
        assert!(PartPlace::check(&beyond, 152).is_none());
    }

    #[test]
    fn part_with_crooked_offsets_is_refused() {
        let times = PartLayout { pts_offset: 121, ..layout() };
        assert!(PartPlace::check(&times, 1000).is_none());
        let values = PartLayout { dtype: Dtype::Float32, pixels_offset: 2, ..layout() };
        assert!(PartPlace::check(&values, 10_000).is_none());
    }
}
