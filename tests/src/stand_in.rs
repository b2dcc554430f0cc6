//! [`StandIn`]: a library that is preloaded into a daemon and makes calls on marked files hang, as those of a
//! file system do that does not answer. It works without any right, and whoever
//! hangs in it can be killed, unlike in the kernel.
//!
//! What must go on meanwhile is each test's matter.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// `close` and `statx` hang on files whose names say so, as long as the gate is there. And engines end at once
/// as long as another file is there.
const SOURCE: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static void hang_if(int fd, const char *mark) {
    char link[64], name[4096];
    const char *gate = getenv("STAND_IN_GATE");
    if (!gate) return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, name, sizeof name - 1);
    if (length < 0) return;
    name[length] = 0;
    if (!strstr(name, mark)) return;
    while (access(gate, F_OK) == 0) usleep(1000);
}

int close(int fd) {
    hang_if(fd, "hanging-close");
    return syscall(SYS_close, fd);
}

int statx(int fd, const char *path, int flags, unsigned mask, struct statx *buffer) {
    if (flags & AT_EMPTY_PATH) hang_if(fd, "hanging-stat");
    return syscall(SYS_statx, fd, path, flags, mask, buffer);
}

__attribute__((constructor)) static void end_engines(void) {
    char line[256];
    const char *curse = getenv("STAND_IN_CURSE");
    int fd = open("/proc/self/cmdline", O_RDONLY);
    ssize_t length = read(fd, line, sizeof line - 1);
    syscall(SYS_close, fd);
    if (!curse || length < 0) return;
    line[length] = 0;
    if (strcmp(line + strlen(line) + 1, "engine") == 0 && access(curse, F_OK) == 0) _exit(3);
}
"#;

/// A preloaded library, its gate, and files on which calls hang.
#[derive(Debug)]
pub struct StandIn {
    folder: TempDir,
}

impl StandIn {
    /// Compiles the library, with the gate closed.
    pub fn new() -> StandIn {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        fs::write(path("stand_in.c"), SOURCE).expect("a source file");
        fs::write(path("gate"), "").expect("a gate");
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([path("stand_in.so"), path("stand_in.c")])
            .status()
            .expect("a C compiler");
        assert!(compiled.success(), "the stand-in does not compile");
        StandIn { folder }
    }

    /// Environment variables of a daemon.
    pub fn environment(&self) -> [(&'static str, String); 3] {
        let path = |name: &str| self.folder.path().join(name).to_str().expect("a path of text").to_owned();
        [
            ("LD_PRELOAD", path("stand_in.so")),
            ("STAND_IN_GATE", path("gate")),
            ("STAND_IN_CURSE", path("curse")),
        ]
    }

    /// A copy of a clip on which `call`, `stat` or `close`, hangs.
    pub fn hanging(&self, call: &str, clip: &Path) -> PathBuf {
        let path = self.folder.path().join(format!("hanging-{call}.mp4"));
        fs::copy(clip, &path).expect("a copy of the clip");
        path
    }

    /// As `hanging`, opened.
    pub fn open_hanging(&self, call: &str, clip: &Path) -> OwnedFd {
        let path = self.folder.path().join(format!("hanging-{call}.mp4"));
        if !path.exists() {
            self.hanging(call, clip);
        }
        File::open(path).expect("the copy can be opened").into()
    }

    /// All calls come back.
    pub fn let_go(&self) {
        let _ = fs::remove_file(self.folder.path().join("gate"));
    }

    /// Engines end as soon as they start.
    pub fn curse_engines(&self) {
        fs::write(self.folder.path().join("curse"), "").expect("a file");
    }

    /// They live again.
    pub fn lift_curse(&self) {
        fs::remove_file(self.folder.path().join("curse")).expect("the file was there");
    }
}

impl Default for StandIn {
    fn default() -> Self {
        StandIn::new()
    }
}
