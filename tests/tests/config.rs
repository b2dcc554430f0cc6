//! The settings of the real daemon: each key from each place where it can be set, what is said of faults, and
//! that what is printed about them is true.
//!
//! What the daemon does at a limit is tested with that limit.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use reeld_client::{Client, OpenOptions};
use reeld_tests::{clip, eventually, reelctl};

/// Each key with a value that is not its default, as TOML.
const VALUES: [(&str, &str); 19] = [
    ("socket", "\"/tmp/other.sock\""),
    ("socket_mode", "\"0600\""),
    ("log", "\"warn,reeld_daemon::broker=debug\""),
    ("drain_seconds", "11"),
    ("cache_dir", "\"/tmp/cache\""),
    ("index_cache_mib", "20"),
    ("engine_count_max", "3"),
    ("engine_cache_mib", "0"),
    ("engine_decoders_mib", "0"),
    ("engine_memory_mib", "512"),
    ("client_memory_mib", "9"),
    ("user_memory_mib", "10"),
    ("memory_mib", "12"),
    ("client_requests_max", "13"),
    ("user_requests_max", "14"),
    ("client_sources_max", "15"),
    ("user_sources_max", "16"),
    ("client_count_max", "17"),
    ("user_client_count_max", "18"),
];

/// `reeld serve` of this build, with nothing set by this machine or by whoever runs the tests.
fn serve() -> Command {
    let mut command = Command::new(Path::new(reelctl().get_program()).with_file_name("reeld"));
    command.arg("serve").stdin(Stdio::null());
    for variable in ["REELD_SOCKET", "REELD_LOG", "REELD_CACHE_DIR"] {
        command.env_remove(variable);
    }
    command.env("REELD_CONFIG", "/dev/null");
    command
}

/// A folder with a configuration file.
struct Scene {
    folder: tempfile::TempDir,
}

impl Scene {
    fn new(text: impl AsRef<[u8]>) -> Scene {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("reeld.toml"), text).unwrap();
        Scene { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn file(&self) -> PathBuf {
        self.path("reeld.toml")
    }

    fn serve(&self) -> Command {
        let mut command = serve();
        command.arg("--config").arg(self.file());
        command
    }

    /// What is wrong when its file is checked. A path of this scene is shown without its folder.
    #[track_caller]
    fn faults(&self) -> Vec<String> {
        self.faults_of(self.serve().arg("--check-config"))
    }

    #[track_caller]
    fn faults_of(&self, command: &mut Command) -> Vec<String> {
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert_eq!(text(&output.stdout), "");
        let folder = format!("{}/", self.folder.path().display());
        text(&output.stderr).lines().skip(1).map(|line| line.replace(&folder, "")).collect()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The lines that say what is not the default.
#[track_caller]
fn set(output: &Output) -> Vec<String> {
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report = text(&output.stdout);
    assert!(report.starts_with("ok\n# "), "{report}");
    report.lines().skip(2).map(str::to_owned).collect()
}

fn flag(key: &str) -> String {
    format!("--{}", key.replace('_', "-"))
}

fn printed_default() -> String {
    let output = serve().arg("--print-default-config").output().unwrap();
    assert!(output.status.success());
    text(&output.stdout)
}

/// The keys in the printed file, no longer commented out.
fn printed_keys() -> Vec<String> {
    let is_key = |line: &&str| line.starts_with('#') && !line.starts_with("# ");
    printed_default().lines().filter(is_key).map(|line| line[1..].to_owned()).collect()
}

/// A daemon that serves until the test is over.
struct Serving {
    child: Child,
}

impl Serving {
    fn start(command: &mut Command) -> Serving {
        let mut child = command.args(["--ready-fd", "1"]).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let serving = Serving { child };
        let mut ready = String::new();
        stdout.take(6).read_to_string(&mut ready).unwrap();
        assert_eq!(ready, "ready\n");
        serving
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn connect(socket: &Path) -> Client {
    Client::builder().socket(socket).autostart(false).connect().unwrap()
}

#[test]
fn values_of_this_test_are_of_all_keys() {
    let keys = printed_keys();
    let keys: Vec<_> = keys.iter().map(|line| line.split(" = ").next().unwrap()).collect();
    assert_eq!(keys, VALUES.map(|(key, _)| key));
}

#[test]
fn each_key_is_taken_from_the_file() {
    let scene = Scene::new(VALUES.map(|(key, value)| format!("{key} = {value}\n")).concat());
    let output = scene.serve().arg("--check-config").output().unwrap();
    let file = scene.file().display().to_string();
    let expected = |(index, (key, value))| format!("{key} = {value}  # {file}:{}", index + 1);
    assert_eq!(set(&output), VALUES.into_iter().enumerate().map(expected).collect::<Vec<_>>());
}

#[test]
fn each_key_is_taken_from_its_flag() {
    let mut command = serve();
    for (key, value) in VALUES {
        command.arg(flag(key)).arg(value.trim_matches('"'));
    }
    let output = command.arg("--check-config").output().unwrap();
    let expected = VALUES.map(|(key, value)| format!("{key} = {value}  # {}", flag(key)));
    assert_eq!(set(&output), expected);
}

#[test]
fn variables_are_taken_and_empty_ones_are_none() {
    let scene = Scene::new("drain_seconds = 3");
    let file = scene.file();
    let mut command = serve();
    command.env("REELD_SOCKET", "/a.sock").env("REELD_LOG", "error").env("REELD_CONFIG", &file);
    let expected = [
        "socket = \"/a.sock\"  # REELD_SOCKET".to_owned(),
        "log = \"error\"  # REELD_LOG".to_owned(),
        format!("drain_seconds = 3  # {}:1", file.display()),
    ];
    assert_eq!(set(&command.arg("--check-config").output().unwrap()), expected);
    command.env("REELD_SOCKET", "").env("REELD_LOG", "");
    assert_eq!(set(&command.output().unwrap()), expected[2..]);
}

#[test]
fn empty_variable_names_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = serve();
    command
        .args(["--private", "--check-config"])
        .env("REELD_CONFIG", "")
        .env("XDG_CONFIG_HOME", folder.path());
    let output = command.output().unwrap();
    assert_eq!(text(&output.stdout), "ok\n# no configuration file\n");
}

#[test]
fn flag_goes_before_variable_before_file() {
    let scene = Scene::new("");
    let (file, variable, flag) =
        (scene.path("file.sock"), scene.path("variable.sock"), scene.path("flag.sock"));
    fs::write(scene.file(), format!("socket = \"{}\"", file.display())).unwrap();
    let _from_file = Serving::start(&mut scene.serve());
    connect(&file);
    let _from_variable = Serving::start(scene.serve().env("REELD_SOCKET", &variable));
    connect(&variable);
    let _from_flag = Serving::start(scene.serve().env("REELD_SOCKET", &variable).arg("--socket").arg(&flag));
    connect(&flag);
}

#[test]
fn flag_of_the_file_goes_before_its_variable() {
    let scene = Scene::new("drain_seconds = 4");
    let output = scene.serve().env("REELD_CONFIG", "/no/such.toml").arg("--check-config").output().unwrap();
    assert_eq!(set(&output), [format!("drain_seconds = 4  # {}:1", scene.file().display())]);
}

#[test]
fn socket_has_the_permissions_of_the_file() {
    let scene = Scene::new("socket_mode = \"0640\"");
    let socket = scene.path("a.sock");
    let _serving = Serving::start(scene.serve().arg("--socket").arg(&socket));
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o640);
}

#[test]
fn log_filter_and_cache_of_the_file_reach_broker_and_engine() {
    let scene = Scene::new("log = \"error,reeld_daemon::broker=debug\"\nengine_cache_mib = 7\n");
    let (socket, log) = (scene.path("a.sock"), scene.path("log"));
    let mut command = scene.serve();
    command.arg("--socket").arg(&socket).stderr(fs::File::create(&log).unwrap());
    let _serving = Serving::start(&mut command);
    let client = connect(&socket);
    let video = client.open(clip("h264_bframes.mp4"), OpenOptions::default()).unwrap();
    let _frame = video.frame_at(0).unwrap();
    let engine = PathBuf::from(format!("/proc/{}", client.status().unwrap().engines[0].pid));
    let command = text(&fs::read(engine.join("cmdline")).unwrap());
    assert!(command.contains("--cache-mib\x007\0"), "{command:?}");
    let environment = text(&fs::read(engine.join("environ")).unwrap());
    let filter = environment.split('\0').find(|line| line.starts_with("REELD_LOG=")).unwrap();
    assert_eq!(filter, "REELD_LOG=error,reeld_daemon::broker=debug");
    eventually("a line at debug level", || fs::read_to_string(&log).unwrap().contains("DEBUG").then_some(()));
}

#[test]
fn all_faults_are_told_at_once_and_nothing_is_started() {
    let scene = Scene::new("engine_count_max = 0\nclient_memory = 5\nlog = true\nsocket_mode = 660\n");
    let socket = scene.path("a.sock");
    let faults = scene.faults_of(
        scene
            .serve()
            .args(["--drain-seconds", "soon", "--memory-mib", "-1", "--socket"])
            .arg(&socket)
            .args(["--ready-fd", "1"])
            .env("REELD_LOG", "reeld=loud"),
    );
    let expected = [
        "reeld.toml:1: engine_count_max: expected a whole number from 1 to 1024, got 0",
        "reeld.toml:2: client_memory: no such key; did you mean client_memory_mib?",
        "reeld.toml:3: log: expected a level or a list such as \"warn,reeld_daemon::broker=debug\", got true",
        "reeld.toml:4: socket_mode: expected octal permissions from \"0000\" to \"0777\", got 660",
        "REELD_LOG: log: expected a level or a list such as \"warn,reeld_daemon::broker=debug\", got \"reeld=loud\": ",
        "--drain-seconds: drain_seconds: expected a whole number of seconds from 0 to 3600, got \"soon\"",
        "--memory-mib: memory_mib: expected a whole number of MiB from 1 to 16777216, got \"-1\"",
    ];
    assert_eq!(faults.len(), expected.len(), "{faults:#?}");
    for (fault, expected) in faults.iter().zip(expected) {
        assert!(fault.starts_with(expected), "{fault}\nis not\n{expected}");
    }
    assert!(fs::read_dir(scene.folder.path()).unwrap().count() == 1, "something beside the file was made");
}

#[test]
fn file_that_was_named_must_exist() {
    let scene = Scene::new("");
    let path = scene.path("none.toml");
    let expected = ["none.toml: cannot be read: No such file or directory (os error 2)"];
    assert_eq!(scene.faults_of(serve().arg("--check-config").arg("--config").arg(&path)), expected);
    assert_eq!(scene.faults_of(serve().arg("--check-config").env("REELD_CONFIG", &path)), expected);
}

#[test]
fn unreadable_file_is_a_fault_also_where_nobody_named_it() {
    let scene = Scene::new("");
    let folder = scene.path("reeld");
    fs::create_dir(&folder).unwrap();
    let path = folder.join("reeld.toml");
    fs::write(&path, "").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    let expected = ["reeld/reeld.toml: cannot be read: Permission denied (os error 13)"];
    let mut named = serve();
    named.arg("--check-config").arg("--config").arg(&path);
    assert_eq!(scene.faults_of(as_ordinary_user(&mut named)), expected);
    let mut private = serve();
    private
        .args(["--check-config", "--private"])
        .env("REELD_CONFIG", "")
        .env("XDG_CONFIG_HOME", scene.folder.path());
    assert_eq!(scene.faults_of(as_ordinary_user(&mut private)), expected);
}

/// Root may read any file, unless what lets it do so is taken away before the program begins.
fn as_ordinary_user(command: &mut Command) -> &mut Command {
    const DAC_OVERRIDE: libc::c_ulong = 1;
    const DAC_READ_SEARCH: libc::c_ulong = 2;
    let drop_rights = || {
        for capability in [DAC_OVERRIDE, DAC_READ_SEARCH] {
            // SAFETY: a system call without memory. It fails for who is no root, and has nothing to lose.
            unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        }
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe calls are made.
    unsafe { command.pre_exec(drop_rights) }
}

#[test]
fn folder_in_place_of_a_file_is_a_fault() {
    let scene = Scene::new("");
    fs::create_dir(scene.path("folder")).unwrap();
    let faults = scene.faults_of(serve().arg("--check-config").arg("--config").arg(scene.path("folder")));
    assert_eq!(faults, ["folder: cannot be read: Is a directory (os error 21)"]);
}

#[test]
fn bytes_that_are_no_text_are_a_fault_with_their_line() {
    assert_eq!(Scene::new(b"log = 'info'\n# \xff\n").faults(), ["reeld.toml:2: not UTF-8"]);
}

#[test]
fn duplicate_key_is_a_fault_with_its_line() {
    let faults = Scene::new("drain_seconds = 1\n\ndrain_seconds = 2\n").faults();
    assert_eq!(faults, ["reeld.toml:3: not TOML: duplicate key: drain_seconds = 2"]);
}

#[test]
fn unknown_keys_are_refused_and_the_nearest_is_named_where_it_is_near() {
    let faults = Scene::new("\nengine-cache-mib = 1\nport = 80\n[broker]\nthreads = 2\n").faults();
    let expected = [
        "reeld.toml:2: engine-cache-mib: no such key; did you mean engine_cache_mib?",
        "reeld.toml:3: port: no such key; `reeld serve --print-default-config` shows all",
        "reeld.toml:4: broker: no such key; `reeld serve --print-default-config` shows all",
    ];
    assert_eq!(faults, expected);
}

#[test]
fn unknown_flag_is_refused_with_the_same_status() {
    let output = serve().args(["--client-memory", "5"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("--client-memory-mib"), "{}", text(&output.stderr));
}

#[test]
fn printed_default_is_a_file_without_fault_that_changes_nothing() {
    let scene = Scene::new(printed_default());
    assert_eq!(set(&scene.serve().arg("--check-config").output().unwrap()), [] as [&str; 0]);
    let spelt_out = Scene::new(printed_keys().join("\n"));
    let set = set(&spelt_out.serve().arg("--check-config").output().unwrap());
    let keys: Vec<_> = set.iter().map(|line| line.split(" = ").next().unwrap()).collect();
    assert_eq!(keys, ["cache_dir", "engine_count_max", "user_memory_mib", "memory_mib"]);
}

#[test]
fn report_is_a_file_that_says_the_same() {
    let first =
        serve().args(["--client-memory-mib", "5", "--socket", "/a \"b\\.sock", "--check-config"]).output();
    let report = text(&first.unwrap().stdout);
    let scene = Scene::new(report.strip_prefix("ok\n").unwrap());
    let again = set(&scene.serve().arg("--check-config").output().unwrap());
    let values = |line: &str| line.split("  # ").next().unwrap().to_owned();
    let again: Vec<_> = again.iter().map(|line| values(line)).collect();
    assert_eq!(again, report.lines().skip(2).map(values).collect::<Vec<_>>());
    assert_eq!(again.len(), 2);
}

#[test]
fn private_daemon_reads_the_file_of_its_user() {
    let scene = Scene::new("");
    let folder = scene.path(".config/reeld");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("reeld.toml"), "drain_seconds = 5").unwrap();
    let mut command = serve();
    command.arg("--check-config").env("REELD_CONFIG", "").env_remove("XDG_CONFIG_HOME");
    let private = command.arg("--private").env("HOME", scene.folder.path()).output().unwrap();
    assert_eq!(set(&private), [format!("drain_seconds = 5  # {}/reeld.toml:1", folder.display())]);
}

#[test]
fn who_starts_a_private_daemon_is_told_the_fault_in_its_file() {
    let scene = Scene::new("");
    let mut command = reelctl();
    command.arg("probe").arg(clip("h264_bframes.mp4"));
    command.env("REELD_BINARY", serve().get_program()).env_remove("REELD_NO_AUTOSTART");
    command.env("REELD_CONFIG", scene.path("none.toml")).env("XDG_RUNTIME_DIR", scene.folder.path());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("none.toml: cannot be read"), "{}", text(&output.stderr));
}

#[test]
fn documentation_is_what_the_table_says() {
    let output = serve().arg("--print-config-doc").output().unwrap();
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("docs").join("config.md");
    assert!(
        text(&output.stdout) == fs::read_to_string(committed).unwrap(),
        "docs/config.md is not up to date; run: target/release/reeld serve --print-config-doc >docs/config.md"
    );
}
