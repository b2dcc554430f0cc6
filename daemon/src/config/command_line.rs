//! The command line of `reeld`: sub-commands and flags.
//!
//! The flags of the settings are not listed here: they come from [`KEYS`], and what is given to them is checked
//! where all other values are, in `load.rs`, so that all faults can be told at once.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, ArgMatches, FromArgMatches};

use super::keys::{KEYS, Key};

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
#[command(
    after_help = "Each setting is a flag and a key of the configuration file. A flag counts more than the \
                        environment, that more than the file, that more than the default."
)]
pub struct ServeOptions {
    /// The configuration file [default: $REELD_CONFIG, else /etc/reeld/reeld.toml; with --private, else
    /// reeld/reeld.toml in $XDG_CONFIG_HOME or ~/.config].
    #[arg(long, value_name = "PATH")]
    pub config: Option<PathBuf>,
    /// Serve one user's processes and end after the last of them; only this user may connect.
    #[arg(long)]
    pub private: bool,
    /// Write a line to this open file descriptor once connections are accepted.
    #[arg(long, value_name = "FD")]
    pub ready_fd: Option<i32>,
    /// Check all settings, print those that are not the default and where each comes from, and start nothing.
    #[arg(long, group = "instead")]
    check_config: bool,
    /// Print a configuration file with all keys and defaults, and start nothing.
    #[arg(long, group = "instead")]
    print_default_config: bool,
    /// Print docs/config.md, and start nothing.
    #[arg(long, group = "instead", hide = true)]
    print_config_doc: bool,
    /// What is said of the settings.
    #[command(flatten)]
    pub flags: Flags,
}

/// What is printed instead of serving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Printout {
    /// What is wrong with the settings, or what was set.
    Check,
    /// A configuration file with everything in it.
    DefaultConfig,
    /// The documentation of the settings.
    Document,
}

impl ServeOptions {
    /// None: serve.
    pub fn printout(&self) -> Option<Printout> {
        let wanted = [
            (self.check_config, Printout::Check),
            (self.print_default_config, Printout::DefaultConfig),
            (self.print_config_doc, Printout::Document),
        ];
        wanted.into_iter().find_map(|(is_wanted, printout)| is_wanted.then_some(printout))
    }
}

/// The flags of the settings, as they were written.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// In the order of the table.
    pub(super) given: Vec<(&'static Key, OsString)>,
}

impl clap::Args for Flags {
    fn augment_args(command: clap::Command) -> clap::Command {
        command.next_help_heading("Settings").args(KEYS.iter().map(argument)).next_help_heading(None::<&str>)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Flags::augment_args(command)
    }
}

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Flags, clap::Error> {
        let given = |key: &'static Key| Some((key, matches.get_one::<OsString>(key.name)?.clone()));
        Ok(Flags { given: KEYS.iter().filter_map(given).collect() })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Flags::from_arg_matches(matches)?;
        Ok(())
    }
}

fn argument(key: &'static Key) -> Arg {
    let default = format!("default: {}", key.default.words());
    let variable = key.variable.map(|variable| format!("environment: {variable}"));
    let facts: Vec<_> = key.kind.range_words().into_iter().chain([default]).chain(variable).collect();
    Arg::new(key.name)
        .long(key.name.replace('_', "-"))
        .value_name(key.kind.value_name())
        .value_parser(clap::value_parser!(OsString))
        // A fault like any other out of range, not an unknown flag.
        .allow_negative_numbers(true)
        .help(format!("{} [{}]", key.doc.trim_end_matches('.'), facts.join("; ")))
}

/// How to decode.
#[derive(Clone, Debug, clap::Args)]
pub struct EngineOptions {
    /// Decoded pictures to keep, in MiB; 0 keeps none.
    #[arg(long, default_value_t = 256)]
    pub cache_mib: u64,
    /// Private memory that this process may use, in MiB.
    #[arg(long, default_value_t = 8192)]
    pub memory_mib: u64,
    /// Decoders to keep open between runs, in MiB; 0 keeps the last one alone.
    #[arg(long, default_value_t = 256)]
    pub decoders_mib: u64,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn each_key_is_a_flag_with_its_doc_in_the_help() {
        let mut command = CommandLine::command();
        let help = command.find_subcommand_mut("serve").unwrap().render_long_help().to_string();
        for key in KEYS {
            let flag = format!("--{} <{}>", key.name.replace('_', "-"), key.kind.value_name());
            assert!(help.contains(&flag), "{flag} is not in\n{help}");
            assert!(help.contains(key.doc.trim_end_matches('.')), "{} is not in\n{help}", key.doc);
        }
    }
}
