//! Holds the rules of ARCHITECTURE.md: who may import what, and how long a file may be. Reads source text; what
//! the code does is tested elsewhere.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::fs;
use std::path::{Path, PathBuf};

const LINES_MAX: usize = 600;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// The code before the tests, without comments.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let before_tests = text.split("#[cfg(test)]").next().unwrap_or_default();
    let is_code = |line: &&str| !line.trim_start().starts_with("//");
    before_tests.lines().filter(is_code).collect::<Vec<_>>().join("\n")
}

fn files_that_name(folder: &str, words: &[&str]) -> Vec<PathBuf> {
    let names = |path: &PathBuf| {
        let code = code(path);
        words.iter().any(|word| code.contains(word))
    };
    rust_files(&root().join(folder)).into_iter().filter(names).collect()
}

#[test]
fn rust_of_the_readme_is_the_example_that_is_built() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let example = fs::read_to_string(root().join("client-rs/examples/ten_lines.rs")).unwrap();
    let (_, code) = example.split_once("\n\n").unwrap();
    assert!(readme.contains(&format!("```rust\n{code}```\n")), "{code}");
}

#[test]
fn broker_and_engine_never_import_each_other() {
    assert_eq!(files_that_name("daemon/src/broker", &["crate::engine", "crate::ffi"]), [] as [PathBuf; 0]);
    assert_eq!(files_that_name("daemon/src/engine", &["crate::broker"]), [] as [PathBuf; 0]);
    assert_eq!(files_that_name("daemon/src/ffi", &["crate::broker", "crate::engine"]), [] as [PathBuf; 0]);
}

#[test]
fn pure_cores_do_no_io_take_no_lock_and_read_no_clock() {
    let impure = [
        "std::fs",
        "std::io",
        "std::net",
        "std::os",
        "Mutex",
        "RwLock",
        "Instant::now",
        "SystemTime",
        "tokio",
        "rustix",
    ];
    for core in [
        "broker/plan.rs",
        "broker/queue.rs",
        "broker/hints.rs",
        "broker/kept.rs",
        "broker/leases.rs",
        "broker/tickets.rs",
        "broker/quotas.rs",
        "engine/picture_cache.rs",
    ] {
        let code = code(&root().join("daemon/src").join(core));
        let found: Vec<_> = impure.iter().filter(|word| code.contains(**word)).collect();
        assert!(found.is_empty(), "{core} names {found:?}");
    }
}

#[test]
fn only_ffi_names_ffmpeg() {
    let elsewhere = |path: &PathBuf| !path.starts_with(root().join("daemon/src/ffi"));
    for folder in ["protocol/src", "daemon/src", "client-rs/src", "client-py/src"] {
        let named = files_that_name(folder, &["ffmpeg_next"]);
        assert_eq!(named.into_iter().filter(elsewhere).collect::<Vec<_>>(), [] as [PathBuf; 0]);
    }
}

#[test]
fn only_the_codec_calls_bincode() {
    for folder in ["protocol/src", "daemon/src", "client-rs/src", "client-py/src"] {
        let called = files_that_name(folder, &["bincode::encode", "bincode::decode", "bincode::config"]);
        let elsewhere = called.into_iter().filter(|path| !path.ends_with("protocol/src/codec.rs"));
        assert_eq!(elsewhere.collect::<Vec<_>>(), [] as [PathBuf; 0]);
    }
}

#[test]
fn each_file_says_what_it_is_and_is_short() {
    for folder in ["protocol", "daemon", "client-rs", "client-py", "tests", "fuzz"] {
        for path in rust_files(&root().join(folder)) {
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.starts_with("//!"), "{} does not begin with //!", path.display());
            let lines = text.split("#[cfg(test)]").next().unwrap_or_default().lines().count();
            let is_test = path.components().any(|part| part.as_os_str() == "tests");
            assert!(is_test || lines <= LINES_MAX, "{} has {lines} lines before its tests", path.display());
        }
    }
}
