"""What sections share: a line for each measurement, a deadline, and programs that are compiled in time."""

import json
import math
import os
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from dcls_jax import compiler_options
from dcls_jax.memory import peak


@dataclass(frozen=True)
class Log:
    """The measurements of a section, a JSON line each, on disk as soon as they are made."""

    path: Path
    section: str
    deadline: float  # time.time()

    def write(self, case: str, **fields: Any) -> None:
        line = json.dumps({"section": self.section, "case": case, **fields})
        with self.path.open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def left(self) -> float:
        return self.deadline - time.time()

    @contextmanager
    def attempt(self, case: str, **fields: Any) -> Iterator[None]:
        """An error becomes a line, and the section goes on."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.write(case, **fields, error=f"{type(error).__name__}: {error}"[:300])


def untuned() -> dict[str, Any]:
    """Compiler options for what is to be right, not fast: on a GPU most of the compiler's time is a search."""
    return {"xla_gpu_autotune_level": 0} if jax.default_backend() == "gpu" else {}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@dataclass
class Program:
    """A function of arrays on its way through the compiler; fields tell it in the log."""

    fields: Mapping[str, Any]
    lowered: Any
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]
    compiled: Any = None
    seconds: float = math.nan
    error: str = field(default="not compiled in time")

    @classmethod
    def of(
        cls, fields: Mapping[str, Any], function: Callable[..., Any], *arguments: Any, options: Mapping[str, Any] = {}
    ) -> "Program":
        """options: of the compiler, besides those that the library asks for."""
        return cls(fields, jax.jit(function).lower(*arguments), arguments, {**compiler_options(), **options})

    def compile(self) -> None:
        start = time.perf_counter()
        try:
            self.compiled = self.lowered.compile(compiler_options=dict(self.options))
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"[:300]
        self.seconds = time.perf_counter() - start

    def __call__(self) -> Any:
        return self.compiled(*self.arguments)

    @property
    def gibibytes(self) -> float | None:
        """What it holds at most, where the compiler says so."""
        held = peak(self.compiled)
        return None if held is None else held / 2**30


def compiled(log: Log, programs: Iterable[Program], *, spare: float = 5) -> list[Program]:
    """Those that are compiled `spare` seconds before the deadline, what comes first is there first; others are told.

    A few at a time, the next being traced meanwhile; on a GPU one after another, since there XLA times kernels against
    each other, and what else runs there waits for it, or it for that. A thread that compiles at the deadline ends
    with the section's process.
    """
    alone = jax.default_backend() == "gpu"
    threads = ThreadPoolExecutor(1 if alone else max(2, (os.cpu_count() or 1) // 4))
    all_of_them, futures = [], []

    def waited() -> None:
        wait(futures, timeout=max(0.0, log.left() - spare))

    for program in programs:
        if log.left() < spare:
            break
        all_of_them.append(program)
        futures.append(threads.submit(program.compile))
        if alone:
            waited()
    waited()
    threads.shutdown(wait=False, cancel_futures=True)
    for program in all_of_them:
        if program.compiled is None:
            log.write("left out", **program.fields, error=program.error)
    return [program for program in all_of_them if program.compiled is not None]


def seconds(
    call: Callable[[], Any],
    *,
    turn: float = 0.05,
    rounds: int = 4,
    wait_for: Callable[[Any], Any] = jax.block_until_ready,
) -> float:
    """Of one call, the least of some rounds of calls, queued for about `turn` seconds and waited for together."""
    wait_for(call())
    start = time.perf_counter()
    wait_for(call())
    once = time.perf_counter() - start
    calls = max(1, min(400, int(turn / max(once, 1e-6))))
    least = once
    for _ in range(1 if once > 1 else rounds):
        start = time.perf_counter()
        for _ in range(calls):
            last = call()
        wait_for(last)
        least = min(least, (time.perf_counter() - start) / calls)
    return least
