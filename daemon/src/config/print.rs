//! The texts that the table makes: a configuration file with everything in it, and `docs/config.md`.
//!
//! What is said of settings that somebody made is in `load.rs`.

use super::keys::{KEYS, Key, Preset};
use super::kind::{Kind, quoted};

/// Opens the file that is printed.
const FILE_HEAD: &str = "\
# The configuration of reeld, with all keys and their defaults. What is commented out need not be said.
# Where it is looked for, and what else can set a key, is in docs/config.md.
# `reeld serve --check-config --config FILE` checks it.
";

/// Opens the documentation.
const DOCUMENT_HEAD: &str = "\
<!-- Made by `reeld serve --print-config-doc >docs/config.md`. The text is in daemon/src/config/print.rs. -->

# Configuration

The daemon runs without any. What can be set are the keys below; each is optional, and its unit is at the end of its name. A key can be
set in four places, and the later one counts:

1. its default,
2. the configuration file,
3. its environment variable, where it has one; an empty one sets nothing,
4. its flag of `reeld serve`, which has its name with hyphens: `client_memory_mib` is `--client-memory-mib`.

`reeld serve --check-config` reads all of them, with the same flags and environment as the daemon, and starts nothing. It prints everything
that is wrong, each with the line of the file, the variable or the flag, and ends with status 2; or `ok` and what is not the default, with its
place, and ends with status 0. A daemon that finds something wrong when it starts says the same, and ends with status 2 before it has
touched anything. A value is checked also where another place counts more.

## The file

The configuration file is TOML, all keys at its top level. It is

- the one that `--config PATH` names, else `$REELD_CONFIG`; that one must exist;
- else `/etc/reeld/reeld.toml`, if it exists;
- for a private daemon (`--private`, which clients start where no daemon answers) not that one, but `reeld/reeld.toml` in
  `$XDG_CONFIG_HOME`, else in `~/.config`, if it exists.

`reeld serve --print-default-config` prints a file with all keys, what they mean and their defaults, to begin with. A key that does not
exist is refused, and the nearest one named where one is near.

## The keys

";

/// Between the keys and the variables.
const DOCUMENT_RELOAD: &str = "
## Changes while the daemon runs

SIGHUP makes the daemon read everything again. The keys with a yes in the last column take effect then; what was granted before stays
granted. The others keep their values until the daemon is started anew. If something is wrong, all stays as it was, and the log says
what is wrong.

## Environment variables

The daemon reads what is above, and its clients (the Python package, the Rust crate and `reelctl`) what is said of them here. An empty
variable counts as none.

| variable | daemon | clients |
|---|---|---|
";

/// Variables that are not a key's only, and what they are to the daemon and to clients.
const VARIABLES: &[(&str, &str, &str)] = &[
    (
        "REELD_SOCKET",
        "sets `socket`",
        "the daemon's socket; no other is tried, and no private daemon is started",
    ),
    ("REELD_LOG", "sets `log`", "none of their own; a private daemon that they start inherits it"),
    (
        "REELD_CACHE_DIR",
        "sets `cache_dir`",
        "none of their own; a private daemon that they start inherits it",
    ),
    (
        "REELD_CONFIG",
        "the configuration file",
        "none of their own; a private daemon that they start inherits it",
    ),
    (
        "REELD_SPOOL_MAX_BYTES",
        "",
        "how large a file-like object may be that a decoder is made from in Python, in bytes; else 4 GiB",
    ),
    (
        "REELD_BINARY",
        "",
        "the `reeld` to start as a private daemon; else the one beside the program or interpreter, else the one on `PATH`",
    ),
    ("REELD_NO_AUTOSTART", "", "anything but nothing: no private daemon is started"),
];

/// A configuration file with all keys, commented out.
pub fn default_config() -> String {
    FILE_HEAD.to_owned() + &KEYS.iter().map(commented).collect::<String>()
}

fn commented(key: &Key) -> String {
    let values = key.kind.values();
    let default = match key.default {
        Preset::Value(_) => String::new(),
        Preset::Derived { words, .. } => format!("# Default: {words}.\n"),
    };
    let flag = key.name.replace('_', "-");
    let variable = key.variable.map_or(String::new(), |name| format!(", environment: {name}"));
    let (Preset::Value(text) | Preset::Derived { example: text, .. }) = key.default;
    let value = toml(&key.kind, text);
    format!(
        "\n# {}\n# Value: {values}.\n{default}# Flag: --{flag}{variable}.\n#{} = {value}\n",
        key.doc, key.name
    )
}

fn toml(kind: &Kind, text: &str) -> String {
    match kind {
        Kind::Number { .. } => text.to_owned(),
        Kind::Path { .. } | Kind::Permissions { .. } | Kind::LogFilter { .. } => quoted(text),
    }
}

/// `docs/config.md`.
pub fn document() -> String {
    let keys: String = KEYS.iter().map(row).collect();
    let variable =
        |(name, daemon, clients): &(&str, &str, &str)| format!("| `{name}` | {daemon} | {clients} |\n");
    let variables: String = VARIABLES.iter().map(variable).collect();
    let head =
        "| key | what it decides | values | default | environment | reloaded |\n|---|---|---|---|---|---|\n";
    format!("{DOCUMENT_HEAD}{head}{keys}{DOCUMENT_RELOAD}{variables}")
}

fn row(key: &Key) -> String {
    let default = match key.default {
        Preset::Value(text) => format!("`{}`", toml(&key.kind, text)),
        Preset::Derived { words, .. } => words.to_owned(),
    };
    let variable = key.variable.map_or(String::new(), |name| format!("`{name}`"));
    let is_reloaded = if key.is_reloadable { "yes" } else { "no" };
    let (name, doc, values) = (key.name, key.doc, key.kind.values());
    format!("| `{name}` | {doc} | {values} | {default} | {variable} | {is_reloaded} |\n")
}

#[cfg(test)]
mod tests {
    use toml::de::DeTable;

    use super::*;

    #[test]
    fn printed_file_names_all_keys_once_and_sets_none() {
        let printed = default_config();
        assert_eq!(DeTable::parse(&printed).unwrap().get_ref().len(), 0);
        let is_key = |line: &&str| line.starts_with('#') && !line.starts_with("# ");
        let set: String = printed.lines().filter(is_key).map(|line| format!("{}\n", &line[1..])).collect();
        assert_eq!(DeTable::parse(&set).unwrap().get_ref().len(), KEYS.len());
        for key in KEYS {
            assert!(printed.contains(&format!("\n# {}\n# Value: {}.\n", key.doc, key.kind.values())));
        }
    }

    #[test]
    fn each_variable_of_a_key_is_explained() {
        for name in KEYS.iter().filter_map(|key| key.variable) {
            assert!(VARIABLES.iter().any(|(variable, ..)| *variable == name), "{name} is not in VARIABLES");
        }
    }
}
