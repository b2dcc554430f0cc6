//! [`KEYS`]: every setting, one row each. The flags, the configuration file, its documentation and the usage
//! text all come from here.
//!
//! How a value is read and checked is the matter of its kind, in `kind.rs`.

use super::kind::{Kind, Unit};

/// 1 TiB.
const ENGINE_MIB_MAX: u64 = 1 << 20;

/// 16 TiB: more than any node has.
const NODE_MIB_MAX: u64 = 1 << 24;

/// What the kernel takes as the address of a socket, without the zero at its end.
const SOCKET_BYTES_MAX: usize = 107;

/// The longest path that the kernel takes, without the zero at its end.
const PATH_BYTES_MAX: usize = 4095;

/// One setting.
#[derive(Debug)]
pub struct Key {
    /// Its name in the file, with the unit at its end; with hyphens, that of its flag.
    pub name: &'static str,
    /// What its values are, and where they are stored.
    pub kind: Kind,
    /// What it is where nobody says anything.
    pub default: Preset,
    /// What it decides: one sentence.
    pub doc: &'static str,
    /// True if a reload changes it while the daemon runs.
    pub is_reloadable: bool,
    /// The environment variable that sets it. An empty one sets nothing.
    pub variable: Option<&'static str>,
}

/// What a setting is where nobody says anything.
#[derive(Debug)]
pub enum Preset {
    /// This value, as it would be given to the flag.
    Value(&'static str),
    /// Nothing: it follows from something else.
    Derived {
        /// From what.
        words: &'static str,
        /// A value that would be allowed.
        example: &'static str,
    },
}

impl Preset {
    /// As documentation says it.
    pub fn words(&self) -> &'static str {
        match self {
            Preset::Value(words) | Preset::Derived { words, .. } => words,
        }
    }
}

/// All settings, in the order in which they are documented.
pub const KEYS: &[Key] = &[
    Key {
        name: "socket",
        kind: Kind::Path { bytes_max: SOCKET_BYTES_MAX, store: |settings, path| settings.socket = path },
        default: Preset::Value("/run/reeld/reeld.sock"),
        doc: "Where the daemon listens.",
        is_reloadable: false,
        variable: Some("REELD_SOCKET"),
    },
    Key {
        name: "socket_mode",
        kind: Kind::Permissions { store: |settings, mode| settings.socket_mode = mode },
        default: Preset::Value("0660"),
        doc: "Permissions of the socket: who may write to it may connect.",
        is_reloadable: false,
        variable: None,
    },
    Key {
        name: "log",
        kind: Kind::LogFilter { store: |settings, filter| settings.log = filter },
        default: Preset::Value("info"),
        doc: "What is logged: off, error, warn, info, debug or trace, for all or for each module.",
        is_reloadable: true,
        variable: Some("REELD_LOG"),
    },
    Key {
        name: "drain_seconds",
        kind: Kind::Number {
            unit: Unit::Seconds,
            range: 0..=3600,
            store: |settings, seconds| settings.drain_seconds = seconds,
        },
        default: Preset::Value("10"),
        doc: "How long a daemon that was told to end waits for the requests under way.",
        is_reloadable: true,
        variable: None,
    },
    Key {
        name: "cache_dir",
        kind: Kind::Path {
            bytes_max: PATH_BYTES_MAX,
            store: |settings, path| settings.cache_dir = Some(path),
        },
        default: Preset::Derived {
            words: "systemd's `CACHE_DIRECTORY`; for a private daemon `$XDG_CACHE_HOME/reeld` or \
                    `~/.cache/reeld`; else none",
            example: "/var/cache/reeld",
        },
        doc: "Where indexes of files are kept, so that the next daemon scans no file again.",
        is_reloadable: false,
        variable: Some("REELD_CACHE_DIR"),
    },
    Key {
        name: "index_cache_mib",
        kind: Kind::Number {
            unit: Unit::Mib,
            range: 0..=1 << 20,
            store: |settings, mib| settings.index_cache_mib = mib,
        },
        default: Preset::Value("1024"),
        doc: "Indexes on disk; 0 keeps none.",
        is_reloadable: false,
        variable: None,
    },
    Key {
        name: "engine_count_max",
        kind: Kind::Number {
            unit: Unit::Things,
            range: 1..=1024,
            store: |settings, count| settings.limits.engine_count_max = Some(count as usize),
        },
        default: Preset::Derived { words: "one for each processor that may be used", example: "4" },
        doc: "Decoding processes, all users together, and the most processors that one run may decode on.",
        is_reloadable: true,
        variable: None,
    },
    Key {
        name: "engine_cache_mib",
        kind: Kind::Number {
            unit: Unit::Mib,
            range: 0..=ENGINE_MIB_MAX,
            store: |settings, mib| settings.limits.engine_cache_mib = mib,
        },
        default: Preset::Value("256"),
        doc: "Decoded pictures that each engine keeps; 0 keeps none.",
        is_reloadable: true,
        variable: None,
    },
    Key {
        name: "engine_decoders_mib",
        kind: Kind::Number {
            unit: Unit::Mib,
            range: 0..=ENGINE_MIB_MAX,
            store: |settings, mib| settings.limits.engine_decoders_mib = mib,
        },
        default: Preset::Value("256"),
        doc: "Decoders that each engine keeps open to go on with, about; 0 keeps the one used last alone.",
        is_reloadable: true,
        variable: None,
    },
    Key {
        name: "engine_memory_mib",
        kind: Kind::Number {
            unit: Unit::Mib,
            range: 64..=ENGINE_MIB_MAX,
            store: |settings, mib| settings.limits.engine_memory_mib = mib,
        },
        default: Preset::Value("8192"),
        doc: "Private memory that one engine may use, its decoded pictures and decoders included.",
        is_reloadable: true,
        variable: None,
    },
    Key {
        name: "client_memory_mib",
        kind: Kind::Number {
            unit: Unit::Mib,
            range: 1..=1 << 20,
            store: |settings, mib| settings.limits.client_memory_mib = mib,
        },
        default: Preset::Value("1024"),
        doc: "Shared memory that one client may hold.",
        is_reloadable: true,
        variable: None,
    },
    Key {
        name: "user_memory_mib",
        kind: Kind::Number {
            unit: Unit::Mib,
            range: 1..=NODE_MIB_MAX,
            store: |settings, mib| settings.limits.user_memory_mib = Some(mib),
        },
        default: Preset::Derived { words: "as memory_mib", example: "8192" },
        doc: "Shared memory that all clients of one user may hold.",
        is_reloadable: true,
        variable: None,
    },
    Key {
        name: "memory_mib",
        kind: Kind::Number {
            unit: Unit::Mib,
            range: 1..=NODE_MIB_MAX,
            store: |settings, mib| settings.limits.memory_mib = Some(mib),
        },
        default: Preset::Derived {
            words: "half of the memory that the node or the control group has",
            example: "16384",
        },
        doc: "Shared memory that all clients together may hold.",
        is_reloadable: true,
        variable: None,
    },
    Key {
        name: "client_requests_max",
        kind: Kind::Number {
            unit: Unit::Things,
            range: 1..=1024,
            store: |settings, count| settings.limits.client_requests_max = count as usize,
        },
        default: Preset::Value("64"),
        doc: "Requests of one client that are under way at once.",
        is_reloadable: true,
        variable: None,
    },
    Key {
        name: "user_requests_max",
        kind: Kind::Number {
            unit: Unit::Things,
            range: 1..=65536,
            store: |settings, count| settings.limits.user_requests_max = count as usize,
        },
        default: Preset::Value("1024"),
        doc: "Requests of all clients of one user that are under way at once.",
        is_reloadable: true,
        variable: None,
    },
    Key {
        name: "client_sources_max",
        kind: Kind::Number {
            unit: Unit::Things,
            range: 1..=1 << 20,
            store: |settings, count| settings.limits.client_sources_max = count as usize,
        },
        default: Preset::Value("65536"),
        doc: "Files that one client may have open.",
        is_reloadable: true,
        variable: None,
    },
    Key {
        name: "user_sources_max",
        kind: Kind::Number {
            unit: Unit::Things,
            range: 1..=1 << 20,
            store: |settings, count| settings.limits.user_sources_max = count as usize,
        },
        default: Preset::Value("65536"),
        doc: "Files that all clients of one user may have open.",
        is_reloadable: true,
        variable: None,
    },
    Key {
        name: "client_count_max",
        kind: Kind::Number {
            unit: Unit::Things,
            range: 1..=65536,
            store: |settings, count| settings.limits.client_count_max = count as usize,
        },
        default: Preset::Value("4096"),
        doc: "Connections, all users together.",
        is_reloadable: true,
        variable: None,
    },
    Key {
        name: "user_client_count_max",
        kind: Kind::Number {
            unit: Unit::Things,
            range: 1..=65536,
            store: |settings, count| settings.limits.user_client_count_max = count as usize,
        },
        default: Preset::Value("1024"),
        doc: "Connections of one user.",
        is_reloadable: true,
        variable: None,
    },
];

/// The name that was likely meant by one that is no key: at most a third of it is written otherwise.
pub fn nearest(unknown: &str) -> Option<&'static str> {
    let unknown = unknown.to_lowercase().replace('-', "_");
    let distance = |key: &Key| strsim::damerau_levenshtein(&unknown, key.name);
    let (nearest, distance) =
        KEYS.iter().map(|key| (key.name, distance(key))).min_by_key(|(_, distance)| *distance)?;
    (distance <= nearest.len() / 3).then_some(nearest)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::ffi::OsStr;

    use super::super::Settings;
    use super::super::kind::Written;
    use super::*;

    #[test]
    fn names_are_unique_and_end_in_their_unit() {
        let names: BTreeSet<_> = KEYS.iter().map(|key| key.name).collect();
        assert_eq!(names.len(), KEYS.len());
        for key in KEYS {
            assert!(key.name.bytes().all(|byte| byte == b'_' || byte.is_ascii_lowercase()), "{}", key.name);
            let ending = match key.kind {
                Kind::Number { unit: Unit::Things, .. } => "_max",
                Kind::Number { unit: Unit::Mib, .. } => "_mib",
                Kind::Number { unit: Unit::Seconds, .. } => "_seconds",
                Kind::Path { .. } | Kind::Permissions { .. } | Kind::LogFilter { .. } => "",
            };
            assert!(key.name.ends_with(ending), "{} does not end in {ending}", key.name);
            assert!(key.doc.ends_with('.'), "{}", key.doc);
        }
    }

    #[test]
    fn defaults_and_examples_are_allowed() {
        for key in KEYS {
            let (Preset::Value(text) | Preset::Derived { example: text, .. }) = key.default;
            let shown = key.kind.take(Written::Text(OsStr::new(text)), &mut Settings::blank()).unwrap();
            assert_eq!(shown.trim_matches('"'), text, "{} is not written as it is shown", key.name);
        }
    }

    #[test]
    fn each_key_is_stored_in_a_field_of_its_own() {
        let stored = |key: &Key| {
            let (Preset::Value(text) | Preset::Derived { example: text, .. }) = key.default;
            let mut settings = Settings::blank();
            key.kind.take(Written::Text(OsStr::new(text)), &mut settings).unwrap();
            let (blank, settings) = (format!("{:#?}", Settings::blank()), format!("{settings:#?}"));
            let changed = settings.lines().zip(blank.lines()).find(|(line, blank)| line != blank).unwrap();
            changed.0.trim().split(':').next().unwrap().to_owned()
        };
        for key in KEYS {
            assert_eq!(stored(key), key.name);
        }
    }

    #[test]
    fn nearest_name_is_told_where_it_is_near() {
        assert_eq!(nearest("client_memory"), Some("client_memory_mib"));
        assert_eq!(nearest("client-memory-mib"), Some("client_memory_mib"));
        assert_eq!(nearest("SOCKET"), Some("socket"));
        assert_eq!(nearest("sokcet_mode"), Some("socket_mode"));
        assert_eq!(nearest("memory_mb"), Some("memory_mib"));
        assert_eq!(nearest("port"), None);
        assert_eq!(nearest("gpu_memory_fraction"), None);
    }
}
