"""What README and docs say: links that lead somewhere, commands with the options they have, code that runs."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from PIL import Image
from typer.main import get_command

import dcls_jax.models
from dcls_jax.eval.commands import app
from tests.conftest import slow

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    *sorted(f"docs/{p.name}" for p in ROOT.glob("docs/*.md")),
]


def text(page: str) -> str:
    return (ROOT / page).read_text()


def blocks(page: str) -> list[str]:
    """The page's Python."""
    return re.findall(r"```python\n(.*?)```", text(page), re.DOTALL)


def commands(page: str) -> Iterator[str]:
    whole_lines = re.sub(r"\\\n\s*", "", text(page))  # a backslash at its end continues a line
    for line in re.findall(r"^    (?:\.venv/bin/)?dcls-jax (.*)", whole_lines, re.MULTILINE):
        yield line.split("   #")[0]
    yield from (line for line in re.findall(r"`dcls-jax ([^`]*)`", text(page)) if "..." not in line)


def anchors(page: str) -> set[str]:
    titles = re.findall(r"^#+ (.*)", text(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_titles(page: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)\s]*)\)", text(page)):
        file, _, title = target.partition("#")
        path = (ROOT / page).parent / file if file else ROOT / page
        assert path.exists(), target
        if title:
            assert title in anchors(str(path.resolve().relative_to(ROOT))), target


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_their_options_exist(page: str) -> None:
    for line in commands(page):
        command: Any = get_command(app)
        words = shlex.split(line)
        while hasattr(command, "commands") and words:
            assert words[0] in command.commands, line
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        assert {word for word in words if word.startswith("-")} <= known, line


def test_commands_are_found() -> None:
    assert "eval sanity imagenet/val --model convnext_tiny --dcls" in [line.strip() for line in commands("README.md")]
    assert len(list(commands("README.md"))) >= 7


TRAINING = [slow("docs/training.md", 0), ("docs/training.md", 1), ("docs/training.md", 2)]


@pytest.mark.parametrize(
    ("page", "number"),
    [slow("README.md", 0), ("README.md", 2), slow("docs/methods.md", 0), slow("docs/models.md", 0), *TRAINING],
)
def test_code_runs(page: str, number: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As a reader would run it, but with random weights in place of a download."""
    create = dcls_jax.models.create_model

    def with_random_weights(name: str, weights: str = "published", **options: Any) -> nnx.Module:
        assert weights == "published"
        return create(name, rngs=nnx.Rngs(0), **{key: value for key, value in options.items() if key != "new_head"})

    monkeypatch.setattr(dcls_jax.models, "create_model", with_random_weights)
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((300, 260), 80).save("photo.jpg")
    names: dict[str, Any] = {"images": jax.random.normal(jax.random.key(0), (1, 224, 224, 3))}
    exec(blocks(page)[number], names)
    if "maps" in names:
        assert names["maps"].shape == (1, 7, 7)
        assert Path("maps.pdf").stat().st_size > 1000
    if "encoder" in names:
        assert names["encoder"](names["images"]).shape == (1, 768)
        assert names["stages"]["stages.0"].shape == (1, 56, 56, 96)
    if "step" in names:
        params, key = names["params"], jax.random.key(0)
        batch = names["images"][:, :32, :32].repeat(2, 0), jnp.array([0, 9])
        params, _, average, loss = names["step"](params, names["optimise"].init(params), params, *batch, key)
        assert jnp.isfinite(loss)
        assert jax.tree.structure(average) == jax.tree.structure(params)
    if "same" in names:
        x = names["images"][:, :40, :40]
        assert list(names["replaced"](names["dcls"])) == ["blocks.0", "blocks.1", "blocks.2"]
        assert names["dcls"](x).shape == (1, 10, 10, 8)
        assert jnp.allclose(names["same"](x), names["model"](x), atol=1e-4)
    if "fast" in names:
        x = names["images"][..., :1].repeat(96, -1)[:, :20, :20]
        assert jnp.allclose(names["fast"](x), names["layer"](x), atol=1e-4)
