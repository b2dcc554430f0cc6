"""Runs TorchCodec's own tests on reeld, from a checkout of its repository, and says what became of them.

Usage: script/compat CHECKOUT [--reference] [--json FILE] [PYTEST ARGUMENTS…]

CHECKOUT is a clone of TorchCodec's repository. Its test files run where they are, with reeld's classes in the
place of TorchCodec's; nothing in it is changed. Without further arguments these run: TestDecoder and
TestVideoDecoder of test_decoders.py, test_samplers.py, test_policy.py, test_frame_dataclasses.py and the
public part of test_transform_ops.py. PYTEST ARGUMENTS choose others, with paths in CHECKOUT, such as
test/test_encoders.py.

--reference runs the same items with TorchCodec itself first, and compares: then only what passes there and
not here counts as a failure. --json writes all outcomes to FILE.

Which classes are replaced does not live here but in `plugin.py`.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
sys.path.insert(0, str(REPOSITORY / "bench"))

from own_daemon import OwnDaemon  # noqa: E402 # lies in the folder that was just added

# What concerns video decoding, as classes of a file; none means the whole file. The rest is audio, images,
# encoders and TorchCodec's private operators.
CHOICE: dict[str, tuple[str, ...]] = {
    "test/test_decoders.py": ("TestDecoder", "TestVideoDecoder"),
    "test/test_samplers.py": (),
    "test/test_policy.py": (),
    "test/test_frame_dataclasses.py": (),
    "test/test_transform_ops.py": ("TestPublicVideoDecoderTransformOps",),
}
OUTCOMES = ("passed", "failed", "skipped")
# What pytest returns where it has run the items, whatever became of them.
RAN = (0, 1)


def main() -> int:
    """0 where nothing failed that should pass."""
    arguments, pytest_arguments = parsed_arguments()
    if arguments.json is not None and not arguments.json.absolute().parent.is_dir():
        sys.exit(f"There is no folder for {arguments.json}.")
    checkout: Path = arguments.checkout.resolve()
    complain_unless_torchcodec(checkout)
    if not any(is_item(argument, checkout) for argument in pytest_arguments):
        pytest_arguments = [*chosen_items(checkout), *pytest_arguments]

    results = {}
    if arguments.reference:
        results["torchcodec"] = results_of("torchcodec", checkout, pytest_arguments)
    with OwnDaemon():
        results["reeld"] = results_of("reeld", checkout, pytest_arguments)
    regressions = show(results)
    if arguments.json is not None:
        report = {**results, "failed_here_only": regressions} if arguments.reference else results
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if regressions else 0


def parsed_arguments() -> tuple[argparse.Namespace, list[str]]:
    """Our own arguments, and those that are pytest's."""
    words = (__doc__ or "").split("\n\n")
    parser = argparse.ArgumentParser(
        prog="script/compat",
        usage="script/compat CHECKOUT [--reference] [--json FILE] [PYTEST ARGUMENTS…]",
        description="\n\n".join([words[0], *words[2:-1]]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("checkout", type=Path, metavar="CHECKOUT", help="a clone of TorchCodec's repository")
    parser.add_argument("--reference", action="store_true", help="compare with TorchCodec itself")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all outcomes to this file")
    return parser.parse_known_args()


def complain_unless_torchcodec(checkout: Path) -> None:
    """Ends the program with a sentence where this is no checkout that could be run."""
    if not checkout.is_dir():
        sys.exit(f"There is no folder {checkout}. Clone TorchCodec's repository, and pass the clone's path.")
    absent = [name for name in ("test/utils.py", "test/test_decoders.py") if not (checkout / name).is_file()]
    if absent:
        sys.exit(
            f"{checkout} is no checkout of TorchCodec's repository: there is no {' and no '.join(absent)}."
        )
    for media in (checkout / "test" / "resources").glob("*.mp4"):
        with media.open("rb") as file:
            if file.read(24).startswith(b"version https://git-lfs"):
                sys.exit(f"{media} is only a pointer to the file: run `git lfs pull` in {checkout}.")


def is_item(argument: str, checkout: Path) -> bool:
    """Whether it names a file in the checkout; the word after `-k` may be called as the folder is."""
    path = argument.partition("::")[0]
    return "/" in path and (checkout / path).exists()


def chosen_items(checkout: Path) -> list[str]:
    """What CHOICE names and this checkout has. Says what it has not."""
    items = []
    for name, classes in CHOICE.items():
        path = checkout / name
        if not path.is_file():
            print(f"This checkout has no {name}.")
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        present = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
        items += [f"{name}::{class_name}" for class_name in classes if class_name in present]
        items += [] if classes else [name]
        for class_name in (class_name for class_name in classes if class_name not in present):
            print(f"This checkout has no {class_name} in {name}.")
    return items


def results_of(subject: str, checkout: Path, pytest_arguments: list[str]) -> dict[str, Any]:
    """Runs pytest in the checkout and returns what the plug-in wrote down."""
    print(f"== {subject}", flush=True)
    with tempfile.TemporaryDirectory(prefix="reeld-compat-") as folder:
        results, settings = Path(folder) / "results.json", Path(folder) / "pytest.ini"
        # Neither their settings nor ours, and nothing is written into the checkout.
        settings.write_text("[pytest]\n")
        command = [sys.executable, "-B", "-m", "pytest", "-p", "plugin", "-p", "no:cacheprovider"]
        command += ["-c", str(settings), "--rootdir", str(checkout), "-q", "--tb=short", "--no-header"]
        command += ["--subject", subject, "--results", str(results), *pytest_arguments]
        paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
        status = subprocess.run(command, cwd=checkout, env=environment, check=False).returncode
        if not results.exists():
            sys.exit(f"pytest ended with {status} before it had run anything.")
        found = json.loads(results.read_text())
    if status not in RAN and not found["outcomes"]:
        sys.exit(f"pytest ended with {status}, and no test was run.")
    return found


def show(results: dict[str, Any]) -> list[str]:
    """Prints the tables, and returns the items that should have passed and did not."""
    for subject, found in results.items():
        print(f"\n{subject}")
        print(f"{'file':40}{''.join(f'{outcome:>10}' for outcome in OUTCOMES)}")
        by_file: dict[str, Counter[str]] = {}
        for item, outcome in found["outcomes"].items():
            by_file.setdefault(item.partition("::")[0], Counter())[outcome] += 1
        for file, counts in by_file.items():
            print(f"{file:40}{''.join(f'{counts[outcome]:>10}' for outcome in OUTCOMES)}")
    outcomes = results["reeld"]["outcomes"]
    if "torchcodec" not in results:
        regressions = [item for item, outcome in outcomes.items() if outcome == "failed"]
        words = "failed"
    else:
        reference = results["torchcodec"]["outcomes"]
        regressions = [
            item
            for item, outcome in reference.items()
            if outcome == "passed" and outcomes.get(item) != "passed"
        ]
        words = "passed with TorchCodec and not with reeld"
    print(f"\n{len(regressions)} {words}{':' if regressions else '.'}")
    for item in regressions:
        print(f"  {item}")
    return regressions


if __name__ == "__main__":
    sys.exit(main())
