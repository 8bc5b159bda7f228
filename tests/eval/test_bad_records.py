"""Records that are no records: named, counted, and never a hang, a flood of memory or a traceback."""

import gzip
import os
import re
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny

import dcls_jax.models
from dcls_jax.eval import cli, clickme, program
from dcls_jax.eval.data.clickme import ClickMe
from dcls_jax.eval.data.records import RecordError, Records, write_records
from dcls_jax.eval.jobs import reader_of
from dcls_jax.eval.status import Status


def claiming(width: int, height: int) -> bytes:
    """A JPEG of 8 x 8 pixels whose header claims others."""
    content = tiny.jpeg(np.zeros((8, 8), np.uint8))
    size = content.index(b"\xff\xc0") + 5
    return content[:size] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + content[size + 4 :]


TOO_LARGE = "not a ClickMe example (its {} claims {} x {} pixels, expected 16777216 at most)"
BAD = [
    (tiny.example(0, label=10), "label 10, but the model has classes 0 to 9"),
    (tiny.example(0, label=-1), "label -1, but the model has classes 0 to 9"),
    (tiny.example(0, label=2**40), "label 1099511627776, but the model has classes 0 to 9"),
    (tiny.example(0, label=None), "not a ClickMe example (it has no label)"),
    (tiny.example(0, heatmap=None), "not a ClickMe example (it has no heatmap)"),
    (tiny.example(0, image=b"GIF89a"), "not a ClickMe example"),
    (b"", "not a ClickMe example (it has no label)"),
    (tiny.example(0, image=claiming(65500, 65500)), TOO_LARGE.format("image", 65500, 65500)),
    (tiny.example(0, heatmap=claiming(4096, 4097)), TOO_LARGE.format("heatmap", 4096, 4097)),
]


def reader(path: Path, *, skip_bad: bool) -> Callable[[int], object]:
    model = tiny.Tiny()
    metric = clickme.metric(model, clickme.PROTOCOLS, method="grad_cam", transform=model.transform)  # type: ignore[arg-type]
    read = reader_of([metric], ClickMe(path), skip_bad=skip_bad)
    return lambda index: read(index)[0]


@pytest.mark.parametrize(("record", "message"), BAD, ids=[message for _, message in BAD])
def test_a_bad_record_is_named_or_left_out(tmp_path: Path, record: bytes, message: str) -> None:
    path = tmp_path / "val-0.tfrecords"
    write_records(path, [tiny.example(0), record])
    strict, lenient = reader(path, skip_bad=False), reader(path, skip_bad=True)
    tracemalloc.start()
    with pytest.raises(RecordError, match=rf"val-0\.tfrecords, record 1: {re.escape(message)}"):
        strict(1)
    assert lenient(1) is Status.UNREADABLE
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


def test_what_is_wrong_with_each_is_said(tmp_path: Path) -> None:
    write_records(tmp_path / "val-0.tfrecords", [tiny.example(0), *[record for record, _ in BAD], tiny.example(1)])
    result = tiny.evaluate(tmp_path, skip_bad=True, batch_size=8)
    assert (result.images, result.skipped) == (2, 0)
    for line, (number, (_, message)) in zip(result.bad_records, enumerate(BAD, 1), strict=True):
        assert line.startswith(f"{tmp_path}/val-0.tfrecords, record {number}: {message}")


def test_a_label_beyond_the_model_ends_the_command_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_records(tmp_path / "val-0.tfrecords", [tiny.example(i, label=2**40) for i in range(3)])
    monkeypatch.setattr(dcls_jax.models, "create_model", lambda *_, **__: tiny.Tiny())
    options = ["--model", "convnext_tiny", "--batch-size", "8", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["dcls-jax", "eval", "clickme", str(tmp_path), *options])
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    line = capsys.readouterr().err
    assert line == (
        f"error: {tmp_path}/val-0.tfrecords, record 0: label 1099511627776, but the model has classes 0 to 9\n"
    )


def test_many_bad_records_take_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch without records is not padded, and not computed; what is said of it is cut."""
    write_records(tmp_path / "val-0.tfrecords", [b""] * 1000)
    monkeypatch.setattr(program, "padded", lambda *_: pytest.fail("a batch without records was made"))
    start = time.process_time()
    result = tiny.evaluate(tmp_path, skip_bad=True, out=tmp_path / "out")
    assert time.process_time() - start < 5  # and 20 with the pictures in their place
    assert (result.images, result.skipped, len(result.bad_records)) == (0, 0, 1000)
    assert np.isnan(result.per_image).all()


@pytest.mark.parametrize(("compress", "name"), [(gzip.compress, "gzip"), (zlib.compress, "zlib")])
def test_a_compressed_file_is_said_to_be(tmp_path: Path, compress: object, name: str) -> None:
    path = tmp_path / "val-0.tfrecords"
    write_records(path, [tiny.example(0)])
    path.write_bytes(compress(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(RecordError, match=rf"val-0\.tfrecords, record 0: the file is compressed by {name}"):
        Records(path)


@pytest.mark.parametrize("of", ["the file", "a glob", "its folder"])
def test_a_pipe_is_refused_at_once(tmp_path: Path, of: str) -> None:
    pipe = tmp_path / "val-0.tfrecords"
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match=r"val-0\.tfrecords is not a regular file"):
        Records({"the file": pipe, "a glob": tmp_path / "val-*", "its folder": tmp_path}[of])


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "val-0.tfrecords").mkdir()
    with pytest.raises(ValueError, match=r"val-0\.tfrecords is not a regular file"):
        Records(tmp_path)


def test_a_file_cut_short_after_it_was_indexed_is_named(tmp_path: Path) -> None:
    path = tmp_path / "val-0.tfrecords"
    write_records(path, [b"first", b"second"])
    records = Records(path)
    path.write_bytes(path.read_bytes()[:25])
    with pytest.raises(RecordError, match=r"val-0\.tfrecords, record 1: the file ends inside the record's header"):
        records[1]


def test_files_without_a_single_record_are_named(tmp_path: Path) -> None:
    for i in range(12):
        (tmp_path / f"val-{i}.tfrecords").write_bytes(b"no record")
    with pytest.raises(RecordError) as error:
        tiny.evaluate(tmp_path, skip_bad=True, out=tmp_path / "out")
    first, *named = str(error.value).splitlines()
    assert first == "there are no records to evaluate"
    assert named[0].endswith("val-0.tfrecords, record 0: the file ends inside the record's header")
    assert (len(named), named[-1]) == (11, "  and 2 more")
    assert not (tmp_path / "out").exists()
