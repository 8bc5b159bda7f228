"""The command line, as a stranger meets it."""

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dcls_jax.models
from dcls_jax.eval import cli
from dcls_jax.models import create, create_model, save_weights
from tests.conftest import arrays_in, random_model


def run(monkeypatch, *arguments):
    """Exit code of `dcls-jax` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["dcls-jax", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code or 0


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["demo"],
        ["convert"],
        ["cam"],
        ["eval"],
        ["eval", "clickme"],
        ["eval", "accuracy"],
        ["eval", "sanity"],
        ["models"],
        ["train"],
        ["finetune"],
        ["positions"],
    ],
)
def test_help_explains_every_option(monkeypatch, capsys, command):
    assert run(monkeypatch, *command, "--help") == 0
    assert "Usage" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["convert"], ["cam"], ["eval", "clickme"], ["finetune"], ["positions"]])
def test_help_says_what_a_checkpoint_may_be(monkeypatch, capsys, command):
    monkeypatch.setenv("COLUMNS", "500")
    assert run(monkeypatch, *command, "--help") == 0
    said = capsys.readouterr().out
    for kind in (".pth, .pth.tar, .pt, .bin or .safetensors file", "model hub", "Orbax folder"):
        assert kind in said


def test_nonsense_ends_with_code_2(monkeypatch, capsys):
    assert run(monkeypatch, "explode") == 2
    assert "No such command" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "clickme", "nowhere-*.tfrecords", "--model", "convnext_tiny2"], "not a model"),
        (["eval", "clickme", "x", "--model", "convnext_tiny", "--weights", "no.pth"], "no checkpoint at no.pth"),
        (["convert", "no.pth", "out", "--model", "convnext_tiny"], "no checkpoint at no.pth"),
    ],
)
def test_errors_are_one_line_and_code_1(monkeypatch, capsys, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.fixture(scope="module", autouse=True)
def small():
    """ConvNeXt-T with one narrow block a stage, which compiles in a second: the command line is not about size."""
    with pytest.MonkeyPatch.context() as patch:
        family, variant = create.MODELS["convnext_tiny"]
        tiny = replace(variant, config=replace(variant.config, depths=(1, 1, 1, 1), dims=(8, 8, 8, 8)))
        patch.setitem(create.MODELS, "convnext_tiny", (family, tiny))
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    save_weights(random_model(lambda: create_model("convnext_tiny", num_classes=4)), folder)
    return folder


@pytest.fixture
def picture(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)).save(tmp_path / "noise.png")
    return tmp_path / "noise.png"


@pytest.fixture
def cam(monkeypatch, tmp_path, weights):
    """Exit code of `dcls-jax cam` with these arguments, and what it wrote."""

    def command(*arguments):
        options = ["--model", "convnext_tiny", "--weights", weights, "--num-classes", 4, "--out", tmp_path / "out"]
        code = run(monkeypatch, "cam", *arguments, *options)
        if code:
            return code, {}, {}
        manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
        return 0, manifest, arrays_in(tmp_path / "out" / "maps.npz")

    return command


def test_cam_writes_grid_maps_and_manifest(cam, tmp_path, picture):
    code, manifest, maps = cam(picture, picture, "--target", 2, "--layer", "stages.2")
    assert code == 0
    assert [entry["class"] for entry in manifest["pictures"]] == [2, 2]
    assert manifest["layers"] == ["stages.2"]
    assert manifest["weights"].endswith("tiny")
    assert maps["grad_cam"].shape == maps["threshold_grad_cam"].shape == (2, 14, 14)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "manifest.json",
        "maps.npz",
        "maps.png",
        "overlays",
    ]
    assert len(list((tmp_path / "out" / "overlays").iterdir())) == 4


@pytest.mark.slow
def test_cam_explains_the_most_probable_classes_at_several_layers(cam, picture):
    layers = ["--layer", "stages.1", "--layer", "stages.2"]
    code, manifest, maps = cam(picture, "--methods", "fem, eigen_cam", "--top-k", 3, *layers, "--style", "signed")
    assert code == 0
    probabilities = [entry["probability"] for entry in manifest["pictures"]]
    assert len({entry["class"] for entry in manifest["pictures"]}) == 3
    assert probabilities == sorted(probabilities, reverse=True)
    shapes = {name: maps[name].shape for name in maps}
    small, large = (3, 14, 14), (3, 28, 28)
    assert shapes == {
        "fem@stages.1": large,
        "fem@stages.2": small,
        "eigen_cam@stages.1": large,
        "eigen_cam@stages.2": small,
    }
    assert manifest["maps"] == {name: list(shape) for name, shape in shapes.items()}


@pytest.mark.slow
def test_cam_draws_methods_of_the_pixels(cam, picture):
    code, manifest, maps = cam(picture, "--methods", "grad_cam,guided_grad_cam,input_x_gradient", "--target", 1)
    assert code == 0
    assert [maps[name].shape for name in manifest["methods"]] == [(1, 7, 7), (1, 224, 224), (1, 224, 224)]
    assert maps["input_x_gradient"].any()


@pytest.mark.slow
def test_cam_combines_layers(cam, picture):
    layers = ["--layer", "stages.2", "--layer", "stages.3"]
    code, _, maps = cam(picture, "--methods", "grad_cam", *layers, "--combine", "product", "--style", "contour")
    assert code == 0
    assert {name: maps[name].shape for name in maps} == {"grad_cam@stages.2+stages.3": (1, 14, 14)}
    assert 0 <= maps["grad_cam@stages.2+stages.3"].min() <= maps["grad_cam@stages.2+stages.3"].max() <= 1


@pytest.mark.slow
def test_cam_smooths_by_principal_component(cam, picture):
    code, manifest, smooth = cam(picture, "--methods", "hires_cam,eigen_grad_cam", "--target", 1)
    assert (code, manifest["eigen_smooth"]) == (0, False)
    code, manifest, maps = cam(picture, "--methods", "hires_cam", "--target", 1, "--eigen-smooth")
    assert (code, manifest["eigen_smooth"]) == (0, True)
    np.testing.assert_allclose(maps["hires_cam"], smooth["eigen_grad_cam"], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--methods", "grad_cam,magic"], "methods hold 'magic', expected some of cam, grad_cam"),
        (
            ["--methods", "grad_cam,kpca_cam", "--eigen-smooth"],
            "methods hold 'kpca_cam', which have no eigen smoothing",
        ),
        (["--methods", ""], "methods hold ''"),
        (["--layer", "stages.9"], "the nearest are stages."),
        (["--target", "4"], "label 4, but the model has classes 0 to 3"),
        (["--target", "1", "--top-k", "2"], "target (=1) and top_k (=2) exclude each other"),
        (["--top-k", "5"], "top_k (=5) must be from 1 to the model's 4 classes"),
    ],
)
def test_cam_refuses_what_does_not_fit(cam, capsys, tmp_path, picture, wrong, message):
    assert cam(picture, *wrong)[0] == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_cam_draws_as_it_is_told(cam, tmp_path, picture):
    overlay = tmp_path / "out" / "overlays" / "noise-2-grad_cam.png"
    drawn = []
    for options in ([], ["--colormap", "jet"], ["--alpha", 0.2], ["--style", "signed", "--alpha", 0]):
        code, manifest, _ = cam(picture, "--methods", "grad_cam", "--target", 2, *options)
        assert code == 0
        drawn.append(np.asarray(Image.open(overlay)).astype(int))
    assert all((one != other).any() for one, other in itertools.combinations(drawn, 2))
    assert (manifest["style"], manifest["alpha"], manifest["colormap"]) == ("signed", 0, None)
    assert (drawn[-1] == drawn[-1][..., :1]).all()  # a picture in grey, and a map that is not to be seen


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--alpha", "1.5"], "alpha (=1.5) must be in [0, 1]"),
        (["--colormap", "jett"], "colormap (='jett') is not one of matplotlib's; the nearest are jet"),
        (["--style", "contour", "--colormap", "jet"], "colormap (='jet') is for the styles heatmap and signed"),
    ],
)
def test_cam_checks_how_to_draw_before_any_work(monkeypatch, capsys, cam, picture, wrong, message):
    monkeypatch.setattr(dcls_jax.models, "create_model", lambda *_, **__: pytest.fail("a model was made"))
    assert cam(picture, *wrong)[0] == 1
    assert message in capsys.readouterr().err


def test_an_unknown_method_is_named_before_a_model_is_made(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(dcls_jax.models, "create_model", lambda *_, **__: pytest.fail("a model was made"))
    options = ["--model", "convnext_tiny", "--method", "magic", "--out", tmp_path]
    assert run(monkeypatch, "eval", "clickme", "x", *options) == 1
    assert "method (='magic') must be one of cam, grad_cam, hires_cam" in capsys.readouterr().err


def test_cam_names_a_file_that_is_no_picture(cam, capsys, tmp_path, picture):
    (tmp_path / "text.png").write_text("no picture")
    assert cam(picture, tmp_path / "text.png")[0] == 1
    assert "text.png is not a picture" in capsys.readouterr().err


@pytest.mark.filterwarnings("default:weights that are not finite")
def test_a_warning_is_one_line(monkeypatch, capsys, tmp_path):
    model = random_model(lambda: create_model("convnext_tiny", num_classes=4))
    model.fc.bias.set_value(model.fc.bias[...] * np.nan)
    save_weights(model, tmp_path / "odd")
    arguments = [tmp_path / "odd", tmp_path / "out", "--model", "convnext_tiny", "--num-classes", 4]
    assert run(monkeypatch, "convert", *arguments) == 0
    assert capsys.readouterr().err == "warning: weights that are not finite or too large: fc.bias\n"


def test_converter_is_the_same_command(tmp_path):
    script = Path(cli.__file__).resolve().parents[1] / "convert_weights.py"
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True)
    assert "--swap-positions" in done.stdout
