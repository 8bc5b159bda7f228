"""Grids of pictures, as files."""

import gc
import weakref
from io import BytesIO

import matplotlib
import numpy as np
import pytest
from matplotlib.backends import backend_agg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from dcls_jax.cam import Bar, Grid, grids, save_grid


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("shape", [(16, 16, 3), (224, 224, 3), (60, 90, 3), (451, 333, 3)])
@pytest.mark.parametrize("titles", [(), ("first", "second")])
def test_every_pixel_of_a_picture_is_a_square_in_the_grid(shape, titles):
    height, width, _ = shape
    bar = Bar(noise(256, 16, 3), {0: "0", 1: "1"}, "label")
    grid = Grid([[noise(*shape)] * 3] * 2, ["a", "b", "c"], titles, bar=bar)
    drawn = np.asarray(Image.open(BytesIO(grid.png())).convert("RGB"))
    scale = -(-grids.SHARP // max(shape))
    assert scale * max(shape) >= 400
    part = np.kron(noise(*shape), np.ones((scale, scale, 1), np.uint8))
    windows = np.lib.stride_tricks.sliding_window_view(drawn[..., 0], (1, 8 * scale))
    starts = np.argwhere((windows[:, :, 0] == part[0, : 8 * scale, 0]).all(-1))
    found = [
        (top, left)
        for top, left in starts
        if (drawn[top : top + scale * height, left : left + scale * width] == part[: len(drawn) - top]).all()
    ]
    corners = {(int(top), int(left)) for top, left in found}
    assert len({top for top, _ in corners}) == 2
    assert len({left for _, left in corners}) == 3


def test_pixels_are_those_of_the_vectors_without_their_axes(monkeypatch):
    bar = Bar(noise(256, 16, 3), {0: "0", 1: "1"}, "label")
    grid = Grid([[noise(60, 90, 3)] * 2] * 2, ["a", "b"], ["1", "2"], [["note", ""]] * 2, bar)
    canvas = grids._drawn(grid)
    vectors = backend_agg.FigureCanvasAgg(canvas.vectors())
    vectors.draw()
    monkeypatch.setattr(Figure, "add_axes", lambda *_: pytest.fail("axes take their time, for each picture"))
    pixels, drawn = np.asarray(Image.open(BytesIO(grid.png()))), np.asarray(vectors.buffer_rgba())[..., :3]
    equal = (pixels == drawn).all(-1)
    if matplotlib.__version_info__ < (3, 11):  # where a square of a picture may begin a pixel later
        equal |= (pixels == np.roll(drawn, -1, 1)).all(-1)
    beside = canvas.panels[-1].x  # the bar, whose steps may begin a pixel later
    assert equal[:, :beside].all()


def test_pixels_go_with_the_page(picture, monkeypatch):
    made = []

    class Renderer(backend_agg.RendererAgg):
        def __init__(self, *size):
            super().__init__(*size)
            made.append(weakref.ref(self))

    monkeypatch.setattr(backend_agg, "RendererAgg", Renderer)
    gc.disable()
    try:
        Grid([[picture]], ["title"]).png()
        assert [renderer() for renderer in made] == [None]
    finally:
        gc.enable()


def test_grid_is_a_picture_and_leaves_nothing_beside_it(tmp_path, picture):
    save_grid(tmp_path / "grid.png", [[picture, picture]] * 3, column_titles=["a", "b"], row_titles=["1", "2", "3"])
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size[1] > 1200
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]


def test_a_notebook_shows_a_grid_by_itself(picture):
    assert Grid([[picture]], ["a"])._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("suffix", "start"),
    [
        (".png", b"\x89PNG"),
        (".PNG", b"\x89PNG"),
        (".pdf", b"%PDF"),
        (".svg", b"<?xml"),
        (".jpg", b"\xff\xd8\xff"),
        (".jpeg", b"\xff\xd8\xff"),
    ],
)
def test_the_suffix_says_the_format(tmp_path, picture, suffix, start):
    path = tmp_path / f"maps{suffix}"
    Grid([[picture]], ["a"]).save(path)
    assert path.read_bytes().startswith(start)
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_letters_that_the_font_lacks_are_no_news(tmp_path, picture, kind):
    Grid([[picture]], ["写真"], ["写真"]).save(tmp_path / f"maps.{kind}")


@pytest.mark.parametrize("name", ["maps.gif", "maps", "maps.png.txt"])
def test_other_suffixes_are_refused(tmp_path, picture, name):
    with pytest.raises(ValueError, match=rf"path \(='.*{name}'\) must end in one of .png, .pdf, .svg, .jpg, .jpeg"):
        Grid([[picture]], ["a"]).save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_pictures_of_every_kind_and_size_share_a_grid(picture):
    grid = Grid([[picture, picture / 255, picture[..., 0], picture[:8, :4]]], ["a", "b", "c", "d"])
    assert grid.png().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": []}, r"rows hold \[\] pictures, expected a row at least"),
        ({"rows": [[0, 0], [0]]}, r"rows hold \[2, 1\] pictures"),
        ({"row_titles": ["1", "2"]}, "row_titles are 2, expected none or one for each of 1 rows"),
        ({"notes": [["only one"]]}, r"notes are \[1\] in a row, expected 2 in each of 1"),
        ({"rows": [[np.zeros((2, 2), np.uint8), np.full((2, 2), 9.0)]]}, r"rows\[0\]\[1\] has floats from 9 to 9"),
    ],
)
def test_what_does_not_fit_is_refused(picture, arguments, message):
    with pytest.raises(ValueError, match=message):
        Grid(**{"rows": [[picture, picture]], "column_titles": ["a", "b"]} | arguments)


def texts(grid):
    return [text["s"] for text in grids._drawn(grid).texts if text["s"]]


@pytest.mark.slow
def test_titles_of_any_letters_keep_to_their_places(picture):
    names = ["$x^2", "a$b$c_{", "tab\there\x00\x1b[31m", "surrogate \udcff", "i" * 300, "W" * 300, "name " * 30_000]
    grid = Grid([[picture] * 7] * 7, names, [f"{name}\ntabby: 83.1%" for name in names], [["W" * 90] * 7] * 7)
    figure = grids._drawn(grid).vectors()
    figure.savefig(BytesIO(), format="png")
    boxes = [text.get_window_extent() for text in figure.findobj(Text) if text.get_text()]
    assert len(boxes) == 7 + 7 + 49
    width, height = figure.bbox.size
    assert all(0 <= box.x0 <= box.x1 <= width and 0 <= box.y0 <= box.y1 <= height for box in boxes)
    for i, box in enumerate(boxes):
        assert box.count_overlaps(boxes[i + 1 :]) == 0


def test_long_titles_keep_their_ends(picture):
    (title,) = texts(Grid([[picture]], ["a_photograph_of_the_garden_taken_in_the_morning_0042.jpg"]))
    start, end = title.split("…")
    assert start.startswith("a_photo")
    assert end.endswith("0042.jpg")


def test_a_bar_rises_beside_the_panels(picture):
    strip = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, 1)[:, None].repeat(16, 1)
    canvas = grids._drawn(Grid([[picture]], ["a"], bar=Bar(strip, {0: "none", 1: "all"}, "of it")))
    panel, bar = canvas.panels
    assert (bar.y, bar.height) == (panel.y, panel.height)
    assert 0 < bar.x - panel.x - panel.width < 0.1 * panel.width
    assert bar.picture[0, 0, 0] == 255  # the upper end
    heights = {text["s"]: text["y"] for text in canvas.texts}
    assert heights["none"] < heights["of it"] < heights["all"]
