//! `reelctl`: asks a reeld daemon how it does, what is in a video, and for frames as PNG files.
//!
//! It is a client like any other: nothing here goes past the library.

mod frames;
mod probe;
mod status;
mod table;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use reeld_client::{Client, Error};

/// Ask a reeld daemon: how it does, what is in a video, or for frames.
#[derive(Debug, Parser)]
#[command(name = "reelctl", version, about)]
struct CommandLine {
    /// The daemon's socket [default: $REELD_SOCKET, else the system's daemon, else this user's]
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show clients, engines, leases and totals of the daemon
    Status,
    /// Show what is known of a video file and its streams
    Probe(probe::Arguments),
    /// Write frames as PNG files
    Frames(frames::Arguments),
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Daemon(#[from] Error),
    #[error("{path}: {reason}", path = path.display())]
    Write { path: PathBuf, reason: String },
}

fn main() -> ExitCode {
    let line = CommandLine::parse();
    match run(&line) {
        Ok(output) => {
            // Whoever reads may have seen enough: `reelctl status | head -1` is no failure.
            let _ = writeln!(std::io::stdout(), "{}", output.trim_end());
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("reelctl: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(line: &CommandLine) -> Result<String, Failure> {
    let mut builder = Client::builder().name("reelctl");
    if let Some(socket) = &line.socket {
        builder = builder.socket(socket);
    }
    match &line.command {
        // Asking must not start what it asks for.
        Command::Status => status::run(&builder.autostart(false).connect()?, line.json),
        Command::Probe(arguments) => probe::run(&builder.connect()?, arguments, line.json),
        Command::Frames(arguments) => frames::run(&builder.connect()?, arguments, line.json),
    }
}
