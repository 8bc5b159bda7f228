"""`dcls-jax train` and `finetune`, as a stranger meets them, on drawn pictures and with a checkpoint of the sample."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image, ImageDraw

from dcls_jax import DclsConfig
from dcls_jax.eval import cli, training
from dcls_jax.eval.data.learning import data_of
from dcls_jax.eval.demo import SAMPLE
from dcls_jax.eval.starts import for_fine_tuning, shortened
from dcls_jax.models import CheckpointError, Transform, create_model, load_model, save_model
from dcls_jax.models.described import described
from dcls_jax.training import recipe
from dcls_jax.training.log import read
from tests.conftest import long, random_model

START = SAMPLE / "convnext_dcls"
FINE = ["--epochs", 2, "--batch-size", 8, "--set", "size=32", "--set", "rand_augment=''", "--set", "erasing=0"]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Exit code of `dcls-jax` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["dcls-jax", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def draw(folder: Path, count: int, classes: tuple[str, ...] = ("circle", "square")) -> Path:
    """So many pictures of each class, of a shape in a colour on another."""
    rng = np.random.default_rng(len(folder.name))
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            back, front = (tuple(map(int, rng.integers(*bounds, 3))) for bounds in ((0, 90), (160, 255)))
            picture = Image.new("RGB", (48, 40), back)
            x, y, side = (int(number) for number in rng.integers((4, 4, 14), (20, 16, 22)))
            shape = ImageDraw.Draw(picture).ellipse if name == "circle" else ImageDraw.Draw(picture).rectangle
            shape((x, y, x + side, y + side), fill=front)
            picture.save(folder / name / f"{i:02}.png")
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that is compiled in seconds."""
    folder = tmp_path_factory.mktemp("tiny") / "weights"
    config = {"depths": (1, 1), "dims": (4, 8), "dcls": DclsConfig(3, 5, "v1"), "num_classes": 10}
    save_model(random_model(lambda: create_model("convnext_tiny", **config)), "convnext_tiny", folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("pictures"), 10)


def arrays(model: nnx.Module) -> dict[str, np.ndarray]:
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {".".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in flat}


@pytest.mark.parametrize("begins", ["tiny", long("sample")])
def test_fine_tuning_keeps_the_body_and_says_that_the_head_is_new(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    pictures: Path,
    tiny: Path,
    begins: str,
) -> None:
    start = START if begins == "sample" else tiny
    command = ["finetune", start, "--data", pictures, *FINE, "--freeze", "body", "--out", tmp_path / "run"]
    assert run(monkeypatch, *command) == 0
    said = capsys.readouterr().out
    assert f"begins with {start}; the head is new, for 2 classes" in said
    assert "18 pictures to learn from, 2 to test with; 2 epochs of 2 steps" in said
    assert "accuracy " in said
    tuned, before = arrays(load_model(tmp_path / "run" / "weights")), arrays(load_model(start))
    assert tuned.keys() == before.keys()
    for name, array in tuned.items():
        if name.startswith("fc."):
            assert array.shape[-1] == 2
        else:
            np.testing.assert_array_equal(array, before[name], err_msg=name)
    assert json.loads((tmp_path / "run" / "weights.json").read_text())["classes"] == ["circle", "square"]
    assert described(tmp_path / "run" / "weights").config["transform"] == Transform(resize=37, crop=32)
    rows = read(tmp_path / "run" / "log.csv")
    assert [row["step"] for row in rows] == ["2", "4"]
    assert rows[-1]["top1"]

    # the same command has nothing left to do, and another one is refused
    assert run(monkeypatch, *command) == 0
    assert read(tmp_path / "run" / "log.csv") == rows
    assert run(monkeypatch, *command, "--learning-rate", "0.1") == 1
    error = capsys.readouterr().err
    assert "holds the results of another run" in error
    assert "recipe.learning_rate: 0.0005 there, 0.1 now" in error

    # and what came of it is evaluated as any checkpoint
    options = ["--model", "convnext_tiny", "--weights", tmp_path / "run" / "weights", "--out", tmp_path]
    assert run(monkeypatch, "eval", "accuracy", pictures, *options) == 0
    assert run(monkeypatch, "eval", "accuracy", pictures, *options[2:], "--model", "resnet50") == 1
    assert "model (='resnet50') is not what the description beside" in capsys.readouterr().err


@pytest.mark.long
def test_all_of_it_learns_with_positions_faster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pictures: Path
) -> None:
    """Layer-wise rates and the factor of positions: how far each has gone after one step of Adam, and no decay."""
    options = ["--set", "weight_decay=0", "--set", "warmup_epochs=0", "--set", "drop_path_rate=0", "--hold-out", 0]
    step = ["--epochs", 1, "--batch-size", 16, "--layer-decay", 0.5, "--learning-rate", 1e-3]
    command = ["finetune", START, "--data", pictures, *FINE, *options, *step, "--out", tmp_path / "run"]
    assert run(monkeypatch, *command) == 0
    tuned, before = arrays(load_model(tmp_path / "run" / "weights")), arrays(load_model(START))

    def moved(name: str) -> float:
        return float(np.median(np.abs(tuned[name] - before[name])))

    # layers: stem, five blocks with a layer that shrinks the image before three of them, head
    assert moved("stages.3.blocks.0.pwconv1.kernel") == pytest.approx(1e-3 / 2, rel=0.02)
    assert moved("stages.0.positions.P") == pytest.approx(5 * moved("stages.0.blocks.0.pwconv1.kernel"), rel=0.05)
    assert moved("stem.conv.kernel") == pytest.approx(1e-3 * 0.5**9, rel=0.05)
    assert not (tmp_path / "run" / "best").exists()


@pytest.mark.long
def test_a_recipe_is_trained_from_the_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, pictures: Path
) -> None:
    small = ["--set", "config={depths: [1, 1], dims: [4, 8]}", "--set", "size=32", "--set", "ema=0.5"]
    options = ["--epochs", 3, "--batch-size", 8, "--accumulate", 1, "--group-cam", 0.5, "--dtype", "bfloat16"]
    command = ["train", "convnext_dcls_tiny", "--data", pictures, *small, *options, "--out", tmp_path]
    assert run(monkeypatch, *command) == 0
    assert "3 epochs of 2 steps" in capsys.readouterr().out
    model = load_model(tmp_path / "weights")
    assert model.config.dcls == DclsConfig(34, 17, "v0")
    assert model.config.depths == (1, 1)
    assert all(array.dtype == np.float32 for array in arrays(model).values())
    assert float(read(tmp_path / "log.csv")[-1]["images_per_second"]) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "convnext_dcls_tinny"], "recipe (='convnext_dcls_tinny') must be one of convnext_dcls_tiny,"),
        (["train", "convnext_dcls_tiny"], "batch_size (=4096) must be at most the number of pictures, 18"),
        (["train", "convnext_dcls_tiny", "--set", "speed=3"], "recipes have no field 'speed'; their fields are model,"),
        (["train", "convnext_dcls_tiny", "--set", "ema"], "--set ema must be like --set FIELD=VALUE"),
        (
            ["train", "convnext_dcls_tiny", "--batch-size", "4"],
            "batch_size (=4) must be a multiple of accumulate (=1) x 8",
        ),
        (["train", "resnet50_dcls", "--data", "nowhere"], "no pictures of classes in nowhere; put a folder for each"),
        (["train", "resnet50_dcls", "--data", "imagenet2012"], "no imagenet2012 as array_record"),
        (["finetune", "no.pth", "--model", "convnext_tiny"], "no checkpoint at no.pth"),
        (
            ["finetune", "some.pth"],
            "nothing beside some.pth says what it is of; say so by --model, and --dcls if it has it",
        ),
        (["finetune", START, "--model", "resnet50"], "model (='resnet50') is not what the description beside"),
        (["finetune", START, "--keep-head"], "the data have 2 classes, expected the checkpoint's 10"),
        (["finetune", START, "--freeze", "stem", "--freeze", "tail"], "frozen: 'tail' matches none of"),
        (["finetune", START, "--batch-size", "24"], "batch_size (=24) must be at most the number of pictures, 18"),
        (["finetune", START, "--hold-out", "1.5"], "hold_out (=1.5) must be in [0, 1)"),
        (["finetune", START, "--tensorboard"], "tensorboardX is missing, by which curves are written"),
    ],
)
def test_errors_are_one_line_before_any_work(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    pictures: Path,
    arguments: list[object],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("some.pth").touch()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setattr(training, "batches", lambda *_, **__: pytest.fail("a picture was read"))
    small = ["--set", "size=32"] if "--set" not in arguments else []
    data = [] if "--data" in arguments else ["--data", pictures]
    batch = [] if "--batch-size" in arguments or arguments[0] == "train" else ["--batch-size", 8]
    assert run(monkeypatch, *arguments, *data, *small, *batch) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_disk_without_room_is_known_before_any_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, pictures: Path
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: os.terminal_size((0, 0)) and type("Usage", (), {"free": 10**6}))
    monkeypatch.setattr(training, "batches", lambda *_, **__: pytest.fail("a picture was read"))
    assert run(monkeypatch, "finetune", START, "--data", pictures, *FINE, "--out", tmp_path / "run") == 1
    error = capsys.readouterr().err
    assert "No space left on device" in error
    assert error.count("\n") == 1


def test_classes_of_train_and_val_must_be_the_same(tmp_path: Path) -> None:
    draw(tmp_path / "train", 3)
    assert data_of(str(tmp_path)).validation is None
    draw(tmp_path / "val", 2)
    data = data_of(str(tmp_path))
    assert (len(data.train), len(data.validation), data.classes) == (6, 4, ["circle", "square"])
    draw(tmp_path / "val", 1, ("star",))
    with pytest.raises(ValueError, match="has classes in one of train and val alone: star"):
        data_of(str(tmp_path))


def test_what_is_held_out(pictures: Path) -> None:
    data = data_of(str(pictures), hold_out=0.2)
    places = [data.validation.place(i) for i in range(len(data.validation))]
    assert [Path(place).name for place in places] == ["04.png", "09.png", "04.png", "09.png"]
    assert {data.train.place(i) for i in range(len(data.train))}.isdisjoint(places)
    assert len(data.train) == 16
    assert [sample.label for sample in (data.validation[i] for i in range(4))] == [0, 0, 1, 1]


def test_recipes_are_shortened_in_proportion() -> None:
    short = shortened(recipe("convnext_dcls_tiny"), 30)
    assert (short.epochs, short.warmup_epochs, short.repulsion_from) == (30, 2, 2)
    assert shortened(recipe("caformer_s18_dcls"), 60).cooldown_epochs == 2
    assert shortened(recipe("fastvit_sa24_dcls"), 1).warmup_epochs == 0


@pytest.mark.parametrize(("epochs", "warm"), [(1, 0), (2, 1), (20, 1)])
def test_fine_tuning_of_an_epoch_has_no_time_to_warm_up(epochs: int, warm: int) -> None:
    *_, chosen = for_fine_tuning(str(SAMPLE / "convnext"), 3, changes={"epochs": epochs})
    assert (chosen.epochs, chosen.warmup_epochs) == (epochs, warm)


def test_a_checkpoint_says_what_it_is_of(tmp_path: Path) -> None:
    config = {"dcls": DclsConfig(3, 5, "gauss"), "num_classes": 4, "depths": (1, 2), "dims": (4, 8)}
    shape = {**config, "transform": Transform(48, 40, mean=(0.5,) * 3)}
    model = random_model(lambda: create_model("convnext_tiny", **shape))
    save_model(model, "convnext_tiny", tmp_path / "own.v1", trained="by hand")
    loaded = load_model(tmp_path / "own.v1")
    assert loaded.config == model.config
    jax.tree.map(np.testing.assert_array_equal, nnx.state(loaded), nnx.state(model))
    assert load_model(tmp_path / "own.v1", num_classes=7, new_head=True).config.num_classes == 7
    (tmp_path / "own.v1.json").write_text('{"config": {}}')
    with pytest.raises(CheckpointError, match=r"own\.v1\.json does not describe a checkpoint \(KeyError: 'model'\)"):
        load_model(tmp_path / "own.v1")
    (tmp_path / "own.v1.json").unlink()
    with pytest.raises(CheckpointError, match=r"no .*own\.v1\.json, which would say what"):
        load_model(tmp_path / "own.v1")


@pytest.mark.long
@pytest.mark.as_for_users
def test_the_processes_of_a_job_train_together(tmp_path: Path, pictures: Path, tiny: Path) -> None:
    """As SLURM starts them: the job's variables are all that they are told."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = f"localhost:{free.getsockname()[1]}"
    command = [
        "finetune",
        tiny,
        "--data",
        pictures,
        *FINE,
        "--hold-out",
        "0.2",
        "--distributed",
        "--out",
        tmp_path / "run",
    ]
    program = [sys.executable, "-c", "from dcls_jax.eval.cli import main; main()", *map(str, command)]
    job = {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "JAX_COORDINATOR_ADDRESS": place,
    }
    with (tmp_path / "said").open("w+") as said:
        processes = [
            subprocess.Popen(
                program,
                env=os.environ
                | job
                | {"JAX_NUM_CPU_DEVICES": "1", "SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)},
                stdout=said,
                stderr=subprocess.STDOUT,
            )
            for number in range(2)
        ]
        codes = [process.wait(timeout=240) for process in processes]
        said.seek(0)
        text = said.read()
    assert codes == [0, 0], text
    assert text.count("the head is new, for 2 classes") == 1
    assert len(read(tmp_path / "run" / "log.csv")) == 2
    assert load_model(tmp_path / "run" / "best").config.num_classes == 2
