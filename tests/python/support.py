"""What the Python tests share: clips, daemons, the class under test and ways to compare.

It holds no test and no fixture; the fixtures are in conftest.py.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.machinery
import importlib.util
import json
import multiprocessing
import os
import queue
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchcodec.decoders

# The suite proves its own reference side when it is run against TorchCodec itself: tests that need nothing
# but the class then compare TorchCodec with TorchCodec, and all must pass.
SUBJECT = os.environ.get("REELD_TEST_SUBJECT", "reeld")

# Of any type, because both take more than either declares (ranges, numpy's integers), and tests try the rest.
Reference: Any = torchcodec.decoders.VideoDecoder
VideoDecoder: Any = importlib.import_module(f"{SUBJECT}.decoders").VideoDecoder

REPOSITORY = Path(__file__).resolve().parents[2]
MEDIA = REPOSITORY / "target" / "test-media"
EXTRA_MEDIA = os.environ.get("REELD_EXTRA_MEDIA")

# A batch of the comparisons: large enough to be a batch, small enough for two copies of it in memory.
CHUNK_BYTES = 64 << 20
# How long something that happens soon, but not at once, may take. Only a failure waits that long.
SOON_SECONDS = 30


def _recipes() -> Any:
    """`tests/media/generate` as a module; it has no suffix that Python's import would find."""
    path = str(REPOSITORY / "tests" / "media" / "generate")
    loader = importlib.machinery.SourceFileLoader("media_recipes", path)
    spec = importlib.util.spec_from_loader("media_recipes", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["media_recipes"] = module
    loader.exec_module(module)
    return module


recipes = _recipes()

# MPEG-TS has no index, and TorchCodec, which seeks by FFmpeg's bisection there, returns errors and frames of
# another time for many indices of these clips (seen with FFmpeg 5.1). They are compared with ffmpeg's own
# output instead.
UNSEEKABLE = ["start_time.ts", "mpeg2.ts"]
# Clips that every comparison goes through.
CLIPS = [
    clip.name
    for clip in (*recipes.codecs(), *recipes.shapes(), *recipes.times(), *recipes.streams())
    if not clip.name.startswith("audio_only") and clip.name not in UNSEEKABLE
]
TWENTY = [f"twenty_{number:02}.mp4" for number in range(recipes.TWENTY)]


def extra_files() -> list[Path]:
    """The files that REELD_EXTRA_MEDIA names, without its texts."""
    if EXTRA_MEDIA is None:
        return []
    return sorted(file for file in Path(EXTRA_MEDIA).iterdir() if file.suffix not in (".md", ".txt"))


# ---------------------------------------------------------------------------------------- comparing


@dataclass(frozen=True)
class Outcome:
    """What a call came to: a value, or the exception that it raised."""

    value: Any = None
    error: Exception | None = None


def outcome(call: Callable[[], Any]) -> Outcome:
    """Runs `call` and catches what it raises."""
    try:
        return Outcome(value=call())
    except Exception as error:
        return Outcome(error=error)


def axes_by_stride(tensor: torch.Tensor) -> list[int]:
    """The axes from the outermost in memory to the innermost; those of length 1 stay where they are."""
    return sorted(
        range(tensor.ndim), key=lambda axis: -tensor.stride(axis) if tensor.shape[axis] > 1 else -1e18
    )


def assert_same_pixels(ours: torch.Tensor, reference: torch.Tensor) -> None:
    """Equal in shape, type and every value, and laid out alike: pixel by pixel, row by row.

    TorchCodec pads the rows of some single frames, where FFmpeg's filters do; ours never are.
    """
    assert isinstance(ours, torch.Tensor)
    assert ours.shape == reference.shape
    assert ours.dtype == reference.dtype
    if reference.numel():
        assert axes_by_stride(ours) == axes_by_stride(reference)
        assert ours.permute(axes_by_stride(ours)).is_contiguous()
    if not torch.equal(ours, reference):
        difference = (ours.int() - reference.int()).abs()
        wrong = (difference > 0).float().mean().item()
        raise AssertionError(f"{wrong:.4%} of the values differ, the largest by {difference.max().item()}")


def assert_same(ours: Any, reference: Any) -> None:
    """Equal as results of a decoder: a tensor, a Frame, a FrameBatch, or a plain value."""
    if isinstance(reference, torch.Tensor):
        assert_same_pixels(ours, reference)
    elif hasattr(reference, "pts_seconds"):
        assert type(ours).__name__ == type(reference).__name__
        assert_same_pixels(ours.data, reference.data)
        for field in ("pts_seconds", "duration_seconds"):
            our_times, their_times = getattr(ours, field), getattr(reference, field)
            assert type(our_times) is type(their_times)
            if isinstance(their_times, torch.Tensor):
                assert our_times.dtype == their_times.dtype == torch.float64
                assert our_times.tolist() == their_times.tolist()
            else:
                assert our_times == their_times
    else:
        assert ours == reference


def assert_same_outcome(ours: Callable[[], Any], reference: Callable[[], Any]) -> None:
    """The same result, or an exception of TorchCodec's class, also by inheritance, with a sentence in it."""
    expected, actual = outcome(reference), outcome(ours)
    if expected.error is None:
        if actual.error is not None:
            raise AssertionError("TorchCodec returned a result where this was raised") from actual.error
        assert_same(actual.value, expected.value)
    else:
        assert actual.error is not None, f"TorchCodec raised {expected.error!r}, we returned {actual.value!r}"
        assert_error_fits(actual.error, type(expected.error))


def assert_error_fits(error: Exception, expected: type[Exception] | tuple[type[Exception], ...]) -> None:
    """The exception is of the expected class and says something to a person."""
    if not isinstance(error, expected):
        raise AssertionError(f"expected {expected}, got {type(error).__mro__}: {error}") from error
    assert len(str(error)) >= 10, f"{error!r} helps nobody"


def chunks(decoder: Any, indices: Sequence[int]) -> Iterable[list[int]]:
    """`indices` in pieces whose frames fit in CHUNK_BYTES."""
    frame_bytes = decoder.metadata.width * decoder.metadata.height * 3
    count = max(1, CHUNK_BYTES // frame_bytes)
    for start in range(0, len(indices), count):
        yield list(indices[start : start + count])


def digest(pixels: Any) -> str:
    """A short name for the content of a tensor or array, the same for every memory layout."""
    return hashlib.sha1(torch.as_tensor(pixels).contiguous().numpy().tobytes()).hexdigest()[:16]


def reference_digests(file: Path) -> list[str]:
    """The digest of every frame of a file as TorchCodec decodes it."""
    decoder = Reference(str(file))
    return [
        digest(frame)
        for part in chunks(decoder, range(len(decoder)))
        for frame in decoder.get_frames_at(part).data
    ]


def ffmpeg_frames(file: Path, *, opener: Any = Reference) -> torch.Tensor:
    """Every frame of the first video stream as the ffmpeg program decodes it, without any seeking: NCHW.

    `opener` is the class that tells how large they are.
    """
    metadata = opener(str(file)).metadata
    command = ["ffmpeg", "-nostdin", "-v", "error", "-i", str(file), "-map", "0:v:0", "-vsync", "passthrough"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    pixels = bytearray(subprocess.run(command, check=True, capture_output=True).stdout)
    assert metadata.height is not None
    assert metadata.width is not None
    frames = torch.frombuffer(pixels, dtype=torch.uint8).view(-1, metadata.height, metadata.width, 3)
    return frames.permute(0, 3, 1, 2)


# ------------------------------------------------------------------------------- daemons and processes


def eventually(condition: Callable[[], bool], words: str) -> None:
    """Waits until `condition` holds. Only for what the kernel or another process does in its own time."""
    deadline = time.monotonic() + SOON_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {SOON_SECONDS} s: {words}"
        time.sleep(0.01)


def program(name: str) -> str:
    """The path of a program of this build, beside the interpreter or on the PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    assert found is not None, f"there is no {name}: run script/setup"
    return found


class Daemon:
    """A daemon of the tests' own, on a socket of its own. Ends only what it has started."""

    def __init__(self, folder: Path, *options: str) -> None:
        """Starts `reeld serve` with `options` and waits until it answers."""
        self.socket = folder / "reeld.sock"
        self.log = folder / "daemon.log"
        with self.log.open("wb") as log:
            # A test run that is killed takes its daemons with it.
            command = ["setpriv", "--pdeathsig", "TERM", program("reeld"), "serve"]
            command += ["--socket", str(self.socket), *options]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        eventually(self._answers, f"the daemon answers; its log: {self.log}")

    def _answers(self) -> bool:
        assert self.process.poll() is None, f"the daemon ended: {self.log.read_text()}"
        return self._reelctl().returncode == 0

    def _reelctl(self) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "REELD_SOCKET": str(self.socket), "REELD_NO_AUTOSTART": "1"}
        command = [program("reelctl"), "status", "--json"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SOON_SECONDS)

    def status(self) -> dict[str, Any]:
        """What `reelctl status --json` says."""
        result = self._reelctl()
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    def lease_count(self) -> int:
        """The leases that all clients hold together."""
        return self.status()["lease_count"]

    def stop(self) -> None:
        """Ends the daemon; it must obey."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=SOON_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


def _child(function: Callable[..., Any], arguments: tuple[Any, ...], barrier: Any, results: Any) -> None:
    # As a DataLoader does in its workers: the threads that OpenMP had in the parent are not here, and torch
    # would wait for them.
    torch.set_num_threads(1)
    barrier.wait()
    number, *rest = arguments
    try:
        results.put((number, function(number, *rest), None))
    except BaseException as error:
        results.put((number, None, repr(error)))
        raise


def run_together(method: str, function: Callable[..., Any], count: int, *arguments: Any) -> list[Any]:
    """Runs `function(number, *arguments)` in `count` processes that begin at the same moment.

    `method` is multiprocessing's start method. Returns the results by number; a child that raised or died
    fails the test.
    """
    context: Any = multiprocessing.get_context(method)
    barrier, results = context.Barrier(count), context.Queue()
    children = [
        context.Process(target=_child, args=(function, (number, *arguments), barrier, results))
        for number in range(count)
    ]
    for child in children:
        child.start()
    answers = {}
    try:
        while len(answers) < count:
            # Looks up each second, so that a child that crashed is noticed and not waited for.
            try:
                number, value, error = results.get(timeout=1)
            except queue.Empty:
                exit_codes = [child.exitcode for child in children]
                assert set(exit_codes) <= {None, 0}, f"a process died: {exit_codes}"
                continue
            assert error is None, f"process {number} of {count}: {error}"
            answers[number] = value
        for child in children:
            child.join(timeout=SOON_SECONDS)
            assert child.exitcode == 0
    finally:
        for child in children:
            child.kill()
    return [answers[number] for number in range(count)]


def run_python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a short program in an interpreter of its own and gives back what it wrote."""
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=100
    )


def mapping_of(address: int, pid: str = "self") -> str:
    """The name of the memory mapping that `address` lies in, as /proc tells it."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        span, _, _, _, _, *name = line.split(maxsplit=5)
        start, end = (int(part, 16) for part in span.split("-"))
        if start <= address < end:
            return name[0] if name else ""
    raise AssertionError(f"no mapping holds {address:#x}")
