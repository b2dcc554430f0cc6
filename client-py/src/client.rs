//! [`Client`]: a connection to a daemon.
//!
//! Which one is used where none is named is not decided here but in Python's `client.py`.

use std::os::fd::RawFd;
use std::path::PathBuf;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use reeld_client::{Dtype, DtypeChoice, MediaSource, OpenOptions, SeekMode};

use crate::error::exception;
use crate::mapping::FrameMapping;
use crate::memory;
use crate::pending::duration;
use crate::pixels::Pixels;
use crate::spool::{Spool, duplicate};
use crate::status;
use crate::video::Video;
use crate::wait::{interruptibly, wait_for_frames, wait_for_opening};

/// Threads may share it; a forked child connects anew by itself.
#[pyclass(frozen, module = "reeld._native")]
pub(crate) struct Client {
    client: reeld_client::Client,
}

/// What a decoder is made from.
#[derive(FromPyObject)]
enum Source<'py> {
    Spool(Bound<'py, Spool>),
    /// A descriptor that its owner keeps, and how messages call the file.
    OpenFile(RawFd, String),
    Path(PathBuf),
}

#[pymethods]
impl Client {
    #[new]
    #[pyo3(signature = (*, socket=None, binary=None, binary_dirs=Vec::new(), autostart=true, reconnect_seconds=None))]
    fn new(
        py: Python<'_>,
        socket: Option<PathBuf>,
        binary: Option<PathBuf>,
        binary_dirs: Vec<PathBuf>,
        autostart: bool,
        reconnect_seconds: Option<f64>,
    ) -> PyResult<Client> {
        let mut builder = reeld_client::Client::builder().name("python");
        if let Some(socket) = socket {
            builder = builder.socket(socket);
        }
        if let Some(binary) = binary {
            builder = builder.binary(binary);
        }
        for folder in binary_dirs {
            builder = builder.binary_dir(folder);
        }
        if let Some(seconds) = reconnect_seconds {
            builder = builder.reconnect_for(duration(seconds)?);
        }
        if !autostart {
            builder = builder.autostart(false);
        }
        Ok(Client { client: interruptibly(py, move || builder.connect())? })
    }

    #[pyo3(signature = (source, *, stream, seek_mode, dtype, thread_count, mapping=None))]
    #[expect(clippy::too_many_arguments, reason = "they are the keywords of a call in Python")]
    fn open(
        &self,
        py: Python<'_>,
        source: Source<'_>,
        stream: Option<u32>,
        seek_mode: &str,
        dtype: &str,
        thread_count: u16,
        mapping: Option<PyRef<'_, FrameMapping>>,
    ) -> PyResult<Video> {
        let seek_mode = match seek_mode {
            "exact" => SeekMode::Exact,
            "approximate" => SeekMode::Approximate,
            other => return Err(PyValueError::new_err(format!("there is no seek mode {other:?}"))),
        };
        let dtype = match dtype {
            "uint8" => Dtype::Uint8.into(),
            "float32" => Dtype::Float32.into(),
            "auto" => DtypeChoice::ByDepth,
            other => return Err(PyValueError::new_err(format!("there is no dtype {other:?}"))),
        };
        let source = match source {
            Source::Spool(spool) => MediaSource::Spool(spool.borrow_mut().take()?),
            Source::OpenFile(fd, label) => MediaSource::File(duplicate(fd)?, label),
            Source::Path(path) => MediaSource::Path(path),
        };
        let mapping = mapping.map(|mapping| mapping.mapping.clone());
        let options = OpenOptions { stream, seek_mode, dtype, thread_count, mapping };
        if let MediaSource::Path(path) = &source
            && let Some(opening) = py.detach(|| self.client.begin_open(path, &options))
        {
            return Ok(Video::new(wait_for_opening(py, &opening)?));
        }
        let client = self.client.clone();
        Ok(Video::new(interruptibly(py, move || client.open(source, options))?))
    }

    /// The pixels that a ticket stands for.
    #[pyo3(signature = (ticket, *, dtype, offset, shape, strides))]
    fn redeem(
        &self,
        py: Python<'_>,
        ticket: &[u8],
        dtype: &str,
        offset: usize,
        shape: Vec<usize>,
        strides: Vec<usize>,
    ) -> PyResult<Pixels> {
        let block = memory::block(dtype, offset, shape, strides)?;
        let pending = self.client.redeem(&memory::ticket(ticket)?).map_err(|error| exception(&error))?;
        memory::view(wait_for_frames(py, &pending)?, block)
    }

    /// Counts a copy that Python made.
    fn count_copy(&self, byte_count: u64) {
        self.client.count_copy(byte_count);
    }

    /// What the daemon says about itself.
    fn status<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let client = self.client.clone();
        status::report(py, &interruptibly(py, move || client.status())?)
    }

    /// What this side counts.
    fn statistics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        status::statistics(py, &self.client.statistics())
    }
}
