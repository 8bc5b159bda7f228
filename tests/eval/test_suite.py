"""Suites: what is wrong with one is said at once, what is done is skipped, and the numbers are those of each alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import requests
import tiny

from dcls_jax.eval import cli, clickme, demo
from dcls_jax.eval.suite import Plan, SuiteError, load, parse, run
from dcls_jax.eval.suite.spec import SHIPPED

SUITE = """
title: Two small models
batch_size: 8
models:
  - {sample: convnext}
  - {sample: convnext_dcls, called: other}
methods: [grad_cam, threshold_grad_cam]
evaluations:
  - {metric: clickme, data: sample, first: 20}
  - {metric: accuracy, data: sample, first: 20, models: [other]}
  - {metric: faithfulness, data: sample, presets: [torch_cam_change], first: 4}
"""


@pytest.fixture(autouse=True)
def tiny_models(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """In place of the sample's; the names of those that were built."""
    built: list[str] = []

    def build(model: run.Model) -> tiny.Tiny:
        built.append(model.called)
        return tiny.Tiny(len(model.called))

    monkeypatch.setattr(run, "build", build)
    return built


def folders(out: Path) -> set[str]:
    return {path.name.rsplit("-", 2)[0] for path in out.iterdir()}


@pytest.mark.slow
def test_all_cells_are_run_once(tmp_path: Path, tiny_models: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(parse(SUITE, "two.yaml", tmp_path), tmp_path / "out")
    results = plan.run(progress=False)
    assert len(results) == len(plan.cells) == 4 + 1 + 4
    assert sorted(tiny_models) == ["convnext", "other"]
    assert folders(tmp_path / "out") == {
        *(f"{metric}-{model}-{method}" for metric in ("clickme", "faithfulness") for model in ("convnext", "other")
          for method in ("grad_cam", "threshold_grad_cam")),
        "accuracy-other",
    }  # fmt: skip
    alone = clickme.evaluate(tiny.Tiny(5), demo.SAMPLE, protocol="aligned", batch_size=8, progress=False)  # type: ignore[arg-type]
    (found,) = (
        result
        for stored in results
        for result in stored.results
        if (result.name, result.labels) == ("other", {"method": "grad_cam", "protocol": "aligned"})
    )
    np.testing.assert_allclose(found.scores["spearman"], alone.per_image[:20], atol=1e-6)
    monkeypatch.setattr(run, "run_all", lambda *_: pytest.fail("what is done was run again"))
    again = Plan(parse(SUITE, "two.yaml", tmp_path), tmp_path / "out").run()
    assert [stored.folder for stored in again] == [stored.folder for stored in results]


@pytest.mark.slow
def test_what_is_added_is_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = SUITE.replace(", threshold_grad_cam", "")
    before = Plan(parse(few, "few.yaml", tmp_path), tmp_path).run(progress=False)
    jobs, real = [], run.run_all
    monkeypatch.setattr(run, "run_all", lambda of, source: (jobs.extend(of), real(of, source)))
    after = Plan(parse(SUITE, "two.yaml", tmp_path), tmp_path).run(progress=False)
    assert {job.metric.labels.get("method") for job in jobs} == {"threshold_grad_cam"}
    assert {stored.folder for stored in before} < {stored.folder for stored in after}


@pytest.mark.slow
def test_a_pass_that_was_stopped_goes_on_with_all_of_its_programs(tmp_path: Path) -> None:
    """Some of a pass are complete, and others lack a part: the bits are those of an undisturbed run."""
    plan = Plan(parse(SUITE, "two.yaml", tmp_path), tmp_path)
    folder = plan.run(progress=False)[0].folder
    files = {path: path.read_bytes() for path in sorted(tmp_path.glob("*/part-*.npz"))}
    for name in ("part-000001.npz", "summary.json"):
        (folder / name).unlink()
    Plan(parse(SUITE, "two.yaml", tmp_path), tmp_path).run(progress=False)
    assert {path: path.read_bytes() for path in sorted(tmp_path.glob("*/part-*.npz"))} == files


@pytest.mark.slow
def test_side_by_side_models_give_what_each_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an accelerator, where one pass is of all models."""
    suite = parse(SUITE, "two.yaml", tmp_path)
    apart = Plan(suite, tmp_path / "apart").run(progress=False)
    plan = Plan(suite, tmp_path / "together")
    monkeypatch.setattr(run.jax, "default_backend", lambda: "gpu")
    assert [len(folders) for _, folders in plan.passes()] == [4, 1, 4]
    together = plan.run(progress=False)
    for one, other in zip(apart, together, strict=True):
        for here, there in zip(one.results, other.results, strict=True):
            assert here.labels == there.labels
            for name, values in here.scores.items():
                np.testing.assert_allclose(values, there.scores[name], atol=1e-6)


def test_every_problem_is_named_with_its_line(tmp_path: Path) -> None:
    text = """
title: wrong
models:
  - convnext_tinny
  - {model: resnet50, weights: nowhere.pth}
  - {model: resnet50, dcls: maybe, colour: red}
  - {sample: convnext}
methods: [grad_cam, grad_cm]
batch_size: 0
evaluations:
  - {metric: clickme, data: {clickme: nowhere/val-*.tfrecords}}
  - {metric: localisation, data: sample, presets: [torchray_voc]}
  - metric: localisation
    data: {pictures: .}
  - {metric: accuracy, data: {classes: nowhere}, methods: [grad_cam], first: -1}
  - {metric: sanity, data: sample, order: sideways}
  - {metric: beauty, data: sample}
  - {metric: label_randomisation, data: sample}
"""
    located = run.METRICS["localisation"].data
    with pytest.raises(SuiteError) as error:
        parse(text, "wrong.yaml", tmp_path)
    said = str(error.value).splitlines()
    for line, problem in (
        (4, "model 'convnext_tinny' is not known; did you mean convnext_tiny?"),
        (5, f"weights '{tmp_path / 'nowhere.pth'}' are not there"),
        (6, "dcls (='maybe') must be true or false"),
        (6, "key 'colour' is not known; expected one of model, dcls, weights, num_classes, called"),
        (8, "method 'grad_cm' is not known; did you mean grad_cam?"),
        (9, "batch_size (=0) must be a whole number above 0"),
        (11, f"no record files at {tmp_path / 'nowhere/val-*.tfrecords'}"),
        (12, "preset of localisation 'torchray_voc' is not known; expected one of pointing, iba, masks, wsol"),
        (14, f"localisation cannot be measured on pictures; on {', '.join(located)} it can"),
        (15, f"'{tmp_path / 'nowhere'}' is not there"),
        (15, "accuracy is not of maps, and has no methods"),
        (15, "first (=-1) must be a whole number above 0"),
        (16, "order 'sideways' is not known; expected one of cascading, independent"),
        (17, "metric 'beauty' is not known; expected one of " + ", ".join(run.METRICS)),
        (18, "only the sample's convnext was trained on shuffled labels too; name it in models"),
    ):  # fmt: skip
        assert f"  line {line}: {problem}" in said
    assert said[0] == f"wrong.yaml has {len(said) - 1} problems:"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "bad.yaml holds no mapping"),
        ("- a\n- b", "bad.yaml holds no mapping"),
        ("title: x\nmodels: [a", r"bad.yaml is no YAML: line 2: "),
        ("title: x\ntitle: y", r"bad.yaml is no YAML: line 1: title stands there twice"),
        ("\x00", "bad.yaml is no YAML: "),
        ("!!python/object/apply:os.getcwd []", "bad.yaml is no YAML: line 1: could not determine a constructor"),
        ("title: x", r"has 2 problems:\n  line 1: evaluations must be a list of at least one"),
        ("models: &m [*m]\nevaluations: [1]", r"line 1: a model is \[\[\.\.\.\]\]|unhashable|line 1: found"),
    ],
)
def test_what_is_no_suite_is_said_in_a_line(text: str, message: str) -> None:
    with pytest.raises(SuiteError, match=message):
        parse(text, "bad.yaml", Path())


def test_suites_that_come_with_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    missing = {"study": "no record files at clickme/val-*.tfrecords", "localisation": "'imagenet/val' is not there"}
    for name in SHIPPED:
        if name in missing:
            with pytest.raises(SuiteError) as error:
                load(name)
            assert missing[name] in str(error.value)
        else:
            assert load(name).evaluations
    with pytest.raises(FileNotFoundError, match=r"no suite 'nowhere\.yaml': neither a file nor one of study, "):
        load("nowhere.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"title: \xff")
    with pytest.raises(SuiteError, match=r"latin\.yaml is no YAML"):
        load("latin.yaml")


def test_the_command_plans_runs_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "two.yaml"
    path.write_text(SUITE)

    def said(*options: str) -> str:
        monkeypatch.setattr("sys.argv", ["dcls-jax", "suite", str(path), "--out", str(tmp_path / "out"), *options])
        with pytest.raises(SystemExit, match="0"):
            cli.main()
        return capsys.readouterr().out

    planned = said("--plan")
    assert "Two small models: 0 of 9 evaluations are done" in planned
    assert "  left: clickme | other | grad_cam | published, aligned" in planned
    assert not (tmp_path / "out").exists()
    first, second = said(), said()
    assert "Two small models: 9 of 9 evaluations are done" in second
    assert first.split("\n", 1)[1] == second.split("\n", 1)[1]


def test_weights_are_known_by_their_bytes(tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    path.write_bytes(b"one")
    model = run.Model("resnet50", "mine", weights=str(path))
    first = run.weights_hash(model, download=False)
    path.write_bytes(b"two")
    assert run.weights_hash(model, download=False) != first
    assert run.weights_hash(replace(model, weights="published"), download=False) == ""


def test_the_study_names_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dcls_jax.eval.suite import study

    monkeypatch.setenv("DCLS_JAX_CACHE", str(tmp_path))
    needs = study.needs()
    assert len(needs) == 16 + 17
    assert len({need.path for need in needs}) == 33
    assert not any(need.there for need in needs)
    assert {need.name for need in needs[:16]} == {
        f"{name}{dcls}"
        for name in ("resnet50", "convnext_tiny", "convnext_small", "convnext_base", "caformer_s18", "convformer_s18",
                     "fastvit_sa24", "fastvit_sa36")
        for dcls in ("", "_dcls")
    }  # fmt: skip
    needs[0].path.parent.mkdir(exist_ok=True)
    needs[0].path.write_bytes(b"123")
    assert (study.needs()[0].there, study.needs()[0].bytes) == (True, 3)

    def refuse(*_: object, **__: object) -> None:
        raise requests.ConnectionError("no network")

    monkeypatch.setattr(requests, "head", refuse)
    assert study.ask_sizes(needs) == needs
    assert load("demo").title == study.suite(sample=True).title
