"""Two folders of results side by side, and the command."""

import io
from pathlib import Path

import numpy as np
import pages
import pytest
from rich.console import Console

from dcls_jax.eval.cli import run
from dcls_jax.eval.commands import app
from dcls_jax.eval.report.collection import collect
from dcls_jax.eval.report.moved import moves
from dcls_jax.eval.report.tables import print_moves


def write(folder: Path, scores: np.ndarray, **options: object) -> Path:
    return pages.write(folder / "run", "small", {"aligned": {"spearman": scores}}, **options)  # type: ignore[arg-type]


def moved(a: Path, b: Path) -> list[tuple[str, str, bool, int]]:
    found = moves(collect([a]), collect([b]), resamples=500)
    return [(it.value, it.how, it.moved, it.n) for it in found.values]


def test_what_moved_beyond_its_interval_is_told_from_what_did_not(tmp_path: Path) -> None:
    scores = pages.scores(0)
    write(tmp_path / "a", scores)
    write(tmp_path / "noisy", scores + np.tile([0.1, -0.1], 20), constant=[3])
    write(tmp_path / "higher", scores + 0.01 + np.tile([0.01, -0.01], 20).astype(np.float32))
    write(tmp_path / "rounded", scores + np.float32(2e-6))
    for other, expected, count in (
        ("a", False, 40),
        ("noisy", False, 39),
        ("higher", True, 40),
        ("rounded", False, 40),
    ):
        both = [(value, "paired", expected, count) for value in ("alignment", "mean_spearman")]
        assert moved(tmp_path / "a", tmp_path / other) == both, other


def test_other_records_are_not_paired(tmp_path: Path) -> None:
    write(tmp_path / "a", pages.scores(0))
    write(tmp_path / "b", pages.scores(1), data="others")
    write(tmp_path / "c", pages.scores(2, shift=1), data="others")
    assert {(how, it) for _, how, it, _ in moved(tmp_path / "a", tmp_path / "b")} == {("not paired", False)}
    assert {(how, it) for _, how, it, _ in moved(tmp_path / "a", tmp_path / "c")} == {("not paired", True)}


def test_what_moved_is_printed_and_what_one_alone_has(tmp_path: Path) -> None:
    write(tmp_path / "a", pages.scores(0))
    write(tmp_path / "b", pages.scores(0, shift=0.25))
    pages.write(tmp_path / "b" / "other", "large[red]", {"aligned": {"spearman": pages.scores(0)}})
    console = Console(file=io.StringIO(), width=150)
    print_moves(moves(collect([tmp_path / "a"]), collect([tmp_path / "b"]), resamples=200), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.startswith("2 of 2 values that both have moved, 0 did not\n")
    assert "+0.2500" in text
    assert "in one alone" in text
    assert "ClickMe human alignment, large[red], method grad_cam, protocol aligned" in text


def command(*arguments: object) -> int:
    """The exit code of `dcls-jax report`."""
    with pytest.raises(SystemExit) as stopped:
        run(lambda: app(["report", *map(str, arguments)], prog_name="dcls-jax"))
    return int(stopped.value.code or 0)


def test_the_command_writes_the_page_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pages.pair(tmp_path / "in")
    page = tmp_path / "new" / "study.html"
    assert command(tmp_path / "in", "-o", page, "--resamples", 200) == 0
    assert capsys.readouterr().out.split() == [
        str(page),
        str(page.with_suffix(".csv")),
        str(page.parent / "results.json"),
    ]
    assert "<code>dcls-jax" in page.read_text()
    assert command("--compare", tmp_path / "in", tmp_path / "in") == 0
    assert capsys.readouterr().out.startswith("0 of 4 values that both have moved, 4 did not")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected either RESULTS or --compare A B"),
        (("nowhere",), "nowhere is no folder"),
        (("nowhere", "-o", "page.pdf"), "out (='page.pdf') must end in .html"),
        (("--compare", "nowhere", "elsewhere"), "nowhere is no folder"),
    ],
)
def test_wrong_use_is_one_line(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(*arguments) == 1
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not [*tmp_path.iterdir()]
