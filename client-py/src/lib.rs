//! The native module `reeld._native`: the Rust client as Python sees it. The way of a call: `client.rs` opens
//! a `video.rs`, from a `spool.rs` where there is no file and with a `mapping.rs` where the caller has one. That is asked
//! for what a `wanted.rs` says, perhaps in another shape (`transform.rs`); a `pending.rs` or `wait.rs` waits for the reply,
//! whose `part.rs` hands out `pixels.rs`, which becomes a tensor through `dlpack.rs`; `memory.rs` hands
//! frames on.
//!
//! The interface for callers does not live here but in `python/reeld`.

mod client;
mod dlpack;
mod error;
mod mapping;
mod memory;
mod part;
mod pending;
mod pixels;
mod spool;
mod status;
mod transform;
mod video;
mod wait;
mod wanted;

/// Registered as `reeld._native`.
#[pyo3::pymodule(gil_used = false)]
mod _native {
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::client::Client;
    #[pymodule_export]
    use crate::mapping::FrameMapping;
    #[pymodule_export]
    use crate::memory::{Memory, name_session};
    #[pymodule_export]
    use crate::part::Part;
    #[pymodule_export]
    use crate::pending::{Pending, submit};
    #[pymodule_export]
    use crate::pixels::Pixels;
    #[pymodule_export]
    use crate::spool::Spool;
    #[pymodule_export]
    use crate::transform::Transform;
    #[pymodule_export]
    use crate::video::Video;
    #[pymodule_export]
    use crate::wanted::Wanted;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
