//! [`OtherUser`]: processes of another user on the same daemon, which only root can start.
//!
//! What they do is in `src/bin/reeld-test-worker.rs`.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::daemon::{Daemon, binary};
use crate::media::{Reference, clip};
use crate::worker::Worker;

/// A user without name or group.
const UID: u32 = 65_500;

const CLIP: &str = "h264_bframes.mp4";
const SIZE: (usize, usize) = (320, 180);

/// A user who can reach a daemon that was started with `--socket-mode 0666`.
#[derive(Debug)]
pub struct OtherUser {
    is_another: bool,
    folder: PathBuf,
    socket: PathBuf,
}

impl OtherUser {
    /// Makes the daemon's folder one that others may enter, with a clip in it. Who is not root cannot be
    /// another user: then the worker's part is played by one's own.
    pub fn of(daemon: &Daemon) -> OtherUser {
        let folder = daemon.folder().to_owned();
        fs::set_permissions(&folder, Permissions::from_mode(0o755))
            .expect("the folder can be opened to others");
        for name in ["reeld-test-worker", "reelctl"] {
            fs::copy(binary(name), folder.join(name)).expect("the program can be copied");
        }
        fs::copy(clip(CLIP), folder.join(CLIP)).expect("the clip can be copied");
        Reference::new(&clip(CLIP), SIZE.0, SIZE.1).write(&folder.join("reference.rgb"));
        OtherUser { is_another: rustix::process::getuid().is_root(), folder, socket: daemon.socket() }
    }

    /// True where it really is another user.
    pub fn is_another(&self) -> bool {
        self.is_another
    }

    /// The user id.
    pub fn uid(&self) -> u32 {
        if self.is_another { UID } else { rustix::process::getuid().as_raw() }
    }

    /// A command line of one of the copied programs, as that user.
    pub fn command(&self, program: &str) -> Command {
        let program = self.folder.join(program);
        if !self.is_another {
            return Command::new(program);
        }
        let mut command = Command::new("setpriv");
        let uid = UID.to_string();
        command.args(["--reuid", &uid, "--regid", &uid, "--clear-groups"]).arg(program);
        command
    }

    /// Reads frames and checks them; it fails if anything is not as it should be.
    pub fn reader(&self) -> Worker {
        Worker::spawn(
            self.command("reeld-test-worker")
                .arg("read")
                .arg(&self.socket)
                .args([CLIP, "reference.rgb"].map(|name| self.path(name)))
                .arg("7"),
        )
    }

    /// Holds a connection and a few results until it is let go.
    pub fn holder(&self) -> Worker {
        let mut command = self.command("reeld-test-worker");
        Worker::spawn(command.arg("hold").arg(&self.socket).arg(self.path(CLIP)))
    }

    fn path(&self, name: &str) -> PathBuf {
        Path::new(&self.folder).join(name)
    }
}
