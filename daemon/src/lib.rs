//! The daemon: one binary, two kinds of process. `reeld serve` is the broker, which everything goes through;
//! `reeld engine` is what it starts to read and decode media.
//!
//! Start reading at [`broker`]: its loop shows every event of the daemon. This is a library only so that tests
//! and fuzzers reach what the binary is made of; nothing of it is an interface.

mod broker;
mod config;
mod engine;
mod ffi;
#[cfg(not(fuzzing))]
mod link;
#[cfg(fuzzing)]
pub mod link;
mod logging;

#[cfg(any(test, fuzzing))]
pub use broker::simulation;

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Parser;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};

use config::{Command, CommandLine, ConfigError, EngineOptions, Printout, ServeOptions};

/// What the shell is told where the settings are wrong: the same as where the command line is.
const CONFIG_FAULT: u8 = 2;

/// The whole program.
pub fn main() -> ExitCode {
    match CommandLine::parse().command {
        Command::Serve(options) => match options.printout() {
            None => serve(options),
            Some(printout) => print(&options, printout),
        },
        Command::Engine(options) => decode(&options),
    }
}

fn serve(options: ServeOptions) -> ExitCode {
    let settings = match config::load(&options) {
        Ok(settings) => settings,
        Err(error) => return refuse(&error),
    };
    let written_out = match logging::start(&settings.log) {
        Ok(written_out) => written_out,
        Err(reason) => return fail_without_log(&reason),
    };
    if let Err(error) = outlive_file_size_limit() {
        tracing::warn!(%error, "a limit on the size of files may end the daemon");
    }
    let reload = Box::new(move || config::load(&options).map_err(|error| error.to_string()));
    let code = exit_code(broker::serve(settings, reload, ffi::library_versions()));
    drop(written_out);
    code
}

fn print(options: &ServeOptions, printout: Printout) -> ExitCode {
    let text = match printout {
        Printout::Check => match config::check(options) {
            Ok(report) => report,
            Err(error) => return refuse(&error),
        },
        Printout::DefaultConfig => config::default_config(),
        Printout::Document => config::document(),
    };
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// There is no log yet: what it shall be is one of the settings.
fn refuse(error: &ConfigError) -> ExitCode {
    eprintln!("reeld: the settings are wrong; nothing was started\n{error}");
    ExitCode::from(CONFIG_FAULT)
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

/// A limit on the size of files, inherited from whoever started the daemon, shall be an error of what runs into it
/// and not the end of the process.
fn outlive_file_size_limit() -> io::Result<()> {
    signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::new(AtomicBool::new(false)))?;
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
    outlive_file_size_limit()?;
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    let settings = engine::Settings {
        cache_bytes_max: (options.cache_mib << 20) as usize,
        memory_mib: options.memory_mib,
        session_bytes_max: options.decoders_mib << 20,
        is_verbose: tracing::enabled!(tracing::Level::TRACE),
    };
    engine::serve(socket, settings).map_err(io::Error::other)
}
