//! What a media file says about itself: its header (`probe`) and all its samples (`scan`).
//!
//! What does not live here: decoding. Nothing in this folder makes pictures.

mod probe;
mod rotation;
mod scan;

pub use probe::{frames_per_second, probe};
pub use rotation::Rotation;
pub use scan::{Scan, Scanned};
