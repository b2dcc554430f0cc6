"""A small Debian that boots systemd beside this machine, with the daemon installed by `script/install`.

What the daemon must do there is in `test_container.py`; how the Debian is made, in `make-root`.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "target" / "container"
BINARIES = REPOSITORY / "target" / "release"

# How long something may take that takes seconds. Only a failure waits that long.
PATIENCE_SECONDS = 90
# Between two looks at another process.
LOOK_SECONDS = 0.05

MACHINE = "reeld-test"

# Where the machine finds this one's libraries.
LENT = Path("/opt/lent")

# Engines lock themselves up with Landlock, whose calls systemd-nspawn refuses if not told otherwise.
LANDLOCK = "landlock_create_ruleset landlock_add_rule landlock_restrict_self"

T = TypeVar("T")


def eventually(words: str, ask: Callable[[], T | None]) -> T:
    """Asks until there is an answer."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        answer = ask()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not within {PATIENCE_SECONDS} s: {words}"
        time.sleep(LOOK_SECONDS)


class Container:
    """One booted machine. It is killed and its files go with `close`; it does not outlive this process."""

    def __init__(self) -> None:
        """Makes the root and boots it."""
        # Two runs of one clone would share the root.
        self._lock = (FOLDER / "machine.lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.root = FOLDER / "machine"
        self.console = FOLDER / "console.log"
        self._make_root()
        self._nspawn = self._boot()
        try:
            self._leader = eventually("the machine starts", self._find_leader)
            eventually("the machine has booted", self._is_up)
            self.run("ldconfig")
        except BaseException:
            self.close()
            raise

    def _make_root(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        # Half a second for 180 MB, and a fresh machine for each run.
        subprocess.run(["cp", "--archive", "--reflink=auto", FOLDER / "base", self.root], check=True)
        subprocess.run([REPOSITORY / "script" / "install", self.root], check=True, stdout=subprocess.DEVNULL)
        shutil.copy2(BINARIES / "reeld-test-worker", self.root / "usr" / "local" / "bin")
        self._lend_libraries()

    def _lend_libraries(self) -> None:
        """Shows the machine this one's FFmpeg, so that both decode alike, and what else the binary needs."""
        folder = self.root / "usr/local/lib/lent"
        folder.mkdir()
        listed = subprocess.run(["ldd", BINARIES / "reeld"], check=True, capture_output=True, text=True)
        for name in re.findall(r"=> (/\S+)", listed.stdout):
            if not (self.root / name[1:]).exists():
                # Resolved here: inside there may be no /etc/alternatives that leads to it.
                library = Path(name).resolve()
                (folder / Path(name).name).symlink_to(LENT / library.relative_to("/usr/lib"))
        (self.root / "etc/ld.so.conf.d/lent.conf").write_text("/usr/local/lib/lent\n")

    def _boot(self) -> subprocess.Popen[bytes]:
        command = ["setpriv", "--pdeathsig", "KILL", "systemd-nspawn", "--quiet", "--boot", "--register=no"]
        command += ["--keep-unit", "--private-network", f"--system-call-filter={LANDLOCK}"]
        command += [f"--bind-ro=/usr/lib:{LENT}", f"--machine={MACHINE}", f"--directory={self.root}"]
        # Whatever this machine has: only with the second version of control groups is systemd told inside
        # that the last process of a service has ended. Without that a restart waits for all its time limits.
        environment = {**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
        # A pipe of ours nobody reads would stop the machine.
        with self.console.open("wb") as console:
            return subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=console, stderr=console
            )

    def _find_leader(self) -> int | None:
        """The process that is number 1 inside."""
        if self._nspawn.poll() is not None:
            raise AssertionError(
                "systemd-nspawn cannot boot a container here; it needs root with all rights of the machine, "
                f"which many containers do not give. It said: {self.console.read_text(errors='replace')}"
            )
        for child in Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split():
            status = Path(f"/proc/{child}/status").read_text()
            name, numbers = re.search(r"^Name:\t(.*)$", status, re.M), re.search(r"^NSpid:.*$", status, re.M)
            if name and name[1] == "systemd" and numbers and numbers[0].split()[-1] == "1":
                return int(child)
        return None

    def _is_up(self) -> bool:
        # Some unit of Debian's own may fail where this machine is itself a container.
        return self.run("systemctl", "is-system-running", check=False).strip() in ("running", "degraded")

    def command(self, *command: str, user: str = "root") -> list[str]:
        """The command line that runs another one inside."""
        line = [
            "nsenter",
            f"--target={self._leader}",
            "--mount",
            "--uts",
            "--ipc",
            "--net",
            "--pid",
            "--root",
        ]
        line += [
            "--wd",
            "--",
            "env",
            "--ignore-environment",
            "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        ]
        return [*line, "setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--", *command]

    def run(self, *command: str, user: str = "root", check: bool = True) -> str:
        """Runs something inside and gives back what it wrote, its errors too."""
        result = subprocess.run(
            self.command(*command, user=user),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=PATIENCE_SECONDS,
        )
        assert not check or result.returncode == 0, (
            f"{command} ended with {result.returncode}: {result.stdout}"
        )
        return result.stdout

    def show(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.run("systemctl", "show", "--property", name, "--value", unit).strip()

    def path(self, inside: str) -> Path:
        """A file of the machine, also of its own mounts, as this machine sees it."""
        return Path(f"/proc/{self._leader}/root{inside}")

    def processes(self, unit: str) -> set[int]:
        """The processes of a unit, by their numbers inside."""
        group = self.show(unit, "ControlGroup")
        return {int(line) for line in self.run("cat", f"/sys/fs/cgroup{group}/cgroup.procs").split()}

    def journal(self) -> str:
        """All that was logged."""
        return self.run("journalctl", "--no-pager", "--boot", "--lines=400", check=False)

    def close(self) -> None:
        """Ends the machine and removes its files."""
        try:
            leader = getattr(self, "_leader", None)
            if leader is not None and self._nspawn.poll() is None:
                # Takes all processes inside with it.
                os.kill(leader, signal.SIGKILL)
            else:
                self._nspawn.kill()
            self._nspawn.wait(timeout=PATIENCE_SECONDS)
        finally:
            # systemd-nspawn leaves it behind where /run is not in memory.
            shutil.rmtree(f"/run/systemd/nspawn/propagate/{MACHINE}", ignore_errors=True)
            shutil.rmtree(self.root, ignore_errors=True)
            self._lock.close()
