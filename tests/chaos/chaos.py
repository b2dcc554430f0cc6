"""Kills at random while clients decode, and checks that nothing wrong, stuck or lost comes of it.

Eight clients (Python with forked children, and Rust) read from one daemon under a supervisor and check every
frame bit for bit. Meanwhile clients, their children, engines and the daemon are killed, stopped and, the
daemon, told to end. At the end the accounts of the last daemon must be empty. Started by script/chaos; the
seed decides what is done to whom and when, and the kernel the rest.

What clients do is in client.py, what must be left in accounts.py.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import heapq
import itertools
import json
import os
import random
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accounts
import client
import material
from processes import BINARIES, SOON_SECONDS, ChaosError, Daemon, Process, children_of, state_of

# A client that ends no action for so long, while it may run, hangs; so does a child of one.
HEADWAY_SECONDS = 60
# Of eight clients two are Rust's: every fourth.
RUST_EVERY = 4
ATTACK_SECONDS = (0.05, 0.7)
STOPPED_SECONDS = (0.1, 2.5)
# The last daemon is left alone for this share of the time, so that it has something to account for.
LAST_DAEMON_SHARE = 0.25
# What the daemons of one run are told: from memory for one large frame beside what may be held to more than
# enough, from one engine to more than there are processors, with and without a picture cache.
CLIENT_MEMORY_MIB = [24, 64, 256]
ENGINE_COUNTS = [1, 2, 3, 4]
ENGINE_CACHE_MIB = [0, 4, 256]
# Requests that one kill of an engine may end: those of a run that lost two engines in a row.
CRASHES_PER_KILL = 8
ATTACKS = {
    "client": 4,
    "fork": 4,
    "engine": 5,
    "engines": 1,
    "daemon": 1,
    "daemon told to end": 1,
    "engine stopped": 2,
    "client stopped": 2,
}
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
_libc = ctypes.CDLL(None, use_errno=True)


class ClientProcess:
    """A client as the driver sees it: its process, its pipe, its children, when it last ended an action."""

    def __init__(self, number: int, pid: int, channel: int, stop: int, now: float) -> None:
        """`channel` is read, `stop` is closed to end it."""
        self.number, self.channel, self.stop = number, channel, stop
        self.process = Process(pid)
        self.pid = pid
        self.unread = b""
        self.doing = "starting"
        self.ended_at = now
        self.is_killed = False
        self.children: dict[int, tuple[Process, float]] = {}

    def hold_child(self, pid: int, now: float) -> None:
        """Takes note of a forked child, unless it has gone already."""
        with contextlib.suppress(ProcessLookupError):
            self.children[pid] = (Process(pid), now)


class Chaos:
    """One run."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        """Makes what clients read, and starts the daemon."""
        self.options = options
        self.random = random.Random(options.seed)
        self.folder = folder
        self.counts: Counter[str] = Counter()
        self.kills: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.longest_seconds = 0.0
        self.clock, self.stepped_at = 0.0, time.monotonic()
        self.timers: list[tuple[float, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.selector = selectors.DefaultSelector()
        self.clients: dict[int, ClientProcess] = {}
        self.orphans: dict[int, tuple[Process, float]] = {}
        self.daemon_log = folder / "daemon.log"
        self.recent: list[str] = []
        self.is_ending = False
        self.clips = material.make(folder)
        self.daemon_options = ["--client-memory-mib", str(self.random.choice(CLIENT_MEMORY_MIB))]
        self.daemon_options += ["--engine-count-max", str(self.random.choice(ENGINE_COUNTS))]
        self.daemon_options += ["--engine-cache-mib", str(self.random.choice(ENGINE_CACHE_MIB))]
        if self.random.random() < 0.5:
            # Indexes that a daemon leaves behind, finished or not, are read by the next.
            self.daemon_options += ["--cache-dir", str(folder / "cache")]
        # The three ways of noticing that a client died, and a daemon that looks through all its tables after
        # each event and ends itself where they do not agree.
        self.switches = {"REELD_TEST_DEATH": self.random.choice(["peer-pidfd", "pidfd-open", "hup"])}
        if self.random.random() < 0.5:
            self.switches["REELD_TEST_AUDIT"] = "1"
        print(*(f"{name}={value}" for name, value in self.switches.items()), end=" ")
        print("reeld serve", *self.daemon_options, flush=True)
        self.fresh = self.descriptors_of_a_fresh_daemon()
        (folder / "socket").mkdir()
        self.daemon = Daemon(
            folder / "socket", self.daemon_log, *self.daemon_options, environment=self.switches
        )
        os.environ["REELD_SOCKET"] = str(self.daemon.socket)
        os.environ["REELD_NO_AUTOSTART"] = "1"

    def descriptors_of_a_fresh_daemon(self) -> Counter[str]:
        """What a daemon has open that has served one client and rests."""
        (self.folder / "fresh").mkdir()
        log = self.folder / "fresh.log"
        daemon = Daemon(self.folder / "fresh", log, *self.daemon_options, environment=self.switches)
        environment = {**os.environ, "REELD_SOCKET": str(daemon.socket), "REELD_NO_AUTOSTART": "1"}
        code = "import sys, reeld.decoders; reeld.decoders.VideoDecoder(sys.argv[1])[0]"
        subprocess.run([sys.executable, "-c", code, self.clips[0].path], env=environment, check=True)
        fresh = accounts.fresh_descriptors(daemon)
        accounts.end(daemon)
        return fresh

    # ------------------------------------------------------------------------------- the run

    def run(self) -> dict[str, Any]:
        """The whole run; raises where something is wrong, and returns the figures."""
        begin = time.monotonic()
        self.end = begin + 60 * self.options.minutes
        for number in range(self.options.clients):
            self.start_client(number)
        self.after(self.random.uniform(*ATTACK_SECONDS), self.attack)
        while time.monotonic() < self.end:
            self.step()
            self.show_progress(begin)
        self.end_clients()
        self.check_crashes()
        left = accounts.check(self.daemon, self.fresh)
        accounts.end(self.daemon)
        self.check_nobody_is_left()
        return self.figures(time.monotonic() - begin, left)

    def step(self) -> None:
        """Waits for what happens next and sees to it."""
        now = time.monotonic()
        # A machine that was paused as a whole has not been waiting for anybody.
        self.clock += min(now - self.stepped_at, 1.0)
        self.stepped_at = now
        wait = max(0.0, min(self.timers[0][0] - now, 0.05)) if self.timers else 0.05
        for key, _ in self.selector.select(wait):
            self.listen(key.data)
        while self.timers and self.timers[0][0] <= time.monotonic():
            heapq.heappop(self.timers)[2]()
        self.look_after_daemon()
        for member in list(self.clients.values()):
            self.look_after_client(member)
        self.look_after_orphans()

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Does something later."""
        heapq.heappush(self.timers, (time.monotonic() + seconds, next(self.order), action))

    def note(self, words: str) -> None:
        """Keeps the last things that happened, for a failure's report."""
        self.recent.append(f"{time.strftime('%H:%M:%S')}.{time.time_ns() // 1_000_000 % 1000:03} {words}")
        del self.recent[:-40]

    # ------------------------------------------------------------------------------- clients

    def start_client(self, number: int) -> None:
        """Starts the client of this number, or its successor."""
        channel, say = os.pipe()
        stopped, stop = os.pipe()
        seed = self.random.getrandbits(63)
        log = self.folder / f"client-{number}.log"
        is_rust = number % RUST_EVERY == RUST_EVERY - 1
        if is_rust:
            pid = self.spawn_rust(seed, stopped, say, log)
        else:
            pid = self.fork_python(number, seed, stopped, say, log)
        os.close(say)
        os.close(stopped)
        os.set_blocking(channel, False)
        member = ClientProcess(number, pid, channel, stop, self.clock)
        self.clients[number] = member
        self.selector.register(channel, selectors.EVENT_READ, member)
        self.counts["clients"] += 1

    def spawn_rust(self, seed: int, stopped: int, say: int, log: Path) -> int:
        """A client in Rust. It cannot read clips of another type than it knows."""
        command = [
            "setpriv",
            "--pdeathsig",
            "KILL",
            str(BINARIES / "reeld-chaos-worker"),
            str(self.daemon.socket),
        ]
        command.append(str(seed))
        for clip in self.clips:
            if clip.dtype == "uint8":
                height, width = clip.pixels.shape[1:3]
                command += [str(clip.path), str(clip.reference), f"{height}x{width}"]
        with log.open("ab") as errors:
            streams = ((stopped, 0), (say, 1), (errors.fileno(), 2))
            # No Popen: one that is dropped is collected by the next, and its exit status with it.
            return os.posix_spawnp(
                command[0],
                command,
                os.environ,
                file_actions=[(os.POSIX_SPAWN_DUP2, source, target) for source, target in streams],
            )

    def fork_python(self, number: int, seed: int, stopped: int, say: int, log: Path) -> int:
        """A client in Python: forked, so that what it needs is imported already."""
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            errors = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            for source, target in ((stopped, 0), (say, 1), (errors, 2)):
                os.dup2(source, target)
            os.closerange(3, 4096)
            client.main(self.clips, seed, with_torch=number % 2 == 0, keeps_many=number % 3 == 1)
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)

    def listen(self, member: ClientProcess) -> None:
        """Reads what a client and its children say."""
        try:
            text = os.read(member.channel, 1 << 16)
        except BlockingIOError:
            return
        if not text:
            self.selector.unregister(member.channel)
            return
        *lines, member.unread = (member.unread + text).split(b"\n")
        for line in lines:
            self.hear(member, json.loads(line))

    def hear(self, member: ClientProcess, words: dict[str, Any]) -> None:
        """One line of a client or of one of its children."""
        is_own = words["pid"] == member.pid
        if "failure" in words:
            raise ChaosError(f"client {member.number}: {words['failure']}")
        if "do" in words and is_own:
            member.doing = words["do"]
        elif "did" in words:
            self.counts["actions"] += 1
            self.counts["frames"] += words["frames"]
            self.counts["bytes"] += words["bytes"]
            self.counts["actions of children"] += not is_own
            if words["error"]:
                self.errors[words["error"]] += 1
            if is_own:
                self.longest_seconds = max(self.longest_seconds, self.clock - member.ended_at)
                member.ended_at = self.clock
                member.doing = f"nothing since {words['did']}"
        elif "fork" in words:
            self.counts["forks"] += 1
            member.hold_child(words["fork"], self.clock)
        elif "reaped" in words:
            member.children.pop(words["reaped"], None)
            if words["status"] not in (0, -signal.SIGKILL):
                raise ChaosError(f"a child of client {member.number} ended with {words['status']}")
        elif "statistics" in words:
            self.counts["frames copied out"] += words["statistics"]["frames_copied_out"]

    def look_after_client(self, member: ClientProcess) -> None:
        """Notices its end, and that it hangs."""
        if not member.process.is_alive():
            self.client_ended(member)
            return
        now = self.clock
        if member.process.is_stopped:
            member.ended_at = now
        if now - member.ended_at > HEADWAY_SECONDS:
            raise ChaosError(f"client {member.number} hangs: {member.doing}{_where(member.pid)}")
        for pid, (child, since) in member.children.items():
            if now - since > HEADWAY_SECONDS + client.CHILD_SECONDS[1] and child.is_alive():
                raise ChaosError(f"child {pid} of client {member.number} hangs{_where(pid)}")

    def client_ended(self, member: ClientProcess) -> None:
        """Collects a client, and starts its successor unless all shall end."""
        _, status = os.waitpid(member.pid, 0)
        # What it said last; its children may go on talking, which nobody needs.
        while member.channel in self.selector.get_map():
            before = member.unread
            self.listen(member)
            if member.unread == before:
                break
        if member.channel in self.selector.get_map():
            self.selector.unregister(member.channel)
        os.close(member.channel)
        os.close(member.stop)
        self.orphans.update(member.children)
        del self.clients[member.number]
        code = os.waitstatus_to_exitcode(status)
        if code != (-signal.SIGKILL if member.is_killed else 0):
            raise ChaosError(f"client {member.number} ended with {code} while it did: {member.doing}")
        if not self.is_ending:
            self.start_client(member.number)

    def look_after_orphans(self) -> None:
        """Collects children of clients that were killed: this process is their parent then."""
        for pid in children_of(os.getpid()) if self.orphans or self.is_ending else []:
            is_ours = pid == self.daemon.popen.pid or any(
                pid == member.pid for member in self.clients.values()
            )
            if not is_ours and state_of(pid) == "Z":
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
        for pid, (child, since) in list(self.orphans.items()):
            if not child.is_alive():
                del self.orphans[pid]
            elif self.clock - since > HEADWAY_SECONDS + client.CHILD_SECONDS[1]:
                raise ChaosError(f"child {pid} of a client that was killed hangs{_where(pid)}")

    # -------------------------------------------------------------------------------- daemon

    def look_after_daemon(self) -> None:
        """The supervisor: a daemon that has ended is replaced at once."""
        if self.daemon.process.is_alive():
            return
        status = self.daemon.popen.wait()
        if status != self.daemon.end_status or self.is_ending:
            raise ChaosError(f"the daemon ended with {status}")
        self.daemon.start()
        self.counts["daemons started again"] += 1

    def end_daemon(self, number: signal.Signals) -> None:
        """Ends the daemon; none of its engines may outlive it."""
        engines = self.daemon.engines()
        self.daemon.end_status = 0 if number == signal.SIGTERM else -number
        self.daemon.process.send(number)
        deadline = time.monotonic() + SOON_SECONDS
        self.after(0.5, lambda: self.expect_end(engines, deadline))

    def expect_end(self, engines: list[Process], deadline: float) -> None:
        """Looks whether the engines of a daemon that was ended have gone, and again until they must have."""
        alive = [engine for engine in engines if engine.is_alive()]
        if alive and time.monotonic() > deadline:
            raise ChaosError(f"engines outlive their daemon: {[engine.pid for engine in alive]}")
        if alive:
            self.after(0.5, lambda: self.expect_end(alive, deadline))

    # ------------------------------------------------------------------------------- attacks

    def attack(self) -> None:
        """Does something to somebody, and plans the next attack."""
        if self.is_ending:
            return
        kinds = [kind for kind in ATTACKS if not (kind.startswith("daemon") and self.is_last_daemon())]
        kind = self.random.choices(kinds, [ATTACKS[kind] for kind in kinds])[0]
        if self.is_done(kind):
            self.kills[kind] += 1
            self.note(kind)
        # Now and then two at once.
        pause = 0.0 if self.random.random() < 0.1 else self.random.uniform(*ATTACK_SECONDS)
        self.after(pause, self.attack)

    def is_last_daemon(self) -> bool:
        """Whether the daemon that runs now is the one whose accounts will be checked."""
        return self.end - time.monotonic() < 60 * self.options.minutes * LAST_DAEMON_SHARE

    def is_done(self, kind: str) -> bool:
        """One attack; false where there is nobody to be attacked."""
        if kind in ("client", "client stopped"):
            return self.attack_client(kill=kind == "client")
        if kind == "fork":
            children = [child for member in self.clients.values() for child, _ in member.children.values()]
            children += [child for child, _ in self.orphans.values()]
            return self.hit(children, signal.SIGKILL)
        if kind in ("engine", "engine stopped"):
            return self.hit(self.daemon.engines(), signal.SIGKILL if kind == "engine" else signal.SIGSTOP)
        if kind == "engines":
            engines = self.daemon.engines()
            return bool([self.hit([engine], signal.SIGKILL) for engine in engines])
        # One that ends already shall end in the way that it was told first.
        if self.daemon.end_status is None:
            self.end_daemon(signal.SIGKILL if kind == "daemon" else signal.SIGTERM)
            return True
        return False

    def attack_client(self, *, kill: bool) -> bool:
        """Kills or stops a client."""
        member = self.random.choice(list(self.clients.values()))
        if kill:
            member.is_killed = True
            self.note(f"client {member.number} is killed in {member.doing}")
            member.process.send(signal.SIGKILL)
            return True
        if member.is_killed:
            return False
        return self.hit([member.process], signal.SIGSTOP)

    def hit(self, candidates: list[Process], number: signal.Signals) -> bool:
        """Sends a signal to one of them; one that is stopped goes on after a while."""
        alive = [candidate for candidate in candidates if candidate.is_alive()]
        if not alive:
            return False
        victim = self.random.choice(alive)
        victim.send(number)
        if number == signal.SIGSTOP:
            self.after(self.random.uniform(*STOPPED_SECONDS), lambda: victim.send(signal.SIGCONT))
        return True

    # ------------------------------------------------------------------------------- the end

    def end_clients(self) -> None:
        """Lets all clients end by themselves, and their children."""
        self.is_ending = True
        self.note("the end")
        for member in self.clients.values():
            member.process.send(signal.SIGCONT)
            member.ended_at = self.clock
            os.close(member.stop)
            member.stop = os.open("/dev/null", os.O_RDONLY)
        while self.clients or self.orphans or self.timers:
            self.step()

    def check_crashes(self) -> None:
        """A decoder may only crash where engines were killed."""
        kills = self.kills["engine"] + 3 * self.kills["engines"]
        crashes = self.errors["DecoderCrashedError"]
        if crashes > CRASHES_PER_KILL * kills:
            raise ChaosError(f"{crashes} requests ended by a crash, but only {kills} engines were killed")

    def check_nobody_is_left(self) -> None:
        """No process of this run is left, not even as a zombie."""
        self.look_after_orphans()
        left = children_of(os.getpid())
        if left:
            raise ChaosError(f"processes left: {[(pid, state_of(pid)) for pid in left]}")

    def figures(self, seconds: float, left: dict[str, Any]) -> dict[str, Any]:
        """Everything that was counted."""
        return {
            "seed": self.options.seed,
            "seconds": round(seconds, 1),
            "counts": dict(self.counts),
            "attacks": dict(self.kills),
            "errors": dict(self.errors),
            "longest_seconds_without_headway": round(self.longest_seconds, 2),
            "last_daemon": left,
        }

    def show_progress(self, begin: float) -> None:
        """One line that is written over, on a terminal only."""
        if sys.stderr.isatty():
            seconds = time.monotonic() - begin
            frames, attacks = self.counts["frames"], sum(self.kills.values())
            words = f"\r{seconds:5.0f} s  {frames} frames checked  {attacks} attacks"
            print(words, end="", file=sys.stderr, flush=True)

    def report_failure(self, failure: ChaosError) -> None:
        """What was wrong, what had been done, and the ends of the logs."""
        print(f"\nFAILED: {failure}\n", file=sys.stderr)
        print("What was done last:", *self.recent[-20:], sep="\n  ", file=sys.stderr)
        for member in self.clients.values():
            print(f"  client {member.number} (pid {member.pid}): {member.doing}", file=sys.stderr)
        for log in [self.daemon_log, *sorted(self.folder.glob("client-*.log"))]:
            lines = log.read_text(errors="replace").splitlines() if log.exists() else []
            if lines:
                print(f"\nEnd of {log.name}:", *lines[-30:], sep="\n  ", file=sys.stderr)

    def kill_all(self) -> None:
        """After a failure: ends every process of this run."""
        for member in self.clients.values():
            member.process.send(signal.SIGKILL)
            for child, _ in member.children.values():
                child.send(signal.SIGKILL)
        for child, _ in self.orphans.values():
            child.send(signal.SIGKILL)
        self.daemon.process.send(signal.SIGKILL)


def _where(pid: int) -> str:
    """Where in the kernel the threads of a process wait."""
    found = []
    for task in sorted(Path(f"/proc/{pid}/task").glob("*")):
        with contextlib.suppress(OSError):
            found.append(f"{(task / 'comm').read_text().strip()}: {(task / 'wchan').read_text().strip()}")
    return f" [{', '.join(found)}]"


def print_table(figures: dict[str, Any]) -> None:
    """The figures for a person."""
    counts = dict(figures["counts"])
    counts["MB checked"] = round(counts.pop("bytes", 0) / 1e6)
    rows: list[tuple[str, object]] = [("seconds", figures["seconds"]), *counts.items()]
    rows += [(f"attack: {kind}", count) for kind, count in figures["attacks"].items()]
    rows += [(f"error: {kind}", count) for kind, count in figures["errors"].items()]
    rows.append(("longest time without headway, s", figures["longest_seconds_without_headway"]))
    last = figures["last_daemon"]
    rows += [(f"last daemon, total of {name}", count) for name, count in last["totals"].items()]
    rows += [(f"last daemon, left of {name}", count) for name, count in last["left"].items()]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"  {name:<{width}}  {value}")


def main() -> int:
    """Reads the command line, and runs once."""
    parser = argparse.ArgumentParser(prog="script/chaos", description=str(__doc__).splitlines()[0])
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--seed", type=int, default=None, help="repeats a run as far as timing allows")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the figures there, too")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = random.SystemRandom().getrandbits(32)
    print(f"seed {options.seed}, {options.minutes} minutes, {options.clients} clients", flush=True)
    # Children of clients that are killed become ours.
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    # Forked clients have it at once then.
    import torch  # noqa: F401

    with tempfile.TemporaryDirectory(prefix="reeld-chaos-") as folder:
        try:
            chaos = Chaos(options, Path(folder))
        except ChaosError as failure:
            print(f"FAILED before it began: {failure}", file=sys.stderr)
            return 1
        try:
            figures = chaos.run()
        except ChaosError as failure:
            chaos.report_failure(failure)
            return 1
        finally:
            chaos.kill_all()
    print_table(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    print("Every frame was right, nobody hung, nothing is left.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
