//! [`Kind`]: the kinds of values that a setting can have; how each is read from text and TOML, checked, stored
//! and shown.
//!
//! Which setting is of which kind is in `keys.rs`.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::ops::RangeInclusive;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use toml::de::DeValue;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::Settings;

/// What a number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Things, which the key's name says.
    Things,
    /// 1,048,576 bytes.
    Mib,
    /// Seconds.
    Seconds,
}

/// The kind of a value, what is allowed, and where it is stored.
#[derive(Debug)]
pub enum Kind {
    /// A whole number.
    Number { unit: Unit, range: RangeInclusive<u64>, store: fn(&mut Settings, u64) },
    /// The path of a file. In the configuration file it is absolute: nobody knows from where a daemon is started.
    Path { bytes_max: usize, store: fn(&mut Settings, PathBuf) },
    /// Permissions of a file, octal.
    Permissions { store: fn(&mut Settings, u32) },
    /// What is logged, as a filter of `tracing`.
    LogFilter { store: fn(&mut Settings, String) },
}

/// A value as somebody wrote it.
#[derive(Clone, Copy, Debug)]
pub enum Written<'a> {
    /// Into a flag, a variable or the table of keys.
    Text(&'a OsStr),
    /// Into the configuration file.
    Toml(&'a DeValue<'a>),
}

impl Kind {
    /// Stores a value; returns it as it is shown, which is TOML. An error says what was expected and what came.
    pub fn take(&self, written: Written, settings: &mut Settings) -> Result<String, String> {
        let fault = |reason: Option<String>| {
            let reason = reason.map_or(String::new(), |reason| format!(": {reason}"));
            format!("expected {}, got {}{reason}", self.values(), written.shown())
        };
        match self {
            Kind::Number { range, store, .. } => {
                let number = written.number().filter(|number| range.contains(number));
                let number = number.ok_or_else(|| fault(None))?;
                store(settings, number);
                Ok(number.to_string())
            }
            Kind::Path { bytes_max, store } => {
                let is_right = |path: &&Path| {
                    let bytes = path.as_os_str().as_bytes();
                    (1..=*bytes_max).contains(&bytes.len())
                        && !bytes.contains(&0)
                        && (path.is_absolute() || matches!(written, Written::Text(_)))
                };
                let path = written.text().map(Path::new).filter(is_right).ok_or_else(|| fault(None))?;
                store(settings, path.to_owned());
                Ok(quoted(&path.to_string_lossy()))
            }
            Kind::Permissions { store } => {
                let digits = written.text().and_then(OsStr::to_str).filter(|text| is_octal(text));
                let mode = digits.and_then(|digits| u32::from_str_radix(digits, 8).ok());
                let mode = mode.filter(|mode| *mode <= 0o777).ok_or_else(|| fault(None))?;
                store(settings, mode);
                Ok(quoted(&format!("{mode:04o}")))
            }
            Kind::LogFilter { store } => {
                let text = written.text().and_then(OsStr::to_str).ok_or_else(|| fault(None))?;
                check_filter(text).map_err(|reason| fault(Some(reason)))?;
                store(settings, text.to_owned());
                Ok(quoted(text))
            }
        }
    }

    /// What is allowed, in words.
    pub fn values(&self) -> String {
        match self {
            Kind::Number { unit, range, .. } => {
                let unit = match unit {
                    Unit::Things => "",
                    Unit::Mib => " of MiB",
                    Unit::Seconds => " of seconds",
                };
                format!("a whole number{unit} from {} to {}", range.start(), range.end())
            }
            Kind::Path { bytes_max, .. } => {
                format!("a path of 1 to {bytes_max} bytes, absolute in the configuration file")
            }
            Kind::Permissions { .. } => "octal permissions from \"0000\" to \"0777\"".to_owned(),
            Kind::LogFilter { .. } => {
                "a level or a list such as \"warn,reeld_daemon::broker=debug\"".to_owned()
            }
        }
    }

    /// What is allowed, for the usage text, which has the value's name already.
    pub fn range_words(&self) -> Option<String> {
        match self {
            Kind::Number { range, .. } => Some(format!("{} to {}", range.start(), range.end())),
            Kind::Permissions { .. } => Some("octal".to_owned()),
            Kind::Path { .. } | Kind::LogFilter { .. } => None,
        }
    }

    /// What stands for the value in the usage text.
    pub fn value_name(&self) -> &'static str {
        match self {
            Kind::Number { unit: Unit::Things, .. } => "COUNT",
            Kind::Number { unit: Unit::Mib, .. } => "MIB",
            Kind::Number { unit: Unit::Seconds, .. } => "SECONDS",
            Kind::Path { .. } => "PATH",
            Kind::Permissions { .. } => "MODE",
            Kind::LogFilter { .. } => "FILTER",
        }
    }
}

impl<'a> Written<'a> {
    fn text(self) -> Option<&'a OsStr> {
        match self {
            Written::Text(text) => Some(text),
            Written::Toml(DeValue::String(text)) => Some(OsStr::new(text.as_ref())),
            Written::Toml(_) => None,
        }
    }

    fn number(self) -> Option<u64> {
        match self {
            Written::Text(text) => text.to_str()?.parse().ok(),
            Written::Toml(DeValue::Integer(number)) => {
                u64::from_str_radix(number.as_str(), number.radix()).ok()
            }
            Written::Toml(_) => None,
        }
    }

    fn shown(self) -> Cow<'static, str> {
        match self {
            Written::Text(text) => quoted(&text.to_string_lossy()).into(),
            Written::Toml(DeValue::String(text)) => format!("the string {}", quoted(text)).into(),
            Written::Toml(DeValue::Integer(number)) => number.to_string().into(),
            Written::Toml(DeValue::Float(number)) => number.to_string().into(),
            Written::Toml(DeValue::Boolean(truth)) => truth.to_string().into(),
            Written::Toml(DeValue::Datetime(_)) => "a date or time".into(),
            Written::Toml(DeValue::Array(_)) => "an array".into(),
            Written::Toml(DeValue::Table(_)) => "a table".into(),
        }
    }
}

/// `from_str_radix` would take a sign as well.
fn is_octal(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'7'))
}

/// A bare word would be taken for the name of a module, and a misspelt level would silence all the rest.
fn check_filter(text: &str) -> Result<(), String> {
    let is_level =
        |word: &str| word.contains('=') || (!word.is_empty() && word.parse::<LevelFilter>().is_ok());
    if !text.contains('[')
        && let Some(word) = text.split(',').find(|word| !is_level(word))
    {
        return Err(format!(
            "{} is no level; a module is written with one, as in MODULE=debug",
            quoted(word)
        ));
    }
    EnvFilter::builder().parse(text).map(drop).map_err(|error| error.to_string())
}

/// A TOML string.
pub fn quoted(text: &str) -> String {
    let escaped = |character: char| match character {
        '"' | '\\' => format!("\\{character}"),
        control if control.is_control() => format!("\\u{:04X}", u32::from(control)),
        other => other.to_string(),
    };
    format!("\"{}\"", text.chars().map(escaped).collect::<String>())
}

#[cfg(test)]
mod tests {
    use toml::de::DeTable;

    use super::*;

    const NUMBER: Kind = Kind::Number {
        unit: Unit::Mib,
        range: 1..=64,
        store: |settings, number| settings.drain_seconds = number,
    };
    const PATH: Kind = Kind::Path { bytes_max: 10, store: |settings, path| settings.socket = path };
    const MODE: Kind = Kind::Permissions { store: |settings, mode| settings.socket_mode = mode };
    const LOG: Kind = Kind::LogFilter { store: |settings, filter| settings.log = filter };

    fn text(kind: &Kind, text: &str) -> Result<String, String> {
        kind.take(Written::Text(OsStr::new(text)), &mut Settings::blank())
    }

    fn toml(kind: &Kind, value: &str) -> Result<String, String> {
        let line = format!("value = {value}");
        let table = DeTable::parse(&line).unwrap();
        let value = table.get_ref().iter().next().unwrap().1;
        kind.take(Written::Toml(value.get_ref()), &mut Settings::blank())
    }

    #[test]
    fn number_is_stored_and_shown_in_decimal() {
        let mut settings = Settings::blank();
        assert_eq!(NUMBER.take(Written::Text(OsStr::new("64")), &mut settings).unwrap(), "64");
        assert_eq!(settings.drain_seconds, 64);
        assert_eq!(toml(&NUMBER, "0x1_0").unwrap(), "16");
    }

    #[test]
    fn number_out_of_range_or_of_another_type_is_told_the_range() {
        for wrong in ["0", "65", "-1", "1.5", "\"5\"", "true", "[5]", "{ a = 5 }", "99999999999999999999"] {
            let fault = toml(&NUMBER, wrong).unwrap_err();
            assert!(fault.starts_with("expected a whole number of MiB from 1 to 64, got "), "{fault}");
        }
        for wrong in ["", " 5", "5 MiB", "-1", "65"] {
            let fault = text(&NUMBER, wrong).unwrap_err();
            assert!(fault.ends_with(&format!("from 1 to 64, got \"{wrong}\"")), "{fault}");
        }
    }

    #[test]
    fn path_is_limited_in_length_and_absolute_in_the_file() {
        assert_eq!(text(&PATH, "some/here").unwrap(), "\"some/here\"");
        assert_eq!(toml(&PATH, "'/a/\"b\\'").unwrap(), "\"/a/\\\"b\\\\\"");
        for wrong in ["'some/here'", "'/0123456789'", "''", "5", "\"/a\\u0000b\""] {
            let fault = toml(&PATH, wrong).unwrap_err();
            assert!(fault.contains("a path of 1 to 10 bytes"), "{fault}");
        }
        assert!(text(&PATH, "").is_err() && text(&PATH, "0123456789a").is_err());
    }

    #[test]
    fn path_that_is_no_unicode_is_kept_as_it_is() {
        let mut settings = Settings::blank();
        PATH.take(Written::Text(OsStr::from_bytes(b"/\xff")), &mut settings).unwrap();
        assert_eq!(settings.socket.as_os_str().as_bytes(), b"/\xff");
    }

    #[test]
    fn permissions_are_an_octal_string() {
        assert_eq!(text(&MODE, "660").unwrap(), "\"0660\"");
        assert_eq!(toml(&MODE, "\"0600\"").unwrap(), "\"0600\"");
        for wrong in ["660", "0o660", "\"0888\"", "\"01000\"", "\"+660\"", "\"\"", "\"rw-rw----\""] {
            let fault = toml(&MODE, wrong).unwrap_err();
            assert!(
                fault.starts_with("expected octal permissions from \"0000\" to \"0777\", got "),
                "{fault}"
            );
        }
    }

    #[test]
    fn log_filter_is_a_level_or_a_list_of_modules_with_levels() {
        for right in ["info", "TRACE", "off", "0", "warn,reeld_daemon::broker=debug", "reeld_daemon[x]=info"]
        {
            text(&LOG, right).unwrap();
        }
        for wrong in ["", "lots", "reeld=lots", "info,reeld_daemon", "info,", "info, reeld=warn", "[x"] {
            let fault = text(&LOG, wrong).unwrap_err();
            assert!(fault.starts_with("expected a level or a list"), "{fault}");
        }
        assert!(LOG.take(Written::Text(OsStr::from_bytes(b"\xff")), &mut Settings::blank()).is_err());
    }
}
