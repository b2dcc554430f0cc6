//! The configuration file: where it is, and what stands in it at which line.
//!
//! What its values mean is not known here.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

/// Where the system's file is.
const SYSTEM_FILE: &str = "/etc/reeld/reeld.toml";

/// Where a user's file is, in the folder of configuration files.
const USER_FILE: &str = "reeld/reeld.toml";

/// With all comments, a file of all keys has less than 16 KiB. More is something else.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where to look for a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its path.
    pub path: PathBuf,
    /// True if somebody named it: then it must be there.
    pub is_named: bool,
}

impl Place {
    /// The one that was named by flag or `$REELD_CONFIG`, else the user's for a private daemon, else the system's.
    pub fn find(
        named: Option<PathBuf>,
        is_private: bool,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Option<Place> {
        let path_variable = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        if let Some(path) = named.or_else(|| path_variable("REELD_CONFIG")) {
            return Some(Place { path, is_named: true });
        }
        if !is_private {
            return Some(Place { path: SYSTEM_FILE.into(), is_named: false });
        }
        // The XDG specification has relative paths ignored.
        let folder = path_variable("XDG_CONFIG_HOME").filter(|folder| folder.is_absolute());
        let folder = folder.or_else(|| Some(path_variable("HOME")?.join(".config")))?;
        Some(Place { path: folder.join(USER_FILE), is_named: false })
    }

    /// What stands there. None if nobody named it and there is nothing. An error says where, if it can be said.
    pub fn read(&self) -> Result<Option<String>, (Option<usize>, String)> {
        match self.bytes() {
            Ok(bytes) if bytes.len() as u64 > FILE_BYTES_MAX => {
                Err((None, format!("longer than {FILE_BYTES_MAX} bytes")))
            }
            Ok(bytes) => String::from_utf8(bytes).map(Some).map_err(|error| {
                let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
                (Some(line(before)), "not UTF-8".to_owned())
            }),
            Err(error) if is_absent(&error) && !self.is_named => Ok(None),
            Err(error) => Err((None, format!("cannot be read: {error}"))),
        }
    }

    fn bytes(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(&self.path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// One key of a file.
#[derive(Debug)]
pub struct Entry<'a> {
    /// Counted from one.
    pub line: usize,
    /// Its name, which need not be one that is known.
    pub name: String,
    /// Its value.
    pub value: DeValue<'a>,
}

/// All entries of a file and all places where it is not TOML, with their lines. Entries that stand where
/// something is wrong are left out: their values are guesses.
pub fn parse(text: &str) -> (Vec<Entry<'_>>, Vec<(usize, String)>) {
    let (table, errors) = DeTable::parse_recoverable(text);
    let fault = |error: &toml::de::Error| {
        let line = line(&text.as_bytes()[..error.span().map_or(0, |span| span.start.min(text.len()))]);
        let what = text.lines().nth(line - 1).unwrap_or_default().trim();
        (line, format!("not TOML: {}: {what}", error.message()))
    };
    let mut faults: Vec<_> = errors.iter().map(fault).collect();
    faults.dedup_by_key(|(line, _)| *line);
    let mut entries: Vec<_> =
        table.into_inner().into_iter().map(|(name, value)| entry(text, name, value)).collect();
    entries.retain(|entry| faults.iter().all(|(line, _)| *line != entry.line));
    entries.sort_by_key(|entry| entry.line);
    (entries, faults)
}

fn entry<'a>(text: &str, name: Spanned<DeString>, value: Spanned<DeValue<'a>>) -> Entry<'a> {
    let line = line(&text.as_bytes()[..name.span().start]);
    Entry { line, name: name.into_inner().into_owned(), value: value.into_inner() }
}

/// The line that follows after some text, counted from one.
fn line(before: &[u8]) -> usize {
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(named: Option<&str>, is_private: bool, variables: &[(&str, &str)]) -> Option<Place> {
        Place::find(named.map(PathBuf::from), is_private, |name| {
            variables.iter().find(|(variable, _)| *variable == name).map(|(_, value)| value.into())
        })
    }

    fn place(path: &str, is_named: bool) -> Option<Place> {
        Some(Place { path: path.into(), is_named })
    }

    #[test]
    fn named_file_goes_before_the_usual_one() {
        let variables = [("REELD_CONFIG", "/variable"), ("HOME", "/home/a"), ("XDG_CONFIG_HOME", "/xdg")];
        assert_eq!(find(Some("/flag"), true, &variables), place("/flag", true));
        assert_eq!(find(None, true, &variables), place("/variable", true));
        assert_eq!(find(None, false, &[("REELD_CONFIG", "")]), place("/etc/reeld/reeld.toml", false));
        assert_eq!(find(None, false, &variables[1..]), place("/etc/reeld/reeld.toml", false));
    }

    #[test]
    fn private_daemon_reads_the_file_of_its_user() {
        let (home, xdg) = (("HOME", "/home/a"), ("XDG_CONFIG_HOME", "/xdg"));
        assert_eq!(find(None, true, &[home, xdg]), place("/xdg/reeld/reeld.toml", false));
        assert_eq!(find(None, true, &[home]), place("/home/a/.config/reeld/reeld.toml", false));
        let relative = ("XDG_CONFIG_HOME", "xdg");
        assert_eq!(find(None, true, &[home, relative]), place("/home/a/.config/reeld/reeld.toml", false));
        assert_eq!(find(None, true, &[]), None);
    }

    #[test]
    fn file_that_nobody_named_may_be_absent() {
        let folder = tempfile::tempdir().unwrap();
        let absent = Place { path: folder.path().join("none.toml"), is_named: false };
        assert_eq!(absent.read(), Ok(None));
        let beside_a_file = Place { path: "/etc/passwd/reeld.toml".into(), is_named: false };
        assert_eq!(beside_a_file.read(), Ok(None));
        let folder = Place { path: folder.path().into(), is_named: false };
        assert!(folder.read().is_err());
    }

    #[test]
    fn file_without_end_is_refused() {
        let endless = Place { path: "/dev/zero".into(), is_named: true };
        assert_eq!(endless.read(), Err((None, "longer than 1048576 bytes".into())));
    }

    #[test]
    fn entries_have_their_lines_and_broken_lines_only_faults() {
        let (entries, faults) = parse("# é\na = 1\n\nb = 5 MiB\na = 2\nc =\n[d]\ne = 1\n");
        let found: Vec<_> = entries.iter().map(|entry| (entry.line, entry.name.as_str())).collect();
        assert_eq!(found, [(2, "a"), (7, "d")]);
        let lines: Vec<_> = faults.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [4, 5, 6]);
        assert_eq!(faults[1].1, "not TOML: duplicate key: a = 2");
    }
}
