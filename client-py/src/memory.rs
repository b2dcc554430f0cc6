//! [`Memory`]: the slot that frames lie in, known to their `Frame` or `FrameBatch`, and what comes out of it for
//! another process.
//!
//! When frames go as tickets and when by value is not decided here but in Python's `_tickets.py`.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use reeld_client::{Dtype, Error, Frames, Ticket, WeakFrames};

use crate::error::exception;
use crate::pixels::{Block, Pixels};

/// Knows the memory of frames without keeping it: that is for their tensors to do.
#[pyclass(frozen, module = "reeld._native")]
pub(crate) struct Memory {
    frames: WeakFrames,
    addresses: (usize, usize),
}

#[pymethods]
impl Memory {
    /// Where the slot begins and ends; None where nobody has it any more.
    fn addresses(&self) -> Option<(usize, usize)> {
        self.frames.upgrade().map(|_| self.addresses)
    }

    /// A ticket for the whole slot.
    fn ticket<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let frames = self.frames.upgrade().ok_or_else(|| {
            exception(&Error::FramesLost(
                "the memory was given back: nobody has these frames any more".into(),
            ))
        })?;
        let bytes = py.detach(|| frames.ticket().and_then(|ticket| ticket.to_bytes()));
        Ok(PyBytes::new(py, &bytes.map_err(|error| exception(&error))?))
    }
}

impl Memory {
    /// Of frames in shared memory.
    pub(crate) fn of(frames: &Frames) -> Option<Memory> {
        let addresses = frames.addresses();
        let addresses = (addresses.start, addresses.end);
        (!frames.is_copied()).then(|| Memory { frames: frames.downgrade(), addresses })
    }
}

/// Names the process for as long as which tickets of this one shall hold at least.
#[pyfunction]
pub(crate) fn name_session(process: u32) -> PyResult<()> {
    Ok(Ticket::name_session(process)?)
}

/// What a ticket stands for, seen as a block of values that begins so many bytes behind the slot's begin.
pub(crate) fn block(dtype: &str, offset: usize, shape: Vec<usize>, strides: Vec<usize>) -> PyResult<Block> {
    let dtype = match dtype {
        "uint8" => Dtype::Uint8,
        "float32" => Dtype::Float32,
        other => return Err(PyValueError::new_err(format!("there is no dtype {other:?}"))),
    };
    Ok(Block { offset, dtype, shape, strides })
}

/// The block in these frames.
pub(crate) fn view(frames: Frames, block: Block) -> PyResult<Pixels> {
    Pixels::view(frames, block)
        .ok_or_else(|| PyValueError::new_err("The ticket's pixels do not lie within its memory."))
}

/// A ticket's bytes.
pub(crate) fn ticket(bytes: &[u8]) -> PyResult<Ticket> {
    Ticket::from_bytes(bytes).map_err(|error| exception(&error))
}
