//! The daemon: one binary, two kinds of process. `reeld serve` is the broker, which everything goes through;
//! `reeld engine` is what it starts to read and decode media.
//!
//! Start reading at [`broker`]: its loop shows every event of the daemon. This is a library only so that tests
//! and fuzzers reach what the binary is made of; nothing of it is an interface.

mod broker;
mod config;
mod engine;
mod ffi;
mod link;

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use config::{Command, CommandLine, EngineOptions};

/// The whole program.
pub fn main() -> ExitCode {
    let command = CommandLine::parse().command;
    let filter = EnvFilter::try_from_env("REELD_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // A log file is read with other tools than a terminal.
    let is_colored = io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(is_colored).with_writer(io::stderr).init();
    let result = match command {
        Command::Serve(options) => broker::serve(options.settings(), ffi::library_versions()),
        Command::Engine(options) => decode(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// The broker gives an engine their socket as its standard input.
fn decode(options: &EngineOptions) -> io::Result<()> {
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    let settings = engine::Settings {
        cache_bytes_max: (options.cache_mib << 20) as usize,
        memory_mib: options.memory_mib,
        session_count_max: usize::from(options.sessions),
        is_verbose: tracing::enabled!(tracing::Level::TRACE),
    };
    engine::serve(socket, settings).map_err(io::Error::other)
}
