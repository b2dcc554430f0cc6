//! [`Spool`]: media that Python hands over piece by piece. And [`duplicate`], for those that it has open.
//!
//! What they are read from, and how much is allowed, is decided in Python's `decoders/_spool.py`.

use std::fs::File;
use std::io::Write;
use std::os::fd::{BorrowedFd, RawFd};

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyBufferError, PyValueError};
use pyo3::prelude::*;

/// Bytes that are copied before a signal is looked for: some milliseconds.
const PIECE_BYTES: usize = 32 << 20;

/// Empty after it was opened: a video can be made from it once.
#[pyclass(module = "reeld._native")]
pub(crate) struct Spool {
    spool: Option<reeld_client::Spool>,
}

#[pymethods]
impl Spool {
    /// With `in_memory`, content of any size stays in memory.
    #[new]
    #[pyo3(signature = (*, in_memory=false))]
    fn new(in_memory: bool) -> PyResult<Spool> {
        let spool = if in_memory { reeld_client::Spool::in_memory() } else { reeld_client::Spool::new() };
        Ok(Spool { spool: Some(spool?) })
    }

    /// Makes room for so many bytes.
    fn expect_bytes(&mut self, py: Python<'_>, count: u64) -> PyResult<()> {
        let spool = self.open()?;
        py.detach(|| spool.expect_bytes(count))?;
        Ok(())
    }

    /// Appends the bytes of a buffer, without the GIL, and says how many they are. Ctrl-C ends it.
    #[expect(clippy::needless_pass_by_value, reason = "PyO3 extracts buffers by value only")]
    fn write(&mut self, py: Python<'_>, bytes: PyBuffer<u8>) -> PyResult<usize> {
        if !bytes.is_c_contiguous() {
            return Err(PyBufferError::new_err("the bytes do not lie one behind the other"));
        }
        let spool = self.open()?;
        if bytes.len_bytes() == 0 {
            return Ok(0);
        }
        // SAFETY: the buffer is contiguous and held during this call. Where another thread writes to it meanwhile, the
        // kernel copies whatever it finds: nothing here looks at the values.
        let content = unsafe { std::slice::from_raw_parts(bytes.buf_ptr().cast::<u8>(), bytes.len_bytes()) };
        for piece in content.chunks(PIECE_BYTES) {
            py.detach(|| spool.write_all(piece))?;
            py.check_signals()?;
        }
        Ok(content.len())
    }
}

impl Spool {
    /// The content, for the one video that is opened from it.
    pub(crate) fn take(&mut self) -> PyResult<reeld_client::Spool> {
        self.spool.take().ok_or_else(spent)
    }

    fn open(&mut self) -> PyResult<&mut reeld_client::Spool> {
        self.spool.as_mut().ok_or_else(spent)
    }
}

fn spent() -> PyErr {
    PyValueError::new_err("a video was opened from it already")
}

/// A descriptor of our own for a file that Python has open.
pub(crate) fn duplicate(fd: RawFd) -> PyResult<File> {
    if fd < 0 {
        return Err(PyValueError::new_err("a file that is not open"));
    }
    // SAFETY: not negative; Python's file object, which the caller holds, keeps it open during this call.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    Ok(borrowed.try_clone_to_owned()?.into())
}
