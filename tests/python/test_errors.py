"""Bad input: the class of error that TorchCodec raises, a sentence that helps, and a daemon that goes on."""

from __future__ import annotations

import importlib
import io
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchcodec.transforms
import torchvision.transforms.v2
from support import (
    SUBJECT,
    Daemon,
    Reference,
    VideoDecoder,
    assert_error_fits,
    assert_same,
    assert_same_outcome,
    outcome,
)

CLIP = "h264_bframes.mp4"
only_ours = pytest.mark.skipif(
    SUBJECT == "torchcodec", reason="TorchCodec itself hangs, crashes or uses the network here"
)


@pytest.fixture(autouse=True)
def daemon_goes_on(daemon: Daemon | None, media: Path) -> Iterator[None]:
    """After each of these tests the same daemon still serves a good file."""
    yield
    if daemon is not None:
        assert daemon.status()["pid"] == daemon.process.pid
    assert len(VideoDecoder(str(media / "width_32.mp4"))[0:2]) == 2


# ------------------------------------------------------------------------------------------ opening

BROKEN = [
    "no_such_file.mp4",
    ".",
    "broken_empty.mp4",
    "broken_text.mp4",
    "broken_noise.mp4",
    "broken_no_moov.mp4",
    "audio_only.m4a",
    "audio_only.wav",
]


@pytest.mark.parametrize("seek_mode", ["exact", "approximate"])
@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_no_video(media: Path, name: str, seek_mode: str) -> None:
    arguments: dict[str, Any] = {"source": str(media / name), "seek_mode": seek_mode}
    assert_same_outcome(lambda: VideoDecoder(**arguments), lambda: Reference(**arguments))


@pytest.mark.parametrize("name", ["no_such_file.mp4", "broken_text.mp4"])
def test_the_message_names_the_file(media: Path, name: str) -> None:
    with pytest.raises(RuntimeError, match=name):
        VideoDecoder(str(media / name))


@only_ours
def test_a_text_file_by_its_name_is_no_video(media: Path) -> None:
    # TorchCodec shows a file whose name ends in .txt as a film of its letters. Nobody wants to train on that.
    with pytest.raises(RuntimeError):
        VideoDecoder(str(media / "broken_text.txt"))


@only_ours
def test_a_fifo_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.mp4"
    os.mkfifo(fifo)
    with pytest.raises(RuntimeError, match="fifo"):
        VideoDecoder(str(fifo))


@only_ours
@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero", "/dev/tty"])
def test_a_device_is_refused(path: str) -> None:
    with pytest.raises(RuntimeError):
        VideoDecoder(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(b"x")
    secret.chmod(0)
    assert_same_outcome(lambda: VideoDecoder(str(secret)), lambda: Reference(str(secret)))


@only_ours
@pytest.mark.parametrize("url", ["http://127.0.0.1:9/video.mp4", "https://127.0.0.1:9/video.mp4"])
def test_a_url_is_refused_with_advice(url: str) -> None:
    with pytest.raises(RuntimeError) as caught:
        VideoDecoder(url)
    assert "http" in str(caught.value).lower()


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "nonsense", torch.device("cuda")])
def test_a_device_that_is_not_there(media: Path, device: Any) -> None:
    with pytest.raises(RuntimeError) as caught:
        VideoDecoder(str(media / CLIP), device=device)
    assert_error_fits(caught.value, RuntimeError)


@pytest.mark.parametrize("device", ["cpu", None, torch.device("cpu")])
def test_the_processor_under_all_its_names(media: Path, device: Any) -> None:
    assert len(VideoDecoder(str(media / CLIP), device=device)) == 50


SOURCES: list[Any] = [
    *(3, None, 1.5, ["a.mp4"], io.StringIO("text")),
    *(b"", b"hello " * 100, "", "with\0zero"),
]


@pytest.mark.parametrize("source", SOURCES, ids=repr)
def test_a_source_of_a_wrong_kind(source: Any) -> None:
    assert_same_outcome(lambda: VideoDecoder(source), lambda: Reference(source))


ARGUMENTS: list[dict[str, Any]] = [
    *({"stream_index": index} for index in (40, -2, "0", 1.5, 1)),
    *({"dimension_order": order} for order in ("HWC", "nchw", None, 3)),
    *({"seek_mode": mode} for mode in ("fast", "custom_frame_mappings", None, 3)),
    *({"num_ffmpeg_threads": count} for count in (None, "many", 1.5)),
    {"no_such_argument": 1},
]


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=repr)
def test_a_wrong_argument(media: Path, arguments: dict[str, Any]) -> None:
    file = str(media / CLIP)
    assert_same_outcome(lambda: VideoDecoder(file, **arguments), lambda: Reference(file, **arguments))


def test_arguments_after_the_source_are_named_ones(media: Path) -> None:
    build: Any = VideoDecoder
    with pytest.raises(TypeError):
        build(str(media / CLIP), 0)


@pytest.mark.parametrize("stream_index", [0, 1, 2])
def test_streams_of_a_file_with_audio(media: Path, stream_index: int) -> None:
    file = str(media / "audio_then_video.mp4")
    assert_same_outcome(
        lambda: VideoDecoder(file, stream_index=stream_index)[:],
        lambda: Reference(file, stream_index=stream_index)[:],
    )


# ------------------------------------------------------------------------------------------ asking

# Each is tried on us and on TorchCodec: an error must be of TorchCodec's class, a result must be equal.
CALLS: dict[str, Callable[[Any], Any]] = {
    f"get_frame_at({index!r})": lambda decoder, index=index: decoder.get_frame_at(index)
    for index in (
        *(50, -51, 10**6, -(10**6), 2**31, 2**63, 2**64, -(2**63) - 1),
        *(1.0, 1.5, "1", None, [1], math.nan, True, -50, 49),
        *(np.int64(3), np.int32(-1), np.uint8(3), torch.tensor(2)),
        # Fractions of a tensor or of numpy's numbers are cut off, but not those of Python's and of float64.
        *(
            torch.tensor(1.5),
            torch.tensor([[3]]),
            torch.tensor([1, 2]),
            torch.tensor(math.nan),
            torch.tensor([]),
        ),
        *(np.float32(2.5), np.float64(2), np.array(2.0), np.array([2]), np.bool_(1)),
    )
}
CALLS |= {
    f"decoder[{key!r}]": lambda decoder, key=key: decoder[key]
    for key in (
        *(50, -51, -50, 2**63, 1.0, "1", None, True, np.int64(3), np.uint8(3), torch.tensor(2), (1, 2), [1]),
        *(
            slice(None, None, -1),
            slice(10, 2, -1),
            slice(5, 2),
            slice(5, 2, 3),
            slice(5, 2, 4),
            slice(None, None, 0),
            slice(1.0, 2),
        ),
        *(slice(None, 3, 2**70), slice(0, 0, 2**70), slice(None, 3, 2**62), slice(torch.tensor(1), 3)),
        *(slice(100, 200), slice(0, 0), slice(-3, None), slice(None, 1000), slice(-1000, 2)),
    )
}
CALLS |= {
    f"get_frames_at({indices!r})": lambda decoder, indices=indices: decoder.get_frames_at(indices)
    for indices in (
        *([50], [-51], [0, 50], [-51, 0], [2**40], [2**63], [], [0.3], [1.0], [0, 1.5], [math.nan]),
        *(["a"], [None], None, 3, "12", {1, 2}, (1, 2), range(3), range(0), [True, False]),
        *(np.array([1, 2]), np.array([1.5]), np.array([1], dtype=np.uint8), np.array([], dtype=np.int64)),
        *(torch.tensor([1, 2]), torch.tensor([1.7]), torch.tensor([], dtype=torch.int64), torch.tensor(3)),
        *([np.int64(3)], [torch.tensor(3)], [-1, 0, -50]),
    )
}
CALLS |= {
    f"get_frames_in_range{arguments!r}": lambda decoder, arguments=arguments: decoder.get_frames_in_range(
        *arguments
    )
    for arguments in (
        *((0, 0), (5, 2), (0, 10, 0), (0, 10, -1), (100, 200), (0, None), (49, 60), (-60, 3)),
        *((1.0, 2), ("a", 2), (0, 10, 1.5)),
    )
}
CALLS |= {
    f"get_frame_played_at({seconds!r})": lambda decoder, seconds=seconds: decoder.get_frame_played_at(seconds)
    for seconds in (
        *(-0.001, -1, 2.0, 1.9999, 100, math.nan, math.inf, -math.inf, "a", None, 0, True, [0.5]),
        *(
            np.float64(0.5),
            np.float32(0.5),
            torch.tensor(0.5),
            torch.tensor([[0.5]]),
            torch.tensor([0.5, 0.6]),
        ),
        *(np.array(0.5), np.array([0.5]), np.array([]), torch.tensor([])),
    )
}
CALLS |= {
    f"get_frames_played_at({seconds!r})": lambda decoder, seconds=seconds: decoder.get_frames_played_at(
        seconds
    )
    for seconds in (
        *([-0.1], [2.0], [0.5, 100], [math.nan], [math.inf], [-math.inf], [], ["a"], [None], None, "1"),
        *(0.5, (0.1, 0.2), [1], range(2), [True], [0.5, 0.1, 0.5]),
        *(np.array([0.1]), np.array([0.1], dtype=np.float32), torch.tensor([0.1]), torch.tensor(0.5)),
    )
}
CALLS |= {
    f"get_frames_played_in_range{arguments!r}": lambda d, arguments=arguments: d.get_frames_played_in_range(
        *arguments
    )
    for arguments in (
        *((0, 2), (0, 2.0001), (-0.1, 1), (1, 0.5), (0.5, 0.5), (0, 0), (2, 2), (1.99, 2), (True, 2)),
        *((math.nan, 1), (0, math.nan), (math.inf, math.inf), ("a", 1), (0, None)),
        *((0, 1, 10), (0, 1, 0), (0, 1, -3), (0, 1, math.nan), (0.5, 0.5, 10), (0, 0.01, 10), (0, 1, "x")),
        *((0.5, 0.5, 0), (0.5, 0.5, "x"), (0.5, 0.5, [10]), (0, 1, torch.tensor([10]))),
        (np.float32(0.1), np.float64(0.2)),
    )
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_call_ends_as_torchcodecs(media: Path, call: Callable[[Any], Any]) -> None:
    ours, reference = VideoDecoder(str(media / CLIP)), Reference(str(media / CLIP))
    assert_same_outcome(lambda: call(ours), lambda: call(reference))


@only_ours
def test_a_thousand_million_indices_are_an_index_error_at_once(media: Path) -> None:
    decoder = VideoDecoder(str(media / CLIP))
    with pytest.raises(IndexError):
        decoder.get_frames_at(range(10**9))


@only_ours
@pytest.mark.parametrize("indices", [range(-(2**62), 2**62), range(0, 2**62, 2**40)], ids=repr)
def test_ranges_beyond_all_memory_are_index_errors(media: Path, indices: range) -> None:
    with pytest.raises(IndexError):
        VideoDecoder(str(media / CLIP)).get_frames_at(indices)


@only_ours
def test_a_result_above_the_quota_names_the_limit(media: Path) -> None:
    import reeld

    # Two million frames of 320x180 are 322 GiB.
    with pytest.raises(reeld.NoSlotsError, match=r"MiB|GiB|quota"):
        VideoDecoder(str(media / CLIP)).get_frames_at([0] * 2_000_000)


# ----------------------------------------------------------------------------------- damaged media

DAMAGED = [
    *("broken_cut_faststart.mp4", "broken_cut.mkv", "broken_cut.ts"),
    *("broken_garbage.mp4", "broken_all_garbage.mp4", "size_change.ts"),
]


@only_ours
@pytest.mark.parametrize("seek_mode", ["exact", "approximate"])
@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_media_give_right_frames_or_an_error(media: Path, name: str, seek_mode: str) -> None:
    ours, reference = (kind(str(media / name), seek_mode=seek_mode) for kind in (VideoDecoder, Reference))
    assert len(ours) == len(reference)
    for index in range(len(reference)):
        # A decoder that failed before may fail again for no other reason, hence a new one each time.
        expected = outcome(lambda i=index: Reference(str(media / name), seek_mode=seek_mode).get_frame_at(i))
        actual = outcome(lambda i=index: ours.get_frame_at(i))
        if actual.error is not None:
            assert_error_fits(actual.error, RuntimeError)
        elif expected.error is None and not name.endswith(".ts"):
            assert_same(actual.value, expected.value)


@only_ours
@pytest.mark.parametrize("name", ["broken_all_garbage.mp4", "broken_garbage.mp4"])
def test_garbage_is_a_runtime_error_for_a_batch_and_for_times(media: Path, name: str) -> None:
    ours, reference = VideoDecoder(str(media / name)), Reference(str(media / name))
    assert_same_outcome(lambda: ours.get_frames_at(range(50)), lambda: reference.get_frames_at(range(50)))
    assert_same_outcome(lambda: ours.get_frame_played_at(1.9), lambda: reference.get_frame_played_at(1.9))


@only_ours
def test_a_picture_that_grows_in_mid_stream_never_overflows_its_slot(media: Path) -> None:
    decoder = VideoDecoder(str(media / "size_change.ts"))
    result = outcome(lambda: decoder.get_frames_at(range(len(decoder))))
    assert result.error is not None
    assert_error_fits(result.error, RuntimeError)


@only_ours
def test_a_file_that_changed_is_said_to_have_changed(media: Path, tmp_path: Path) -> None:
    import reeld

    file = tmp_path / "changing.mp4"
    file.write_bytes((media / "twenty_00.mp4").read_bytes())
    decoder = VideoDecoder(str(file))
    decoder.get_frame_at(0)
    with file.open("r+b") as stream:
        stream.write((media / "twenty_05.mp4").read_bytes())
        stream.truncate()
    with pytest.raises(reeld.SourceChangedError):
        decoder.get_frame_at(20)


@pytest.mark.parametrize("device", ["meta", "cuda", "no such device", 3])
@pytest.mark.parametrize("name", ["audio_only.m4a", "no_such_file.mp4"])
def test_a_device_that_there_is_not_for_a_file_without_video(media: Path, name: str, device: Any) -> None:
    arguments: dict[str, Any] = {"source": str(media / name), "device": device}
    assert_same_outcome(lambda: VideoDecoder(**arguments), lambda: Reference(**arguments))


@pytest.mark.parametrize("clip", ["start_time.mkv", "broken_cut.mkv", "variable_rate.mp4"])
def test_a_header_that_promises_more_frames_than_there_are(media: Path, clip: str) -> None:
    ours, reference = (make(str(media / clip), seek_mode="approximate") for make in (VideoDecoder, Reference))
    assert_same_outcome(ours.get_all_frames, reference.get_all_frames)


def test_a_transform_that_is_a_class(media: Path) -> None:
    own = importlib.import_module(f"{SUBJECT}.transforms")
    for module in (own, torchcodec.transforms, torchvision.transforms.v2):
        for name in ("Resize", "CenterCrop", "RandomCrop"):
            kind: Any = getattr(module, name)
            assert_same_outcome(
                lambda kind=kind: VideoDecoder(str(media / CLIP), transforms=[kind]),
                lambda kind=kind: Reference(str(media / CLIP), transforms=[kind]),
            )


# ---------------------------------------------------------------------------------- class hierarchy


@only_ours
def test_the_errors_are_those_of_the_documentation() -> None:
    import reeld

    bases: dict[str, type[BaseException]] = {
        "InvalidRequestError": ValueError,
        "FrameIndexError": IndexError,
        "MediaError": RuntimeError,
        "SourceChangedError": Exception,
        "UnsupportedError": Exception,
        "NoSlotsError": Exception,
        "DeadlineError": TimeoutError,
        "DaemonUnavailableError": ConnectionError,
        "DecoderCrashedError": RuntimeError,
    }
    for name, base in bases.items():
        error = getattr(reeld, name)
        assert issubclass(error, reeld.ReeldError)
        assert issubclass(error, base)
