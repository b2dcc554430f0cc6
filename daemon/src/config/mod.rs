//! What the administrator decides: the command line of `reeld`.
//!
//! Limits that nobody needs to change are constants where they are used.

mod cache_dir;
mod limits;

use std::path::PathBuf;

pub use limits::Limits;

/// One video decoder per node: decodes for all worker processes and hands them frames in shared memory.
#[derive(Debug, clap::Parser)]
#[command(name = "reeld", version, about)]
pub struct CommandLine {
    /// What to run.
    #[command(subcommand)]
    pub command: Command,
}

/// The kinds of process that this binary can be.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Run the daemon in the foreground.
    Serve(ServeOptions),
    /// A decoding process of the daemon, which starts it; of no use by hand.
    #[command(hide = true)]
    Engine(EngineOptions),
}

/// How to serve, on the command line.
#[derive(Clone, Debug, clap::Args)]
pub struct ServeOptions {
    /// Where to listen.
    #[arg(long, default_value = "/run/reeld/reeld.sock")]
    pub socket: PathBuf,
    /// Permissions of the socket, octal: who may write to it may connect.
    #[arg(long, default_value = "0660", value_parser = parse_mode)]
    pub socket_mode: u32,
    /// Serve one user's processes and end after the last of them; only this user may connect.
    #[arg(long)]
    pub private: bool,
    /// Write a line to this open file descriptor once connections are accepted.
    #[arg(long, value_name = "FD")]
    pub ready_fd: Option<i32>,
    /// Where indexes of files are kept between two daemons.
    #[arg(long, env = "REELD_CACHE_DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Indexes on disk, in MiB; 0 keeps none.
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(0..=1 << 20))]
    pub index_cache_mib: u64,
    /// Decoding processes, all users together; by default one for each processor that may be used.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub engine_count_max: Option<u16>,
    /// Shared memory that one client may hold, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub client_memory_mib: u64,
    /// Decoded pictures that each engine keeps, in MiB; 0 keeps none.
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u64).range(0..=1 << 20))]
    pub engine_cache_mib: u64,
}

impl ServeOptions {
    /// All settings, with what the command line says.
    pub fn settings(self) -> Settings {
        Settings {
            socket: self.socket,
            socket_mode: self.socket_mode,
            is_private: self.private,
            ready_fd: self.ready_fd,
            cache_dir: self.cache_dir.or_else(|| cache_dir::default(self.private)),
            index_cache_mib: self.index_cache_mib,
            limits: Limits {
                engine_count_max: self.engine_count_max.map(usize::from),
                client_memory_mib: self.client_memory_mib,
                engine_cache_mib: self.engine_cache_mib,
            },
        }
    }
}

/// Everything that was decided about how to serve.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where to listen.
    pub socket: PathBuf,
    /// Permissions of the socket.
    pub socket_mode: u32,
    /// Serve one user's processes and end after the last of them.
    pub is_private: bool,
    /// Where to say that connections are accepted.
    pub ready_fd: Option<i32>,
    /// Where indexes of files are kept between two daemons; none: nowhere.
    pub cache_dir: Option<PathBuf>,
    /// Indexes on disk, in MiB; 0 keeps none.
    pub index_cache_mib: u64,
    /// What may be used up. Can change while the daemon runs.
    pub limits: Limits,
}

/// How to decode.
#[derive(Clone, Debug, clap::Args)]
pub struct EngineOptions {
    /// Decoded pictures to keep, in MiB; 0 keeps none.
    #[arg(long, default_value_t = 256)]
    pub cache_mib: u64,
    /// Decoders to keep warm. A decoder of full HD holds about 50 MB; eight serve the four runs that may be
    /// under way and as many files in turn.
    #[arg(long, default_value_t = 8)]
    pub sessions: u16,
}

fn parse_mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        Ok(_) | Err(_) => Err("expected octal permissions such as 0660".into()),
    }
}
