"""One client of a chaos run: it decodes at random, checks every frame, and has children that do the same.

It is told nothing of what is killed. Which errors it may see is written here; whether they came too often is
the driver's matter.
"""

from __future__ import annotations

import gc
import json
import os
import random
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from material import BROKEN, MEDIA, SLOW, Clip

# Calls repeat themselves while the daemon is away, and the supervisor has a new one up in much less time:
# then its death is no error.
IS_UNAVAILABLE_A_FAILURE = True
DECODERS_OPEN_MAX = 6
KEPT_MAX = 12
CHILDREN_MAX = 3
# How long a child lives that is not killed.
CHILD_SECONDS = (0.1, 2.0)
# A daemon that is away is asked again after this long.
RETRY_SECONDS = 0.02


@dataclass
class Kept:
    """Frames that a client holds, and what must be in them."""

    array: np.ndarray[Any, Any]
    clip: Clip
    indices: list[int]

    def check(self) -> None:
        """Raises if they are not what they were."""
        expected = self.clip.pixels[self.indices]
        if self.array.shape != expected.shape:
            raise WrongFrameError(
                f"{self.clip.name} {self.indices}: {self.array.shape}, not {expected.shape}"
            )
        if not np.array_equal(self.array, expected):
            wrong = [
                index
                for index, ours, right in zip(self.indices, self.array, expected, strict=True)
                if not np.array_equal(ours, right)
            ]
            raise WrongFrameError(f"{self.clip.name} ({self.clip.dtype}): other pixels in frames {wrong}")


class WrongFrameError(Exception):
    """A frame is not what the reference says."""


class Channel:
    """Lines of JSON to the driver, each short enough to be written at once."""

    def __init__(self, fd: int) -> None:
        """`fd` is a pipe."""
        self._fd = fd

    def say(self, **words: object) -> None:
        """One line; the driver must know which process it is from."""
        text = json.dumps({"pid": os.getpid(), **words})
        if len(text) > 4000:
            text = json.dumps(
                {"pid": os.getpid(), **{key: str(value)[-3000:] for key, value in words.items()}}
            )
        os.write(self._fd, text.encode() + b"\n")


class Client:
    """What one process does until its standard input ends."""

    def __init__(self, clips: list[Clip], seed: int, channel: Channel, *, keeps_many: bool) -> None:
        """`keeps_many`: it holds more than half of its quota now and then."""
        import reeld
        from reeld.decoders import VideoDecoder

        self.reeld, self.decoder_class = reeld, VideoDecoder
        self.clips = clips
        self.random = random.Random(seed)
        self.channel = channel
        self.keeps_many = keeps_many
        self.decoders: dict[tuple[str, str, str, str], Any] = {}
        self.kept: list[Kept] = []
        self.children: set[int] = set()
        self.frames = self.bytes = 0
        self.crashed = (reeld.DecoderCrashedError,)
        self.actions: list[tuple[int, Callable[[], None]]] = [
            (30, self.read_one),
            (20, self.read_batch),
            (15, self.read_range),
            (15, self.read_times),
            (20, self.submit),
            (6, self.submit_and_give_up),
            (2, self.overrun_a_deadline),
            (6, self.read_broken),
            (10, self.check_kept),
            (3, self.use_threads),
            (8, self.fork),
            (1, self.connect_anew),
            (4 if keeps_many else 0, self.keep_many),
        ]

    def connect(self) -> None:
        """A first connection does not wait for a daemon: nobody says that there was one."""
        while True:
            try:
                return self.reeld.connect()
            except self.reeld.DaemonUnavailableError as missing:
                self.channel.say(did="connect", frames=0, bytes=0, error=type(missing).__name__)
                time.sleep(RETRY_SECONDS)

    def run(self, *, until: Callable[[], bool]) -> None:
        """Does one thing after the other, and says so."""
        weights = [weight for weight, _ in self.actions]
        while not until():
            action = self.random.choices(self.actions, weights)[0][1]
            self.do(action)
            self.reap(wait=False)

    def do(self, action: Callable[[], None]) -> None:
        """One action, with its errors told by their class."""
        self.channel.say(do=action.__name__)
        self.frames = self.bytes = 0
        error = None
        try:
            action()
        except self.reeld.DaemonUnavailableError as lost:
            error = type(lost).__name__
            if IS_UNAVAILABLE_A_FAILURE:
                raise
            time.sleep(RETRY_SECONDS)
        except self.crashed as crash:
            error = type(crash).__name__
        self.channel.say(did=action.__name__, frames=self.frames, bytes=self.bytes, error=error)

    # -------------------------------------------------------------------------------- reading

    def decoder(self, clip: Clip) -> tuple[Any, bool]:
        """A decoder of this clip, perhaps a new one; and whether its results have the channels first."""
        order = self.random.choice(["NCHW", "NHWC"])
        how = self.random.choice(["path", "path", "bytes"])
        key = (clip.name, clip.dtype, order, how)
        if key not in self.decoders or self.random.random() < 0.05:
            source = clip.path.read_bytes() if how == "bytes" else clip.path
            options: dict[str, Any] = {"dimension_order": order, "output_dtype": clip.dtype}
            decoder = self.decoder_class(source, **options)
            if len(decoder) != len(clip):
                raise WrongFrameError(f"{clip.name} has {len(decoder)} frames, not {len(clip)}")
            self.decoders.pop(key, None)
            self.decoders[key] = decoder
            while len(self.decoders) > DECODERS_OPEN_MAX:
                del self.decoders[next(iter(self.decoders))]
        return self.decoders[key], order == "NCHW"

    def some_indices(self, clip: Clip, most: int = 8) -> list[int]:
        """A few indices, some of them near each other."""
        first = self.random.randrange(len(clip))
        near = [min(first + self.random.randrange(6), len(clip) - 1) for _ in range(self.random.randrange(3))]
        far = [self.random.randrange(len(clip)) for _ in range(self.random.randrange(most - 3))]
        return [first, *near, *far]

    def accept(self, clip: Clip, indices: list[int], batch: _Batch, channels_first: bool) -> None:
        """Checks a batch, counts it and may keep it."""
        array = np.asarray(batch.data)
        if channels_first:
            array = np.moveaxis(array, 1, -1)
        kept = Kept(array, clip, indices)
        kept.check()
        times = [(clip.pts_seconds[index], clip.duration_seconds[index]) for index in indices]
        told = list(
            zip(
                np.asarray(batch.pts_seconds).tolist(),
                np.asarray(batch.duration_seconds).tolist(),
                strict=True,
            )
        )
        if told != times:
            raise WrongFrameError(f"{clip.name} {indices}: times {told}, not {times}")
        self.frames += len(indices)
        self.bytes += array.nbytes
        fate = self.random.random()
        if fate < 0.2:
            self.kept.append(kept)
            if len(self.kept) > KEPT_MAX:
                self.kept.pop(self.random.randrange(len(self.kept))).check()
        elif fate < 0.3:
            # The memory is the client's: what it writes there must not come back to anybody.
            array.fill(77)

    def read_one(self) -> None:
        """One frame, by one of three ways."""
        clip = self.random.choice(self.clips)
        decoder, channels_first = self.decoder(clip)
        index = self.random.randrange(len(clip))
        way = self.random.randrange(3 if clip.has_durations else 2)
        if way == 0:
            frame = decoder.get_frame_at(index - len(clip) if self.random.random() < 0.2 else index)
        elif way == 2:
            frame = decoder.get_frame_played_at(self.time_within(clip, index))
        else:
            array = np.asarray(decoder[index])
            array = np.moveaxis(array, 0, -1) if channels_first else array
            Kept(array[np.newaxis], clip, [index]).check()
            self.frames += 1
            self.bytes += array.nbytes
            return
        array = np.asarray(frame.data)
        array = np.moveaxis(array, 0, -1) if channels_first else array
        self.accept(
            clip, [index], _Batch(array[np.newaxis], [frame.pts_seconds], [frame.duration_seconds]), False
        )

    def read_batch(self) -> None:
        """Frames by a list of indices."""
        clip = self.random.choice(self.clips)
        decoder, channels_first = self.decoder(clip)
        indices = self.some_indices(clip)
        self.accept(clip, indices, decoder.get_frames_at(indices), channels_first)

    def read_range(self) -> None:
        """Frames by a range."""
        clip = self.random.choice(self.clips)
        decoder, channels_first = self.decoder(clip)
        start = self.random.randrange(len(clip))
        stop = min(len(clip), start + self.random.randrange(1, 16))
        step = self.random.randrange(1, 4)
        batch = decoder.get_frames_in_range(start, stop, step)
        self.accept(clip, list(range(start, stop, step)), batch, channels_first)

    def read_times(self) -> None:
        """Frames by times, or by a stretch of time."""
        clip = self.random.choice([clip for clip in self.clips if clip.has_durations])
        decoder, channels_first = self.decoder(clip)
        if self.random.random() < 0.5:
            indices = self.some_indices(clip)
            times = [self.time_within(clip, index) for index in indices]
            return self.accept(clip, indices, decoder.get_frames_played_at(times), channels_first)
        first = self.random.randrange(len(clip) - 1)
        last = min(len(clip) - 1, first + self.random.randrange(1, 10))
        batch = decoder.get_frames_played_in_range(clip.pts_seconds[first], clip.pts_seconds[last])
        return self.accept(clip, list(range(first, last)), batch, channels_first)

    def time_within(self, clip: Clip, index: int) -> float:
        """A moment at which this frame is shown, and surely no other."""
        end = clip.pts_seconds[index] + clip.duration_seconds[index]
        if index + 1 < len(clip):
            end = min(end, clip.pts_seconds[index + 1])
        share = self.random.choice([0.0, 0.3, 0.7])
        return clip.pts_seconds[index] + share * (end - clip.pts_seconds[index])

    # ---------------------------------------------------------------------------- in flight

    def submit_one(self) -> tuple[Any, list[tuple[Clip, list[int], bool]]]:
        """A request of several videos that is on its way, and what it must give."""
        wanted, clips = [], []
        for clip in self.random.choices(self.clips, k=self.random.randrange(1, 5)):
            decoder, channels_first = self.decoder(clip)
            indices = self.some_indices(clip, most=5)
            wanted.append((clip, indices, channels_first))
            clips.append(self.reeld.Clip(decoder, indices=indices))
        return self.reeld.submit(clips, priority=self.random.randrange(-2, 3)), wanted

    def submit(self) -> None:
        """Several requests in flight, answered in any order."""
        pending = [self.submit_one() for _ in range(self.random.randrange(1, 7))]
        self.random.shuffle(pending)
        for frames, wanted in pending:
            for (clip, indices, channels_first), batch in zip(wanted, frames.result(), strict=True):
                self.accept(clip, indices, batch, channels_first)

    def submit_and_give_up(self) -> None:
        """Requests that are cancelled, dropped, or waited for too short a time."""
        pending: list[tuple[Any, Any]] = [self.submit_one() for _ in range(self.random.randrange(1, 5))]
        if self.random.random() < 0.2:
            slow = self.decoder_class(MEDIA / SLOW)
            pending.append(
                (self.reeld.submit([self.reeld.Clip(slow, indices=[self.random.randrange(60)])]), None)
            )
        for frames, wanted in pending:
            way = self.random.randrange(3)
            if way == 0 or wanted is None:
                continue
            try:
                if way == 1:
                    frames.cancel()
                else:
                    frames.result(timeout=0.001)
                batches = frames.result()
            except self.reeld.CancelledError:
                continue
            except self.reeld.DaemonUnavailableError:
                raise
            except TimeoutError:
                batches = frames.result()
            for (clip, indices, channels_first), batch in zip(wanted, batches, strict=True):
                self.accept(clip, indices, batch, channels_first)
        del pending

    def overrun_a_deadline(self) -> None:
        """A request that cannot be done in its time."""
        slow = self.decoder_class(MEDIA / SLOW)
        pending = self.reeld.submit(
            [self.reeld.Clip(slow, indices=[self.random.randrange(200, 380)])], timeout_seconds=0.01
        )
        try:
            pending.result()
        except self.reeld.DeadlineError:
            return

    def read_broken(self) -> None:
        """A file that is none; it must say so."""
        name = self.random.choice(BROKEN)
        path = MEDIA / name
        try:
            decoder = self.decoder_class(path.read_bytes() if self.random.random() < 0.5 else path)
            decoder.get_frames_at([3, 4])
        except self.reeld.MediaError:
            return
        raise WrongFrameError(f"{name} was decoded")

    # ------------------------------------------------------------------------ memory, threads

    def check_kept(self) -> None:
        """What is held does not change, whatever died meanwhile."""
        for kept in self.kept:
            kept.check()
        if self.random.random() < 0.3:
            self.kept.clear()
            gc.collect()

    def keep_many(self) -> None:
        """More than half of the quota, one by one, which must not stand in its own way."""
        clip = next(clip for clip in self.clips if clip.name == "bench_224.mp4")
        decoder = self.decoder_class(clip.path, dimension_order="NHWC")
        held = []
        for index in range(0, 240, self.random.randrange(1, 3)):
            array = np.asarray(decoder[index])
            held.append(Kept(array[np.newaxis], clip, [index]))
            self.frames += 1
            self.bytes += array.nbytes
        for kept in held:
            kept.check()

    def use_threads(self) -> None:
        """Several threads on one connection."""
        failures: list[BaseException] = []
        clip = self.random.choice(self.clips)
        decoder, channels_first = self.decoder(clip)
        wanted = [self.some_indices(clip) for _ in range(3)]

        def read(indices: list[int]) -> None:
            try:
                for _ in range(3):
                    array = np.asarray(decoder.get_frames_at(indices).data)
                    Kept(np.moveaxis(array, 1, -1) if channels_first else array, clip, indices).check()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=read, args=(indices,), name="reader") for indices in wanted]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        self.frames += 3 * sum(map(len, wanted))
        self.bytes += 3 * sum(clip.pixels[0].nbytes * len(indices) for indices in wanted)

    def connect_anew(self) -> None:
        """A second connection beside what is open."""
        self.decoders.clear()
        self.connect()

    # --------------------------------------------------------------------------------- forks

    def fork(self) -> None:
        """A child that looks at what it inherited, and decodes by itself."""
        if len(self.children) >= CHILDREN_MAX:
            return
        if not self.kept:
            self.read_batch()
        seconds = self.random.uniform(*CHILD_SECONDS)
        seed = self.random.getrandbits(64)
        kind = self.random.choice(["looks", "decodes", "has a child"])
        child = os.fork()
        if child == 0:
            self.be_child(kind, seed, seconds)
        self.channel.say(fork=child)
        self.children.add(child)
        if self.random.random() < 0.3:
            # What the child looks at is given back here meanwhile.
            self.kept.clear()
            gc.collect()

    def be_child(self, kind: str, seed: int, seconds: float) -> None:
        """The life of a child; it never returns."""
        status = 1
        try:
            self.random = random.Random(seed)
            self.children = set()
            end = time.monotonic() + seconds
            if kind == "looks":
                while time.monotonic() < end:
                    for kept in self.kept:
                        kept.check()
            else:
                if kind == "has a child":
                    self.do(self.fork)
                reading = (self.read_one, self.read_batch, self.submit, self.check_kept)
                self.actions = [(1, action) for action in reading]
                self.run(until=lambda: time.monotonic() > end)
                self.reap(wait=True)
            status = 0
        except BaseException:
            self.channel.say(failure=f"a child that {kind}: {traceback.format_exc()}")
        finally:
            os._exit(status)

    def reap(self, *, wait: bool) -> None:
        """Collects children that have ended. A child that was killed is the driver's doing."""
        for child in list(self.children):
            pid, status = os.waitpid(child, 0 if wait else os.WNOHANG)
            if pid:
                self.children.discard(child)
                self.channel.say(reaped=child, status=os.waitstatus_to_exitcode(status))


@dataclass
class _Batch:
    """What is looked at of a `FrameBatch`, for single frames too."""

    data: Any
    pts_seconds: Sequence[float]
    duration_seconds: Sequence[float]


def main(clips: list[Clip], seed: int, *, with_torch: bool, keeps_many: bool) -> None:
    """The whole process: standard input says when it is over, standard output is the channel."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = Channel(sys.stdout.fileno())
    try:
        if with_torch:
            import torch

            # The threads that OpenMP has here would be missing in children, and torch would wait for them.
            torch.set_num_threads(1)
        else:
            sys.modules["torch"] = None  # pyright: ignore[reportArgumentType] # what makes an import fail
        client = Client(clips, seed, channel, keeps_many=keeps_many)
        client.connect()
        client.run(until=lambda: bool(select.select([0], [], [], 0)[0]))
        client.reap(wait=True)
        client.kept.clear()
        client.decoders.clear()
        gc.collect()
        channel.say(statistics=client.reeld.statistics())
    except BaseException:
        channel.say(failure=traceback.format_exc())
        raise
