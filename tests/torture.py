"""`dcls-jax eval clickme`, `convert` and `suite`, killed at random moments and run again: do they end as undisturbed?

    python tests/torture.py [--kills 100] [--seed 0]

On half of the sample in the package and one of its models, and a suite of both; a third of the kills each, by SIGKILL,
two in a row before a run may end: at any moment from Python's first to its last, and when so many files are there.
Those that come too late do not count. Ends with an error at the first run that does not end with the same digits, or
leaves a file behind.
"""

import argparse
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from dcls_jax.eval.demo import SAMPLE, sample_models
from dcls_jax.models import Backbone, load_weights, state_dict

MODEL = "convnext"
# The command line as it is, but for the models it knows, of which none is as small as the sample's.
COMMAND = f"""
from dcls_jax.eval import cli

def command():
    import sys
    import dcls_jax.models
    from dcls_jax.eval import commands, demo
    if sys.argv[1] != "suite":
        demo.NAMES = [{MODEL!r}]
        dcls_jax.models.create_model = lambda *_, **__: demo.sample_models()[{MODEL!r}]
    commands.app()

cli.run(command)
"""
EVALUATE = ["eval", "clickme", str(SAMPLE / "val-0.tfrecords"), "--model", "convnext_tiny", "--batch-size", "8"]
CONVERT = ["convert", str(SAMPLE / MODEL)]
SUITE = Path(__file__).parent / "data" / "suite.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    for name, command, result in (
        ("eval clickme", evaluation, scores),
        ("convert", conversion, weights),
        ("suite", suite, scores),
    ):
        folder = Path(tempfile.mkdtemp())
        torture(name, command, result, folder, -(-options.kills // 3), rng)
        shutil.rmtree(folder)


def torture(
    name: str,
    command: Callable[[Path], list[str]],
    result: Callable[[Path], dict[str, np.ndarray]],
    folder: Path,
    kills: int,
    rng: random.Random,
) -> None:
    finish(command(folder / "warm"))  # compiles
    start = time.monotonic()
    finish(command(folder / "whole"))
    seconds, expected = time.monotonic() - start, result(folder / "whole")
    files, out = count(folder / "whole"), folder / "out"
    done = halfway = 0
    while done < kills:
        out.mkdir()
        moments = [(rng.uniform(0, seconds), math.inf), (math.inf, rng.randint(1, files))]
        for moment in rng.sample(moments, 2):
            if done < kills and not (out / "weights").exists():  # a conversion that was killed once it was done
                killed = kill_at(command(out), out, *moment)
                done, halfway = done + killed, halfway + (killed and count(out) > 0)
        if not (out / "weights").exists():
            finish(command(out))
        found = result(out)
        same = found.keys() == expected.keys() and all(
            np.array_equal(found[key], value, equal_nan=True) for key, value in expected.items()
        )
        if not same:
            raise SystemExit(f"{name}, killed after (seconds, files) {moments}: the result differs; it is in {out}")
        shutil.rmtree(out)
    print(f"{name}: {done} kills within {seconds:.1f} s, {halfway} after a first file; all ended as undisturbed")


def evaluation(out: Path) -> list[str]:
    return [*EVALUATE, "--out", str(out)]


def suite(out: Path) -> list[str]:
    return ["suite", str(SUITE), "--out", str(out)]


def scores(out: Path) -> dict[str, np.ndarray]:
    """What every part and summary holds; raises where there is more, or less, than a run leaves."""
    found: dict[str, np.ndarray] = {}
    for run in sorted(path for path in out.iterdir() if path.is_dir() and path.name != "gallery"):
        parts = sorted(run.glob("part-*.npz"))
        names = {"lock", "run.json", "places.json", "summary.json", *(part.name for part in parts)}
        assert {path.name for path in run.iterdir()} == names, sorted(run.iterdir())
        for part in parts:
            found |= {f"{run.name} {part.name} {key}": values for key, values in np.load(part).items()}
        for variant, entry in json.loads((run / "summary.json").read_text())["results"].items():
            said = json.dumps({key: entry[key] for key in sorted(entry.keys() - {"seconds"})})
            found[f"{run.name} {variant}"] = np.frombuffer(said.encode(), np.uint8)
    for file in sorted(out.glob("*.json")):
        found[file.name] = np.frombuffer(file.read_bytes(), np.uint8)
    return found


def conversion(out: Path) -> list[str]:
    out.mkdir(exist_ok=True)
    return [*CONVERT, str(out / "weights"), "--model", "convnext_tiny"]


def weights(out: Path) -> dict[str, np.ndarray]:
    assert [path.name for path in out.iterdir()] == ["weights"], sorted(out.iterdir())
    return dict(state_dict(load_weights(model(), out / "weights")))


@cache
def model() -> Backbone:
    return sample_models()[MODEL]


def start(command: list[str]) -> subprocess.Popen[str]:
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}  # compiled programs are kept, as always
    arguments = [sys.executable, "-c", COMMAND, *command]
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(command: list[str]) -> None:
    process = start(command)
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{errors}")


def kill_at(command: list[str], out: Path, seconds: float, files: int | float) -> bool:
    """Kill a command after so many seconds, or with so many files there and one new; whether it was not done before."""
    files = max(files, count(out) + 1)
    process, begun = start(command), time.monotonic()
    while process.poll() is None and time.monotonic() - begun < seconds and count(out) < files:
        time.sleep(0.001)
    process.kill()
    process.communicate()
    return process.returncode < 0


def count(folder: Path) -> int:
    """How many files there are, of which some may go while they are counted."""
    return sum(len(files) for _, _, files in os.walk(folder))


if __name__ == "__main__":
    main()
