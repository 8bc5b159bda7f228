"""What the evaluation's runner sustains beside an accelerator: everything is real but the step, which only takes time.

    python benchmarks/pipeline.py [--rates 100,200,0] [--hosts 1] [--devices 8] [--images 2048] [--batch 64]

ClickMe's pictures are read, prepared and sent to fake devices by so many processes of one job, which keep their results
in one folder; where a step would run, the devices are busy for as long as one of that rate takes, in images a second of
the whole job. Rate 0 takes no time: the pipeline alone. Steady rates: without the first batch, and without start-up.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RUN = "\nran "  # before what a process found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", default="100,200,0")
    parser.add_argument("--hosts", type=int, default=1)
    parser.add_argument("--devices", type=int, default=8, help="of the whole job")
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=64, help="of a host")
    parser.add_argument("--host", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.host is not None:
        print(RUN, *be_a_host(options))
        return
    print(f"{options.hosts} processes, {options.devices} devices, batch {options.batch}; {os.cpu_count()} CPU cores\n")
    print("| step, images/s | together | share of the step's rate | CPU time of an image | per core |")
    print("|---|---|---|---|---|")
    for rate in map(float, options.rates.split(",")):
        with tempfile.TemporaryDirectory() as out:
            found = in_processes(options, rate, out)
        together = sum(images for images, _, _ in found) / max(seconds for _, seconds, _ in found)
        cpu = sum(cpu for _, _, cpu in found) / sum(images for images, _, _ in found)
        said, share = (f"{rate:.0f}", f"{together / rate:.0%}") if rate else ("takes no time", "")
        print(
            f"| {said} | {together:.0f} images/s | {share} | {1e3 * cpu:.1f} ms | {1 / cpu:.0f} images/s |", flush=True
        )


def in_processes(options: argparse.Namespace, rate: float, out: str) -> list[tuple[float, float, float]]:
    """Of each process: images, seconds and CPU seconds."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    shared = f"--rates {rate} --hosts {options.hosts} --images {options.images} --batch {options.batch}".split()
    shared += ["--address", address, "--out", out]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(options.devices // options.hosts)}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, *shared, "--host", str(host)], env=environment, stdout=subprocess.PIPE, text=True
        )
        for host in range(options.hosts)
    ]
    printed = [process.communicate()[0] for process in processes]
    return [tuple(map(float, text[text.rindex(RUN) + len(RUN) :].split())) for text in printed]  # type: ignore[misc]


def be_a_host(options: argparse.Namespace) -> tuple[float, float, float]:
    import jax

    if options.hosts > 1:
        jax.distributed.initialize(options.address, options.hosts, options.host)

    from clickme import Repeated

    from dcls_jax.eval import Settings, clickme
    from dcls_jax.eval.demo import SAMPLE
    from dcls_jax.eval.jobs import Job, program_of, reader_of
    from dcls_jax.eval.program import Program, Rows
    from dcls_jax.eval.results import Arrays, ResultsFolder
    from dcls_jax.eval.runner import run_together
    from dcls_jax.models import create_model

    class Paced(Program):
        """Its devices are busy for as long as a step of that rate takes."""

        free = 0.0
        ends: list[tuple[float, float]]  # of batches: time, CPU time

        def compile(self) -> None:
            self.ends = []

        def run(self, batch: Any) -> Any:
            jax.block_until_ready(jax.device_put(batch, self._sharding))
            rate = float(options.rates) / options.hosts
            self.free = max(self.free, time.perf_counter()) + (self.batch_size / rate if rate else 0)
            zeros = jax.tree.map(lambda like: jax.numpy.zeros(like.shape, like.dtype), self._lowered.out_info)
            return self.free, zeros

        def finish(self, rows: Rows, outputs: Any) -> list[Arrays]:
            until, zeros = outputs
            time.sleep(max(0.0, until - time.perf_counter()))
            self.ends.append((time.perf_counter(), time.process_time()))
            return super().finish(rows, zeros)

    model = create_model("convnext_tiny", depths=(1,), dims=(8,))
    metric = clickme.metric(model, clickme.PROTOCOLS, method="grad_cam", transform=model.transform)
    settings = Settings(batch_size=options.batch)
    program = program_of([Job(metric, model, settings)], settings)
    program.__class__ = Paced
    source = Repeated(SAMPLE, options.images)
    with ResultsFolder(Path(options.out), {}) as folder:
        run_together([program], reader_of([metric], source, skip_bad=False), len(source), [[folder]], progress=False)
    (start, cpu_start), (end, cpu_end) = program.ends[0], program.ends[-1]
    return options.batch * (len(program.ends) - 1), end - start, cpu_end - cpu_start


if __name__ == "__main__":
    main()
