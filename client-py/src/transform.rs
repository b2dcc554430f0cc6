//! [`Transform`]: what the daemon does to frames before it delivers them.
//!
//! Nothing is checked or drawn at random here: that is done in Python's `transforms.py`, and sizes are checked by the
//! Rust client.

use pyo3::prelude::*;

/// One step. Sizes are height and width.
#[pyclass(frozen, module = "reeld._native")]
pub(crate) struct Transform {
    pub(crate) transform: reeld_client::Transform,
}

#[pymethods]
impl Transform {
    /// Scaled to a size.
    #[staticmethod]
    fn resize(height: u32, width: u32) -> Transform {
        Transform { transform: reeld_client::Transform::Resize { height, width } }
    }

    /// A part of the frame.
    #[staticmethod]
    fn crop(top: u32, left: u32, height: u32, width: u32) -> Transform {
        Transform { transform: reeld_client::Transform::Crop { top, left, height, width } }
    }

    /// The middle of the frame.
    #[staticmethod]
    fn center_crop(height: u32, width: u32) -> Transform {
        Transform { transform: reeld_client::Transform::CenterCrop { height, width } }
    }
}
