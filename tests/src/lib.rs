//! What the end-to-end tests share: a real daemon on a socket of its own, clips, and what ffmpeg says is in
//! them.
//!
//! Nothing is faked here, and no test is in this crate's library: they are in `tests/`.

#![expect(clippy::expect_used, reason = "a fixture that cannot do its part fails the test that asked for it")]

mod by_hand;
mod daemon;
mod example;
mod media;
mod other_user;
mod peer;
mod stand_in;
mod waiting;
mod worker;

pub use by_hand::{ByHand, as_user};
pub use daemon::{Daemon, reelctl};
pub use example::enter_example_folder;
pub use media::{Reference, clip, twenty_clips};
pub use other_user::OtherUser;
pub use peer::{Peer, bytes_of, open_source, raw_message};
pub use stand_in::StandIn;
pub use waiting::{block_on, eventually};
pub use worker::{Random, Worker};
