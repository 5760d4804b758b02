"""Pictures of all kinds are read alike, and each kind of broken one gets its own message."""

import contextlib
import dataclasses
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.data.conftest import write_labels, write_picture
from tests.parity import inputs
from wsss.data.files import read_mask, write_mask
from wsss.data.images import Dataset, Images, MaskFile
from wsss.data.pictures import picture_size_hw, read_picture
from wsss.errors import BadInput

RGB = inputs.image(30, 40, 3)


def saved(tmp_path, picture: Image.Image, name: str, **options):
    picture.save(tmp_path / name, **options)
    return tmp_path / name


def some(tmp_path, count: int = 3) -> Images:
    paths = tuple(write_picture(tmp_path / f"{i}.png", seed=i) for i in range(count))
    masks = tuple(MaskFile(write_labels(tmp_path / f"masks/{i}.png", [1, 2, 255])) for i in range(count))
    names = tuple(f"picture {i}" for i in range(count))
    return Images("some", names, paths, ("cat", "dog"), np.ones((count, 2), bool), masks)


def test_colour_comes_out_as_it_went_in(tmp_path):
    path = saved(tmp_path, Image.fromarray(RGB), "a.png")
    np.testing.assert_array_equal(read_picture(path, upright=True), RGB)
    assert picture_size_hw(path, upright=True) == (30, 40)


def test_grey(tmp_path):
    grey = RGB[..., 0]
    np.testing.assert_array_equal(
        read_picture(saved(tmp_path, Image.fromarray(grey), "a.png"), upright=True), np.repeat(grey[..., None], 3, 2)
    )


def test_grey_of_16_bits_is_scaled(tmp_path):
    deep = RGB[..., 1].astype(np.uint16) * 257
    np.testing.assert_array_equal(
        read_picture(saved(tmp_path, Image.fromarray(deep), "a.png"), upright=True)[..., 2], RGB[..., 1]
    )


def test_cmyk(tmp_path):
    read = read_picture(saved(tmp_path, Image.fromarray(RGB).convert("CMYK"), "a.tif"), upright=True)
    np.testing.assert_array_equal(read, RGB)


def test_palette(tmp_path):
    few = Image.fromarray(RGB).quantize(16)
    np.testing.assert_array_equal(
        read_picture(saved(tmp_path, few, "a.gif"), upright=True), np.asarray(few.convert("RGB"))
    )


def test_transparent_pixels_are_white(tmp_path):
    alpha = np.full((30, 40), 255, np.uint8)
    alpha[:, :20] = 0
    read = read_picture(saved(tmp_path, Image.fromarray(np.dstack([RGB, alpha])), "a.png"), upright=True)
    assert (read[:, :20] == 255).all()
    np.testing.assert_array_equal(read[:, 20:], RGB[:, 20:])


@pytest.mark.parametrize(("orientation", "turned"), [(3, np.rot90(RGB, 2)), (6, np.rot90(RGB, -1)), (8, np.rot90(RGB))])
def test_exif_orientation(tmp_path, orientation, turned):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, Image.fromarray(RGB), "a.png", exif=exif)
    np.testing.assert_array_equal(read_picture(path, upright=True), turned)
    np.testing.assert_array_equal(read_picture(path, upright=False), RGB)
    assert picture_size_hw(path, upright=True) == turned.shape[:2]
    assert picture_size_hw(path, upright=False) == (30, 40)


def test_one_pixel(tmp_path):
    assert read_picture(saved(tmp_path, Image.new("RGB", (1, 1), (1, 2, 3)), "a.png"), upright=True).tolist() == [
        [[1, 2, 3]]
    ]


def test_a_very_large_picture(tmp_path):
    path = saved(tmp_path, Image.new("L", (9000, 7000), 7), "a.png")
    read = read_picture(path, upright=True)
    assert read.shape == (7000, 9000, 3)
    assert (read[-1, -1] == 7).all()


def test_cut_off(tmp_path):
    path = write_picture(tmp_path / "a.jpg", (64, 64))
    path.write_bytes(path.read_bytes()[:900])
    assert picture_size_hw(path, upright=True) == (64, 64)
    with pytest.raises(BadInput, match=r"a\.jpg: found a picture that cannot be decoded .*truncated.*--skip-bad"):
        read_picture(path, upright=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "an empty file"), (b"this is a text", "no picture .it begins with b'this is a text'")],
)
def test_no_picture(tmp_path, content, message):
    (tmp_path / "a.jpg").write_bytes(content)
    for read in (read_picture, picture_size_hw):
        with pytest.raises(BadInput, match=rf"a\.jpg: found {message}"):
            read(tmp_path / "a.jpg", upright=True)


def test_missing_and_folder(tmp_path):
    with pytest.raises(BadInput, match="no such file"):
        read_picture(tmp_path / "a.jpg", upright=True)
    with pytest.raises(BadInput, match="a folder"):
        read_picture(tmp_path, upright=True)


def encoded(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(RGB).save(stream, kind)
    return stream.getvalue()


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP"]), st.data())
def test_damaged_pictures_are_read_or_refused(tmp_path_factory, kind, data):
    blob = bytearray(encoded(kind))
    for _ in range(data.draw(st.integers(1, 6))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / f"damaged.{kind.lower()}"
    path.write_bytes(blob[: data.draw(st.integers(1, len(blob)))])
    with contextlib.suppress(BadInput):
        assert read_picture(path, upright=True).ndim == 3
    with contextlib.suppress(BadInput):
        assert read_mask(path).ndim == 2


def test_mask_of_another_size(tmp_path):
    images = some(tmp_path)
    write_labels(tmp_path / "masks/1.png", [1], (40, 30))
    assert images.read_mask(0, (30, 40)).shape == (30, 40)
    with pytest.raises(
        BadInput, match=r"masks/1\.png: found a mask of 40x30 .*expected 30x40 like its picture .*1\.png"
    ):
        images.read_mask(1, (30, 40))


def test_mask_with_an_unknown_label(tmp_path):
    images = some(tmp_path)
    write_labels(tmp_path / "masks/2.png", [1, 3, 3])
    with pytest.raises(
        BadInput, match=r"2\.png: found label 3 .60 pixels.; expected 0 .background., 1\.\.2 .cat, dog."
    ):
        images.read_mask(2)


def test_no_mask(tmp_path):
    images = dataclasses.replace(some(tmp_path), masks=(None, None, None))
    assert not images.has_masks
    with pytest.raises(BadInput, match="no true mask"):
        images.read_mask(0)


def test_two_pictures_of_one_name(tmp_path):
    images = some(tmp_path)
    with pytest.raises(BadInput, match=r"1\.png: found a second picture named 'x' .the first is .*0\.png"):
        dataclasses.replace(images, names=("x", "x", "y"))


def test_too_many_classes(tmp_path):
    with pytest.raises(BadInput, match="255 classes; expected at most 254"):
        dataclasses.replace(some(tmp_path), class_names=tuple(map(str, range(255))), labels=np.zeros((3, 255), bool))


def test_arrays_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match="do not fit"):
        dataclasses.replace(some(tmp_path), labels=np.ones((3, 3), bool))


def test_subset_and_without(tmp_path):
    images = some(tmp_path)
    part = images.subset([2, 0], "part")
    assert (part.title, part.names, len(part)) == ("part", ("picture 2", "picture 0"), 2)
    assert part.paths == (images.paths[2], images.paths[0])
    assert images.without(["picture 1"]).names == ("picture 0", "picture 2")
    assert len(images.subset([])) == 0
    assert not images.subset([]).has_masks
    assert images.classes(0) == [0, 1]


def test_fingerprint_follows_what_it_stands_for(tmp_path):
    images = some(tmp_path)
    prints = {
        images.fingerprint(),
        dataclasses.replace(images, upright=False).fingerprint(),
        images.subset([0, 1]).fingerprint(),
    }
    labels = images.labels.copy()
    labels[0, 0] = False
    prints.add(dataclasses.replace(images, labels=labels).fingerprint())
    write_picture(images.paths[0], (31, 40))
    prints.add(images.fingerprint())
    write_mask(tmp_path / "masks/0.png", np.zeros((9, 9), np.uint8))
    prints.add(images.fingerprint())
    images.paths[0].unlink()
    prints.add(images.fingerprint())
    assert len(prints) == 7
    assert some(tmp_path / "again").fingerprint() == some(tmp_path / "and again").fingerprint()


def test_unknown_split(tmp_path):
    data = Dataset("folders", tmp_path, {"train": some(tmp_path)}, "train")
    assert data.split("train").class_names == data.class_names
    with pytest.raises(BadInput, match="no split 'val'; expected one of train"):
        data.split("val")
