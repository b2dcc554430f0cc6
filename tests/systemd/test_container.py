"""The daemon as a service: installed, started by its socket, restarted, watched, confined.

One machine serves all tests; each brings the service into the state that it needs.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from container import REPOSITORY, Container, eventually
from PIL import Image

SOCKET = "/run/reeld/reeld.sock"
CLIP = "/srv/h264_bframes.mp4"
REFERENCE = "/srv/h264_bframes.rgb"
WIDTH, HEIGHT = 320, 180
FRAME_BYTES = WIDTH * HEIGHT * 3
# As many restarts in so short a time as systemd refuses by default (5 within 10 s), and one more.
RESTARTS = 6

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="session")
def reference(machine: Container) -> bytes:
    """All frames of the clip as this machine's ffmpeg decodes them. Clip and frames lie inside too."""
    media = REPOSITORY / "target" / "test-media"
    clip = Path(CLIP).name
    subprocess.run([REPOSITORY / "tests/media/generate", media, "--only", clip], check=True)
    command = ["ffmpeg", "-nostdin", "-v", "error", "-i", str(media / clip), "-map", "0:v:0"]
    command += ["-vsync", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    frames = subprocess.run(command, check=True, capture_output=True).stdout
    machine.path(CLIP).write_bytes((media / clip).read_bytes())
    machine.path(REFERENCE).write_bytes(frames)
    return frames


def main_pid(machine: Container) -> int:
    """The broker's number inside; 0 while it does not run."""
    return int(machine.show("reeld.service", "MainPID"))


class Reader:
    """A user's process that reads random frames, compares them, and goes on whatever the daemon comes to."""

    def __init__(self, machine: Container, seed: int) -> None:
        command = machine.command(
            "reeld-test-worker", "read-on", SOCKET, CLIP, REFERENCE, str(seed), user="alice"
        )
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.lines = self.process.stdout

    def await_daemon(self, pid: int) -> None:
        """Waits until that daemon has delivered a frame."""
        for line in self.lines:
            if line == f"daemon {pid}\n":
                return
        raise AssertionError(f"a reader ended with {self.process.wait()} before daemon {pid} served it")

    def finish(self) -> int:
        """Lets it end, which must be a success, and says how many frames it has seen."""
        rest, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, "a reader saw a wrong frame or an error; see its output above"
        return int(rest.split()[-2])

    def abandon(self) -> None:
        """Ends it, if it has not ended yet."""
        with self.process:
            self.process.kill()


@contextmanager
def readers(machine: Container, count: int = 3) -> Iterator[list[Reader]]:
    """Several readers, each served by the daemon that runs now."""
    started = [Reader(machine, seed) for seed in range(1, count + 1)]
    try:
        pid = eventually("the daemon runs", lambda: main_pid(machine))
        for reader in started:
            reader.await_daemon(pid)
        yield started
        for reader in started:
            assert reader.finish() > 0
    finally:
        for reader in started:
            reader.abandon()


def test_group_user_folder_and_socket_are_as_the_package_says(machine: Container) -> None:
    assert machine.run("id", "--name", "--user", "reeld").strip() == "reeld"
    assert "alice" in machine.run("getent", "group", "reeld")
    assert machine.run("stat", "--format=%U %G %a", "/run/reeld").strip() == "reeld reeld 755"
    assert machine.run("stat", "--format=%U %G %a", SOCKET).strip() == "root reeld 660"


def test_first_client_starts_the_daemon_and_gets_the_right_pixels(
    machine: Container, reference: bytes
) -> None:
    machine.run("systemctl", "stop", "reeld.service")
    assert machine.show("reeld.socket", "ActiveState") == "active"
    assert machine.show("reeld.service", "ActiveState") == "inactive"
    command = ("reelctl", "frames", CLIP, "--at", "0,17,49", "--out", "/home/alice/out", "--json")
    written = json.loads(machine.run(*command, user="alice"))["files"]
    assert machine.show("reeld.service", "ActiveState") == "active"
    assert machine.run("stat", "--format=%U %G %a", "/var/cache/reeld").strip() == "reeld reeld 700"
    assert [file["frame_index"] for file in written] == [0, 17, 49]
    for file in written:
        begin = file["frame_index"] * FRAME_BYTES
        with Image.open(machine.path(file["path"])) as picture:
            assert picture.tobytes() == reference[begin : begin + FRAME_BYTES]


def test_user_outside_the_group_is_refused_and_told_of_it(machine: Container, reference: bytes) -> None:
    command = ("reelctl", "frames", CLIP, "--at", "0", "--out", "/home/mallory/out")
    said = machine.run(*command, user="mallory", check=False)
    assert "the group `reeld`" in said, said
    assert not machine.path("/home/mallory/out").exists()


def test_clients_go_on_over_restarts(machine: Container, reference: bytes) -> None:
    with readers(machine) as reading:
        pids = [main_pid(machine)]
        for _ in range(RESTARTS):
            machine.run("systemctl", "restart", "reeld.service")
            pids.append(main_pid(machine))
        for reader in reading:
            reader.await_daemon(pids[-1])
        assert len(set(pids)) == RESTARTS + 1
    assert machine.show("reeld.socket", "ActiveState") == "active"


def test_crashed_daemon_is_restarted_and_clients_go_on(machine: Container, reference: bytes) -> None:
    with readers(machine) as reading:
        pid = main_pid(machine)
        machine.run("systemctl", "kill", "--kill-who=main", "--signal=SIGKILL", "reeld.service")
        successor = await_successor(machine, pid)
        for reader in reading:
            reader.await_daemon(successor)


def test_stuck_daemon_is_restarted_by_the_watchdog_and_clients_go_on(
    machine: Container, reference: bytes
) -> None:
    with readers(machine) as reading:
        pid = main_pid(machine)
        machine.run("systemctl", "kill", "--kill-who=main", "--signal=SIGSTOP", "reeld.service")
        successor = await_successor(machine, pid)
        for reader in reading:
            reader.await_daemon(successor)
    journal = machine.run("journalctl", "--no-pager", "--boot", "--unit=reeld.service")
    assert f"Killing process {pid} (reeld) with signal SIGABRT" in journal
    assert "Failed with result 'watchdog'" in journal


def await_successor(machine: Container, pid: int) -> int:
    """The next broker, once it is ready."""

    def successor() -> int | None:
        is_ready = machine.show("reeld.service", "ActiveState") == "active"
        next_pid = main_pid(machine)
        return next_pid if is_ready and next_pid not in (0, pid) else None

    return eventually("another daemon runs", successor)


def test_busy_daemon_feeds_the_watchdog(machine: Container, reference: bytes) -> None:
    with readers(machine):
        restarts = machine.show("reeld.service", "NRestarts")
        feedings = set()

        def was_fed_twice() -> bool:
            feedings.add(machine.show("reeld.service", "WatchdogTimestampMonotonic"))
            return len(feedings) == 3

        eventually("the watchdog is fed again and again", was_fed_twice)
        assert machine.show("reeld.service", "NRestarts") == restarts


def test_status_line_says_what_the_daemon_does(machine: Container, reference: bytes) -> None:
    machine.run("systemctl", "restart", "reeld.service")
    command = machine.command("reeld-test-worker", "hold", SOCKET, CLIP, user="alice")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holding\n"
        wanted = r"1 client, 1 engine \(0 busy\), [1-9]\d* MiB leased"
        eventually(
            "the status line shows the client",
            lambda: re.fullmatch(wanted, machine.show("reeld.service", "StatusText")),
        )
        status = machine.run("systemctl", "--no-pager", "status", "reeld.service")
        assert re.search(rf'Status: "{wanted}"', status), status
        holder.communicate()
    eventually(
        "the status line shows that the client went away",
        lambda: machine.show("reeld.service", "StatusText").startswith("0 clients, "),
    )


def test_reload_takes_a_changed_configuration_and_keeps_the_clients(
    machine: Container, reference: bytes
) -> None:
    configuration = machine.path("/etc/reeld/reeld.toml")
    with readers(machine, count=1):
        pid = main_pid(machine)
        before = json.loads(machine.run("reelctl", "status", "--json"))
        configuration.write_text("memory_mib = 77\n")
        try:
            machine.run("systemctl", "reload", "reeld.service")
            eventually(
                "the new limit holds",
                lambda: (
                    json.loads(machine.run("reelctl", "status", "--json"))["memory_bytes_max"] == 77 << 20
                ),
            )
            assert main_pid(machine) == pid
            assert machine.show("reeld.service", "ActiveState") == "active"
        finally:
            configuration.unlink()
            machine.run("systemctl", "reload", "reeld.service")
        eventually(
            "the old limit holds again",
            lambda: (
                json.loads(machine.run("reelctl", "status", "--json"))["memory_bytes_max"]
                == before["memory_bytes_max"]
            ),
        )


def test_journal_has_fields_to_search_for(machine: Container, reference: bytes) -> None:
    with readers(machine, count=1):
        pid = main_pid(machine)

    def connected() -> list[dict[str, str]]:
        lines = machine.run("journalctl", "--output=json", f"_PID={pid}").splitlines()
        entries = [json.loads(line) for line in lines]
        return [entry for entry in entries if entry["MESSAGE"].startswith("client connected ")]

    eventually("a line of a client that connected", lambda: bool(connected()))
    entry = connected()[0]
    assert entry["PRIORITY"] == "6"
    assert int(entry["REELD_CLIENT"]) > 0
    assert entry["REELD_NAME"].startswith("reeld-test-worker")


def test_engines_are_confined_speak_for_nobody_and_die_first(machine: Container, reference: bytes) -> None:
    with readers(machine, count=1):
        broker = machine.path(f"/proc/{main_pid(machine)}")
        processes = machine.processes("reeld.service")
        engines = [machine.path(f"/proc/{pid}") for pid in processes if broker.name != str(pid)]
        assert engines
        for engine in engines:
            status = (engine / "status").read_text()
            assert re.search(r"^Seccomp:\t2$", status, re.M)
            assert re.search(r"^NoNewPrivs:\t1$", status, re.M)
            assert re.search(r"^CapEff:\t0+$", status, re.M)
            # The service's filters, and its own two.
            assert filter_count(engine) == filter_count(broker) + 2
            assert int((engine / "oom_score_adj").read_text()) > int((broker / "oom_score_adj").read_text())
            assert not re.search(rb"NOTIFY_SOCKET|LISTEN_|WATCHDOG_", (engine / "environ").read_bytes())


def filter_count(process: Path) -> int:
    """System call filters that a process is under."""
    found = re.search(r"^Seccomp_filters:\t(\d+)$", (process / "status").read_text(), re.M)
    assert found is not None
    return int(found[1])
