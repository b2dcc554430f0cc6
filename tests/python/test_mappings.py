"""`custom_frame_mappings`: ffprobe's bring the frames of exact mode, and wrong ones harm nobody else."""

from __future__ import annotations

import copy
import io
import json
import pickle
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import reeld
import torch
from support import (
    SUBJECT,
    UNSEEKABLE,
    Daemon,
    Reference,
    VideoDecoder,
    assert_same,
    assert_same_outcome,
    chunks,
    digest,
    outcome,
    reference_digests,
)
from test_fork import exit_code, fork

CLIP = "h264_bframes.mp4"
CLIPS = [
    *("h264_bframes.mp4", "h264_open_gop.mp4", "variable_rate.mkv", "variable_rate.mp4", "start_time.mkv"),
    *(
        pytest.param(clip, marks=pytest.mark.full)
        for clip in (
            *("h264_short_gops.mp4", "hevc_8bit.mp4", "vp9.webm", "av1.mp4", "edit_list_offset.mp4"),
            *("fragmented.mp4", "rotated_90.mp4", "mpeg4.mp4", "h264_10bit.mp4", "h264_one_gop.mp4"),
        )
    ),
]
only_ours = pytest.mark.skipif(SUBJECT == "torchcodec", reason="TorchCodec knows nothing of this")

Frames = list[dict[str, Any]]


def probed(file: Path, stream: str = "v:0") -> str:
    """What ffprobe says of all frames, as TorchCodec's documentation makes it say it."""
    command = ["ffprobe", "-v", "error", "-select_streams", stream, "-of", "json"]
    command += ["-show_entries", "frame=pts,pkt_pts,duration,pkt_duration,key_frame", str(file)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def frames_of(file: Path) -> Frames:
    """The same in the spelling of newer versions, with durations also where the container has none."""
    frames = json.loads(probed(file))["frames"]
    ends = [frame["pts"] for frame in frames[1:]] + [frames[-1]["pts"] + 1]
    return [
        {
            "pts": frame["pts"],
            "duration": frame.get("duration", frame.get("pkt_duration", end - frame["pts"])),
            "key_frame": frame["key_frame"],
        }
        for frame, end in zip(frames, ends, strict=True)
    ]


def as_json(frames: Frames) -> str:
    return json.dumps({"frames": frames})


@pytest.mark.parametrize("clip", CLIPS)
class TestRight:
    """Mappings as ffprobe makes them."""

    def test_frames_by_index_equal_torchcodecs(self, media: Path, clip: str) -> None:
        mapping = as_json(frames_of(media / clip))
        ours = VideoDecoder(str(media / clip), custom_frame_mappings=mapping)
        reference = Reference(str(media / clip), custom_frame_mappings=mapping)
        assert repr(ours.metadata) == repr(reference.metadata)
        assert len(ours) == len(reference)
        count = len(json.loads(mapping)["frames"])
        for part in chunks(reference, range(count)):
            assert_same(ours.get_frames_at(part), reference.get_frames_at(part))
        indices = list(range(count))
        random.Random(clip).shuffle(indices)
        for index in indices[:10]:
            assert_same(ours.get_frame_at(index), reference.get_frame_at(index))
        for index in (-1, -count, count, -count - 1):
            assert_same_outcome(
                lambda i=index: ours.get_frame_at(i), lambda i=index: reference.get_frame_at(i)
            )

    def test_frames_by_time_equal_torchcodecs(self, media: Path, clip: str) -> None:
        mapping = as_json(frames_of(media / clip))
        ours = VideoDecoder(str(media / clip), custom_frame_mappings=mapping)
        exact = Reference(str(media / clip)).metadata
        begin, end = float(exact.begin_stream_seconds), float(exact.end_stream_seconds)
        numbers = random.Random(clip)
        # Not at the end itself: the header's may lie behind it, and whether that is an error of the time or
        # of the file is where the two differ.
        times = [begin, *(numbers.uniform(begin, end) for _ in range(5)), end - 1e-6, begin - 0.01]

        def reference() -> Any:
            # Anew: what TorchCodec answers within half a tick of a keyframe depends on the call before.
            return Reference(str(media / clip), custom_frame_mappings=mapping)

        for time in times:
            assert_same_outcome(
                lambda t=time: ours.get_frame_played_at(t), lambda t=time: reference().get_frame_played_at(t)
            )
            assert_same_outcome(
                lambda t=time: ours.get_frames_played_at([t, begin]),
                lambda t=time: reference().get_frames_played_at([t, begin]),
            )
        middle = (begin + end) / 2
        for start, stop in (
            (begin, middle),
            (middle, middle),
            (begin, end),
            (begin, end + 1),
            (middle, begin),
        ):
            assert_same_outcome(
                lambda a=start, b=stop: ours.get_frames_played_in_range(a, b),
                lambda a=start, b=stop: reference().get_frames_played_in_range(a, b),
            )
        assert_same_outcome(ours.get_all_frames, lambda: reference().get_all_frames())
        assert_same_outcome(lambda: ours.get_all_frames(fps=7), lambda: reference().get_all_frames(fps=7))
        for key in (slice(None), slice(-3, None), slice(2, 9, 3), slice(5, 5)):
            assert_same_outcome(lambda k=key: ours[k], lambda k=key: reference()[k])


@only_ours
@pytest.mark.parametrize("clip", UNSEEKABLE)
def test_a_transport_stream_by_a_mapping_equals_the_scan(media: Path, clip: str) -> None:
    # TorchCodec gives errors and other frames here.
    exact = VideoDecoder(str(media / clip))
    mapped = VideoDecoder(str(media / clip), custom_frame_mappings=probed(media / clip))
    count = min(len(exact), len(frames_of(media / clip)))
    indices = list(range(count))
    random.Random(clip).shuffle(indices)
    assert_same(mapped.get_frames_at(indices), exact.get_frames_at(indices))


@pytest.mark.parametrize("stream_index", [0, 1])
def test_a_mapping_of_either_of_two_streams(media: Path, stream_index: int) -> None:
    file = media / "two_videos.mkv"
    arguments = {"stream_index": stream_index, "custom_frame_mappings": probed(file, str(stream_index))}
    ours, reference = VideoDecoder(str(file), **arguments), Reference(str(file), **arguments)
    assert ours.stream_index == stream_index
    assert_same(ours.get_frames_at([0, 7, 3]), reference.get_frames_at([0, 7, 3]))


class Text:
    """Reads like a file and can do nothing else."""

    def __init__(self, content: str | bytes) -> None:
        self.content = content

    def read(self) -> str | bytes:
        return self.content


KINDS: dict[str, Callable[[str], Any]] = {
    "str": str,
    "bytes": str.encode,
    "bytearray": lambda text: bytearray(text.encode()),
    "UTF-16": lambda text: text.encode("utf-16"),
    "StringIO": io.StringIO,
    "BytesIO": lambda text: io.BytesIO(text.encode()),
    "only read": Text,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_mapping_in_every_form(media: Path, kind: str) -> None:
    mapping = probed(media / CLIP)
    ours = VideoDecoder(str(media / CLIP), custom_frame_mappings=KINDS[kind](mapping))
    reference = Reference(str(media / CLIP), custom_frame_mappings=KINDS[kind](mapping))
    assert_same(ours.get_frames_at([0, 49, 20]), reference.get_frames_at([0, 49, 20]))


def test_a_mapping_and_a_seek_mode(media: Path) -> None:
    mapping = probed(media / CLIP)
    for seek_mode in ("approximate", "custom_frame_mappings", "exact"):

        def third(decoder: Any, mode: str = seek_mode) -> Any:
            return decoder(str(media / CLIP), custom_frame_mappings=mapping, seek_mode=mode)[3]

        assert_same_outcome(lambda third=third: third(VideoDecoder), lambda third=third: third(Reference))


GOOD = {"pts": 0, "duration": 512, "key_frame": 1}
# Torn from what TorchCodec does with it: those that it refuses, with its class.
MALFORMED: dict[str, Any] = {
    "nothing": "",
    "no bytes": b"",
    "no JSON": "invalid input",
    "cut": '{"frames": [',
    "null": "null",
    "zero": "0",
    "number": "3",
    "text": '"frames"',
    "empty object": "{}",
    "empty list": "[]",
    "list": '["frames"]',
    "other list": "[1]",
    "without frames": '{"valid": "json"}',
    "no frames": '{"frames": []}',
    "frames is null": '{"frames": null}',
    "frames is a number": '{"frames": 3}',
    "frames is text": '{"frames": "abc"}',
    "frame is a number": '{"frames": [1]}',
    "frame is null": '{"frames": [null]}',
    "frame without keys": '{"frames": [{"missing": "keys"}]}',
    "no pts": as_json([{"duration": 1, "key_frame": 1}]),
    "no duration": as_json([{"pts": 1, "key_frame": 1}]),
    "no key_frame": as_json([{"pts": 1, "duration": 1}]),
    "second frame is null": '{"frames": [{"pts": 0, "duration": 1, "key_frame": 1}, null]}',
    "pts is null": as_json([GOOD | {"pts": None}]),
    "pts is text": as_json([GOOD | {"pts": "N/A"}]),
    "pts is a list": as_json([GOOD | {"pts": [1]}]),
    "pts is NaN": as_json([GOOD | {"pts": float("nan")}]),
    "pts beyond 64 bits": as_json([GOOD | {"pts": 2**63}]),
    "pts below 64 bits": as_json([GOOD | {"pts": -(2**63) - 1}]),
    "duration beyond 64 bits": as_json([GOOD | {"duration": 2**64}]),
    "duration is null": as_json([GOOD | {"duration": None}]),
    "key_frame is text": as_json([GOOD | {"key_frame": "yes"}]),
    "key_frame is null": as_json([GOOD | {"key_frame": None}]),
    "cut UTF-16": b"\xff\xfe{",
    "no UTF-8": b'"\xff"',
    "many digits": '{"frames": [{"pts": ' + "9" * 5000 + ', "duration": 1, "key_frame": 1}]}',
    "a number for JSON": 3,
    "a list for JSON": [1],
    "a path for JSON": Path("/no/such/file.json"),
    "a reader of numbers": Text(3),  # pyright: ignore[reportArgumentType] # that is what is tried
}
# TorchCodec's classes for these would help nobody: KeyError, OverflowError, RecursionError, or none at all.
OURS_ALONE: dict[str, Any] = {
    "later frame without pts": as_json([GOOD, {"pkt_pts": 1, "duration": 1, "key_frame": 0}]),
    "frames is an object": '{"frames": {}}',
    "pts is infinite": as_json([GOOD | {"pts": float("inf")}]),
    "pts is a fraction": as_json([GOOD | {"pts": 0.04}]),
    "key_frame is neither": as_json([GOOD | {"key_frame": 7}]),
    "too deep": "[" * 100_000,
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_mappings_have_torchcodecs_class(media: Path, name: str) -> None:
    def make(decoder: Any) -> Callable[[], Any]:
        return lambda: decoder(str(media / CLIP), custom_frame_mappings=MALFORMED[name])

    expected, actual = outcome(make(Reference)), outcome(make(VideoDecoder))
    assert expected.error is not None
    # The two classes that say what is wrong with a text are classes of ValueError.
    base = ValueError if isinstance(expected.error, ValueError) else type(expected.error)
    assert isinstance(actual.error, base), repr(actual.error)


@only_ours
@pytest.mark.parametrize("name", OURS_ALONE)
def test_mappings_that_only_we_call_malformed(media: Path, name: str) -> None:
    with pytest.raises(reeld.InvalidRequestError, match="Invalid custom frame mappings"):
        VideoDecoder(str(media / CLIP), custom_frame_mappings=OURS_ALONE[name])


@only_ours
def test_the_readers_own_exception_comes_out_itself(media: Path) -> None:
    class Broken:
        def read(self) -> str:
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        VideoDecoder(str(media / CLIP), custom_frame_mappings=Broken())


# --------------------------------------------------------------------------------------------- lies

LIES: dict[str, Callable[[Frames], Frames]] = {
    "the other way round": lambda frames: frames[::-1],
    "no keyframe": lambda frames: [frame | {"key_frame": 0} for frame in frames],
    "all keyframes": lambda frames: [frame | {"key_frame": 1} for frame in frames],
    "other keyframes": lambda frames: [
        frame | {"key_frame": int(number % 7 == 3)} for number, frame in enumerate(frames)
    ],
    "keyframe as text": lambda frames: [frame | {"key_frame": str(frame["key_frame"])} for frame in frames],
    "keyframe as bool": lambda frames: [frame | {"key_frame": bool(frame["key_frame"])} for frame in frames],
    "pts as text": lambda frames: [frame | {"pts": str(frame["pts"])} for frame in frames],
    "half of it": lambda frames: frames[: len(frames) // 2],
    "the other half": lambda frames: frames[len(frames) // 2 :],
    "one frame": lambda frames: frames[3:4],
    "a tick later": lambda frames: [frame | {"pts": frame["pts"] + 1} for frame in frames],
    "a tick earlier": lambda frames: [frame | {"pts": frame["pts"] - 1} for frame in frames],
    "far later": lambda frames: [frame | {"pts": frame["pts"] + 10**9} for frame in frames],
    "far earlier": lambda frames: [frame | {"pts": frame["pts"] - 10**9} for frame in frames],
    "more": lambda frames: [
        *frames,
        *(
            {"pts": frames[-1]["pts"] + 512 * number, "duration": 512, "key_frame": 0}
            for number in range(1, 9)
        ),
    ],
    "no durations": lambda frames: [frame | {"duration": 0} for frame in frames],
    "wrong durations": lambda frames: [frame | {"duration": -7} for frame in frames],
    "double speed": lambda frames: [frame | {"pts": frame["pts"] * 2} for frame in frames],
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize(
    "clip",
    [
        CLIP,
        "variable_rate.mkv",
        *(pytest.param(clip, marks=pytest.mark.full) for clip in ("h264_open_gop.mp4", "vp9.webm")),
    ],
)
def test_a_wrong_mapping_brings_what_torchcodec_brings(media: Path, clip: str, lie: str) -> None:
    mapping = as_json(LIES[lie](frames_of(media / clip)))
    ours = VideoDecoder(str(media / clip), custom_frame_mappings=mapping)
    count = len(json.loads(mapping)["frames"])
    assert len(ours) == len(Reference(str(media / clip), custom_frame_mappings=mapping))
    for index in sorted({0, 1, count // 3, count // 2 + 1, count - 1, count}):

        def reference(index: int = index) -> Any:
            # Anew for each: TorchCodec's answers depend on the calls before.
            return Reference(str(media / clip), custom_frame_mappings=mapping).get_frame_at(index)

        assert_same_outcome(lambda index=index: ours.get_frame_at(index), reference)


@only_ours
@pytest.mark.parametrize(
    "clip", [CLIP, "variable_rate.mkv", "start_time.ts", "mpeg2.ts", "mpeg4.avi", "vp9.webm"]
)
def test_extreme_numbers_end_in_an_answer(media: Path, daemon: Daemon, clip: str) -> None:
    engines = daemon.status()["engines"]
    for pts in (-(2**63), 2**63 - 1, -(2**62), 2**40, -1):
        for key in (0, 1):
            frames = [
                {"pts": pts, "duration": duration, "key_frame": key} for duration in (2**63 - 1, -(2**63))
            ]
            decoder = VideoDecoder(str(media / clip), custom_frame_mappings=as_json(frames))
            for index in (0, 1):
                answer = outcome(lambda d=decoder, i=index: d.get_frame_at(i))
                assert answer.value is not None or isinstance(answer.error, reeld.MediaError), repr(
                    answer.error
                )
    # None of them has died over it.
    assert {engine["pid"] for engine in engines} <= {engine["pid"] for engine in daemon.status()["engines"]}


@only_ours
def test_a_wrong_mapping_changes_nothing_for_others_of_the_same_file(media: Path) -> None:
    for clip in (CLIP, "h264_open_gop.mp4", "variable_rate.mkv"):
        frames = frames_of(media / clip)
        expected = reference_digests(media / clip)
        honest = VideoDecoder(str(media / clip))
        liars = [
            VideoDecoder(str(media / clip), custom_frame_mappings=as_json(LIES[lie](frames)))
            for lie in (
                "other keyframes",
                "no keyframe",
                "all keyframes",
                "a tick earlier",
                "double speed",
                "far later",
            )
        ]
        numbers = random.Random(clip)
        for _ in range(8):
            # In flight together, so that their runs meet.
            indices = [numbers.randrange(len(expected)) for _ in range(4)]
            asked = [reeld.submit([reeld.Clip(liar, indices=indices)]) for liar in liars]
            right = reeld.submit([reeld.Clip(honest, indices=indices)])
            batch = right.result()[0]
            assert [digest(frame) for frame in batch.data] == [expected[index] for index in indices]
            for pending in asked:
                outcome(pending.result)
        assert [digest(frame) for frame in VideoDecoder(str(media / clip))] == expected


@only_ours
def test_a_mapping_is_not_scanned_for_and_is_not_shared(media: Path, daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "clip.mp4"
    file.write_bytes((media / CLIP).read_bytes())
    frames = frames_of(file)
    before = daemon.status()["totals"]["scans"]
    mapped = VideoDecoder(str(file), custom_frame_mappings=as_json(frames[:20]))
    assert len(mapped.get_frames_at(range(20))) == 20
    assert daemon.status()["totals"]["scans"] == before
    assert len(VideoDecoder(str(file)).get_frames_at([49, 20])) == 2
    assert daemon.status()["totals"]["scans"] == before + 1
    with pytest.raises(IndexError):
        mapped.get_frame_at(20)


@only_ours
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_copies_and_children_keep_the_mapping(media: Path) -> None:
    mapping = as_json(frames_of(media / CLIP)[10:30])
    for source in (str(media / CLIP), (media / CLIP).read_bytes()):
        decoder = VideoDecoder(source, custom_frame_mappings=io.StringIO(mapping))
        expected = decoder[0]
        assert torch.equal(expected, VideoDecoder(str(media / CLIP))[10])
        for twin in (pickle.loads(pickle.dumps(decoder)), copy.deepcopy(decoder)):
            assert torch.equal(twin[0], expected)
            with pytest.raises(IndexError):
                twin[20]
        child = fork(lambda d=decoder, e=expected: torch.equal(d[0], e))
        assert exit_code(child) == 0
