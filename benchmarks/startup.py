"""From `dcls-jax eval clickme` to its first result, with an empty cache of compiled programs and with a filled one.

    python benchmarks/startup.py [--models convnext_tiny,...]

Seconds of the whole command on one batch of 8 pictures of the sample, weights random, both protocols.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

from dcls_jax.eval.data.records import Records, write_records
from dcls_jax.eval.demo import SAMPLE
from dcls_jax.models import create_model, list_models, save_weights

PICTURES = 8


def seconds(arguments: list[str], cache: Path) -> float:
    start = time.perf_counter()
    command = [sys.executable, "-c", "from dcls_jax.eval.cli import main; main()", "eval", "clickme", *arguments]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(list_models()))
    options = parser.parse_args()
    print(f"seconds, {os.cpu_count()} CPU cores\n\n| model | cold | warm |\n|---|---|---|")
    for name in options.models.split(","):
        for dcls in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                place = Path(folder)
                write_records(place / "few.tfrecords", islice(Records(SAMPLE), PICTURES))
                save_weights(create_model(name, dcls=dcls), place / "weights")
                arguments = [str(place / "few.tfrecords"), "--model", name, *(["--dcls"] if dcls else [])]
                arguments += ["--weights", str(place / "weights"), "--batch-size", str(PICTURES)]
                times = [seconds([*arguments, "--out", str(place / run)], place / "cache") for run in ("cold", "warm")]
            print(f"| {name}{' dcls' if dcls else ''} | {times[0]:.1f} | {times[1]:.1f} |", flush=True)


if __name__ == "__main__":
    main()
