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
mod logging;

use std::io;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Parser;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};

use config::{Command, CommandLine, EngineOptions, ServeOptions};

/// The whole program.
pub fn main() -> ExitCode {
    match CommandLine::parse().command {
        Command::Serve(options) => serve(options),
        Command::Engine(options) => decode(&options),
    }
}

fn serve(options: ServeOptions) -> ExitCode {
    let again = options.clone();
    let settings = options.settings();
    let written_out = match logging::start(&settings.log) {
        Ok(written_out) => written_out,
        Err(reason) => return fail_without_log(&reason),
    };
    let reload = Box::new(move || Ok(again.clone().settings()));
    let code = exit_code(broker::serve(settings, reload, ffi::library_versions()));
    drop(written_out);
    code
}

fn fail_without_log(reason: &str) -> ExitCode {
    eprintln!("reeld: {reason}");
    ExitCode::FAILURE
}

fn exit_code(result: io::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// What a terminal or systemd says to all processes of the daemon is the broker's to obey: engines finish what
/// is under way and end with it. They are heard and nobody looks.
fn leave_signals_to_broker() -> io::Result<()> {
    let heard = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT, SIGHUP, SIGUSR1] {
        signal_hook::flag::register(signal, Arc::clone(&heard))?;
    }
    Ok(())
}

/// The broker gives an engine their socket as its standard input, and its own log filter.
fn decode(options: &EngineOptions) -> ExitCode {
    match logging::start_in_engine(&logging::filter_of_environment()) {
        Ok(()) => exit_code(decode_for_broker(options)),
        Err(reason) => fail_without_log(&reason),
    }
}

fn decode_for_broker(options: &EngineOptions) -> io::Result<()> {
    leave_signals_to_broker()?;
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    let settings = engine::Settings {
        cache_bytes_max: (options.cache_mib << 20) as usize,
        session_count_max: usize::from(options.sessions),
        is_verbose: tracing::enabled!(tracing::Level::TRACE),
    };
    engine::serve(socket, settings).map_err(io::Error::other)
}
