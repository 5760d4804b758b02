"""The examples in the docstrings of the library run, and print what they say."""

import dataclasses
import doctest

import numpy as np
import pytest
import torch
from PIL import Image

import wsss
from wsss.data.files import write_mask
from wsss.networks.deeplab import DeepLabLayers, create_deeplab
from wsss.weights import WEIGHTS, write_weights

SMALL = DeepLabLayers("test_resnet", 8, (1, 2), (0.5,), batch_norm="live")
# what is described where it is made, or is no function
WITHOUT = {"BadInput", "Dataset", "Images"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose segmenter of cats and dogs has learned nothing yet."""
    folder = tmp_path_factory.mktemp("run")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = create_deeplab(3, SMALL).state_dict()
    known = {"kind": "deeplab", "classes": ["cat", "dog"], "colours": "imagenet", "network": dataclasses.asdict(SMALL)}
    write_weights(folder / "segmenter" / WEIGHTS, state, known)
    return folder


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    """Predictions of a test split of one picture."""
    folder = tmp_path_factory.mktemp("voc")
    for inner in ("JPEGImages", "ImageSets/Segmentation"):
        (folder / inner).mkdir(parents=True)
    Image.new("RGB", (8, 6)).save(folder / "JPEGImages/a.jpg")
    (folder / "ImageSets/Segmentation/test.txt").write_text("a\n")
    write_mask(folder / "masks/a.png", np.zeros((6, 8), np.uint8))
    return folder / "masks"


@pytest.mark.parametrize("name", [*sorted({*wsss.__all__} - WITHOUT), "Images.from_arrays"])
def test_the_example_of(name, run, masks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    function = wsss
    for part in name.split("."):
        function = getattr(function, part)
    (found,) = doctest.DocTestFinder(recurse=False).find(
        function, name, globs={"run": run, "masks": masks, "voc": masks.parent}
    )
    assert found.examples, f"{name} has no example"
    said = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(found, out=said.append)
    assert not said, "".join(said)
