"""What a decoder can be made from: each kind brings the frames of the path, and each fault its exception."""

from __future__ import annotations

import copy
import gzip
import io
import mmap
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reeld
import torch
from support import (
    SUBJECT,
    Daemon,
    Reference,
    VideoDecoder,
    assert_error_fits,
    assert_same,
    assert_same_outcome,
    digest,
    eventually,
    outcome,
    reference_digests,
    run_python,
)
from test_fork import exit_code, fork

CLIP = "h264_bframes.mp4"
# More than stays in memory.
LARGE_BYTES = 65 << 20
only_ours = pytest.mark.skipif(SUBJECT == "torchcodec", reason="TorchCodec knows nothing of this")


# What the tests have opened, for an end in order.
FILES: list[Any] = []


@pytest.fixture(autouse=True)
def closed_files() -> Iterator[None]:
    """TorchCodec's decoders need their files, and ours none; so all are closed after each test."""
    yield
    while FILES:
        FILES.pop().close()


def kept(file: Any) -> Any:
    """A file that is closed after the test."""
    FILES.append(file)
    return file


class Reader:
    """The least that can be read, as TorchCodec's documentation has it; parts of it can be exchanged."""

    def __init__(self, content: bytes, **methods: Callable[..., Any]) -> None:
        self.file = io.BytesIO(content)
        self.methods = methods
        self.log: list[tuple[str, ...]] = []

    def read(self, size: int) -> Any:
        self.log.append(("read", str(size)))
        return self.methods.get("read", io.BytesIO.read)(self.file, size)

    def seek(self, offset: int, whence: int) -> Any:
        self.log.append(("seek", str(offset), str(whence)))
        return self.methods.get("seek", io.BytesIO.seek)(self.file, offset, whence)


def silent_seek(file: io.BytesIO, offset: int, whence: int) -> None:
    """As streams do that do not tell where they are."""
    file.seek(offset, whence)


class Located:
    """A path that is no `pathlib.Path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


class Tracked(io.BytesIO):
    """What may do with its bytes what it likes, because it is derived from a class that is known."""

    def read(self, size: int | None = -1, /) -> bytes:
        return bytes(byte ^ 0xFF for byte in super().read(size))


def zipped(path: Path) -> Any:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as writing:
        writing.write(path, "clip")
    return kept(kept(zipfile.ZipFile(archive)).open("clip"))


def wrapped(path: Path) -> Any:
    file = kept(tempfile.NamedTemporaryFile())  # noqa: SIM115 # closed after the test
    file.write(path.read_bytes())
    file.seek(0)
    return file


SHARED_KINDS: dict[str, Callable[[Path], Any]] = {
    "str": str,
    "file: str": lambda path: f"file:{path}",
    "path": lambda path: path,
    "bytes": lambda path: path.read_bytes(),
    "tensor": lambda path: torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8),
    "two-dimensional tensor": lambda path: torch.frombuffer(
        bytearray(path.read_bytes() + bytes(path.stat().st_size % 2)), dtype=torch.uint8
    ).view(2, -1),
    "BytesIO": lambda path: io.BytesIO(path.read_bytes()),
    "buffered file": lambda path: kept(path.open("rb")),
    "raw file": lambda path: kept(path.open("rb", buffering=0)),
    "file for reading and writing": lambda path: kept(path.open("r+b")),
    "reader": lambda path: Reader(path.read_bytes()),
    "short reads": lambda path: Reader(path.read_bytes(), read=lambda file, size: file.read(min(size, 997))),
    "file in a zip": zipped,
    "wrapped temporary file": wrapped,
}
OUR_KINDS: dict[str, Callable[[Path], Any]] = {
    "os.PathLike": Located,
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "memoryview of arrays": lambda path: np.frombuffer(path.read_bytes(), np.uint8).data,
    "array": lambda path: np.frombuffer(path.read_bytes(), np.uint8),
    "mmap": lambda path: kept(mmap.mmap(kept(path.open("rb")).fileno(), 0, prot=mmap.PROT_READ)),
    "gzip": lambda path: gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(path.read_bytes()))),
    "reads of other types": lambda path: Reader(
        path.read_bytes(), read=lambda file, size: memoryview(bytearray(file.read(size)))
    ),
    "seek without a result": lambda path: Reader(path.read_bytes(), seek=silent_seek),
    "more than asked for": lambda path: Reader(
        path.read_bytes(), read=lambda file, size: file.read(2 * size)
    ),
}


@pytest.mark.parametrize("kind", SHARED_KINDS)
def test_every_kind_that_torchcodec_reads(media: Path, kind: str) -> None:
    make = SHARED_KINDS[kind]
    ours, reference = VideoDecoder(make(media / CLIP)), Reference(make(media / CLIP))
    assert_same(ours[:], reference[:])
    assert repr(ours.metadata) == repr(reference.metadata)


@only_ours
@pytest.mark.parametrize("kind", OUR_KINDS)
def test_every_kind_that_only_we_read(media: Path, kind: str) -> None:
    assert_same(VideoDecoder(OUR_KINDS[kind](media / CLIP))[:], Reference(str(media / CLIP))[:])


@pytest.mark.parametrize(
    "clip", ["variable_rate.mkv", "vp9.webm", "h264_open_gop.mp4", "fragmented.mp4", "mpeg4.avi"]
)
@pytest.mark.parametrize("seek_mode", ["exact", "approximate"])
def test_readers_of_other_containers(media: Path, clip: str, seek_mode: str) -> None:
    content = (media / clip).read_bytes()
    ours = VideoDecoder(Reader(content), seek_mode=seek_mode)
    reference = Reference(Reader(content), seek_mode=seek_mode)
    indices = [0, len(reference) - 1, len(reference) // 2]
    for index in indices:
        assert_same_outcome(
            lambda index=index: ours.get_frame_at(index), lambda index=index: reference.get_frame_at(index)
        )


def raising(error: BaseException) -> Callable[..., Any]:
    def act(*_: object) -> None:
        raise error

    return act


FAULTS: dict[str, Callable[[Path], Any]] = {
    "text": lambda path: kept(path.open()),
    "text in memory": lambda path: io.StringIO("text"),
    "nothing to seek with": lambda path: type("Half", (), {"read": raising(KeyError("read"))})(),
    "a number": lambda path: 3,
    "a list": lambda path: [path],
    "tensor of another dtype": lambda path: torch.zeros(100, dtype=torch.float32),
    "tensor of signed bytes": lambda path: torch.zeros(100, dtype=torch.int8),
    "tensor with gaps": lambda path: torch.zeros(100, dtype=torch.uint8)[::2],
    "tensor without bytes": lambda path: torch.zeros(0, dtype=torch.uint8),
    "tensor of one byte": lambda path: torch.tensor(3, dtype=torch.uint8),
    "no bytes": lambda path: b"",
    "no bytes in a file": lambda path: io.BytesIO(),
    "other bytes": lambda path: b"text" * 100,
    "other bytes in a file": lambda path: io.BytesIO(b"text" * 100),
    "closed file": lambda path: closed(path.open("rb")),
    "closed BytesIO": lambda path: closed(io.BytesIO(path.read_bytes())),
    "file for writing": lambda path: kept(tempfile.TemporaryFile("wb", buffering=0)),  # noqa: SIM115
    "pipe": lambda path: pipe(path.read_bytes()[:1000]),
    "read returns None": lambda path: Reader(path.read_bytes(), read=lambda *_: None),
    "read returns text": lambda path: Reader(path.read_bytes(), read=lambda *_: "text"),
    "read raises": lambda path: Reader(path.read_bytes(), read=raising(KeyError("mine"))),
    "seek raises": lambda path: Reader(path.read_bytes(), seek=raising(ZeroDivisionError("mine"))),
    "a path that is not there": lambda path: path.with_name("no_such_file.mp4"),
    "a path of half a character": lambda path: "\ud800",
    "another scheme": lambda path: f"nonsense://{path}",
}


def closed(file: Any) -> Any:
    file.close()
    return file


def pipe(content: bytes) -> Any:
    reading, writing = os.pipe()
    os.write(writing, content)
    os.close(writing)
    return kept(os.fdopen(reading, "rb"))


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_has_torchcodecs_class(media: Path, fault: str) -> None:
    make = FAULTS[fault]
    expected = outcome(lambda: Reference(make(media / CLIP)))
    actual = outcome(lambda: VideoDecoder(make(media / CLIP)))
    assert expected.error is not None
    assert actual.error is not None
    # What the caller's own object raises comes out as it is, however short its words.
    assert isinstance(actual.error, type(expected.error)), repr(actual.error)


@only_ours
def test_the_objects_own_exception_comes_out_itself(media: Path) -> None:
    mine = KeyError("mine")
    with pytest.raises(KeyError) as caught:
        VideoDecoder(Reader((media / CLIP).read_bytes(), read=raising(mine)))
    assert caught.value is mine


@only_ours
@pytest.mark.parametrize(
    "source",
    [
        np.zeros(100, np.float32),
        np.zeros((10, 10), np.uint8).T,
        np.zeros(0, np.uint8),
        memoryview(b"text" * 10)[::2],
        bytearray(),
        torch.zeros(100, dtype=torch.uint8, device="meta"),
    ],
    ids=["dtype", "order", "empty", "gaps", "no bytes", "device"],
)
def test_memory_that_is_no_file(source: Any) -> None:
    with pytest.raises(reeld.InvalidRequestError) as caught:
        VideoDecoder(source)
    assert_error_fits(caught.value, ValueError)


@pytest.mark.parametrize("position", [0, 1000, 10**9])
@only_ours
def test_a_file_is_read_from_its_begin_wherever_it_stands(media: Path, position: int) -> None:
    for source in (
        io.BytesIO((media / CLIP).read_bytes()),
        kept((media / CLIP).open("rb")),
        Reader((media / CLIP).read_bytes()),
    ):
        source.seek(position, os.SEEK_SET)
        assert len(VideoDecoder(source)) == 50


@only_ours
def test_a_file_is_not_needed_after_the_decoder_was_made(media: Path) -> None:
    expected = reference_digests(media / CLIP)
    for source in (io.BytesIO((media / CLIP).read_bytes()), (media / CLIP).open("rb")):
        decoder = VideoDecoder(source)
        source.close()
        assert [digest(frame) for frame in decoder] == expected


@only_ours
def test_an_open_file_keeps_its_position(media: Path) -> None:
    with (media / CLIP).open("rb") as file:
        file.seek(123)
        VideoDecoder(file)[:]
        assert file.tell() == 123


@only_ours
def test_a_class_derived_from_a_known_one_is_read_by_its_own_methods(media: Path) -> None:
    content = bytes(byte ^ 0xFF for byte in (media / CLIP).read_bytes())
    assert_same(VideoDecoder(Tracked(content))[:], Reference(str(media / CLIP))[:])


@only_ours
def test_a_path_that_looks_like_a_url(media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s3:/bucket").mkdir(parents=True)
    shutil.copy(media / CLIP, "s3:/bucket/clip.mp4")
    with pytest.raises(reeld.UnsupportedError, match="pathlib"):
        VideoDecoder("s3://bucket/clip.mp4")
    assert len(VideoDecoder(Path("s3://bucket/clip.mp4"))) == 50
    assert len(VideoDecoder("./s3://bucket/clip.mp4")) == 50


# ----------------------------------------------------------------------------------------- spooling


def spool_files() -> list[str]:
    """What this process has open of files without a name in the folder for them."""
    links = (Path(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd"))
    targets = [os.readlink(link) for link in links if link.is_symlink()]
    return [
        target
        for target in targets
        if target.startswith(f"{tempfile.gettempdir()}/") and "(deleted)" in target
    ]


def large(path: Path) -> bytes:
    """A film of more bytes than stay in memory: what follows the last box of an MP4 file is not looked at."""
    padding = LARGE_BYTES - path.stat().st_size
    return path.read_bytes() + padding.to_bytes(4, "big") + b"free" + bytes(padding - 8)


@only_ours
def test_what_is_large_goes_to_disk_and_vanishes_with_its_decoder(media: Path) -> None:
    content, before = large(media / CLIP), spool_files()
    announced = VideoDecoder(Reader(content))
    silent = VideoDecoder(Reader(content, seek=silent_seek))
    expected = reference_digests(media / CLIP)
    for decoder in (announced, silent):
        assert [digest(frame) for frame in decoder] == expected
    assert len(spool_files()) == len(before) + 2
    del announced, silent, decoder
    assert spool_files() == before


@only_ours
def test_bytes_of_any_size_stay_in_memory_and_are_kept_once(media: Path) -> None:
    before = spool_files()
    decoder = VideoDecoder(large(media / CLIP))
    assert digest(decoder[0]) == reference_digests(media / CLIP)[0]
    assert spool_files() == before
    assert not [
        value for value in vars(decoder).values() if isinstance(value, bytes | bytearray | memoryview)
    ]


@pytest.fixture
def limits() -> Iterator[None]:
    """Whatever a test sets is unset afterwards."""
    yield
    reeld.decoders.set_spool_limit(None)
    reeld.decoders.on_spool_progress(None)


@only_ours
@pytest.mark.usefixtures("limits")
def test_the_limit_is_told_with_both_ways_to_raise_it(media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = (media / CLIP).read_bytes()
    monkeypatch.setenv("REELD_SPOOL_MAX_BYTES", str(len(content) - 1))
    # With and without an announced length.
    for methods in ({}, {"seek": silent_seek}):
        with pytest.raises(reeld.LimitReachedError, match=r"set_spool_limit.*REELD_SPOOL_MAX_BYTES"):
            VideoDecoder(Reader(content, **methods))
    reeld.decoders.set_spool_limit(len(content))
    assert len(VideoDecoder(Reader(content))) == 50
    reeld.decoders.set_spool_limit(None)
    monkeypatch.setenv("REELD_SPOOL_MAX_BYTES", "much")
    with pytest.raises(ValueError, match="REELD_SPOOL_MAX_BYTES"):
        VideoDecoder(Reader(content))
    # None of this is about what was in memory before.
    assert len(VideoDecoder(content)) == 50


@only_ours
@pytest.mark.usefixtures("limits")
def test_an_object_without_end_ends_at_the_limit() -> None:
    reeld.decoders.set_spool_limit(3 << 20)
    with Path("/dev/zero").open("rb") as endless, pytest.raises(reeld.LimitReachedError):
        VideoDecoder(endless)
    for wrong in (0, -1, "1", 1.5):
        with pytest.raises(reeld.InvalidRequestError):
            reeld.decoders.set_spool_limit(wrong)  # pyright: ignore[reportArgumentType] # that is what is tried


@only_ours
@pytest.mark.usefixtures("limits")
def test_progress_is_told_to_the_end_and_may_end_the_reading(media: Path) -> None:
    content = large(media / CLIP)
    seen: list[tuple[int, int | None]] = []
    reeld.decoders.on_spool_progress(lambda read_bytes, total_bytes: seen.append((read_bytes, total_bytes)))
    VideoDecoder(Reader(content))
    assert seen[-1] == (len(content), len(content))
    assert len(seen) > 10
    assert seen == sorted(seen)
    reeld.decoders.on_spool_progress(raising(StopAsyncIteration("enough")))
    reader = Reader(content)
    with pytest.raises(StopAsyncIteration, match="enough"):
        VideoDecoder(reader)
    assert sum(entry[0] == "read" for entry in reader.log) == 1


@only_ours
def test_ctrl_c_while_an_object_is_read(media: Path) -> None:
    code = """
import io, os, signal, sys
from reeld.decoders import VideoDecoder
class Endless:
    def read(self, size):
        os.kill(os.getpid(), signal.SIGINT)
        return bytes(size)
    def seek(self, offset, whence):
        return 0
try:
    VideoDecoder(Endless())
except KeyboardInterrupt:
    print(len(VideoDecoder(io.BytesIO(open(sys.argv[1], "rb").read()))))
"""
    result = run_python(code, str(media / CLIP))
    assert result.stdout.split() == ["50"], result.stderr


# --------------------------------------------------------------------------- pickle, deepcopy, fork


@only_ours
@pytest.mark.parametrize("kind", [*SHARED_KINDS, *OUR_KINDS])
def test_a_decoder_of_each_kind_can_be_pickled_and_copied(media: Path, kind: str) -> None:
    decoder = VideoDecoder((SHARED_KINDS | OUR_KINDS)[kind](media / CLIP), dimension_order="NHWC")
    expected = decoder[3]
    for twin in (pickle.loads(pickle.dumps(decoder)), copy.deepcopy(decoder)):
        assert_same(twin[3], expected)
    # A copy of a copy, whose source is what the pickle brought.
    assert_same(pickle.loads(pickle.dumps(twin))[3], expected)


@only_ours
def test_what_is_large_is_not_pickled_unless_it_was_in_memory(
    media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = __import__("reeld.decoders._video_decoder", fromlist=["_"])
    monkeypatch.setattr(module, "_PICKLED_BYTES_MAX", 1000)
    for source in (Reader((media / CLIP).read_bytes()), kept((media / CLIP).open("rb"))):
        with pytest.raises(reeld.LimitReachedError, match="from a path"):
            pickle.dumps(VideoDecoder(source))
    assert len(pickle.loads(pickle.dumps(VideoDecoder((media / CLIP).read_bytes())))) == 50


@only_ours
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("kind", ["tensor", "BytesIO", "buffered file", "reader"])
def test_a_child_uses_a_decoder_of_any_kind(media: Path, kind: str) -> None:
    expected = reference_digests(media / CLIP)
    decoder = VideoDecoder(SHARED_KINDS[kind](media / CLIP))
    decoder[0]
    children = [fork(lambda: [digest(frame) for frame in decoder] == expected) for _ in range(2)]
    assert [digest(frame) for frame in decoder] == expected
    assert [exit_code(child) for child in children] == [0, 0]


@only_ours
def test_a_spooled_file_is_opened_again_at_the_next_daemon(media: Path, tmp_path: Path) -> None:
    code = """
import sys
from reeld.decoders import VideoDecoder
class Reader:
    def __init__(self, file):
        self.read, self.seek = file.read, file.seek
decoders = [VideoDecoder(Reader(open(sys.argv[1], "rb"))), VideoDecoder(open(sys.argv[1], "rb"))]
print("made", flush=True)
sys.stdin.readline()
print([len(decoder.get_frames_at([0, 49])) for decoder in decoders])
"""
    first = Daemon(tmp_path)
    environment = {**os.environ, "REELD_SOCKET": str(first.socket)}
    command = [sys.executable, "-c", code, str(media / CLIP)]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "made\n"
        first.stop()
        second = Daemon(tmp_path)
        output, _ = child.communicate("go\n", timeout=100)
        assert output.split("\n")[0] == "[2, 2]"
    eventually(lambda: second.status()["client_count"] <= 1, "the child is gone")
    second.stop()
