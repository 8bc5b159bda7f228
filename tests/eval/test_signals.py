"""What stops a command: Ctrl-C and SIGTERM, at any moment of it, in one line."""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import dcls_jax.eval.demo
import dcls_jax.models
from dcls_jax.eval import cli

STOPPED_AT = """
import os, sys

module, number = sys.argv[1], int(sys.argv[2])
del sys.argv[1:3]

class Stop:
    def find_spec(name, *_):
        if name == module:
            os.kill(os.getpid(), number)

sys.meta_path.insert(0, Stop)
from dcls_jax.eval.cli import main
main()
"""
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
GOES_ON = "stopped; the same command goes on from here\n"


@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
@pytest.mark.parametrize(
    ("module", "command", "says"),
    [
        ("rich", ["convert", __file__, "there", "--model", "convnext_tiny"], "stopped\n"),
        ("jax", ["eval", "clickme", "x", "--model", "convnext_tiny"], GOES_ON),
        ("jax", ["finetune", "x", "--data", "y"], GOES_ON),
    ],
)
def test_a_command_is_stopped_while_it_starts(module: str, command: list[str], says: str, number: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STOPPED_AT, module, str(int(number)), *command], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (CODES[signal.Signals(number)], "", says)


def test_the_converter_is_stopped_before_jax_is_there() -> None:
    program = STOPPED_AT.replace(
        "from dcls_jax.eval.cli import main", "import runpy\nmain = lambda: runpy.run_path(FILE)"
    )
    script = os.path.join(os.path.dirname(os.path.realpath(cli.__file__)), "..", "convert_weights.py")
    program = program.replace("run_path(FILE)", f"run_path({script!r}, run_name='__main__')")
    done = subprocess.run(
        [sys.executable, "-c", program, "jax", "15", "a", "b", "-m", "c"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (143, "stopped\n")


@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["demo"], GOES_ON),
        (["eval", "clickme", "x", "--model", "convnext_tiny"], GOES_ON),
        (["cam", __file__, "--model", "convnext_tiny"], "stopped\n"),
        (["convert", __file__, "y", "--model", "convnext_tiny"], "stopped\n"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_a_command_is_stopped_at_work(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    command: list[str],
    says: str,
    number: int,
) -> None:
    closed = []

    def work(*_: object, **__: object) -> None:
        try:
            os.kill(os.getpid(), number)
        finally:
            logging.getLogger("asyncio").error("Task was destroyed but it is pending!")
            closed.append("what was open")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dcls_jax.models, "create_model", work)
    monkeypatch.setattr(dcls_jax.eval.demo, "run", work)
    monkeypatch.setattr(sys, "argv", ["dcls-jax", *command])
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == CODES[signal.Signals(number)]
    assert closed == ["what was open"]
    assert capfd.readouterr().err == says


def test_a_signal_that_python_loses_ends_the_command_all_the_same() -> None:
    program = """
import os, signal, sys
from dcls_jax.eval import cli

class Lost:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        pass

def command():
    cli.at_work()
    Lost()
    print("went on")

sys.argv = ["dcls-jax", "demo"]
cli.run(command)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", GOES_ON)


def test_what_is_printed_cannot_move_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"a\x1b[2J\xff[/red]$b\r")
    cli.say(f"error: {name}\n  and 2 more", "31")
    assert capsys.readouterr().err == "error: a\\x1b[2J\\udcff[/red]$b\\r\n  and 2 more\n"
