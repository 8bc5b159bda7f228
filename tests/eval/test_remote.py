"""Data and results at URLs: fsspec's memory file system, and a local S3 server where s3fs and moto are installed."""

import json
import logging
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny
from test_cli import run

from dcls_jax.eval import clickme, leases
from dcls_jax.eval.data.records import RecordError, Records, find_shards
from dcls_jax.eval.report.files import write_report
from dcls_jax.eval.results import ResultsError, ResultsFolder, check_writable, load
from dcls_jax.eval.suite import Plan, finish, parse
from dcls_jax.eval.suite import load as load_suite
from dcls_jax.eval.suite import run as cells
from dcls_jax.files import as_path, create, read_bytes, write_bytes
from dcls_jax.models import create_model, load_model, load_weights, save_model, save_weights
from tests.conftest import random_model

upath = pytest.importorskip("upath", reason="needs the remote extra", exc_type=ImportError)
# botocore and moto, which warn of what is not ours
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    pytest.importorskip("s3fs", reason="needs the remote extra", exc_type=ImportError)
    moto = pytest.importorskip("moto.server", reason="needs moto[server]", exc_type=ImportError)
    logging.getLogger("werkzeug").disabled = True
    running = moto.ThreadedMotoServer(port=0)
    running.start()
    yield "http://{}:{}".format(*running.get_host_and_port())
    running.stop()


@pytest.fixture(params=["memory", pytest.param("s3", marks=pytest.mark.parity)])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The URL of an empty folder."""
    import fsspec

    if request.param == "memory":
        return f"memory://bucket/{tmp_path.name}"
    url = request.getfixturevalue("server")
    for key, value in {"ACCESS_KEY_ID": "any", "SECRET_ACCESS_KEY": "any", "ENDPOINT_URL": url}.items():
        monkeypatch.setenv(f"AWS_{key}", value)
    s3 = fsspec.filesystem("s3")
    if not s3.exists("bucket"):
        s3.mkdir("bucket")
    return f"s3://bucket/{tmp_path.name}"


def put(folder: Path, store: str) -> str:
    """A copy of a folder of files, by its URL."""
    for file in folder.rglob("*"):
        if file.is_file():
            write_bytes(as_path(f"{store}/{folder.name}/{file.relative_to(folder).as_posix()}"), file.read_bytes())
    return f"{store}/{folder.name}"


def test_a_file_is_there_once_and_whole(store: str) -> None:
    path = as_path(f"{store}/deep/a file")
    create(path, b"one")
    with pytest.raises(FileExistsError):
        create(path, b"two")
    assert path.read_bytes() == b"one"
    write_bytes(path, b"three")
    assert path.read_bytes() == b"three"
    check_writable(as_path(f"{store}/deep"))
    assert [found.name for found in as_path(f"{store}/deep").iterdir()] == ["a file"]


def test_a_file_that_is_written_anew_is_read_as_one_of_them(store: str) -> None:
    """S3 tells a reader that asks twice, for its size and for its content, that the first is gone."""
    path, contents, over = as_path(f"{store}/lock"), {b"one", b"the other"}, threading.Event()
    write_bytes(path, b"one")

    def rewrite() -> None:
        while not over.is_set():
            for content in contents:
                write_bytes(path, content)

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        assert {read_bytes(path) for _ in range(100)} <= contents
    finally:
        over.set()
        writer.join()
    with pytest.raises(FileNotFoundError):
        read_bytes(as_path(f"{store}/nothing"))


def test_records_are_read_by_ranges(store: str, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = put(shards, store)
    here, there = Records(shards), Records(url)
    assert [path.name for path in find_shards(f"{url}/val-*.tfrecords")] == ["val-2.tfrecords", "val-10.tfrecords"]
    assert there.place(15) == (as_path(f"{url}/val-10.tfrecords"), 0)
    asked, files = [], as_path(url).fs
    cat = files.cat_file
    monkeypatch.setattr(files, "cat_file", lambda *a, **k: asked.append((k["start"], k["end"])) or cat(*a, **k))
    assert [there[i] for i in (3, 16)] == [here[i] for i in (3, 16)]
    assert asked == [here.shards[0].extent(3), here.shards[1].extent(1)]
    with pytest.raises(FileNotFoundError, match=r"no record files at .*/nowhere/\*\.tfrecords"):
        find_shards(f"{store}/nowhere")
    write_bytes(as_path(f"{url}/val-2.tfrecords"), (shards / "val-2.tfrecords").read_bytes()[:-3])
    with pytest.raises(RecordError, match=rf"{url}/val-2\.tfrecords, record 14: the file ends inside the record"):
        Records(url)


def test_a_run_that_was_stopped_goes_on_where_it_is_kept(store: str, shards: Path, tmp_path: Path) -> None:
    data, options = put(shards, store), {"batch_size": 8, "progress": False}
    here = clickme.evaluate(tiny.Tiny(), shards, out=tmp_path / "run", **options)  # type: ignore[arg-type]
    there = clickme.evaluate(tiny.Tiny(), data, out=f"{store}/run", **options)  # type: ignore[arg-type]
    for name in ("part-000001.npz", "summary.json"):
        as_path(f"{store}/run/{name}").unlink()
    again = clickme.evaluate(tiny.Tiny(), data, out=f"{store}/run", **options)  # type: ignore[arg-type]
    for result in (there, again):
        np.testing.assert_array_equal(result.per_image, here.per_image)
    for part in (tmp_path / "run").glob("part-*.npz"):
        assert as_path(f"{store}/run/{part.name}").read_bytes() == part.read_bytes()
    assert load(f"{store}/run")["place"][3] == f"{data}/val-2.tfrecords, record 3"
    page, *_ = write_report([store], f"{store}/report.html", resamples=100)
    assert "alignment" in page.read_text(encoding="utf-8")


def test_a_folder_is_held_by_one_run_that_lives(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEWED", 0.1)
    monkeypatch.setattr(leases, "LAPSES", 30.0)  # long beside what a busy machine takes
    with ResultsFolder(store, {"a": 1}), pytest.raises(ResultsError, match=r"is in use by process \d+ on .* since"):
        ResultsFolder(store, {"a": 1})
    start = time.monotonic()
    with ResultsFolder(store, {"a": 1}) as folder:
        assert time.monotonic() - start < leases.LAPSES  # it was let go of
        assert [lock.name for lock in folder.path.glob("lock-*")] == ["lock-000002"]
    monkeypatch.setattr(leases, "LAPSES", 1.0)
    write_bytes(folder.path / "lock-000002", b"process 1 on another\n7")  # which died
    start = time.monotonic()
    ResultsFolder(store, {"a": 1}).close()
    assert time.monotonic() - start >= 1


def test_of_two_that_find_a_dead_run_one_holds_the_folder(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both saw that nobody lives there; the second is too late for the number that both want."""
    monkeypatch.setattr(leases, "RENEWED", 0.1)
    first: list[object] = []
    real = leases.create

    def late(path: Path, content: bytes) -> None:
        if not first:
            first.append(None)
            first.append(leases.hold(as_path(store)))
        real(path, content)

    monkeypatch.setattr(leases, "create", late)
    with pytest.raises(OSError, match="is in use by process"):
        leases.hold(as_path(store))
    first[1]()  # type: ignore[operator]


def test_checkpoints_and_suites_have_urls(store: str, tmp_path: Path, shards: Path) -> None:
    options = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8), "num_classes": 4}
    model = random_model(lambda: create_model("convnext_tiny", **options))  # type: ignore[arg-type]
    save_weights(model, tmp_path / "weights")
    url = put(tmp_path / "weights", store)
    loaded = create_model("convnext_tiny", weights=url, **options)  # type: ignore[arg-type]
    np.testing.assert_array_equal(loaded.fc.kernel[...], model.fc.kernel[...])  # type: ignore[union-attr]
    with pytest.raises(FileNotFoundError, match=f"no checkpoint at {store}/none.pth"):
        load_weights(model, f"{store}/none.pth")
    save_model(model, "convnext_tiny", tmp_path / "weights")
    write_bytes(as_path(f"{url}.json"), (tmp_path / "weights.json").read_bytes())  # a description beside it
    described = load_model(url)
    np.testing.assert_array_equal(described.fc.kernel[...], model.fc.kernel[...])  # type: ignore[union-attr]
    data = put(shards, store)
    suite = f"""
models: [{{model: convnext_tiny, weights: weights}}]
methods: [grad_cam]
evaluations:
  - {{metric: clickme, data: {{clickme: {shards.name}/val-*.tfrecords}}}}
  - {{metric: clickme, data: {{clickme: {data}}}}}
"""
    write_bytes(as_path(f"{store}/suite.yaml"), suite.encode())
    found = load_suite(f"{store}/suite.yaml")
    assert found.models[0].weights == url
    assert [it.data.pictures for it in found.evaluations] == [f"{data}/val-*.tfrecords", data]


def test_the_command_takes_urls(
    store: str, shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dcls_jax.models.create_model", lambda *_, **__: tiny.Tiny())
    command = ["eval", "clickme", put(shards, store), "-m", "convnext_tiny", "--batch-size", 8, "--out", f"{store}/out"]
    assert run(monkeypatch, *command) == 0
    folder = f"{store}/out/clickme-convnext_tiny-grad_cam-both"
    assert f"results: {folder}" in capsys.readouterr().out
    assert (
        json.loads(as_path(f"{folder}/summary.json").read_text(encoding="utf-8"))["results"]["aligned"]["counted"] == 19
    )
    assert run(monkeypatch, "report", f"{store}/out", "--out", f"{store}/page.html", "--resamples", 100) == 0
    assert as_path(f"{store}/page.html").exists()


@pytest.mark.slow
def test_a_suite_is_kept_with_its_report(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "build", lambda model: tiny.Tiny())
    text = """
batch_size: 8
models: [{sample: convnext}]
methods: [grad_cam]
evaluations: [{metric: clickme, data: sample, first: 8}]
"""
    results, page = finish.run(Plan(parse(text, "s.yaml", Path()), as_path(store)))
    assert len(results) == 1
    assert "gallery" in {path.name for path in as_path(store).iterdir()}
    assert page.stat().st_size > 10_000
    monkeypatch.setattr(cells, "run_all", lambda *_: pytest.fail("what is done was run again"))
    assert len(Plan(parse(text, "s.yaml", Path()), as_path(store)).run()) == 1


def test_what_is_missing_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"nothing://a is no URL that fsspec knows"):
        as_path("nothing://a")
    monkeypatch.setitem(sys.modules, "upath", None)
    assert run(monkeypatch, "eval", "clickme", "gs://bucket/val", "-m", "convnext_tiny", "-w", "gs://bucket/x") == 1
    said = capsys.readouterr().err
    assert said.startswith("error: gs://bucket/x needs an extra: pip install 'dcls_jax[remote]'")
    assert said.count("\n") == 1
