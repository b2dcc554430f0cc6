//! What the administrator decides: the command line of `reeld`, its configuration file and its environment.
//!
//! | file | what lives there |
//! |---|---|
//! | `keys` | [`KEYS`](keys::KEYS): every setting, one row each. A new one is a row there and a field of [`Settings`] or [`Limits`], which the compiler then asks for in `Settings::blank` |
//! | `kind` | kinds of values: how each is read, checked and shown |
//! | `command_line` | sub-commands and flags; those of the settings come from the table |
//! | `file` | where the configuration file is, and what stands in it at which line |
//! | `load` | default < file < environment < flag, and all faults at once |
//! | `print` | the texts that the table makes: the commented file and `docs/config.md` |
//! | `cache_dir` | where files are kept where nobody has said so |
//! | `limits` | [`Limits`]: the settings that say what may be used up |
//!
//! Limits that nobody needs to change are constants where they are used.

mod cache_dir;
mod command_line;
mod file;
mod keys;
mod kind;
mod limits;
mod load;
mod print;

use std::path::PathBuf;

pub use command_line::{Command, CommandLine, EngineOptions, Printout, ServeOptions};
pub use limits::Limits;
pub use load::{ConfigError, check, load};
pub use print::{default_config, document};

/// Everything that was decided about how to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where to listen.
    pub socket: PathBuf,
    /// Permissions of the socket.
    pub socket_mode: u32,
    /// What is logged, as a filter of `tracing`. Can change while the daemon runs.
    pub log: String,
    /// How long a daemon that was told to end waits for the requests under way.
    pub drain_seconds: u64,
    /// Where indexes of files are kept between two daemons; none: nowhere.
    pub cache_dir: Option<PathBuf>,
    /// Indexes on disk, in MiB; 0 keeps none.
    pub index_cache_mib: u64,
    /// Serve one user's processes and end after the last of them.
    pub is_private: bool,
    /// Where to say that connections are accepted.
    pub ready_fd: Option<i32>,
    /// What may be used up. Can change while the daemon runs.
    pub limits: Limits,
}
