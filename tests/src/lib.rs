//! What the end-to-end tests share: a real daemon on a socket of its own, clips, and what ffmpeg says is in
//! them.
//!
//! Nothing is faked here, and no test is in this crate's library: they are in `tests/`.

#![expect(clippy::expect_used, reason = "a fixture that cannot do its part fails the test that asked for it")]

mod daemon;
mod example;
mod media;
mod other_user;
mod waiting;
mod worker;

pub use daemon::{Daemon, reelctl};
pub use example::enter_example_folder;
pub use media::{Reference, clip, twenty_clips};
pub use other_user::OtherUser;
pub use waiting::{block_on, eventually};
pub use worker::{Random, Worker};
