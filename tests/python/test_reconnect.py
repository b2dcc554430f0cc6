"""A daemon that goes away: calls wait for the next one and ask again, and raise where none comes in time."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import reeld
import torch
from reeld import client
from support import Daemon, VideoDecoder, digest, eventually, reference_digests
from torch.utils.data import DataLoader, Dataset

CLIP = "h264_bframes.mp4"
# Longer than any test lasts.
FOR_EVER_SECONDS = 3600.0

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


class Service:
    """A daemon that can be killed and started again at the same socket."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._daemon = Daemon(folder, "--engine-cache-mib", "0")

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return self._daemon.socket

    def status(self) -> dict[str, Any]:
        """What it says of itself."""
        return self._daemon.status()

    def kill(self) -> None:
        """Ends it as a crash would."""
        self._daemon.process.kill()
        self._daemon.process.wait()

    def stop(self) -> None:
        """Ends it as a service manager would."""
        self._daemon.stop()

    def start(self) -> None:
        """Starts it again."""
        self._daemon = Daemon(self._folder, "--engine-cache-mib", "0")


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """A daemon of the test's own; decoders of this process use it, and look for it as long as it takes."""
    service = Service(tmp_path)
    monkeypatch.setattr(client, "_client", None)
    monkeypatch.setattr(client, "_socket", None)
    reeld.connect(service.socket, reconnect_seconds=FOR_EVER_SECONDS)
    yield service
    service.kill()


def busy(service: Service) -> None:
    """Waits until an engine works on something."""
    eventually(lambda: any(engine["is_busy"] for engine in service.status()["engines"]), "an engine is busy")


def interrupted(service: Service, end: Callable[[], None], call: Callable[[], Any]) -> Any:
    """What `call` returns when the daemon ends and is started again in the middle of it."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(call()), name="caller")
    thread.start()
    busy(service)
    end()
    service.start()
    thread.join()
    return results[0]


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_a_call_under_way_brings_the_same_frames_over_a_restart(
    media: Path, service: Service, end: str
) -> None:
    decoder = VideoDecoder(media / "slow.mp4")
    expected = decoder.get_frames_at([200, 20])
    batch = interrupted(service, getattr(service, end), lambda: decoder.get_frames_at([200, 20]))
    assert torch.equal(batch.data, expected.data)
    assert torch.equal(batch.pts_seconds, expected.pts_seconds)


def test_submitted_clips_bring_their_frames_over_a_restart(media: Path, service: Service) -> None:
    expected = reference_digests(media / CLIP)
    slow, decoder = VideoDecoder(media / "slow.mp4"), VideoDecoder(media / CLIP)
    handles = [
        reeld.submit([reeld.Clip(slow, indices=[100]), reeld.Clip(decoder, indices=[index, 49])])
        for index in range(5)
    ]
    busy(service)
    service.kill()
    # Some are made while there is no daemon.
    handles += [reeld.submit([reeld.Clip(slow, indices=[]), reeld.Clip(decoder, indices=[5, 49])])]
    assert not handles[-1].done()
    with pytest.raises(TimeoutError):
        handles[-1].result(timeout=0)
    service.start()
    for index, handle in enumerate(handles):
        assert [digest(frame) for frame in handle.result()[1].data] == [expected[index], expected[49]]


def test_frames_that_are_held_stay_right_and_are_given_back_to_nobody(media: Path, service: Service) -> None:
    expected = reference_digests(media / CLIP)
    decoder = VideoDecoder(media / CLIP)
    held = [decoder[index] for index in range(20)]
    service.kill()
    assert [digest(frame) for frame in held] == expected[:20]
    service.start()
    assert digest(decoder[30]) == expected[30]
    assert [digest(frame) for frame in held] == expected[:20]
    held.clear()
    assert digest(decoder[31]) == expected[31]
    status = service.status()
    assert (status["totals"]["stray_releases"], status["totals"]["engine_crashes"]) == (0, 0)


def test_a_daemon_that_stays_away_is_an_error_after_the_set_time(media: Path, service: Service) -> None:
    reeld.connect(service.socket, reconnect_seconds=0.2)
    decoder = VideoDecoder(media / CLIP)
    service.kill()
    with pytest.raises(reeld.DaemonUnavailableError, match=r"0\.2 s") as raised:
        decoder[3]
    assert str(service.socket) in str(raised.value)
    with pytest.raises(ConnectionError):
        reeld.status()
    with pytest.raises(reeld.DaemonUnavailableError):
        VideoDecoder(media / CLIP)
    service.start()
    assert digest(decoder[3]) == reference_digests(media / CLIP)[3]


def test_a_deadline_shorter_than_the_outage_is_a_deadline_error(media: Path, service: Service) -> None:
    decoder = VideoDecoder(media / CLIP)
    service.kill()
    pending = reeld.submit([reeld.Clip(decoder, indices=[1])], timeout_seconds=0.2)
    with pytest.raises(reeld.DeadlineError):
        pending.result()


def test_a_request_is_cancelled_while_there_is_no_daemon(media: Path, service: Service) -> None:
    decoder = VideoDecoder(media / CLIP)
    service.kill()
    pending = reeld.submit([reeld.Clip(decoder, indices=[1])])
    pending.cancel()
    with pytest.raises(reeld.CancelledError):
        pending.result()


def test_a_file_that_was_rewritten_meanwhile_is_a_changed_source(
    media: Path, service: Service, tmp_path: Path
) -> None:
    file = Path(shutil.copy(media / CLIP, tmp_path / "changing.mp4"))
    decoder = VideoDecoder(file)
    service.kill()
    with file.open("r+b") as handle:
        # Within the pictures: all that is known of the file stays as it was.
        handle.seek(file.stat().st_size // 2)
        handle.write(b"\0")
    service.start()
    with pytest.raises(reeld.SourceChangedError, match="changed"):
        decoder[3]


WAIT_AND_GO_ON = """
import sys, reeld
from reeld.decoders import VideoDecoder
reeld.connect(sys.argv[1], reconnect_seconds=3600)
decoder = VideoDecoder(sys.argv[2])
print("open", flush=True)
sys.stdin.readline()
try:
    # From here on an interrupt is caught below.
    print("asking", flush=True)
    {call}
except KeyboardInterrupt:
    print("interrupted", flush=True)
sys.stdin.readline()
print(decoder.get_frame_at(0).pts_seconds, flush=True)
"""


def start_caller(call: str, service: Service, media: Path) -> subprocess.Popen[str]:
    """A process that makes this call when it is told to, and goes on after an interrupt."""
    return subprocess.Popen(
        [sys.executable, "-c", WAIT_AND_GO_ON.format(call=call), str(service.socket), str(media / CLIP)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    "call",
    [
        "decoder.get_frames_at([3, 4])",
        "reeld.submit([reeld.Clip(decoder, indices=[3])]).result()",
        "reeld.status()",
        "VideoDecoder(sys.argv[2])",
    ],
)
def test_ctrl_c_ends_a_call_that_waits_for_a_daemon(media: Path, service: Service, call: str) -> None:
    with start_caller(call, service, media) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        service.kill()
        child.stdin.write("ask\n")
        child.stdin.flush()
        assert child.stdout.readline() == "asking\n"
        os.kill(child.pid, signal.SIGINT)
        assert child.stdout.readline() == "interrupted\n"
        service.start()
        output, errors = child.communicate("go on\n", timeout=100)
        assert output.split() == ["0.0"], errors


def test_ctrl_c_ends_a_submission_to_a_daemon_that_hangs(media: Path, service: Service) -> None:
    # So many that the socket takes no more, and the next one waits for room.
    flood = "[reeld.submit([reeld.Clip(decoder, indices=list(range(50)) * 80)]) for _ in range(10**6)]"
    pid = service.status()["pid"]
    with start_caller(flood, service, media) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        os.kill(pid, signal.SIGSTOP)
        child.stdin.write("ask\n")
        child.stdin.flush()
        assert child.stdout.readline() == "asking\n"
        stat = Path(f"/proc/{child.pid}/stat")
        times: list[int] = []

        def rests() -> bool:
            # The time of all its threads on a processor stands still: they wait.
            fields = stat.read_text().rsplit(") ", 1)[1].split()
            times.append(int(fields[11]) + int(fields[12]))
            return len(times) > 5 and times[-5] == times[-1]

        eventually(rests, "the child waits for room")
        os.kill(child.pid, signal.SIGINT)
        assert child.stdout.readline() == "interrupted\n"
        os.kill(pid, signal.SIGCONT)
        output, errors = child.communicate("go on\n", timeout=100)
        assert output.split() == ["0.0"], errors


def fork(work: Callable[[], bool]) -> int:
    """Forks; the child runs `work` and ends at once, with 0 where it returned True."""
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)
        status = 1
        try:
            status = 0 if work() else 2
        finally:
            os._exit(status)
    return pid


def test_forked_workers_go_on_over_a_restart(media: Path, service: Service) -> None:
    expected = reference_digests(media / CLIP)
    decoder = VideoDecoder(media / CLIP)
    held = decoder[49]
    ready_end, say_end = os.pipe()

    def work(seed: int) -> bool:
        choice = random.Random(seed)
        for number in range(60):
            index = choice.randrange(50)
            if digest(decoder[index]) != expected[index]:
                return False
            if number == 10:
                os.write(say_end, b"x")
        return digest(held) == expected[49]

    children = [fork(lambda seed=seed: work(seed)) for seed in range(4)]
    for _ in children:
        os.read(ready_end, 1)
    service.kill()
    # Forked while there is no daemon: its first connection waits as those of the others do.
    children.append(fork(lambda: digest(decoder[7]) == expected[7]))
    service.start()
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 5
    assert digest(decoder[8]) == expected[8]
    os.close(ready_end)
    os.close(say_end)


LOAD = """
import sys, torch, reeld
from reeld.decoders import VideoDecoder
class Frames(torch.utils.data.Dataset):
    def __init__(self, file):
        self.decoder = VideoDecoder(file)
    def __len__(self):
        return 400
    def __getitem__(self, index):
        return index, self.decoder[index % 50].contiguous()
reeld.connect(sys.argv[1], reconnect_seconds=3600)
loader = torch.utils.data.DataLoader(Frames(sys.argv[2]), batch_size=4, num_workers=3)
import hashlib
for number, (indices, frames) in enumerate(loader):
    for index, frame in zip(indices.tolist(), frames):
        print(index, hashlib.sha1(frame.contiguous().numpy().tobytes()).hexdigest()[:16], flush=True)
"""


def test_a_data_loader_goes_on_over_restarts(media: Path, service: Service) -> None:
    expected = reference_digests(media / CLIP)
    command = [sys.executable, "-W", "ignore", "-c", LOAD, str(service.socket), str(media / CLIP)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as loader:
        assert loader.stdout is not None
        for number in range(400):
            index, found = loader.stdout.readline().split()
            assert (int(index), found) == (number, expected[number % 50])
            if number % 100 == 50:
                service.kill()
                service.start()
        assert loader.stdout.read() == ""
    assert loader.returncode == 0


# ------------------------------------------------------------------------------------ in a DataLoader


class Clips(Dataset[Any]):
    """Two frames a time of one video."""

    def __init__(self, video: Path, count: int) -> None:
        self.decoder = VideoDecoder(video)
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, item: int) -> Any:
        """The frames, and the number of the first."""
        return self.decoder.get_frames_at([item, item + 1]), item


@pytest.mark.parametrize(("method", "is_persistent"), [("fork", True), ("spawn", False)])
def test_a_data_loader_goes_on_after_the_daemon_was_killed(
    media: Path, service: Service, method: str, is_persistent: bool
) -> None:
    expected = reference_digests(media / CLIP)
    count = 16
    loader = DataLoader(
        Clips(media / CLIP, count),
        batch_size=None,
        num_workers=2,
        prefetch_factor=3,
        multiprocessing_context=method,
        persistent_workers=is_persistent,
    )
    epoch = iter(loader)
    right: set[int] = set()
    lost: set[int] = set()
    for position in range(count):
        if position == 2:
            # What the workers have handed on by now, and nobody has taken.
            eventually(lambda: service.status()["tickets_outstanding"] >= 2, "batches are on their way")
            service.kill()
            service.start()
        batch, item = next(epoch)
        try:
            assert [digest(frame) for frame in batch.data] == expected[item : item + 2]
            right.add(item)
        except reeld.FramesLostError:
            lost.add(item)
    with pytest.raises(StopIteration):
        next(epoch)
    assert lost
    assert right | lost == set(range(count))
    assert {0, 1, count - 1} <= right
    # And the next epoch is whole.
    for batch, item in loader:
        assert [digest(frame) for frame in batch.data] == expected[item : item + 2]
