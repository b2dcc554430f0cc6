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

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use config::{Command, CommandLine, ConfigError, EngineOptions, Printout, ServeOptions};

/// What the shell is told where the settings are wrong: the same as where the command line is.
const CONFIG_FAULT: u8 = 2;

/// The whole program.
pub fn main() -> ExitCode {
    match CommandLine::parse().command {
        Command::Serve(options) => match options.printout() {
            None => serve(&options),
            Some(printout) => print(&options, printout),
        },
        Command::Engine(options) => {
            // The broker says what it logs itself.
            start_log(EnvFilter::try_from_env("REELD_LOG").unwrap_or_else(|_| EnvFilter::new("info")));
            finish(decode(&options))
        }
    }
}

fn serve(options: &ServeOptions) -> ExitCode {
    match config::load(options) {
        Ok(settings) => {
            start_log(EnvFilter::new(&settings.log));
            finish(broker::serve(settings, ffi::library_versions()))
        }
        Err(error) => refuse(&error),
    }
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

fn start_log(filter: EnvFilter) {
    // A log file is read with other tools than a terminal.
    let is_colored = io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(is_colored).with_writer(io::stderr).init();
}

fn finish(result: io::Result<()>) -> ExitCode {
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
        session_count_max: usize::from(options.sessions),
        is_verbose: tracing::enabled!(tracing::Level::TRACE),
    };
    engine::serve(socket, settings).map_err(io::Error::other)
}
