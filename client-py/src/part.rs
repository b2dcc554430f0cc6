//! [`Part`]: the frames of one video in a reply, on their way to become a `Frame` or a `FrameBatch`.
//!
//! How pixels become tensors is not known here: see `pixels.rs`.

use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;
use pyo3::types::PyByteArray;
use reeld_client::{Frames, FramesPart};

use crate::pixels::{Pixels, Shown};

/// One part of a reply. Times are copied: they are small, and a view of them would keep all the pixels.
#[pyclass(frozen, module = "reeld._native")]
pub(crate) struct Part {
    frames: Frames,
    index: usize,
}

#[pymethods]
impl Part {
    /// The first frame: its pixels, when it begins and how long it lasts, in seconds.
    fn frame(&self, channels_first: bool) -> PyResult<(Pixels, f64, f64)> {
        let part = self.part()?;
        let (Some(&pts), Some(&duration)) = (part.pts_seconds().first(), part.duration_seconds().first())
        else {
            return Err(PyIndexError::new_err("the reply holds no frame"));
        };
        let shown = Shown { channels_first, is_single: true };
        Ok((Pixels::new(&self.frames, part, shown), pts, duration))
    }

    /// All frames: their pixels, when each begins and how long each lasts, in seconds, as float64 values.
    fn batch<'py>(
        &self,
        py: Python<'py>,
        channels_first: bool,
    ) -> PyResult<(Pixels, Bound<'py, PyByteArray>, Bound<'py, PyByteArray>)> {
        let part = self.part()?;
        let shown = Shown { channels_first, is_single: false };
        let pixels = Pixels::new(&self.frames, part, shown);
        Ok((pixels, bytes(py, part.pts_seconds()), bytes(py, part.duration_seconds())))
    }
}

impl Part {
    /// All parts of a reply, in its order.
    pub(crate) fn all(frames: &Frames) -> Vec<Part> {
        (0..frames.part_count()).map(|index| Part { frames: frames.clone(), index }).collect()
    }

    /// The one part of a reply to a request for one video.
    pub(crate) fn only(frames: Frames) -> Part {
        Part { frames, index: 0 }
    }

    fn part(&self) -> PyResult<FramesPart<'_>> {
        self.frames.part(self.index).ok_or_else(|| PyIndexError::new_err("the reply has no such part"))
    }
}

/// In memory of Python's own, which arrays and tensors share.
fn bytes<'py>(py: Python<'py>, values: &[f64]) -> Bound<'py, PyByteArray> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
    PyByteArray::new(py, &bytes)
}
