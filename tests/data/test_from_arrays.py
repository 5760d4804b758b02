"""Data sets that are in memory."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import tree, write_squares
from tests.methods.test_cam import SMALL
from wsss.data.images import Images
from wsss.data.pictures import as_rgb, read_picture
from wsss.errors import BadInput
from wsss.stages.train import train

RNG = np.random.default_rng(0)
PICTURES = [RNG.integers(0, 256, size, np.uint8) for size in ((5, 7, 3), (6, 4, 3), (8, 8, 3))]
TAGS = [["cat"], [], ["dog", "cat"]]


def held(**changes):
    given = {"pictures": PICTURES, "labels": TAGS, "class_names": ["cat", "dog"], **changes}
    return Images.from_arrays(**given)


def in_memory(images: Images) -> Images:
    """The same pictures, tags and masks as those in files."""
    read = [images.read(index) for index in range(len(images))]
    masks = [images.read_mask(index) for index in range(len(images))]
    return Images.from_arrays(read, images.labels, images.class_names, masks, names=images.names, title=images.title)


def test_pictures_tags_and_masks_are_those_given():
    masks = [np.zeros((5, 7), np.uint8), None, np.full((8, 8), 2, np.uint8)]
    images = held(masks=masks)
    assert len(images) == 3
    assert [images.classes(index) for index in range(3)] == [[0], [], [0, 1]]
    for index, picture in enumerate(PICTURES):
        np.testing.assert_array_equal(images.read(index), picture)
        assert images.size_hw(index) == picture.shape[:2]
    np.testing.assert_array_equal(images.read_mask(2), masks[2])
    assert not images.has_masks
    with pytest.raises(BadInput, match="memory: picture 000001: found no true mask"):
        images.read_mask(1)
    second = images.subset([2, 0])
    np.testing.assert_array_equal(second.read(0), PICTURES[2])
    np.testing.assert_array_equal(second.read_mask(0), masks[2])


def test_labels_may_be_a_matrix():
    matrix = np.array([[1, 0], [0, 0], [1, 1]])
    for labels in (matrix, matrix.astype(bool)):
        np.testing.assert_array_equal(held(labels=labels).labels, held().labels)


def test_later_changes_of_the_arrays_do_not_count():
    picture, mask = PICTURES[0].copy(), np.zeros((5, 7), np.uint8)
    images = held(pictures=[picture, *PICTURES[1:]], masks=[mask, None, None])
    before = images.fingerprint()
    picture[:], mask[:] = 0, 1
    assert images.fingerprint() == before == held(masks=[np.zeros((5, 7), np.uint8), None, None]).fingerprint()
    np.testing.assert_array_equal(images.read(0), PICTURES[0])


def test_the_fingerprint_follows_the_content():
    brighter = [*PICTURES[:2], PICTURES[2] ^ 1]
    reshaped = [PICTURES[0].reshape(7, 5, 3), *PICTURES[1:]]
    masked = [np.ones((5, 7), np.uint8), None, None]
    other = [
        held(pictures=brighter),
        held(pictures=reshaped),
        held(labels=[["dog"], *TAGS[1:]]),
        held(class_names=["dog", "cat"]),
        held(names=["a", "b", "c"]),
        held(masks=masked),
        held(masks=[masked[0] * 2, None, None]),
    ]
    assert len({held().fingerprint(), *(images.fingerprint() for images in other)}) == 8
    assert pickle.loads(pickle.dumps(held(masks=masked))).fingerprint() == other[5].fingerprint()


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P"])
def test_what_is_in_memory_is_treated_as_the_same_file(tmp_path, mode):
    picture = Image.fromarray(RNG.integers(0, 256, (6, 5, 4), np.uint8)).convert(mode)
    picture.save(tmp_path / "a.png")
    expected = read_picture(tmp_path / "a.png", upright=True)
    np.testing.assert_array_equal(as_rgb(picture), expected)
    np.testing.assert_array_equal(as_rgb(tmp_path / "a.png"), expected)
    np.testing.assert_array_equal(as_rgb(str(tmp_path / "a.png")), expected)
    if mode != "P":
        values = np.asarray(picture)
        np.testing.assert_array_equal(as_rgb(values), expected)
        channels_first = torch.from_numpy(values.copy())
        channels_first = channels_first.permute(2, 0, 1) if values.ndim == 3 else channels_first
        np.testing.assert_array_equal(as_rgb(channels_first), expected)


def test_pictures_of_pillow_are_turned_as_files_are(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PICTURES[0]).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as picture:
        turned = as_rgb(picture)
    np.testing.assert_array_equal(turned, np.rot90(PICTURES[0], -1))
    np.testing.assert_array_equal(turned, as_rgb(tmp_path / "a.png"))


@pytest.mark.parametrize(
    ("picture", "found"),
    [
        (np.zeros((4, 4, 3), np.float32), "float32 of shape"),
        (np.zeros((4, 4, 3), np.uint16), "uint16 of shape"),
        (np.zeros((4, 4, 3), bool), "bool of shape"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"\(1, 4, 4, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), r"\(0, 4, 3\)"),
        (np.zeros((3, 4, 5), np.uint8), "5 bands"),
        (torch.zeros(3, 4, 4), "float32 of shape"),
        (torch.zeros(3, 4, 4, dtype=torch.bfloat16), "float32 of shape"),
        (Image.new("I;16", (4, 4)), "uint16"),
        ([[0, 0], [0, 0]], "list"),
        (None, "NoneType"),
    ],
)
def test_other_pictures_are_refused(picture, found):
    with pytest.raises(BadInput, match=found):
        as_rgb(picture)
    with pytest.raises(BadInput, match="memory: picture 000001.*" + found):
        held(pictures=[PICTURES[0], picture, PICTURES[2]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pictures": [], "labels": []}, "no pictures"),
        ({"labels": TAGS[:2]}, "labels: found 2 for 3 pictures"),
        ({"masks": [None]}, "masks: found 1 for 3 pictures"),
        ({"names": ["a"]}, "names: found 1 for 3 pictures"),
        ({"names": ["a", "b", "a"]}, "a second picture named 'a'"),
        ({"names": ["a", "../b", "c"]}, "leads upwards"),
        ({"class_names": ["cat", "cat"]}, "different names"),
        ({"class_names": []}, "different names"),
        ({"labels": [["cat"], ["dgo"], []]}, "Did you mean 'dog'"),
        ({"labels": ["cat", "dog", "cat"]}, "the text 'cat'"),
        ({"labels": np.full((3, 2), 2)}, r"labels: found int64 of shape \(3, 2\)"),
        ({"labels": np.zeros((3, 3))}, r"float64 of shape \(3, 3\)"),
        (
            {"masks": [np.zeros((7, 5), np.uint8), None, None]},
            r"mask of memory: picture 000000: found uint8 of shape \(7, 5\)",
        ),
        ({"masks": [np.zeros((5, 7), int), None, None]}, "found int64"),
        ({"masks": [np.full((5, 7), 3, np.uint8), None, None]}, r"label 3 \(35 pixels\)"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(BadInput, match=message):
        held(**changes)


@pytest.mark.parametrize("workers", [0, 1])
def test_training_from_memory_makes_the_same_network_as_from_files(tmp_path, workers):
    files = write_squares(tmp_path / "squares", 6)
    trained = {}
    for name, images in {"files": files, "memory": in_memory(files)}.items():
        settings = dataclasses.replace(SMALL, training=dataclasses.replace(SMALL.training, workers=workers))
        train(settings, images, out=tmp_path / name)
        trained[name] = tree(tmp_path / name)["weights.safetensors"]
    assert trained["files"] == trained["memory"]
