"""From a picture to a model's input."""

import struct
from io import BytesIO

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from dcls_jax.models import Transform, preprocess
from dcls_jax.models.transform import upright
from tests.models.small import small


def test_preprocess_resizes_the_shorter_side_and_crops_the_centre():
    model = small("convnext_tiny")
    gradient = np.tile(np.arange(300, dtype=np.uint8)[None, :, None], (200, 1, 3))
    x = preprocess(Image.fromarray(gradient), model)
    assert x.shape == (1, 224, 224, 3)
    assert x.dtype == np.float32
    pixels = x[0] * np.array(model.transform.std) + np.array(model.transform.mean)
    centre = 255 * pixels[112, 111:113, 0].mean()
    assert centre == pytest.approx(gradient[0, 149:151, 0].mean(), abs=1.5)
    grey = preprocess([Image.new("L", (50, 80), 128)] * 2, model)
    np.testing.assert_allclose(
        grey[1, 0, 0], (128 / 255 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225], 1e-5
    )


@pytest.mark.parametrize(
    ("size", "resize"), [((588, 392), 256), ((392, 588), 256), ((500, 375), 235), ((99, 1000), 284)]
)
def test_the_longer_side_is_torchvisions(monkeypatch, size, resize):
    resized = []
    monkeypatch.setattr(Image.Image, "resize", lambda image, size, *_: resized.append(size) or Image.new("RGB", size))
    Transform(resize, 224).framed(Image.new("RGB", size))
    # torchvision.transforms.functional._compute_resized_output_size: int(size * long / short)
    assert resized == [tuple(int(resize * side / min(size)) for side in size)]


@pytest.mark.parametrize("size", [(4, 400), (400, 4), (7, 113), (300, 6000), (1, 20)])
@pytest.mark.parametrize("transform", [Transform(256, 224), Transform(284, 256), Transform(32, 32)])
def test_the_part_of_a_long_picture_is_as_of_the_whole(size, transform):
    # of middle values, which no overshoot takes to where they are cut: which axis Pillow resizes first makes a rounding
    picture = Image.fromarray(np.random.default_rng(0).integers(80, 176, (*size[::-1], 3), np.uint8))
    width, height = (transform.resize * side // min(size) for side in size)
    left, top = (round((side - transform.crop) / 2) for side in (width, height))
    whole = picture.resize((width, height), Image.Resampling.BICUBIC)
    expected = np.asarray(whole.crop((left, top, left + transform.crop, top + transform.crop)), int)
    np.testing.assert_allclose(np.asarray(transform.framed(picture), int), expected, rtol=0, atol=1)


@pytest.mark.parametrize("size", [(400, 300), (300, 400), (224, 224), (3, 600)])
def test_a_squashed_picture_is_seen_whole(size):
    whole = Transform(256, 224).whole
    assert (whole.resize, whole.crop, whole.mean) == (224, 224, Transform(256, 224).mean)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8))
    expected = picture.resize((224, 224), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(np.asarray(whole.framed(picture)), np.asarray(expected))


@pytest.mark.parametrize("size", [(1, 60000), (60000, 1), (17, 60001)])
def test_of_a_long_picture_no_more_is_resized_than_is_kept(monkeypatch, size):
    made, resize = [], Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda image, size, *a: made.append(size) or resize(image, size, *a))
    seen = Transform(256, 224)(Image.new("RGB", size, "tan"))
    assert seen.shape == (224, 224, 3)
    assert [sorted(size) for size in made] == [[224, 256]]


def corners() -> Image.Image:
    """A picture, wider than high, whose corners differ."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    pixels[:30, :45] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_picture_is_seen_upright(orientation):
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,  # undoes what orientation 6 asks for
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }.get(orientation)
    exif, file = Image.Exif(), BytesIO()
    exif[ExifTags.Base.Orientation] = orientation
    (corners().transpose(turn) if turn is not None else corners()).save(file, "PNG", exif=exif)
    transform = Transform(32, 24)
    with Image.open(file) as picture:
        np.testing.assert_array_equal(upright(picture), corners())
        np.testing.assert_array_equal(transform.framed(picture), transform.framed(corners()))
        np.testing.assert_array_equal(transform(picture), transform(corners()))


@pytest.mark.parametrize("damage", [b"MM", b"MM\0*\0\0\0\x08\0", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_exif_does_not_hide_a_picture(damage):
    picture = corners()
    picture.info["exif"] = damage
    np.testing.assert_array_equal(upright(picture), corners())


def test_damaged_exif_does_not_keep_a_picture_from_being_turned():
    exif, file = Image.Exif(), BytesIO()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.ImageWidth] = 77
    corners().transpose(Image.Transpose.ROTATE_90).save(file, "PNG", exif=exif)
    picture = Image.open(file)
    picture.load()
    # Of a type that Pillow reads, but cannot write for this tag.
    picture.info["exif"] = picture.info["exif"].replace(b"\x01\x00\x00\x04", b"\x01\x00\x00\x0b")
    with pytest.raises(struct.error):
        ImageOps.exif_transpose(picture)
    np.testing.assert_array_equal(upright(picture), corners())


@pytest.mark.parametrize("key", ["xmp", "XML:com.adobe.xmp"])
def test_a_picture_that_xmp_turns_is_turned_once(key):
    picture = corners()
    text = '<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    picture.info[key] = text if key.isupper() or ":" in key else text.encode()
    expected = corners().transpose(Image.Transpose.ROTATE_270)
    np.testing.assert_array_equal(upright(picture), expected)
    np.testing.assert_array_equal(Transform(32, 24).framed(upright(picture)), Transform(32, 24).framed(expected))


LEVELS = np.array([[0, 51, 102], [153, 204, 255]])


@pytest.mark.parametrize(
    "deep",
    [
        Image.fromarray((LEVELS * 257).astype(np.uint16)),
        Image.fromarray((LEVELS * 257).astype(np.int32)),
        Image.fromarray((LEVELS * 8_000_000).astype(np.int32)),
        Image.fromarray(LEVELS.astype(np.int32)),
        Image.fromarray((LEVELS / 255).astype(np.float32)),
        Image.fromarray(LEVELS.astype(np.float32)),
        Image.fromarray(np.where(LEVELS == 0, np.nan, LEVELS * 257).astype(np.float32)),
    ],
    ids=lambda image: f"{image.mode}-{np.nanmax(image):.0f}",
)
def test_more_than_eight_bits_are_scaled(deep):
    np.testing.assert_array_equal(upright(deep), np.repeat(LEVELS[..., None], 3, -1))


def test_dark_pictures_of_sixteen_bits_stay_dark():
    assert np.asarray(upright(Image.fromarray(np.full((2, 2), 255, np.uint16)))).max() == 1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_pictures_of_eight_bits_are_pillows_rgb(mode):
    picture = corners().convert(mode)
    np.testing.assert_array_equal(upright(picture), picture.convert("RGB"))


def test_a_file_that_is_no_picture_is_named(tmp_path, monkeypatch):
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (20, 20)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for name in ("text.png", "large.png"):
        with pytest.raises(OSError, match=rf"{name} is not a picture that can be read"):
            preprocess(tmp_path / name, small("convnext_tiny"))


def test_a_picture_without_pixels_is_refused():
    with pytest.raises(ValueError, match=r"image has size \(0, 5\), expected a pixel"):
        Transform(32, 24)(Image.new("RGB", (0, 5)))


def test_preprocess_takes_pictures_arrays_and_paths(tmp_path):
    model = small("convnext_tiny")
    pixels = np.random.default_rng(0).integers(0, 256, (260, 240, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    expected = preprocess(Image.fromarray(pixels), model)
    for images in (pixels, pixels[None], tmp_path / "photo.png", str(tmp_path / "photo.png"), [pixels]):
        np.testing.assert_array_equal(preprocess(images, model), expected)
    grey = preprocess([pixels[..., 0], pixels[..., :1]], model)
    np.testing.assert_array_equal(grey[0], grey[1])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], r"images \(=\[\]\) hold no picture"),
        (np.zeros((8, 8, 3)), r"an array of shape \(8, 8, 3\) and dtype float64, expected pictures"),
        ([None], "images hold a NoneType"),
    ],
)
def test_what_is_no_picture_is_refused(images, message):
    with pytest.raises(ValueError, match=message):
        preprocess(images, small("convnext_tiny"))
