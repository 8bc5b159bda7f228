"""A GPU or TPU measured in one command of eight minutes: is it right there, and how fast?

    python benchmarks/accelerator.py [--out results/accelerator] [--budget 470] [--sections facts,lowerings,...]
    python benchmarks/accelerator.py --small        # everything once, on tiny sizes, on any machine
    python benchmarks/accelerator.py --tables results/accelerator
    python benchmarks/accelerator.py --fastest results/accelerator    # the order of lowerings into fastest.json
    python benchmarks/accelerator.py --references   # after a change of the models' numbers, on a CPU

`maps`: every model's Grad-CAM beside float64 on a CPU, which comes with the benchmark. `lowerings`: depthwise
convolution, exact and timed, beside torch and the memory floor. `cam`: Grad-CAM of every model in three arithmetics.
`steps`: those of ClickMe, of deletion and insertion, and of training. `torch`: Grad-CAM in PyTorch, where that is
installed, of as many models as there is time for. Each section is a process with a deadline, its measurements lines of
OUT/measurements.jsonl as they are made: what a section leaves of its time is the next one's, and what there was no
time for is said.
"""

import argparse
import importlib
import math
import os
import subprocess
import sys
import time
from pathlib import Path

SECTIONS = {"facts": 6, "maps": 12, "lowerings": 26, "cam": 26, "steps": 13, "torch": 17}  # shares of the time
LINES, TABLES = "measurements.jsonl", "tables.md"
GRACE = 8  # seconds after its deadline a section is ended


def run_section(name: str, deadline: float, out: Path, small: bool) -> str:
    """In a process of its own, which may hang; how it ended."""
    command = [sys.executable, __file__, "--section", name, "--deadline", str(deadline), "--out", str(out)]
    with (out / "log.txt").open("ab") as log:
        process = subprocess.Popen([*command, *(["--small"] if small else [])], stdout=log, stderr=log)
        try:
            return f"exit {process.wait(max(1.0, deadline + GRACE - time.time()))}"
        except subprocess.TimeoutExpired:
            return "ended at its deadline"
        finally:
            process.kill()
            process.wait()


def run_all(names: list[str], budget: float, out: Path, small: bool) -> None:
    from on_device.log import Log, lines
    from on_device.tables import tables

    out.mkdir(parents=True, exist_ok=True)
    start, shares = time.time(), 0
    log = Log(out / LINES, "all", start + budget)
    for name in names:
        shares += SECTIONS[name]
        begun = time.time()
        deadline = start + (budget - GRACE) * shares / sum(SECTIONS[it] for it in names)
        end = run_section(name, deadline, out, small)
        log.write("section", name=name, seconds=time.time() - begun, end=end)
        (out / TABLES).write_text(tables(lines(out / LINES)))
    print((out / TABLES).read_text())


def write_fastest(out: Path) -> None:
    """This platform's part of dcls_jax/fastest.json, by forward time."""
    import fastest
    from on_device.log import lines
    from on_device.lowerings import KEPT

    from dcls_jax.methods import LOWERINGS

    found = [line for line in lines(out / LINES) if "error" not in line]
    platform = next(line["lowers_for"] for line in found if line["case"] == "device")
    rows = []
    for line in found:
        if line["case"] == "depthwise" and not line["gradient"]:
            times = {name: us for name, us in line["us"].items() if name in LOWERINGS}
            row = {name: line[name] for name in ("dtype", "stride", "size", "kernel")}
            row |= {"order": sorted(times, key=times.__getitem__)}
            # Not in float32, where matrix units may take fewer bits than the other lowerings do.
            if line["dtype"] == "bfloat16" and line["us"].get(KEPT, math.inf) < min(times.values()):
                row |= {KEPT: line["channels"]}
            rows.append(row)
    fastest.write(platform, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/accelerator"))
    parser.add_argument("--budget", type=float, default=470, help="seconds")
    parser.add_argument("--sections", default=",".join(SECTIONS))
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--tables", type=Path)
    parser.add_argument("--fastest", type=Path)
    parser.add_argument("--references", action="store_true")
    parser.add_argument("--section", help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.sections.split(",")
    if wrong := set(names) - SECTIONS.keys():
        parser.error(f"--sections: there is no {', '.join(sorted(wrong))}, but {', '.join(SECTIONS)}")
    if options.references:
        os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1", "DCLS_JAX_DEPTHWISE": "shifts"}
        importlib.import_module("on_device.weights").make_references()
    elif options.tables:
        from on_device.log import lines
        from on_device.tables import tables

        print(tables(lines(options.tables / LINES)))
    elif options.fastest:
        write_fastest(options.fastest)
    elif options.section:
        from on_device.log import Log

        log = Log(options.out / LINES, options.section, options.deadline)
        with log.attempt("section"):
            importlib.import_module(f"on_device.{options.section}").run(log, options.small)
        sys.stdout.flush()
        os._exit(0)  # without waiting for programs that are still being compiled
    else:
        run_all(names, options.budget, options.out.absolute(), options.small)


if __name__ == "__main__":
    main()
