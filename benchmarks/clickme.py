"""The ClickMe evaluation end to end: its data alone, its step alone, and both together, in images per second.

    python benchmarks/clickme.py [--model convnext_tiny] [--dcls] [--batch 32] [--images 256]

Pictures of the sample, again and again; weights are random. The step is model, map and Spearman's
correlation by both protocols. Utilisation is the whole's rate over the step's: 100 % if the device never
waits for data.
"""

import argparse
import time
from pathlib import Path

import jax
from flax import nnx
from timing import machine

from dcls_jax import compiler_options, freeze
from dcls_jax.eval import clickme
from dcls_jax.eval.demo import SAMPLE
from dcls_jax.eval.records import Records
from dcls_jax.eval.runner import Runner
from dcls_jax.models import create_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="convnext_tiny")
    parser.add_argument("--dcls", action="store_true")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--images", type=int, default=256)
    options = parser.parse_args()
    model = freeze(create_model(options.model, dcls=options.dcls))
    shards: list[Path] = sorted(SAMPLE.glob("*.tfrecords"))
    records = Records(shards)
    stored = clickme._reader(records, model.transform, clickme.PROTOCOLS, skip_bad=False)
    runner = Runner(
        clickme._scores(model, "grad_cam"),
        nnx.state(model),
        lambda index: stored(index % len(records)),
        options.images,
        batch_size=options.batch,
        progress=False,
    )
    numbers = list(range(-(-options.images // options.batch)))

    step = runner._lowered.compile(compiler_options=dict(compiler_options()))
    batches = list(runner._batches(numbers))
    jax.block_until_ready(step(runner._state, batches[0][1]))
    start = time.perf_counter()
    for _, arrays in batches:
        jax.block_until_ready(step(runner._state, arrays))
    step_rate = options.images / (time.perf_counter() - start)
    start = time.perf_counter()
    list(runner._batches(numbers))
    data_rate = options.images / (time.perf_counter() - start)
    ends = []  # of each batch; the first one waits for the compiler
    for _ in runner._compute(numbers):
        ends.append(time.perf_counter())
    whole_rate = (options.images - options.batch) / (ends[-1] - ends[0])

    print(f"{options.model}{' dcls' if options.dcls else ''}, batch {options.batch}; {machine()}\n")
    print("| data alone | step alone | together | utilisation |\n|---|---|---|---|")
    rates = " | ".join(f"{rate:.1f} images/s" for rate in (data_rate, step_rate, whole_rate))
    print(f"| {rates} | {whole_rate / step_rate:.0%} |")


if __name__ == "__main__":
    main()
