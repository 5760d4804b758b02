"""The examples in the docstrings of the library run, and print what they say."""

import dataclasses
import doctest

import pytest
import torch

import wsss
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


@pytest.mark.parametrize("name", [*sorted({*wsss.__all__} - WITHOUT), "Images.from_arrays"])
def test_the_example_of(name, run):
    function = wsss
    for part in name.split("."):
        function = getattr(function, part)
    (found,) = doctest.DocTestFinder(recurse=False).find(function, name, globs={"run": run})
    assert found.examples, f"{name} has no example"
    said = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(found, out=said.append)
    assert not said, "".join(said)
