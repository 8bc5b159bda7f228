"""Several metrics and models in one pass: the numbers of each alone, every record read once, programs shared."""

import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tiny

from dcls_jax.eval import ResultsError, Settings, clickme, faithfulness
from dcls_jax.eval.data.clickme import ClickMe, Stored
from dcls_jax.eval.jobs import Job, program_of, run, run_all, same_function
from dcls_jax.eval.localisation import evaluation as localisation
from dcls_jax.eval.metric import Metric, Result
from dcls_jax.eval.program import compile_all

METHODS = "grad_cam", "threshold_grad_cam"


class Counting(ClickMe):
    """How often each record was read."""

    def __init__(self, paths: Path) -> None:
        super().__init__(paths)
        self.reads = Counter[int]()

    def __getitem__(self, index: int) -> Stored:
        self.reads[index] += 1
        return super().__getitem__(index)


def metric(model: tiny.Tiny, method: str) -> Metric[Stored, clickme.Record]:
    return clickme.metric(model, clickme.PROTOCOLS, method=method, transform=model.transform)  # type: ignore[arg-type]


def jobs(models: list[tiny.Tiny], out: Path | None = None, **options: int) -> list[Job]:
    def settings(seed: int, method: str) -> Settings:
        folder = None if out is None else out / f"{seed}-{method}"
        return Settings(**{"batch_size": 8, "out": folder, "progress": False, "name": str(seed)} | options)  # type: ignore[arg-type]

    return [
        Job(metric(model, method), model, settings(seed, method))  # type: ignore[arg-type]
        for seed, model in enumerate(models)
        for method in METHODS
    ]


def check_equal(found: list[tuple[Result, ...]], expected: list[tuple[Result, ...]]) -> None:
    for one, other in zip(found, expected, strict=True):
        for here, there in zip(one, other, strict=True):
            assert (here.name, here.labels, here.left_out) == (there.name, there.labels, there.left_out)
            np.testing.assert_allclose(here.scores["spearman"], there.scores["spearman"], atol=1e-6)
            np.testing.assert_array_equal(here.classes, there.classes)


def test_together_they_are_what_each_is_alone(shards: Path, tmp_path: Path) -> None:
    models, source = [tiny.Tiny(0), tiny.Tiny(1)], Counting(shards)
    together = run_all(jobs(models, tmp_path), source)
    assert set(source.reads.values()) == {1}
    alone = [run(job.metric, job.model, ClickMe(shards), job.settings) for job in jobs(models)]
    check_equal(together, alone)
    assert not np.allclose(alone[0][0].scores["spearman"], alone[2][0].scores["spearman"], atol=0.1)


@pytest.mark.slow
def test_a_task_that_lacks_a_batch_alone_is_completed_to_the_bit(shards: Path, tmp_path: Path) -> None:
    models, folder = [tiny.Tiny(0), tiny.Tiny(1)], tmp_path / "1-grad_cam"
    expected = run_all(jobs(models, tmp_path), ClickMe(shards))
    part, others = folder / "part-000001.npz", sorted(tmp_path.glob("*/part-*.npz"))
    before = {path: path.read_bytes() for path in others}
    times = {path: path.stat().st_mtime_ns for path in others if path != part}
    part.unlink()
    (folder / "summary.json").unlink()
    source = Counting(shards)
    check_equal(run_all(jobs(models, tmp_path), source), expected)
    assert sorted(source.reads) == list(range(8, 16))
    assert {path: path.read_bytes() for path in others} == before
    assert {path: path.stat().st_mtime_ns for path in others if path != part} == times


def test_methods_of_a_model_share_its_features() -> None:
    model = tiny.Tiny()

    def cost(methods: tuple[str, ...]) -> float:
        settings = Settings(batch_size=8)
        program = program_of([Job(metric(model, method), model, settings) for method in methods], settings)  # type: ignore[arg-type]
        return float(program._compiled.cost_analysis()["flops"])

    once, twice = cost(METHODS[:1]), cost(METHODS)
    ranks = cost(("grad_cam", "grad_cam"))
    assert ranks == once  # all of it is shared
    assert once < twice


def test_methods_of_every_metric_are_one_program() -> None:
    """By how they prepare samples, though each has a function of its own for that."""
    model = tiny.Tiny()
    of_pictures = [faithfulness.metric(model.transform, method=method, presets=("rise", "adcc")) for method in METHODS]
    located = [
        localisation.metric(model, model.transform, method=method, presets=("iba",))  # type: ignore[arg-type]
        for method in METHODS
    ]
    for metrics in ([metric(model, method) for method in METHODS], of_pictures, located):
        assert len({same_function(it.prepare) for it in metrics}) == 1
    assert same_function(of_pictures[0].prepare) != same_function(located[0].prepare)


def test_jobs_that_cannot_share_a_pass_are_refused(shards: Path) -> None:
    one, other = jobs([tiny.Tiny()])[0], jobs([tiny.Tiny()], batch_size=16)[0]
    with pytest.raises(ValueError, match=r"batch_size is .* in jobs that run together, expected the same"):
        run_all([one, other], ClickMe(shards))


def test_two_jobs_do_not_share_a_folder(shards: Path, tmp_path: Path) -> None:
    one, other = jobs([tiny.Tiny()], tmp_path)
    with pytest.raises(ResultsError, match="in use by process"):
        run_all([one, other._replace(settings=one.settings)], ClickMe(shards))


@pytest.mark.parametrize(("backend", "at_once"), [("cpu", 2), ("gpu", 1)])
def test_programs_compile_side_by_side_but_one_after_another_on_a_gpu(
    backend: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two searches for the fastest kernels on one GPU wait for one another until a time limit."""
    started, most = list[int](), list[int]()

    class Compiling:
        def compile(self) -> None:
            started.append(1)
            time.sleep(0.1)
            most.append(len(started))
            started.pop()

    monkeypatch.setattr("jax.default_backend", lambda: backend)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    compile_all([Compiling(), Compiling()])  # type: ignore[list-item]
    assert (len(most), max(most)) == (2, at_once)
