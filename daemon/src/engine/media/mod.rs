//! What a media file says about itself: its header (`probe`), all its samples (`scan`), and each of
//! them (`references`).
//!
//! What does not live here: decoding. Nothing in this folder makes pictures.

mod probe;
mod references;
mod rotation;
mod scan;

pub use probe::{frames_per_second, probe};
pub use references::References;
pub use rotation::Rotation;
pub use scan::{Scan, Scanned};
