//! [`Wanted`]: which frames of a video are asked for.
//!
//! Nothing is checked here: bounds are checked in Python's `_bounds.py`, and again by the daemon.

use pyo3::buffer::PyBuffer;
use pyo3::prelude::*;

/// Frames of one video, by index or by time.
#[pyclass(frozen, module = "reeld._native")]
pub(crate) struct Wanted {
    pub(crate) wanted: reeld_client::Wanted,
}

#[pymethods]
impl Wanted {
    /// One frame, from the end where negative.
    #[staticmethod]
    fn index(index: i64) -> Wanted {
        reeld_client::Wanted::Indices(vec![index]).into()
    }

    /// Frames in any order, from the end where negative.
    #[staticmethod]
    fn index_list(indices: Vec<i64>) -> Wanted {
        reeld_client::Wanted::Indices(indices).into()
    }

    /// As `index_list`, from a buffer of int64.
    #[staticmethod]
    #[expect(clippy::needless_pass_by_value, reason = "PyO3 extracts buffers by value only")]
    fn indices(py: Python<'_>, indices: PyBuffer<i64>) -> PyResult<Wanted> {
        Ok(reeld_client::Wanted::Indices(indices.to_vec(py)?).into())
    }

    /// `start`, `start + step`, … below `stop`.
    #[staticmethod]
    fn index_range(start: u64, stop: u64, step: u64) -> Wanted {
        reeld_client::Wanted::IndexRange { start, stop, step }.into()
    }

    /// The frame that covers this time, in seconds, or the next one where none does.
    #[staticmethod]
    fn played_at(seconds: f64) -> Wanted {
        reeld_client::Wanted::PlayedAt(seconds).into()
    }

    /// For each time the frame on display then. Takes a buffer of float64.
    #[staticmethod]
    #[expect(clippy::needless_pass_by_value, reason = "PyO3 extracts buffers by value only")]
    fn played_at_each(py: Python<'_>, seconds: PyBuffer<f64>) -> PyResult<Wanted> {
        Ok(reeld_client::Wanted::PlayedAtEach(seconds.to_vec(py)?).into())
    }

    /// All frames on display in [start, stop), in seconds.
    #[staticmethod]
    fn played_in_range(start: f64, stop: f64) -> Wanted {
        reeld_client::Wanted::PlayedInRange { start, stop }.into()
    }
}

impl From<reeld_client::Wanted> for Wanted {
    fn from(wanted: reeld_client::Wanted) -> Wanted {
        Wanted { wanted }
    }
}
