"""Grad-CAM of two checkouts of this project in turns, in one run: has anything become slower?

    git worktree add ../before COMMIT; (cd ../before && python setup.py build_ext --inplace)
    python benchmarks/before_and_after.py ../before . [--models convnext_tiny,...] [--batch 8] [--rounds 5]

Each model runs in a process of either checkout, as `cam_vs_torch.py` there has it; they take turns, and the least time
of each counts. Both need the packages that are installed here.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from dcls_jax.models import list_models

TURN = 0.6  # seconds, or three calls
# Compiles, then for each line that it is sent has a turn and says the least seconds of a call.
ONE_SIDE = f"""
import sys, time
import dcls_jax
from cam_vs_torch import ours
assert dcls_jax.__file__.startswith(sys.argv[4]), dcls_jax.__file__
call = ours(sys.argv[1], sys.argv[2] == "dcls", int(sys.argv[3]))
call()
print(flush=True)
for _ in sys.stdin:
    times = []
    while len(times) < 3 or sum(times) < {TURN}:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    print(min(times), flush=True)
"""


def side(checkout: Path, name: str, form: str, batch: int) -> subprocess.Popen[str]:
    path = os.pathsep.join(map(str, (checkout, checkout / "benchmarks")))
    command = [sys.executable, "-c", ONE_SIDE, name, form, str(batch), str(checkout)]
    environment, pipe = os.environ | {"PYTHONPATH": path}, subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment, cwd=checkout)


def answer(process: subprocess.Popen[str], line: str = "") -> str:
    """What a side says next, once it is sent a line."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line)
    process.stdin.flush()
    said = process.stdout.readline()
    if not said:
        sys.exit(f"a side ended with exit status {process.wait()}")
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--models", default=",".join(list_models()))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print("| model | before, ms per image | after | before/after |\n|---|---|---|---|")
    for name in options.models.split(","):
        for form in ("dcls", "standard"):
            sides = [side(it.resolve(), name, form, options.batch) for it in (options.before, options.after)]
            for process in sides:
                answer(process)
            turns = [[float(answer(process, "a turn\n")) for process in sides] for _ in range(options.rounds)]
            for process in sides:
                process.communicate()
            before, after = (1e3 * min(times) / options.batch for times in zip(*turns, strict=True))
            print(f"| {name} {form} | {before:.1f} | {after:.1f} | {before / after:.2f}x |", flush=True)


if __name__ == "__main__":
    main()
