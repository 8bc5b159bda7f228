"""From a picture to a model's input, as the published evaluations do it: bicubic on 8 bits by Pillow, centre crop."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike, fspath, stat
from stat import S_ISREG
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

if TYPE_CHECKING:
    from dcls_jax.models.backbone import Backbone

_LONG = 16  # times as long as wide: no longer resized whole
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SAYING = "exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"  # where Pillow finds an orientation
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Transform:
    """Resize the shorter side to `resize` pixels (bicubic), keep the central `crop` x `crop`, normalise channels.

    squash: both sides are resized to `resize`, whatever the picture's shape; with `crop` as large it is seen whole.
    """

    resize: int
    crop: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    squash: bool = False

    @property
    def whole(self) -> "Transform":
        """The same for a whole picture, which is squashed to `crop` x `crop`."""
        return replace(self, resize=self.crop, squash=True)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height that a picture is resized to, before its centre is kept."""
        if self.squash:
            return self.resize, self.resize
        shorter = min(width, height)
        return self.resize * width // shorter, self.resize * height // shorter

    def __call__(self, image: Image.Image) -> np.ndarray:
        """A picture of any size and mode -> (crop, crop, 3) float32, normalised."""
        return self.normalised(self.pixels(image))

    def pixels(self, image: Image.Image) -> np.ndarray:
        """A picture of any size and mode -> (crop, crop, 3) uint8, a quarter of what they are normalised."""
        return np.asarray(self.framed(upright(image)))

    def normalised(self, pixels: Any) -> Any:
        """Pixels of 8 bits (..., 3) -> float32, of NumPy or of JAX as they are."""
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        return (pixels.astype(np.float32) / np.float32(255) - mean) / std

    def framed(self, image: Image.Image) -> Image.Image:
        """The part of a picture that the model sees, crop x crop pixels, in the picture's mode.

        Raises ValueError for a picture without pixels.
        """
        image = _turned(image)
        if 0 in image.size:
            raise ValueError(f"image has size {image.size}, expected a pixel at least")
        width, height = self.resized(*image.size)
        left, top = round((width - self.crop) / 2), round((height - self.crop) / 2)
        right, bottom = left + self.crop, top + self.crop
        if max(width, height) > _LONG * min(width, height):
            return self._framed_alone(image, (width, height), (left, top))
        start, stop, pixel = (number * image.width / width for number in (left, right, 1))
        # Of a square Pillow can resize the part alone, by the same weights to the bit if these are exact in its float32
        if image.width == image.height and left > 0 and all(map(_is_float32, (start, stop, pixel))):
            return image.resize((self.crop, self.crop), Image.Resampling.BICUBIC, (start, start, stop, stop))
        return image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, right, bottom))

    def _framed_alone(self, image: Image.Image, size: tuple[int, int], corner: tuple[int, int]) -> Image.Image:
        """`framed` of a long picture, of which only the part that is kept is resized; equal to within a rounding."""
        along = int(image.height > image.width)
        pixel = image.size[along] / size[along]
        box, new, rest = [0.0, 0.0, *image.size], [*size], [*corner]
        box[along], box[along + 2] = corner[along] * pixel, (corner[along] + self.crop) * pixel
        new[along], rest[along] = self.crop, 0
        resized = image.resize((new[0], new[1]), Image.Resampling.BICUBIC, (box[0], box[1], box[2], box[3]))
        return resized.crop((rest[0], rest[1], rest[0] + self.crop, rest[1] + self.crop))


def upright(image: Image.Image) -> Image.Image:
    """A picture of any mode as RGB, turned as its EXIF orientation says; 16 bits, integers and floats scaled to 8 bits.

    Integers and floats are taken to fill the least range that holds them: to 1 (floats), 255, 65535, or their maximum.
    """
    image = _turned(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(_eight_bits(np.nan_to_num(np.asarray(image, np.float64), posinf=0), image.mode))
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(values: np.ndarray, mode: str) -> np.ndarray:
    highest = max(values.max(), 0)
    ranges = {"F": (1, 255, 65535), "I": (255, 65535)}.get(mode, (65535,))
    top = next((top for top in ranges if highest <= top), highest)
    return np.rint(values.clip(0) * (255 / top)).astype(np.uint8)


def _turned(image: Image.Image) -> Image.Image:
    """The picture as its orientation says, which is then no longer said; `ImageOps.exif_transpose` needs sound EXIF."""
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # whatever Pillow meets in damaged EXIF, which does not keep the picture from being seen
        return image
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.info = {key: value for key, value in turned.info.items() if key not in _SAYING}
    return turned


def _is_float32(number: float) -> bool:
    return float(np.float32(number)) == number


def opened(path: str | PathLike[str]) -> Image.Image:
    """A picture's file, read whole. Raises OSError, naming it, for what is missing, no regular file or no picture."""
    name = fspath(path)
    try:
        if not S_ISREG(stat(name).st_mode):
            raise ValueError("not a regular file")
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", Image.DecompressionBombWarning
            )  # from twice as many pixels on it is an error
            with Image.open(name) as picture:
                picture.load()
                return picture
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # of many kinds, for what is one thing to the user
        raise UnidentifiedImageError(f"{name} is not a picture that can be read ({error})") from error


Picture = Image.Image | np.ndarray | str | PathLike[str]


def preprocess(images: Picture | Sequence[Picture], model: "Backbone") -> np.ndarray:
    """Pictures as a model's input batch, by its own transform: (B, crop, crop, 3) float32, B = 1 for one picture.

    images: of Pillow, arrays of 8 bits, (H, W, 3) or grey (H, W), or paths of files. Raises ValueError for anything
    else and for no pictures, OSError for files that cannot be read.
    """
    one = isinstance(images, Image.Image | str | PathLike) or (isinstance(images, np.ndarray) and images.ndim < 4)
    pictures = cast(Sequence[Picture], [images] if one else list(cast(Sequence[Picture], images)))
    if not pictures:
        raise ValueError(f"images (={images!r}) hold no picture")
    return np.stack([model.transform(as_picture(picture)) for picture in pictures])


def as_picture(picture: Picture) -> Image.Image:
    """A picture of any kind that `preprocess` takes, as Pillow's; raises as it does."""
    if isinstance(picture, str | PathLike):
        return opened(picture)
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or picture.shape[2:] not in ((), (1,), (3,), (4,)):
            found = f"shape {picture.shape} and dtype {picture.dtype}"
            raise ValueError(f"images hold an array of {found}, expected pictures (H, W, 3) or (H, W) of dtype uint8")
        return Image.fromarray(picture.squeeze(2) if picture.shape[2:] == (1,) else picture)
    if not isinstance(picture, Image.Image):
        raise ValueError(f"images hold a {type(picture).__name__}, expected pictures, arrays of 8 bits or paths")
    return picture
