"""Right answers, had slowly: every frame of a stream decoded in order, without any seeking, and then chosen.

TorchCodec's own packet decoder and colour converter make the frames, so that only its seeking is left out;
transformed ones come from its decoder, which does not seek from one frame to the next.
What its `VideoDecoder` answers where that works is the same; `test_parity_programs.py` shows it.
"""

from __future__ import annotations

import bisect
import functools
import math
import subprocess
from fractions import Fraction
from typing import Any

import torch
from support import Reference
from torchcodec.decoders import ColorConverter, Demuxer

from parity import clips, runner
from parity.programs import Program


class InOrder:
    """A decoder that is asked as the program's decoder is, for frames that are there."""

    def __init__(self, program: Program) -> None:
        """Decodes the whole stream.

        Raises:
            RuntimeError: It cannot be decoded to its end.
        """
        file = str(clips.path(program.clip))
        options = runner.options_of(program, "torchcodec.transforms")
        torch.manual_seed(program.torch_seed)
        self.metadata: Any = Reference(file, **options).metadata
        # A mapping that comes in a file has been read by that one.
        options = runner.options_of(program, "torchcodec.transforms")
        self._is_exact = options.pop("seek_mode", "exact") == "exact"
        self._is_channels_last = options.pop("dimension_order", "NCHW") == "NHWC"
        stream_index = self.metadata.stream_index
        if options.get("transforms"):
            torch.manual_seed(program.torch_seed)
            self._frames = _transformed_frames(file, options)
        else:
            dtype = options.get("output_dtype", torch.uint8)
            self._frames = _frames_in_order(file, stream_index, dtype)
        self._pts = [frame.pts_seconds for frame in self._frames]
        self._tick_seconds = _tick_seconds(file, stream_index)

    def __len__(self) -> int:
        return self.metadata.num_frames

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            return self._batch([self._place(index) for index in range(*key.indices(len(self)))]).data
        return self.get_frame_at(key).data

    def get_frame_at(self, index: Any) -> Any:
        """The frame of this number."""
        return self._frame(self._place(int(index)))

    def get_frames_at(self, indices: Any) -> Any:
        """The frames of these numbers."""
        return self._batch([self._place(int(index)) for index in _flat(indices)])

    def get_frames_in_range(self, start: Any, stop: Any, step: Any = 1) -> Any:
        """The frames of a slice."""
        return self.get_frames_at(range(*slice(start, stop, step).indices(len(self))))

    def get_frame_played_at(self, seconds: Any) -> Any:
        """The frame that plays at this time; in a gap between frames the next one."""
        for place, frame in enumerate(self._frames):
            # In whole ticks, so that one frame ends exactly when the next begins.
            ticks = round((frame.pts_seconds + frame.duration_seconds) / self._tick_seconds)
            if float(ticks * self._tick_seconds) > float(seconds):
                return self._frame(place)
        raise RuntimeError("no frame plays then")

    def get_frames_played_at(self, seconds: Any) -> Any:
        """For each time the last frame that begins at or before it."""
        return self._batch([self._place_at(float(time)) for time in _flat(seconds)])

    def get_frames_played_in_range(self, start: Any, stop: Any, fps: Any = None) -> Any:
        """The frames on display in a stretch of time, at their own rate or another."""
        start, stop = float(start), float(stop)
        if fps is not None:
            count = math.floor((stop - start) * fps + 0.5)
            times = [start + position * (1 / fps) for position in range(count)]
            batch = self.get_frames_played_at(times)
            batch.pts_seconds = torch.tensor(times, dtype=torch.float64)
            batch.duration_seconds = torch.full((count,), 1 / fps, dtype=torch.float64)
            return batch
        if start == stop:
            return self._batch([])
        if self._is_exact:
            return self._batch(list(range(self._place_at(start), bisect.bisect_left(self._pts, stop))))
        begin, rate = self.metadata.begin_stream_seconds, self.metadata.average_fps
        return self.get_frames_at(range(math.floor((start - begin) * rate), math.ceil((stop - begin) * rate)))

    def get_all_frames(self, fps: Any = None) -> Any:
        """All frames."""
        metadata = self.metadata
        return self.get_frames_played_in_range(
            metadata.begin_stream_seconds, metadata.end_stream_seconds, fps
        )

    def _place(self, index: int) -> int:
        index += len(self) if index < 0 else 0
        if self._is_exact:
            return index
        # In whole ticks, as the container counts.
        seconds = self.metadata.begin_stream_seconds + index / self.metadata.average_fps
        return bisect.bisect_left(self._pts, seconds - float(self._tick_seconds) / 2)

    def _place_at(self, seconds: float) -> int:
        if self._is_exact:
            return max(bisect.bisect_right(self._pts, seconds) - 1, 0)
        return self._place(
            math.floor((seconds - self.metadata.begin_stream_seconds) * self.metadata.average_fps)
        )

    def _frame(self, place: int) -> Any:
        from torchcodec import Frame

        frame = self._frames[place]
        # A copy: callers write into what they get.
        data = frame.data.permute(1, 2, 0).clone(memory_format=torch.contiguous_format)
        data = data if self._is_channels_last else data.permute(2, 0, 1)
        return Frame(data, frame.pts_seconds, frame.duration_seconds)

    def _batch(self, places: list[int]) -> Any:
        from torchcodec import FrameBatch

        frames = [self._frames[place] for place in places]
        _, height, width = self._frames[0].data.shape
        data = torch.empty((len(frames), height, width, 3), dtype=self._frames[0].data.dtype)
        for row, frame in zip(data, frames, strict=True):
            row.copy_(frame.data.permute(1, 2, 0))
        return FrameBatch(
            data if self._is_channels_last else data.permute(0, 3, 1, 2),
            torch.tensor([frame.pts_seconds for frame in frames], dtype=torch.float64),
            torch.tensor([frame.duration_seconds for frame in frames], dtype=torch.float64),
        )


# Consecutive questions are mostly about one stream.
@functools.lru_cache(maxsize=2)
def _frames_in_order(file: str, stream_index: int, dtype: Any) -> list[Any]:
    demuxer: Any = Demuxer(file, streams=stream_index)
    decoder = demuxer.streams[0].make_decoder()
    converter: Any = ColorConverter(output_dtype=dtype)
    raw = [frame for packet in demuxer for frame in decoder.decode(packet)]
    frames = [converter.convert(frame) for frame in [*raw, *decoder.drain()]]
    return sorted(frames, key=lambda frame: frame.pts_seconds)


def _transformed_frames(file: str, options: dict[str, Any]) -> list[Any]:
    """By a decoder after all, as converters do not transform: in exact mode, from the first frame on."""
    decoder = Reference(file, **options)
    return [decoder.get_frame_at(index) for index in range(len(decoder))]


def _flat(values: Any) -> Any:
    """Numbers one after the other, also where there is only one."""
    if isinstance(values, int):
        return [values]
    return values.reshape(-1) if hasattr(values, "reshape") else values


@functools.cache
def _tick_seconds(file: str, stream_index: int) -> Fraction:
    """The unit of a stream's timestamps."""
    command = [
        "ffprobe",
        "-v",
        "error",
        "-select_streams",
        str(stream_index),
        "-of",
        "default=nw=1:nk=1",
        file,
    ]
    command += ["-show_entries", "stream=time_base"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return Fraction(output.split()[0])
