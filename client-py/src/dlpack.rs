//! DLPack: how frames become tensors of other libraries without a copy. The layout of these structs is that
//! of DLPack's header, for both kinds of capsule that consumers know.
//!
//! All `unsafe` of this crate is in this file and in `spool.rs`. Which memory is exported, and with which shape, is not
//! decided here but in `pixels.rs`.

use std::ffi::{CStr, c_void};
use std::ptr::NonNull;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyCapsule;
use reeld_client::Frames;

/// Number of dimensions that pixels have at most: those of a batch of batches, with some to spare.
pub(crate) const DIMENSIONS_MAX: usize = 8;

/// `kDLCPU`, and the only CPU that there is.
pub(crate) const CPU_DEVICE: (i32, i32) = (1, 0);

/// What a capsule is made from: memory, its shape, and the frames that keep it alive.
pub(crate) struct Export {
    pub(crate) frames: Frames,
    pub(crate) address: NonNull<u8>,
    pub(crate) dtype: DataType,
    /// Counts of values, outermost first.
    pub(crate) shape: [i64; DIMENSIONS_MAX],
    /// Steps in values, outermost first.
    pub(crate) strides: [i64; DIMENSIONS_MAX],
    pub(crate) dimension_count: usize,
}

/// `DLDataType`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct DataType {
    code: u8,
    bits: u8,
    lanes: u16,
}

impl DataType {
    /// `kDLUInt`, 8 bits.
    pub(crate) const UINT8: DataType = DataType { code: 1, bits: 8, lanes: 1 };
    /// `kDLFloat`, 32 bits.
    pub(crate) const FLOAT32: DataType = DataType { code: 2, bits: 32, lanes: 1 };
}

/// `DLDevice`.
#[repr(C)]
struct Device {
    kind: i32,
    index: i32,
}

/// `DLTensor`.
#[repr(C)]
struct Tensor {
    data: *mut c_void,
    device: Device,
    dimension_count: i32,
    dtype: DataType,
    shape: *mut i64,
    strides: *mut i64,
    offset_bytes: u64,
}

/// `DLManagedTensor`, of DLPack before 1.0.
#[repr(C)]
struct Managed {
    tensor: Tensor,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Managed)>,
}

/// `DLManagedTensorVersioned`, since DLPack 1.0.
#[repr(C)]
struct ManagedVersioned {
    major: u32,
    minor: u32,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut ManagedVersioned)>,
    flags: u64,
    tensor: Tensor,
}

/// What the tensor's pointers point into, alive until its deleter is called.
struct Context {
    shape: [i64; DIMENSIONS_MAX],
    strides: [i64; DIMENSIONS_MAX],
    /// Held, never read: dropping it gives the memory back.
    _frames: Frames,
}

const NAME: &CStr = c"dltensor";
const NAME_VERSIONED: &CStr = c"dltensor_versioned";

/// A capsule for consumers of any age.
pub(crate) fn capsule(py: Python<'_>, export: Export) -> PyResult<Bound<'_, PyCapsule>> {
    let (tensor, context) = tensor(export);
    let managed = Box::new(Managed { tensor, context, deleter: Some(delete) });
    let pointer = NonNull::from(Box::leak(managed)).cast();
    // SAFETY: the pointer is valid until the deleter is called, which the capsule's destructor does unless
    // a consumer took it over.
    unsafe { PyCapsule::new_with_pointer_and_destructor(py, pointer, NAME, Some(drop_unconsumed)) }
}

/// A capsule for consumers that know DLPack 1.0. It carries no flags: the memory is writable and was not copied.
pub(crate) fn capsule_versioned(py: Python<'_>, export: Export) -> PyResult<Bound<'_, PyCapsule>> {
    let (tensor, context) = tensor(export);
    let deleter = Some(delete_versioned as unsafe extern "C" fn(*mut ManagedVersioned));
    let managed = Box::new(ManagedVersioned { major: 1, minor: 0, context, deleter, flags: 0, tensor });
    let pointer = NonNull::from(Box::leak(managed)).cast();
    // SAFETY: as in `capsule`.
    unsafe {
        PyCapsule::new_with_pointer_and_destructor(
            py,
            pointer,
            NAME_VERSIONED,
            Some(drop_unconsumed_versioned),
        )
    }
}

fn tensor(export: Export) -> (Tensor, *mut c_void) {
    let context =
        Box::leak(Box::new(Context { shape: export.shape, strides: export.strides, _frames: export.frames }));
    let tensor = Tensor {
        data: export.address.as_ptr().cast(),
        device: Device { kind: CPU_DEVICE.0, index: CPU_DEVICE.1 },
        dimension_count: export.dimension_count as i32,
        dtype: export.dtype,
        shape: context.shape.as_mut_ptr(),
        strides: context.strides.as_mut_ptr(),
        offset_bytes: 0,
    };
    (tensor, std::ptr::from_mut(context).cast())
}

/// Called by the consumer when its last view dies: in any thread, with or without the GIL.
unsafe extern "C" fn delete(managed: *mut Managed) {
    // SAFETY: the consumer hands back, once, what `capsule` leaked.
    let managed = unsafe { Box::from_raw(managed) };
    // SAFETY: likewise for what `tensor` leaked.
    drop(unsafe { Box::from_raw(managed.context.cast::<Context>()) });
}

/// As [`delete`].
unsafe extern "C" fn delete_versioned(managed: *mut ManagedVersioned) {
    // SAFETY: the consumer hands back, once, what `capsule_versioned` leaked.
    let managed = unsafe { Box::from_raw(managed) };
    // SAFETY: likewise for what `tensor` leaked.
    drop(unsafe { Box::from_raw(managed.context.cast::<Context>()) });
}

/// The capsule's destructor. Consumers rename a capsule, so one that has its first name was not consumed.
unsafe extern "C" fn drop_unconsumed(capsule: *mut ffi::PyObject) {
    if let Some(managed) = unconsumed(capsule, NAME) {
        // SAFETY: nobody else has the pointer.
        unsafe { delete(managed.as_ptr().cast()) };
    }
}

/// As [`drop_unconsumed`].
unsafe extern "C" fn drop_unconsumed_versioned(capsule: *mut ffi::PyObject) {
    if let Some(managed) = unconsumed(capsule, NAME_VERSIONED) {
        // SAFETY: nobody else has the pointer.
        unsafe { delete_versioned(managed.as_ptr().cast()) };
    }
}

fn unconsumed(capsule: *mut ffi::PyObject, name: &CStr) -> Option<NonNull<c_void>> {
    // SAFETY: Python calls a capsule's destructor with that capsule, and attached to the interpreter.
    if unsafe { ffi::PyCapsule_IsValid(capsule, name.as_ptr()) } != 1 {
        return None;
    }
    // SAFETY: it is valid under this name.
    NonNull::new(unsafe { ffi::PyCapsule_GetPointer(capsule, name.as_ptr()) })
}
