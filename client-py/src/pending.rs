//! [`Pending`]: a request for frames that is on its way.
//!
//! Which result belongs to which video is kept in Python's `clips.py`.

use std::time::{Duration, Instant};

use pyo3::exceptions::{PyTimeoutError, PyValueError};
use pyo3::prelude::*;

use crate::part::Part;
use crate::video::Video;
use crate::wait::{submit_interruptibly, wait_for_frames, wait_until};
use crate::wanted::Wanted;

/// A request; dropping it cancels it.
#[pyclass(frozen, module = "reeld._native")]
pub(crate) struct Pending {
    pending: reeld_client::Pending,
}

/// Asks for frames of several videos of one client by one request, without waiting for them.
#[pyfunction]
#[pyo3(signature = (parts, *, priority=0, timeout_seconds=None))]
#[expect(clippy::needless_pass_by_value, reason = "PyO3 extracts a list by value only")]
pub(crate) fn submit(
    py: Python<'_>,
    parts: Vec<(Py<Video>, Py<Wanted>)>,
    priority: i8,
    timeout_seconds: Option<f64>,
) -> PyResult<Pending> {
    let timeout = timeout_seconds.map(duration).transpose()?;
    let parts: Vec<_> =
        parts.iter().map(|(video, wanted)| (&video.get().video, wanted.get().wanted.clone())).collect();
    if parts.is_empty() {
        return Err(PyValueError::new_err("There are no parts to ask for."));
    }
    Ok(Pending { pending: submit_interruptibly(py, &parts, priority, timeout)? })
}

#[pymethods]
impl Pending {
    /// Waits for the frames, at most so many seconds.
    #[pyo3(signature = (timeout_seconds=None))]
    fn result(&self, py: Python<'_>, timeout_seconds: Option<f64>) -> PyResult<Vec<Part>> {
        // A deadline beyond what the clock can tell is none.
        let deadline =
            timeout_seconds.map(duration).transpose()?.and_then(|wait| Instant::now().checked_add(wait));
        let frames = match deadline {
            None => wait_for_frames(py, &self.pending)?,
            Some(deadline) => wait_until(py, &self.pending, deadline)?
                .ok_or_else(|| PyTimeoutError::new_err("The frames are not ready yet."))?,
        };
        Ok(Part::all(&frames))
    }

    /// True where `result` returns or raises at once.
    fn done(&self) -> bool {
        self.pending.is_done()
    }

    /// A hint that the frames are not needed any more.
    fn cancel(&self) {
        self.pending.cancel();
    }
}

/// Seconds as Python gives them: a negative time to wait is none.
pub(crate) fn duration(seconds: f64) -> PyResult<Duration> {
    if seconds.is_nan() {
        return Err(PyValueError::new_err("A time to wait must be a number of seconds, not NaN."));
    }
    Ok(Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX))
}
