"""The ClickMe evaluation end to end: its data alone, its step alone, and both together, in images per second.

    python benchmarks/clickme.py [--model convnext_tiny] [--dcls] [--batch 32] [--images 256] [--rounds 10]

Pictures of the sample, again and again; weights are random. The step is model, map and Spearman's
correlation by both protocols. Utilisation is the whole's rate over the step's: 100 % if the device never
waits for data. The data's rate per core is images per second of CPU time, all threads together; a second
table shows where that time goes.
"""

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
from PIL import Image
from timing import machine

from dcls_jax.eval import clickme
from dcls_jax.eval.data import clickme as data
from dcls_jax.eval.demo import SAMPLE
from dcls_jax.eval.jobs import Job, program_of, reader_of
from dcls_jax.eval.metric import Settings
from dcls_jax.eval.program import Rows
from dcls_jax.eval.runner import _computed, _rows
from dcls_jax.models import Transform, create_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="convnext_tiny")
    parser.add_argument("--dcls", action="store_true")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=10, help="of the data alone (%(default)s)")
    options = parser.parse_args()
    model = create_model(options.model, dcls=options.dcls)
    source = Repeated(SAMPLE, options.images)
    metric = clickme.metric(model, clickme.PROTOCOLS, method="grad_cam", transform=model.transform)
    program = program_of([Job(metric, model, Settings())], Settings(batch_size=options.batch))
    read = reader_of([metric], source, skip_bad=False)
    lengths = [min(options.batch, options.images - first) for first in range(0, options.images, options.batch)]
    pending = {batch: [0] for batch in range(len(lengths))}

    def batches() -> Iterator[tuple[int, Sequence[Rows]]]:
        return _rows(pending, read, lengths, options.batch)

    def read_all() -> None:
        for _, (rows,) in batches():
            program.stacked(rows)

    times = least({"all": read_all} | stages(data.ClickMe(SAMPLE), model.transform), options.rounds)

    stacked = [program.stacked(rows) for _, (rows,) in batches()]
    jax.block_until_ready(program.run(stacked[0]))
    start = time.perf_counter()
    for arrays in stacked:
        jax.block_until_ready(program.run(arrays))
    step_rate = options.images / (time.perf_counter() - start)
    ends = []  # of each batch; the first one waits for the compiler
    for _ in _computed([program], pending, batches()):
        ends.append(time.perf_counter())
    whole_rate = (options.images - options.batch) / (ends[-1] - ends[0])

    print(f"{options.model}{' dcls' if options.dcls else ''}, batch {options.batch}; {machine()}\n")
    print("| data alone | per core | step alone | together | utilisation |\n|---|---|---|---|---|")
    wall, cpu = times.pop("all")
    rates = options.images / wall, options.images / cpu, step_rate, whole_rate
    print(f"| {' | '.join(f'{rate:.1f} images/s' for rate in rates)} | {whole_rate / step_rate:.0%} |")
    parts = {name: seconds / source.pictures for name, (_, seconds) in times.items()}
    total = cpu / options.images
    print("\n| of the data, for one image | CPU time |\n|---|---|")
    for name, seconds in {**parts, "threads, batches": total - sum(parts.values()), "all": total}.items():
        print(f"| {name} | {seconds * 1e3:.2f} ms |")


class Repeated(data.ClickMe):
    """Pictures, again and again, so many in all."""

    def __init__(self, paths: Path, count: int) -> None:
        super().__init__(paths)
        self.pictures, self.count = super().__len__(), count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> data.Stored:
        return super().__getitem__(index % self.pictures)


def stages(source: data.ClickMe, transform: Transform) -> dict[str, Callable[[], object]]:
    """What a reader does with all records, each part with what the parts before it make of them."""
    numbers, fields = range(len(source)), (None, transform)
    stored = [source[i] for i in numbers]
    pictures = [Image.fromarray(data.picture(image, np.uint8)) for image, _, _ in stored]
    parts: dict[str, Callable[[int], object]] = {
        "read and decode": lambda i: source[i],
        "resize to 224": lambda i: data.picture(stored[i][0], np.uint8),
        "Pillow's bicubic resize": lambda i: transform.pixels(pictures[i]),
        "human maps": lambda i: data.human_maps(stored[i][1], fields),
    }
    return {name: partial(each, part, numbers) for name, part in parts.items()}


def each(part: Callable[[int], object], numbers: Iterable[int]) -> None:
    for i in numbers:
        part(i)


def least(candidates: dict[str, Callable[[], object]], rounds: int) -> dict[str, tuple[float, float]]:
    """Wall and CPU seconds of one call of each, the least of either in some turns, after one to fill the caches."""
    times: dict[str, tuple[float, float]] = {}
    for turn in range(rounds + 1):
        for name, call in candidates.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            spent = time.perf_counter() - wall, time.process_time() - cpu
            times[name] = spent if turn < 2 else (min(times[name][0], spent[0]), min(times[name][1], spent[1]))
    return times


if __name__ == "__main__":
    main()
