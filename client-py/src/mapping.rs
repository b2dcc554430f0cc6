//! [`FrameMapping`]: the frames of a stream as Python's caller lists them.
//!
//! How a list is read and checked is decided in Python's `decoders/_mappings.py`.

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use reeld_client::MappedFrame;

use crate::error::exception;

/// Sealed memory that goes to the daemon with each open.
#[pyclass(frozen, module = "reeld._native")]
pub(crate) struct FrameMapping {
    pub(crate) mapping: reeld_client::FrameMapping,
}

#[pymethods]
impl FrameMapping {
    /// Three columns of equal length: pts and duration in ticks, and 1 for keyframes.
    #[new]
    #[expect(clippy::needless_pass_by_value, reason = "PyO3 extracts buffers by value only")]
    fn new(
        py: Python<'_>,
        pts: PyBuffer<i64>,
        durations: PyBuffer<i64>,
        are_keys: PyBuffer<u8>,
    ) -> PyResult<FrameMapping> {
        let (pts, durations, are_keys) = (pts.to_vec(py)?, durations.to_vec(py)?, are_keys.to_vec(py)?);
        if pts.len() != durations.len() || pts.len() != are_keys.len() {
            return Err(PyValueError::new_err("the columns of a mapping have different lengths"));
        }
        let rows = pts.into_iter().zip(durations).zip(are_keys);
        let frame = |((pts, duration), is_key)| MappedFrame { pts, duration, is_key: is_key != 0 };
        let frames: Vec<_> = rows.map(frame).collect();
        let mapping = py.detach(|| reeld_client::FrameMapping::new(&frames));
        Ok(FrameMapping { mapping: mapping.map_err(|error| exception(&error))? })
    }
}
