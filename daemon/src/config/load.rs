//! [`load`] and [`check`]: default < file < environment < flag, with all faults at once.
//!
//! Each value is checked, also where another one counts more: a fault in a file shall not wait for the day when
//! a flag is dropped.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

use super::file::{self, Place};
use super::keys::{KEYS, Key, Preset, nearest};
use super::kind::Written;
use super::{Limits, ServeOptions, Settings, cache_dir};

/// Who says so.
#[derive(Clone, Debug)]
enum Origin {
    Default,
    File { path: PathBuf, line: Option<usize> },
    Variable(&'static str),
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Origin::Default => formatter.write_str("default"),
            Origin::File { path, line: Some(line) } => write!(formatter, "{}:{line}", path.display()),
            Origin::File { path, line: None } => write!(formatter, "{}", path.display()),
            Origin::Variable(name) => formatter.write_str(name),
            Origin::Flag(name) => write!(formatter, "--{}", name.replace('_', "-")),
        }
    }
}

/// One thing that is wrong.
#[derive(Debug)]
struct Fault {
    origin: Origin,
    what: String,
}

/// Everything that is wrong with the settings: a line each, which says where.
#[derive(Debug, thiserror::Error)]
#[error("{}", faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigError {
    faults: Vec<Fault>,
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        write!(formatter, "{}: {}", self.origin, self.what)
    }
}

/// Reads everything that decides how to serve. Can be asked again while the daemon runs, and then sees what the
/// file says now.
pub fn load(options: &ServeOptions) -> Result<Settings, ConfigError> {
    Ok(Loading::run(options, |name| std::env::var_os(name))?.settings)
}

/// Reads the same, and says what is not the default and where it comes from. But for the first line it is a
/// configuration file.
pub fn check(options: &ServeOptions) -> Result<String, ConfigError> {
    Ok(Loading::run(options, |name| std::env::var_os(name))?.report())
}

/// A setting that has a value.
#[derive(Debug)]
struct Known {
    key: &'static Key,
    /// The default as TOML, if it has one.
    default: Option<String>,
    /// The value as TOML.
    shown: String,
    origin: Origin,
}

/// The settings, while one source after the other is heard.
#[derive(Debug)]
struct Loading {
    settings: Settings,
    /// The configuration file, if there is one.
    file: Option<PathBuf>,
    known: Vec<Known>,
    faults: Vec<Fault>,
}

impl Loading {
    fn run(
        options: &ServeOptions,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Loading, ConfigError> {
        let settings = Settings {
            cache_dir: cache_dir::default(options.private, &variable),
            is_private: options.private,
            ready_fd: options.ready_fd,
            ..Settings::blank()
        };
        let mut loading = Loading { settings, file: None, known: Vec::new(), faults: Vec::new() };
        for key in KEYS {
            if let Preset::Value(text) = key.default {
                loading.take(key, Written::Text(OsStr::new(text)), Origin::Default);
            }
        }
        if let Some(place) = Place::find(options.config.clone(), options.private, &variable) {
            loading.file(&place);
        }
        for key in KEYS {
            if let Some(name) = key.variable
                && let Some(value) = variable(name).filter(|value| !value.is_empty())
            {
                loading.take(key, Written::Text(&value), Origin::Variable(name));
            }
        }
        for (key, value) in &options.flags.given {
            loading.take(key, Written::Text(value), Origin::Flag(key.name));
        }
        if loading.faults.is_empty() { Ok(loading) } else { Err(ConfigError { faults: loading.faults }) }
    }

    fn file(&mut self, place: &Place) {
        let text = match place.read() {
            Ok(Some(text)) => text,
            Ok(None) => return,
            Err((line, what)) => return self.fault(&place.path, line, what),
        };
        self.file = Some(place.path.clone());
        let (entries, broken) = file::parse(&text);
        let first = self.faults.len();
        for (line, what) in broken {
            self.fault(&place.path, Some(line), what);
        }
        for entry in entries {
            match KEYS.iter().find(|key| key.name == entry.name) {
                Some(key) => {
                    let origin = Origin::File { path: place.path.clone(), line: Some(entry.line) };
                    self.take(key, Written::Toml(&entry.value), origin);
                }
                None => self.fault(&place.path, Some(entry.line), unknown(&entry.name)),
            }
        }
        self.faults[first..].sort_by_key(|fault| match fault.origin {
            Origin::File { line, .. } => line,
            Origin::Default | Origin::Variable(_) | Origin::Flag(_) => None,
        });
    }

    fn fault(&mut self, path: &Path, line: Option<usize>, what: String) {
        self.faults.push(Fault { origin: Origin::File { path: path.to_owned(), line }, what });
    }

    fn take(&mut self, key: &'static Key, written: Written, origin: Origin) {
        match key.kind.take(written, &mut self.settings) {
            Ok(shown) => match self.known.iter_mut().find(|known| known.key.name == key.name) {
                Some(known) => (known.shown, known.origin) = (shown, origin),
                None => {
                    let default = matches!(origin, Origin::Default).then(|| shown.clone());
                    self.known.push(Known { key, default, shown, origin });
                }
            },
            Err(what) => self.faults.push(Fault { origin, what: format!("{}: {what}", key.name) }),
        }
    }

    fn report(&self) -> String {
        let file = match &self.file {
            Some(path) => format!("configuration file: {}", path.display()),
            None => "no configuration file".to_owned(),
        };
        let known = |key: &Key| self.known.iter().find(|known| known.key.name == key.name);
        let differs = |known: &&Known| known.default.as_ref() != Some(&known.shown);
        let line = |known: &Known| format!("{} = {}  # {}\n", known.key.name, known.shown, known.origin);
        format!(
            "ok\n# {file}\n{}",
            KEYS.iter().filter_map(known).filter(differs).map(line).collect::<String>()
        )
    }
}

fn unknown(name: &str) -> String {
    let nearest = nearest(name);
    let name = name.escape_debug();
    match nearest {
        Some(nearest) => format!("{name}: no such key; did you mean {nearest}?"),
        None => format!("{name}: no such key; `reeld serve --print-default-config` shows all"),
    }
}

impl Settings {
    /// Before anything was said, not even the defaults.
    pub(super) fn blank() -> Settings {
        Settings {
            socket: PathBuf::new(),
            socket_mode: 0,
            log: String::new(),
            drain_seconds: 0,
            cache_dir: None,
            index_cache_mib: 0,
            is_private: false,
            ready_fd: None,
            limits: Limits {
                engine_count_max: None,
                engine_cache_mib: 0,
                engine_decoders_mib: 0,
                engine_memory_mib: 0,
                client_memory_mib: 0,
                user_memory_mib: None,
                memory_mib: None,
                client_requests_max: 0,
                user_requests_max: 0,
                client_sources_max: 0,
                user_sources_max: 0,
                client_count_max: 0,
                user_client_count_max: 0,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::{Command, CommandLine};
    use super::*;

    /// With a file of this text, these variables and these flags.
    fn run(text: &str, variables: &[(&str, &str)], flags: &[&str]) -> Result<Loading, Vec<String>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("reeld.toml");
        std::fs::write(&path, text).unwrap();
        let line = [&["reeld", "serve", "--config", path.to_str().unwrap()], flags].concat();
        let Command::Serve(options) = CommandLine::try_parse_from(line).unwrap().command else {
            panic!("it was another command");
        };
        let variable = |name: &str| {
            variables.iter().find(|(variable, _)| *variable == name).map(|(_, value)| OsString::from(value))
        };
        let folder = format!("{}/", folder.path().display());
        Loading::run(&options, variable)
            .map_err(|error| error.to_string().lines().map(|line| line.replace(&folder, "")).collect())
    }

    #[test]
    fn flag_goes_before_variable_before_file_before_default() {
        let log = |text, variables, flags| run(text, variables, flags).unwrap().settings.log;
        let (file, variable, flag) = ("log = 'warn'", [("REELD_LOG", "debug")], ["--log", "error"]);
        assert_eq!(log("", &[], &[]), "info");
        assert_eq!(log(file, &[], &[]), "warn");
        assert_eq!(log(file, &variable, &[]), "debug");
        assert_eq!(log(file, &variable, &flag), "error");
        assert_eq!(log("", &[("REELD_LOG", "")], &[]), "info");
    }

    #[test]
    fn faults_of_all_sources_are_told_at_once_even_where_another_counts_more() {
        let text = "log = 'lots'\nsoket = '/a'\nlog = 'info'\nclient_memory_mib = 0\n[limits]\n";
        let variables = [("REELD_LOG", "loud"), ("REELD_SOCKET", "/a")];
        let flags = ["--client-memory-mib", "-5", "--drain-seconds", "1", "--socket-mode", "abc"];
        let faults = run(text, &variables, &flags).unwrap_err();
        let expected = [
            "reeld.toml:1: log: expected a level or a list",
            "reeld.toml:2: soket: no such key; did you mean socket?",
            "reeld.toml:3: not TOML: duplicate key: log = 'info'",
            "reeld.toml:4: client_memory_mib: expected a whole number of MiB from 1 to 1048576, got 0",
            "reeld.toml:5: limits: no such key; `reeld serve --print-default-config` shows all",
            "REELD_LOG: log: expected a level or a list",
            "--socket-mode: socket_mode: expected octal permissions",
            "--client-memory-mib: client_memory_mib: expected a whole number of MiB from 1 to 1048576, got \"-5\"",
        ];
        assert_eq!(faults.len(), expected.len(), "{faults:#?}");
        for (fault, expected) in faults.iter().zip(expected) {
            assert!(fault.starts_with(expected), "{fault}\nis not\n{expected}");
        }
    }

    #[test]
    fn report_shows_what_is_not_the_default_and_whose_it_is() {
        let text = "client_memory_mib = 1024\nengine_count_max = 2\nengine_cache_mib = 7\n";
        let variables = [("REELD_SOCKET", "/a.sock")];
        let report = run(text, &variables, &["--engine-cache-mib", "8"]).unwrap().report();
        let lines: Vec<_> = report.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(lines[..2], ["ok", "socket = \"/a.sock\"  # REELD_SOCKET"]);
        assert!(lines[2].starts_with("engine_count_max = 2  # /") && lines[2].ends_with("/reeld.toml:2"));
        assert_eq!(lines[3], "engine_cache_mib = 8  # --engine-cache-mib");
        assert_eq!(lines.len(), 4, "{report}");
    }
}
