"""A program of somebody who has numpy and no torch: `test_environments.py` runs it where there is none.

It prints what it got as JSON, pixels as digests, for the test to compare with TorchCodec's. It imports
nothing of the tests, which need torch.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import multiprocessing
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import reeld
from reeld.decoders import VideoDecoder


def described(pixels: Any) -> dict[str, Any]:
    """What decides whether two arrays are the same, however they lie in memory."""
    assert type(pixels) is np.ndarray, type(pixels)
    content = np.ascontiguousarray(pixels).tobytes()
    return {
        "dtype": pixels.dtype.name,
        "shape": list(pixels.shape),
        "digest": hashlib.sha1(content).hexdigest()[:16],
    }


def batch(frames: Any) -> dict[str, Any]:
    """A FrameBatch."""
    for times in (frames.pts_seconds, frames.duration_seconds):
        assert type(times) is np.ndarray, type(times)
        assert times.dtype == np.float64
    assert type(frames) is reeld.FrameBatch
    times = [frames.pts_seconds.tolist(), frames.duration_seconds.tolist()]
    return {**described(frames.data), "times": times}


def frame(one: Any) -> dict[str, Any]:
    """A Frame."""
    assert type(one) is reeld.Frame
    return {**described(one.data), "times": [one.pts_seconds, one.duration_seconds]}


def answers(decoder: Any) -> dict[str, Any]:
    """One answer of each method."""
    begin = decoder.metadata.begin_stream_seconds
    return {
        "frame": frame(decoder.get_frame_at(7)),
        "frame by a numpy integer": frame(decoder.get_frame_at(np.int32(-3))),
        "subscript": described(decoder[-1]),
        "slice": described(decoder[2:30:7]),
        "no frames": described(decoder[3:3]),
        "list": batch(decoder.get_frames_at([9, 0, 9, -1])),
        "array": batch(decoder.get_frames_at(np.array([4, 2]))),
        "range": batch(decoder.get_frames_in_range(-3, 1000)),
        "played at": frame(decoder.get_frame_played_at(begin + 0.5)),
        "played at each": batch(decoder.get_frames_played_at(np.array([begin + 0.1, begin + 0.9]))),
        "played in a range": batch(decoder.get_frames_played_in_range(begin + 0.2, begin + 0.5)),
        "another rate": batch(decoder.get_frames_played_in_range(begin, begin + 1, fps=7)),
        "one of a batch": batch(decoder.get_frames_at([1, 2, 3])[1:]),
    }


def raised(call: Any) -> str:
    """The class that a call raises."""
    try:
        call()
    except Exception as error:
        return type(error).__name__
    return "nothing"


def from_child(method: str, decoder: Any) -> Any:
    """The answers of a child process that was given the decoder."""
    context: Any = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    child = context.Process(target=_child, args=(decoder, theirs))
    child.start()
    theirs.close()
    result = ours.recv()
    child.join()
    assert child.exitcode == 0
    return result


def _child(decoder: Any, connection: Any) -> None:
    connection.send(answers(decoder))


def main() -> None:
    """Prints everything."""
    file = sys.argv[1]
    missing = [name for name in ("torch", "torchvision") if importlib.util.find_spec(name) is not None]
    assert not missing, f"this environment has {missing}"
    decoder = VideoDecoder(file)
    kept = decoder.get_frame_at(3)
    wrong: Any = "1"
    dtypes = {"np.float32": np.float32, "dtype('float32')": np.dtype("float32"), "float32": "float32"}
    clips = [reeld.Clip(decoder, indices=np.array([5, 1])), reeld.Clip(file, seconds=[0.3])]
    result = {
        "python": list(sys.version_info[:2]),
        "answers": answers(decoder),
        "nhwc": answers(VideoDecoder(file, dimension_order="NHWC")),
        "float32": {
            name: described(VideoDecoder(file, output_dtype=kind)[0:3]) for name, kind in dtypes.items()
        },
        "np.uint8": described(VideoDecoder(file, output_dtype=np.uint8)[0:3]),
        "submit": [batch(frames) for frames in reeld.submit(clips).result()],
        "pickle": answers(pickle.loads(pickle.dumps(decoder))),
        "fork": from_child("fork", decoder),
        "spawn": from_child("spawn", decoder),
        "bytes": answers(VideoDecoder(Path(file).read_bytes())),
        "metadata": repr(decoder.metadata),
        "errors": {
            "frame": raised(lambda: decoder.get_frame_at(10**6)),
            "type": raised(lambda: decoder.get_frame_at(wrong)),
            "dtype": raised(lambda: VideoDecoder(file, output_dtype=np.float16)),
            "file": raised(lambda: VideoDecoder(file + ".not")),
            "device": raised(lambda: VideoDecoder(file, device="cuda")),
        },
        # Held over all of the above, a fork included.
        "kept": frame(kept),
    }
    assert "torch" not in sys.modules
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
