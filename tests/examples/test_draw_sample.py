import struct
from io import BytesIO

import google_crc32c
import numpy as np
import pytest
from draw_sample import CLASSES, SIZE, draw, write_folders, write_sample
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2


def read_records(data: bytes) -> list[bytes]:
    """TFRecords by their specification: length, its checksum, data, its checksum, all little-endian."""
    records, offset = [], 0
    while offset < len(data):
        length, length_crc = struct.unpack_from("<QI", data, offset)
        record = data[offset + 12 : offset + 12 + length]
        (record_crc,) = struct.unpack_from("<I", data, offset + 12 + length)
        for part, masked in ((data[offset : offset + 8], length_crc), (record, record_crc)):
            rotated = (masked - 0xA282EAD8) & 0xFFFFFFFF
            assert google_crc32c.value(part) == (rotated >> 17 | rotated << 15) & 0xFFFFFFFF
        records.append(record)
        offset += 16 + length
    return records


def test_pictures_depend_on_split_index_and_seed_alone():
    first = draw("train", 3)
    draw("train", 4)
    again = draw("train", 3)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.heatmap, again.heatmap)
    for other in (draw("held_out", 3), draw("train", 13), draw("train", 3, seed=1)):
        assert other.label == first.label == 3
        assert (other.image != first.image).mean() > 0.5


def test_what_cannot_be_drawn():
    with pytest.raises(ValueError, match="split"):
        draw("validation", 0)
    with pytest.raises(ValueError, match="size"):
        draw("train", 0, size=159)


def test_small_pictures():
    image, heatmap, label = draw("train", 7, size=160)
    assert image.shape == (160, 160, 3)
    assert heatmap.shape == (160, 160)
    assert label == 7


@pytest.mark.parametrize("index", range(20))
def test_object_lies_inside_the_centre_crop(index):
    image, heatmap, label = draw("held_out", index)
    assert image.shape == (SIZE, SIZE, 3)
    assert image.dtype == heatmap.dtype == np.uint8
    assert heatmap.shape == (SIZE, SIZE)
    assert label == index % len(CLASSES)
    assert heatmap.max() == 255
    border = (SIZE - 224) // 2
    rows, columns = np.nonzero(heatmap > 200)  # blurred: the object's own pixels are the bright ones
    assert min(rows.min(), columns.min()) >= border
    assert max(rows.max(), columns.max()) < SIZE - border
    assert image.std() > 10


def test_shards_parse_back(tmp_path):
    paths = write_sample(tmp_path / "sample", count=5, shards=2)
    assert [path.name for path in paths] == ["val-0.tfrecords", "val-1.tfrecords"]
    assert sorted((tmp_path / "sample").iterdir()) == paths
    records = [record for path in paths for record in read_records(path.read_bytes())]
    assert len(records) == 5
    for index, record in enumerate(records):
        feature = tf_example_pb2.Example.FromString(record).features.feature
        image, heatmap = (Image.open(BytesIO(feature[key].bytes_list.value[0])) for key in ("image", "heatmap"))
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (SIZE, SIZE))
        assert (heatmap.format, heatmap.mode, heatmap.size) == ("JPEG", "L", (SIZE, SIZE))
        picture = draw("sample", index)
        assert list(feature["label"].int64_list.value) == [picture.label]
        assert np.abs(np.asarray(image, int) - picture.image).mean() < 5
        assert np.abs(np.asarray(heatmap, int) - picture.heatmap).mean() < 2


def test_folders_hold_the_pictures_of_a_split_by_class(tmp_path):
    train, val = write_folders(tmp_path, count=12)
    for part, split in ((train, "train"), (val, "held_out")):
        files = sorted(part.glob("*/*.jpg"), key=lambda path: path.stem)
        assert [path.stem for path in files] == [f"{index:05}" for index in range(12)]
        assert [path.parent.name for path in files[:10]] == list(CLASSES)
        shown = np.asarray(Image.open(files[11]), np.float32)
        assert np.abs(shown - draw(split, 11).image).mean() < 4  # JPEG's loss
