//! The Rust client of `reeld`, a daemon that owns a node's video decoders: ask for frames by index or by
//! time and get them in shared memory.
//!
//! ```
//! # reeld_tests::enter_example_folder();
//! use reeld_client::Video;
//!
//! let video = Video::open("clip.mp4")?;
//! println!("{:?} frames", video.metadata().frame_count());
//!
//! let frames = video.frames_at(&[3, 17, -1])?;
//! for frame in frames.parts().flat_map(|part| part.frames()) {
//!     let (height, width) = (frame.height(), frame.width());
//!     println!("{width} x {height} pixels at {} s", frame.pts_seconds());
//!     assert_eq!(frame.pixels().len(), height * width * 3);
//! }
//! # Ok::<(), reeld_client::Error>(())
//! ```
//!
//! - [`Video`] is an open video stream; [`Client`] the way to the daemon, found by itself in most programs.
//! - [`Frames`] are pixels and times, without a copy where possible.
//! - [`Ticket`] hands frames on to another process, without a copy.
//! - [`Pending`] is a request on its way: wait for it or `.await` it. [`AsyncClient`] and [`AsyncVideo`]
//!   are for futures throughout, with any runtime.
//!
//! A daemon that goes away is waited for: calls connect again and repeat themselves, and frames that are held
//! stay readable meanwhile. See [`ClientBuilder::reconnect_for`].
//!
//! The house: `client.rs` finds and keeps a connection (`locate.rs`, `autostart.rs`, `handshake.rs`,
//! `outage.rs`); `errand.rs` is one request until its end, over all connections that takes (`ask.rs`,
//! `dispatcher.rs`, `alarm.rs`); `link/` is the connection that all threads share (`outbound.rs`, `inbound.rs`,
//! `calls.rs`); `lease.rs`,
//! `memory.rs`, `layout.rs` and `frames.rs` are what a request brings; `ledger.rs` counts it against the
//! quota; `fork/` is what happens when the process forks.
//!
//! What does not live here: decoding, or any decision about media. That is the daemon's.

mod alarm;
mod ask;
mod autostart;
mod bulk;
mod call;
mod calls;
mod client;
mod connection;
mod dispatcher;
mod errand;
mod error;
mod fork;
mod frames;
mod handshake;
mod housekeeper;
mod inbound;
mod layout;
mod lease;
mod ledger;
mod link;
mod locate;
mod mapping;
mod memory;
mod nearby;
mod nonblocking;
mod offload;
mod opening;
mod options;
mod outage;
mod outbound;
#[cfg(test)]
mod peer;
mod pending;
mod prefetch;
mod reader;
mod socket;
mod source;
mod spool;
mod threads;
mod ticket;
mod video;
mod video_metadata;

pub use client::{Client, ClientBuilder};
pub use error::Error;
pub use frames::{Frame, Frames, FramesPart, WeakFrames};
pub use ledger::ClientStatistics;
pub use mapping::FrameMapping;
pub use nonblocking::{AsyncClient, AsyncVideo};
pub use opening::Opening;
pub use options::{DtypeChoice, FrameRange, OpenOptions, RequestOptions};
pub use pending::Pending;
pub use source::MediaSource;
pub use spool::Spool;
pub use ticket::Ticket;
pub use video::Video;
pub use video_metadata::VideoMetadata;

pub use reeld_protocol::Transform;
pub use reeld_protocol::mapping::{MAPPED_FRAMES_MAX, MappedFrame};
pub use reeld_protocol::message::{Dtype, SeekMode, Wanted};
pub use reeld_protocol::metadata;
pub use reeld_protocol::status;
