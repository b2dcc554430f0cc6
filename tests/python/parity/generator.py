"""Program number N of a seed: what to open, how, and what to ask for. The same on every machine.

Most arguments are right ones, near the borders where answers change: the begin and end of frames, keyframes,
the ends of the stream. The rest are wrong in each way that has an answer of its own.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable
from typing import Any

from parity import clips
from parity.clips import Facts
from parity.programs import Program
from parity.sources import SOURCES

# What one call may return: enough to be a batch, and little enough for thousands of programs.
CALL_BYTES_MAX = 24 << 20
CALL_FRAMES_MAX = 60
CALLS_MAX = 10
# How many of the calls have an argument that is wrong, or of an unusual type.
WILD_SHARE = 0.15

WILD_INDICES: list[Any] = [
    *(2**31, 2**63, 2**64, -(2**63) - 1, 10**6, -(10**6), 1.0, 1.5, "1", None, True, False, [1]),
    *({"float": "nan"}, {"scalar": 3, "dtype": "int32"}, {"scalar": 2, "dtype": "uint8"}),
    *({"scalar": -1, "dtype": "int64"}, {"tensor": 2, "dtype": "int64"}, {"tensor": 1.0, "dtype": "float32"}),
]
WILD_INDEX_LISTS: list[Any] = [
    *([], [0.3], [1.0], [0, 1.5], ["a"], [None], None, 3, "12", [True, False], {"tuple": [1, 2]}),
    *([2**40], [2**63], [0, -(2**63)], [{"float": "nan"}], {"range": [0, 0, 1]}, {"range": [5, -1, -2]}),
    *({"array": [1.5], "dtype": "float64"}, {"array": [1, 2], "dtype": "int32"}),
    *({"array": [1, 0], "dtype": "uint64"}, {"array": [], "dtype": "int64"}),
    *({"array": [True, False], "dtype": "bool"}, {"array": 3, "dtype": "int64"}),
    *({"tensor": [1.7, 0.2], "dtype": "float32"}, {"tensor": [2, 0], "dtype": "uint8"}),
    *({"tensor": [], "dtype": "int64"}, {"tensor": 3, "dtype": "int64"}, {"tensor": [True], "dtype": "bool"}),
    *([{"scalar": 1, "dtype": "int64"}, 0], [{"tensor": 3, "dtype": "int64"}], [[0, 1], [2, 3]], [[0], [1]]),
    *({"array": [[0, 1], [2, 3]], "dtype": "int64"}, {"tensor": [[0, 1], [2, 3]], "dtype": "int64"}),
]
WILD_SLICES: list[Any] = [
    *([None, None, -1], [10, 2, -1], [5, 2, None], [None, None, 0], [1.0, 2, None], ["a", None, None]),
    *([10**9, None, None], [0, 0, None], [None, 3, 2**70], [-(2**70), 3, None], [None, 2, 1.5]),
    [{"scalar": 1, "dtype": "int64"}, {"scalar": 4, "dtype": "uint8"}, {"scalar": 2, "dtype": "int32"}],
]
WILD_KEYS: list[Any] = [*WILD_INDICES, {"tuple": [1, 2]}, {"array": [1, 2], "dtype": "int64"}]
WILD_TIMES: list[Any] = [
    *({"float": "nan"}, {"float": "inf"}, {"float": "-inf"}, -1, -0.001, 10**9, 10**400, None, "0.5", [0.5]),
    *(True, 0, {"scalar": 0.5, "dtype": "float32"}, {"scalar": 0.1, "dtype": "float64"}),
    *({"tensor": 0.5, "dtype": "float64"}, {"tensor": [0.5], "dtype": "float32"}),
]
WILD_TIME_LISTS: list[Any] = [
    *([], ["a"], [None], None, "1", 0.5, [{"float": "nan"}], [{"float": "inf"}], [1], [True]),
    *({"tuple": [0.1, 0.2]}, {"range": [0, 2, 1]}, {"tensor": 0.5, "dtype": "float64"}, [[0.1, 0.2]]),
    *({"array": [0.1, 0.3], "dtype": "float32"}, {"tensor": [0.1, 0.3], "dtype": "float16"}),
    *({"array": [], "dtype": "float64"}, {"tensor": [1, 0], "dtype": "int64"}, [0.5, [0.1]]),
]
WILD_RATES: list[Any] = [0, -3, {"float": "nan"}, "x", True, {"tensor": 10.0, "dtype": "float64"}, [10]]
WILD_OPTIONS: dict[str, list[Any]] = {
    "stream_index": [0, 1, 2, 40, -1, -2, "0", 1.5, True],
    "dimension_order": ["HWC", "nchw", None, 3],
    "seek_mode": ["fast", "custom_frame_mappings", None, 3],
    "num_ffmpeg_threads": [None, "many", 1.5, -1, True],
    "output_dtype": ["uint8", "float32", None, {"dtype": "float16"}, {"dtype": "int32"}, 3],
    "device": ["meta", "no such device", 3, {"device": "meta"}],
    "transforms": [
        *([], None, 3, [3], ["Resize"], {"transform": "Resize", "arguments": [[90, 160]]}),
        *([{"transform": name, "arguments": [[400, 100]]}] for name in ("CenterCrop", "RandomCrop")),
        *(
            [{"transform": "Resize", "arguments": [size]}]
            for size in ([0, 10], [-1, 10], 10, [10], [1, 2, 3])
        ),
        *(
            [{"transform": name, "arguments": arguments, "of": "torchvision.transforms.v2"}]
            for name, arguments in (("Resize", [10]), ("RandomHorizontalFlip", []), ("CenterCrop", [64]))
        ),
    ],
    "custom_frame_mappings": ["", "{}", "no JSON", '{"frames": []}', '{"frames": [{"pts": 0}]}', 3, [], "[]"],
    "no_such_argument": [1],
}
TRANSFORM_MODULES = ["torchvision.transforms.v2", "torchcodec.transforms", None]


def program(seed: int, number: int, *, names: tuple[str, ...] | None = None) -> Program:
    """A program about one of the files of these names; of all files where none are given."""
    choice = random.Random(f"{seed}/{number}")
    names = names or tuple(clips.all_clips())
    clip = choice.choices(names, cumulative_weights(names))[0]
    options = dict(_options(choice, clip))
    stream_index = options.get("stream_index")
    facts = clips.facts(clip, stream_index if type(stream_index) is int else None)
    ask = _Questions(choice, facts, value_bytes=4 if "output_dtype" in options else 1)
    return Program(
        clip=clip,
        source=choice.choices(list(SOURCES), [6, *[1] * (len(SOURCES) - 1)])[0],
        options=tuple(options.items()),
        calls=tuple(tuple(ask.call()) for _ in range(choice.randint(1, CALLS_MAX))),
        torch_seed=choice.randrange(2**16),
    )


@functools.cache
def cumulative_weights(names: tuple[str, ...]) -> tuple[float, ...]:
    """The weights of these files and of all before them, added up."""
    total, sums = 0.0, []
    for name in names:
        total += clips.weight(name)
        sums.append(total)
    return tuple(sums)


def _options(choice: random.Random, clip: str) -> list[tuple[str, Any]]:
    options: list[tuple[str, Any]] = []
    if choice.random() < 0.3:
        options.append(("seek_mode", choice.choice(["approximate", "approximate", "exact"])))
    if choice.random() < 0.3:
        options.append(("dimension_order", choice.choice(["NHWC", "NHWC", "NCHW"])))
    if choice.random() < 0.3:
        options.append(
            ("output_dtype", choice.choice([*[{"dtype": "float32"}] * 3, "auto", {"dtype": "uint8"}]))
        )
    # Where answers have to be compared with frames in order, these are all frames, and as large as the video.
    has_order = clip.startswith("broken_") or clip.endswith(".ts")
    if choice.random() < 0.1 and not has_order:
        form, count = choice.choice(["str", "bytes", "file"]), choice.choice([10**6, 10**6, 30, 1])
        mappings = {"form": form, "count": count, "prefix": choice.choice(["", "pkt_"])}
        options = [option for option in options if option[0] != "seek_mode"]
        options.append(("custom_frame_mappings", {"mappings": mappings}))
    if choice.random() < 0.2 and not has_order:
        options.append(("transforms", [_transform(choice) for _ in range(choice.choice([1, 1, 1, 2, 3]))]))
    if choice.random() < 0.3:
        options.append(("num_ffmpeg_threads", choice.choice([0, 1, 2, 3, 7])))
    if choice.random() < (0.5 if clip.startswith(("two_videos", "nasa", "audio")) else 0.1):
        options.append(("stream_index", choice.choice([None, 0, 1, 2, 3])))
    if choice.random() < 0.1:
        options.append(("device", choice.choice(["cpu", None, "cpu:0", {"device": "cpu"}])))
    if choice.random() < 0.03:
        name = choice.choice(list(WILD_OPTIONS))
        # Of two mistakes either may be reported, and these may be some by themselves.
        others = (name, "transforms", "custom_frame_mappings", "stream_index")
        options = [option for option in options if option[0] not in others]
        options.append((name, choice.choice(WILD_OPTIONS[name])))
    choice.shuffle(options)
    return options


def _transform(choice: random.Random) -> dict[str, Any]:
    """One transform, mostly to a size that every video has."""
    size = [choice.choice([16, 32, 45, 64, 90]), choice.choice([16, 32, 48, 64, 101, 128])]
    name = choice.choice(["Resize", "CenterCrop", "RandomCrop"])
    if name == "Resize" and choice.random() < 0.3:
        size = [choice.choice([120, 181, 224]), choice.choice([160, 224, 321])]
    module = choice.choice(TRANSFORM_MODULES)
    return {"transform": name, "arguments": [size], **({} if module is None else {"of": module})}


class _Questions:
    """Calls about one stream."""

    def __init__(self, choice: random.Random, facts: Facts, *, value_bytes: int) -> None:
        self._choice = choice
        self._facts = facts
        frame_bytes = facts.height * facts.width * 3 * value_bytes
        self._count_max = max(1, min(CALL_FRAMES_MAX, CALL_BYTES_MAX // frame_bytes))
        kinds: dict[Callable[[], list[Any]], int] = {
            self._subscript: 6,
            self._slice: 4,
            self._frame_at: 4,
            self._frames_at: 8,
            self._in_range: 4,
            self._played_at: 6,
            self._played_at_each: 6,
            self._played_in_range: 6,
            self._all_frames: 1,
            self._iterate: 1,
            self._sample: 2,
            self._others: 3,
        }
        self._kinds, self._weights = list(kinds), list(kinds.values())

    def call(self) -> list[Any]:
        """One call, with its arguments."""
        return self._choice.choices(self._kinds, self._weights)[0]()

    # ------------------------------------------------------------------------------------ by index

    def _subscript(self) -> list[Any]:
        return ["[]", self._wild_or(WILD_KEYS, self._index)]

    def _slice(self) -> list[Any]:
        return ["[]", {"slice": self._wild_or(WILD_SLICES, self._range)}]

    def _frame_at(self) -> list[Any]:
        return ["get_frame_at", self._wild_or(WILD_INDICES, self._index)]

    def _frames_at(self) -> list[Any]:
        method = "submit" if self._choice.random() < 0.1 else "get_frames_at"
        return [method, self._wild_or(WILD_INDEX_LISTS, self._indices)]

    def _in_range(self) -> list[Any]:
        bounds = self._wild_or(WILD_SLICES, self._range)
        return ["get_frames_in_range", *(bounds[:2] if bounds[2] is None else bounds)]

    def _index(self) -> int:
        """Mostly a frame's number, from either end; sometimes just beyond."""
        count = self._facts.frame_count
        kind = self._choice.random()
        if kind < 0.6:
            index = self._choice.randrange(count)
        elif kind < 0.75 and self._facts.key_frames:
            index = self._choice.choice(self._facts.key_frames) + self._choice.randint(-1, 1)
        elif kind < 0.95:
            index = -1 - self._choice.randrange(count)
        else:
            index = self._choice.choice([0, count - 1, -count, count, -count - 1, count + 5])
        return index

    def _indices(self) -> Any:
        """Some numbers in one of the types that hold numbers: near each other, sorted, repeated, or none."""
        length = self._choice.randint(1, self._length_max())
        indices = [self._valid_index() for _ in range(length)]
        kind = self._choice.random()
        if kind < 0.2:
            indices.sort()
        elif kind < 0.4:
            start = self._choice.randrange(self._facts.frame_count)
            indices = list(range(start, min(start + length, self._facts.frame_count)))
        elif kind < 0.5:
            indices = [*indices, *indices][: self._count_max]
        elif kind < 0.55:
            indices[self._choice.randrange(length)] = self._index()
        container = self._choice.random()
        if container < 0.6:
            return indices
        if container < 0.75:
            return {"array": indices, "dtype": "int64"}
        if container < 0.9:
            return {"tensor": indices, "dtype": "int64"}
        if container < 0.95:
            return {"tuple": indices}
        start, stop, step = self._range()
        return {"range": [max(start or 0, 0), min(stop or 0, self._facts.frame_count), abs(step or 1)]}

    def _valid_index(self) -> int:
        count = self._facts.frame_count
        return (
            self._choice.randrange(-count, count)
            if self._choice.random() < 0.3
            else self._choice.randrange(count)
        )

    def _range(self) -> list[Any]:
        """The start, stop and step of not too many frames."""
        count = self._facts.frame_count
        step = self._choice.choice([None, None, 1, 2, 3, 7, count, 1000])
        length = self._choice.randint(0, self._length_max())
        start = self._choice.randrange(count)
        stop = start + length * (step or 1)
        kind = self._choice.random()
        if kind < 0.2:
            return [start - count, None if stop >= count else stop - count, step]
        if kind < 0.3 and start < length:
            return [None, stop, step]
        if kind < 0.4:
            # From the end to beyond it.
            return [-length, self._choice.choice([count, count + 1000]), step] if length else [0, 0, step]
        return [start, stop, step]

    def _length_max(self) -> int:
        """Mostly a few frames, sometimes as many as may be."""
        return self._count_max if self._choice.random() < 0.15 else min(8, self._count_max)

    # ------------------------------------------------------------------------------------- by time

    def _played_at(self) -> list[Any]:
        return ["get_frame_played_at", self._wild_or(WILD_TIMES, self._time)]

    def _played_at_each(self) -> list[Any]:
        return ["get_frames_played_at", self._wild_or(WILD_TIME_LISTS, self._times)]

    def _played_in_range(self) -> list[Any]:
        start, stop = self._span()
        if self._choice.random() < WILD_SHARE / 2:
            start = self._choice.choice(WILD_TIMES)
        elif self._choice.random() < WILD_SHARE / 2:
            stop = self._choice.choice(WILD_TIMES)
            # From here to a time that is right by accident there may be too many frames.
            start = start if isinstance(stop, dict) else self._facts.end_seconds
        return ["get_frames_played_in_range", start, stop, *self._rate(start, stop)]

    def _all_frames(self) -> list[Any]:
        if self._facts.frame_count <= self._count_max:
            return ["get_all_frames", *self._rate(self._facts.begin_seconds, self._facts.end_seconds)]
        return self._iterate()

    def _rate(self, start: Any, stop: Any) -> list[Any]:
        """Nothing, or a rate that gives not too many frames."""
        if self._choice.random() < 0.6:
            return []
        if self._choice.random() < WILD_SHARE:
            return [self._choice.choice(WILD_RATES)]
        is_usual = isinstance(start, float) and isinstance(stop, float)
        seconds = stop - start if is_usual else self._facts.end_seconds - self._facts.begin_seconds
        rates = [None, 1, 7.5, 12, 23.976, 24, 25, 30, 60, 0.1, 1 / 3, 119.88]
        return [self._choice.choice([rate for rate in rates if seconds * (rate or 0) < self._count_max])]

    def _time(self) -> float:
        """Mostly at or right beside a border of a frame; else anywhere, or at the ends of the stream."""
        facts, kind = self._facts, self._choice.random()
        if kind < 0.5:
            position = self._choice.randrange(facts.frame_count)
            border = facts.pts_seconds[position]
            if self._choice.random() < 0.3:
                border += facts.duration_seconds[position]
            nearby = (border, math.nextafter(border, -math.inf), math.nextafter(border, math.inf))
            return self._choice.choice([*nearby, border + facts.duration_seconds[position] / 3])
        if kind < 0.95:
            return self._choice.uniform(facts.begin_seconds, facts.end_seconds)
        ends = (facts.begin_seconds, math.nextafter(facts.begin_seconds, -math.inf), facts.begin_seconds - 1)
        ends += (facts.end_seconds, math.nextafter(facts.end_seconds, -math.inf), facts.end_seconds + 1)
        return self._choice.choice(ends)

    def _times(self) -> Any:
        times = [self._time() for _ in range(self._choice.randint(1, self._length_max()))]
        if self._choice.random() < 0.9:
            # One time outside makes an error of the whole list, which would be the fate of most long ones.
            begin, end = self._facts.begin_seconds, self._facts.end_seconds
            times = [time for time in times if begin <= time < end]
        if self._choice.random() < 0.3:
            times.sort()
        kind = self._choice.random()
        if kind < 0.7 or not times:
            return times
        return {("array" if kind < 0.85 else "tensor"): times, "dtype": "float64"}

    def _span(self) -> tuple[float, float]:
        """From a time to a later one, with not too many frames in between; rarely the wrong way round."""
        facts = self._facts
        start = self._time()
        first = min(range(facts.frame_count), key=lambda position: abs(facts.pts_seconds[position] - start))
        last = min(first + self._choice.randint(0, self._length_max() - 1), facts.frame_count - 1)
        border = facts.pts_seconds[last]
        nearby = (border, math.nextafter(border, math.inf), border + facts.duration_seconds[last])
        stop = self._choice.choice([*nearby, start, border + facts.duration_seconds[last] / 2])
        return (start, stop) if start <= stop or self._choice.random() < 0.1 else (start, start)

    # -------------------------------------------------------------------------------------- others

    def _iterate(self) -> list[Any]:
        return ["iterate", self._choice.randint(0, self._length_max())]

    def _sample(self) -> list[Any]:
        """Clips by one of the four samplers."""
        choice, facts = self._choice, self._facts
        clip_count = choice.randint(1, min(4, self._count_max))
        length_max = max(1, min(8, self._count_max // clip_count // 2))
        named: dict[str, Any] = {"num_frames_per_clip": choice.randint(1, length_max)}
        is_by_index, is_random = choice.random() < 0.5, choice.random() < 0.5
        if is_by_index:
            named["num_indices_between_frames"] = choice.choice([1, 1, 2, 5, facts.frame_count])
        elif choice.random() < 0.5:
            spacing = choice.choice([0.01, 0.04, 0.1, 1.0])
            single = {choice.choice(["scalar", "tensor"]): spacing, "dtype": "float32"}
            named["seconds_between_frames"] = single if choice.random() < 0.2 else spacing
        if is_by_index or is_random:
            named["num_clips"] = clip_count
        else:
            named["seconds_between_clip_starts"] = (facts.end_seconds - facts.begin_seconds) / clip_count
        if choice.random() < 0.7:
            named["policy"] = choice.choice(["repeat_last", "wrap", "error"])
        if choice.random() < 0.3:
            named["sampling_range_start"] = self._index() if is_by_index else self._time()
        if choice.random() < 0.3:
            named["sampling_range_end"] = self._index() if is_by_index else self._time()
        if choice.random() < WILD_SHARE:
            named[choice.choice(list(named))] = choice.choice([0, -1, -3, None, "x", [1]])
        name = f"clips_at_{'random' if is_random else 'regular'}_{'indices' if is_by_index else 'timestamps'}"
        return ["sample", name, {"named": named}]

    def _others(self) -> list[Any]:
        name = self._choice.choice(
            ["len", "metadata", "stream_index", "key frames", "pickle", "deepcopy", "scribble"]
        )
        return [name, self._valid_index()] if name == "scribble" else [name]

    def _wild_or(self, wild: list[Any], usual: Callable[[], Any]) -> Any:
        return self._choice.choice(wild) if self._choice.random() < WILD_SHARE else usual()
