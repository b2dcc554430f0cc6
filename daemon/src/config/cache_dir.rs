//! Where a daemon keeps its files where nobody has said so.
//!
//! What is kept there is the broker's `index_store`.

use std::ffi::OsString;
use std::path::PathBuf;

/// The folder that the service manager made for us; for a daemon of one user the folder of that user's caches;
/// for any other none. A relative path is a mistake that others would have to find, and is passed over.
pub fn default(is_private: bool, variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let folder = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let own =
        || Some(folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache")))?.join("reeld"));
    folder("CACHE_DIRECTORY").or_else(|| if is_private { own() } else { None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(is_private: bool, variables: &[(&str, &str)]) -> Option<PathBuf> {
        let find = |name: &str| variables.iter().find(|(known, _)| *known == name);
        default(is_private, |name| find(name).map(|(_, value)| value.into()))
    }

    #[test]
    fn service_has_its_managers_folder_and_otherwise_none() {
        let variables = [("CACHE_DIRECTORY", "/var/cache/reeld"), ("HOME", "/home/a")];
        assert_eq!(chosen(false, &variables), Some("/var/cache/reeld".into()));
        assert_eq!(chosen(false, &variables[1..]), None);
    }

    #[test]
    fn private_daemon_has_its_users_folder() {
        assert_eq!(chosen(true, &[("HOME", "/home/a")]), Some("/home/a/.cache/reeld".into()));
        let both = [("HOME", "/home/a"), ("XDG_CACHE_HOME", "/scratch/a")];
        assert_eq!(chosen(true, &both), Some("/scratch/a/reeld".into()));
        assert_eq!(chosen(true, &[("XDG_CACHE_HOME", "relative")]), None);
    }
}
