//! [`Pixels`]: one frame, or a batch of frames, as a block of numbers that other libraries take over.
//!
//! Nothing is copied here, and nothing is known here about how long the memory lives: whoever takes it over
//! holds a clone of the [`Frames`].

use std::ptr::NonNull;

use pyo3::exceptions::PyBufferError;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyDict, PyTuple};
use reeld_client::{Dtype, Frames, FramesPart};

use crate::dlpack::{self, CPU_DEVICE, DIMENSIONS_MAX, DataType, Export};
use crate::memory::Memory;

/// What its protocols make of it are views; the memory is given back when the last of them dies.
#[pyclass(frozen, module = "reeld._native")]
pub(crate) struct Pixels {
    frames: Frames,
    block: Block,
}

/// A block of values in the memory of some frames.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    /// Where it begins, in bytes from where the memory of the frames begins.
    pub(crate) offset: usize,
    pub(crate) dtype: Dtype,
    /// Counts of values, outermost first; at most [`DIMENSIONS_MAX`].
    pub(crate) shape: Vec<usize>,
    /// Steps in values, outermost first.
    pub(crate) strides: Vec<usize>,
}

/// How a part's pixels, which always lie as N, H, W, C, are shown.
#[derive(Clone, Copy)]
pub(crate) struct Shown {
    /// As N, C, H, W.
    pub(crate) channels_first: bool,
    /// The first frame alone, without N.
    pub(crate) is_single: bool,
}

#[pymethods]
impl Pixels {
    /// For `torch.from_dlpack`, which takes a bare capsule as well as an object.
    fn dlpack_capsule<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyCapsule>> {
        dlpack::capsule(py, self.export()?)
    }

    #[pyo3(signature = (*, stream=None, max_version=None, dl_device=None, copy=None))]
    fn __dlpack__<'py>(
        &self,
        py: Python<'py>,
        stream: Option<&Bound<'py, PyAny>>,
        max_version: Option<(u32, u32)>,
        dl_device: Option<(i32, i32)>,
        copy: Option<bool>,
    ) -> PyResult<Bound<'py, PyCapsule>> {
        if stream.is_some() {
            return Err(PyBufferError::new_err("frames in the CPU's memory have no stream"));
        }
        if dl_device.is_some_and(|device| device != CPU_DEVICE) || copy == Some(true) {
            return Err(PyBufferError::new_err(
                "frames are views of the CPU's memory: copy the view instead",
            ));
        }
        if max_version.is_some_and(|(major, _)| major >= 1) {
            dlpack::capsule_versioned(py, self.export()?)
        } else {
            dlpack::capsule(py, self.export()?)
        }
    }

    fn __dlpack_device__(&self) -> (i32, i32) {
        CPU_DEVICE
    }

    /// numpy's protocol, version 3. The array keeps this object as its base.
    #[getter]
    fn __array_interface__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let Block { dtype, ref shape, ref strides, .. } = self.block;
        let value_bytes = dtype.bytes() as usize;
        let interface = PyDict::new(py);
        interface.set_item("version", 3)?;
        interface.set_item(
            "typestr",
            match dtype {
                Dtype::Uint8 => "|u1",
                Dtype::Float32 => "<f4",
            },
        )?;
        let is_read_only = false;
        interface.set_item("data", (self.address()?.as_ptr() as usize, is_read_only))?;
        interface.set_item("shape", PyTuple::new(py, shape)?)?;
        interface.set_item("strides", PyTuple::new(py, strides.iter().map(|step| step * value_bytes))?)?;
        Ok(interface)
    }

    /// What these pixels lie in, as long as they live; None where it is this process's alone.
    fn memory(&self) -> Option<Memory> {
        Memory::of(&self.frames)
    }

    /// Where the daemon's memory that holds these pixels is mapped, as (start, stop); None where they were
    /// copied out of it.
    fn arena_addresses(&self) -> Option<(usize, usize)> {
        self.frames.arena_addresses().map(|addresses| (addresses.start, addresses.end))
    }
}

impl Pixels {
    /// The pixels of a part.
    pub(crate) fn new(frames: &Frames, part: FramesPart<'_>, shown: Shown) -> Pixels {
        let (shape, strides) = shown.layout(&part);
        let offset = part.address().as_ptr() as usize - frames.addresses().start;
        Pixels { frames: frames.clone(), block: Block { offset, dtype: part.dtype(), shape, strides } }
    }

    /// A block of the memory of some frames; none where it does not lie within it.
    pub(crate) fn view(frames: Frames, block: Block) -> Option<Pixels> {
        block.lies_within(frames.addresses().len()).then_some(Pixels { frames, block })
    }

    fn address(&self) -> PyResult<NonNull<u8>> {
        NonNull::new((self.frames.addresses().start + self.block.offset) as *mut u8)
            .ok_or_else(|| PyBufferError::new_err("these pixels have no memory"))
    }

    fn export(&self) -> PyResult<Export> {
        let block = &self.block;
        Ok(Export {
            frames: self.frames.clone(),
            address: self.address()?,
            dtype: match block.dtype {
                Dtype::Uint8 => DataType::UINT8,
                Dtype::Float32 => DataType::FLOAT32,
            },
            dimension_count: block.shape.len(),
            shape: padded(&block.shape),
            strides: padded(&block.strides),
        })
    }
}

impl Block {
    /// True if each of its values lies in so many bytes, and where such a value may lie.
    fn lies_within(&self, bytes: usize) -> bool {
        let value_bytes = self.dtype.bytes() as usize;
        if self.shape.len() != self.strides.len()
            || self.shape.len() > DIMENSIONS_MAX
            || !self.offset.is_multiple_of(value_bytes)
        {
            return false;
        }
        let last = self.shape.iter().zip(&self.strides).try_fold(0usize, |last, (&count, &step)| {
            last.checked_add(count.checked_sub(1)?.checked_mul(step)?)
        });
        let end =
            last.and_then(|last| last.checked_add(1)?.checked_mul(value_bytes)?.checked_add(self.offset));
        end.is_some_and(|end| end <= bytes)
    }
}

impl Shown {
    /// Counts and steps of the dimensions, outermost first, in values.
    fn layout(self, part: &FramesPart<'_>) -> (Vec<usize>, Vec<usize>) {
        let [_, height, width, channels] = part.shape();
        let strides = [height * width * channels, width * channels, channels, 1];
        let order: &[usize] = match (self.channels_first, self.is_single) {
            (false, false) => &[0, 1, 2, 3],
            (false, true) => &[1, 2, 3],
            (true, false) => &[0, 3, 1, 2],
            (true, true) => &[3, 1, 2],
        };
        let shape = order.iter().map(|&dimension| part.shape()[dimension]).collect();
        (shape, order.iter().map(|&dimension| strides[dimension]).collect())
    }
}

fn padded(values: &[usize]) -> [i64; DIMENSIONS_MAX] {
    let mut padded = [0; DIMENSIONS_MAX];
    for (target, &value) in padded.iter_mut().zip(values) {
        *target = value as i64;
    }
    padded
}
