"""ResNet-38's trunk against ICAM's: names, features and gradients; its ImageNet file against MXNet's reader.

Networks run in float64: what is left is the rounding of the fixtures' float32, which their README states, on any processor.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from tests.parity import fixtures, inputs
from wsss.checkpoints import read_checkpoint
from wsss.foreign.mxnet import read_params, resnet38_params
from wsss.networks.affinitynet import AffinityNet
from wsss.networks.resnet38 import ResNet38

pytestmark = pytest.mark.usefixtures("one_torch_thread")

TRUNK = fixtures.arrays("icam/resnet38d")


def filled(build: Callable[[], nn.Module]) -> nn.Module:
    """A network in evaluation mode with the fixtures' weights, of which each is written once only."""
    with torch.device("meta"):
        network = build()
    network.to_empty(device="cpu")
    for name, value in network.state_dict().items():
        value.copy_(torch.from_numpy(inputs.tensor(name, tuple(value.shape))))
    return network.eval()


def shapes(build: Callable[[], nn.Module]) -> list[tuple[str, list[int]]]:
    with torch.device("meta"):
        return [(name, list(value.shape)) for name, value in build().state_dict().items()]


def batch(height: int, width: int, *seeds: int) -> torch.Tensor:
    return torch.stack([torch.from_numpy(inputs.normalised(inputs.image(height, width, i))) for i in seeds])


def close(ours: torch.Tensor, theirs: np.ndarray, tolerance: float, largest: float | None = None) -> None:
    """Within a share of the largest value; of `largest` where that is not in the part that is stored."""
    scale = np.abs(theirs).max() if largest is None else largest
    np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=0, atol=tolerance * scale)


def stats(values: torch.Tensor) -> np.ndarray:
    """Mean, deviation, sum of absolute values, least and greatest."""
    v = values.detach().double()
    return np.array([v.mean(), v.std(correction=0), v.abs().sum(), v.min(), v.max()])


def close_stats(values: torch.Tensor, theirs: np.ndarray, tolerance: float, name: str = "") -> None:
    """The sum of absolute values within a share of itself, the others within that share of the largest value."""
    ours, largest = stats(values), np.abs(theirs[3:]).max()
    np.testing.assert_allclose(ours[2], theirs[2], rtol=tolerance, err_msg=name)
    np.testing.assert_allclose(ours[[0, 1, 3, 4]], theirs[[0, 1, 3, 4]], rtol=0, atol=tolerance * largest, err_msg=name)


@pytest.fixture(scope="module")
def trunk():
    return filled(ResNet38).double()


@pytest.mark.parametrize(("manifest", "build"), [("resnet38d", ResNet38), ("affinity", AffinityNet)])
def test_state_dict_has_the_published_names_and_shapes(manifest, build):
    assert shapes(build) == list(fixtures.table(f"icam/manifest-{manifest}.json").items())


def test_number_of_parameters(trunk):
    assert sum(parameter.numel() for parameter in trunk.parameters()) == 105_070_912


def test_features(trunk):
    with torch.no_grad():
        features = trunk(batch(56, 72, 0).double())
    assert [feature.shape[1] for feature in features] == trunk.channels
    for name, feature in zip(("conv3", "conv4", "conv5", "conv6"), features[1:], strict=True):
        assert list(feature.shape) == list(TRUNK[f"{name}_shape"])
        sample, summary = TRUNK[name], TRUNK[f"{name}_stats"]
        close(feature[0, :: feature.shape[1] // len(sample)], sample, 7e-7, summary[4])
        close_stats(feature, summary, 7e-7)


def test_gradients(trunk):
    # the plain trunk of ICAM fixes conv1a and batch norms
    for name, parameter in trunk.named_parameters():
        parameter.requires_grad_(parameter.ndim > 1 and name != "conv1a.weight")
    for layer in trunk.modules():
        if isinstance(layer, nn.Dropout2d):
            layer.train().p = 0
    conv6 = trunk(batch(56, 72, 0).double())[-1]
    assert TRUNK["train_conv6_maxdiff"] == 0
    (conv6 * torch.from_numpy(inputs.array("grad", tuple(conv6.shape), 1, -1, 1))).sum().backward()
    gradients = {name: p.grad for name, p in trunk.named_parameters() if p.grad is not None}
    assert list(gradients) == list(TRUNK["grad_names"])
    close(gradients["b4.conv_branch1.weight"][::32, ::16, 0, 0], TRUNK["grad_b4_conv_branch1"], 8e-7)
    # the 7e-7 of the fixtures' README are of features; their gradients are off by 1.07e-6
    for name, theirs in zip(TRUNK["grad_names"], TRUNK["grad_stats"], strict=True):
        close_stats(gradients[name], theirs, 1.1e-6, name)


@pytest.mark.parametrize("layout", ["v0", "v2"])
def test_imagenet_file(layout):
    expected = fixtures.arrays("icam/rna_a1_toy_expected")
    path = fixtures.path(f"icam/rna_a1_toy_{layout}.params")
    for state in (resnet38_params(path), read_checkpoint(path)):
        assert state.keys() == set(expected)
        for name, value in state.items():
            assert value.dtype == torch.float32
            np.testing.assert_array_equal(value.numpy(), expected[name])


def test_imagenet_names():
    key_map = fixtures.table("icam/rna_a1_key_map.json")
    arrays, state = (read(fixtures.path("icam/rna_a1_toy_v2.params")) for read in (read_params, resnet38_params))
    assert len(key_map) == len(state) == 191
    assert arrays.keys() == {*key_map, "arg:linear1000_weight", "arg:linear1000_bias"}
    for theirs, ours in key_map.items():
        assert torch.equal(arrays[theirs], state[ours])
    counters = {name for name, _ in shapes(ResNet38) if name.endswith("num_batches_tracked")}
    assert state.keys() == {name for name, _ in shapes(ResNet38)} - counters


@pytest.mark.parametrize("layout", ["v0", "v1", "v2"])
def test_element_types(layout):
    expected = fixtures.arrays("icam/dtypes_expected")
    arrays = read_params(fixtures.path(f"icam/dtypes_{layout}.params"))
    assert list(arrays) == list(expected)
    for name, value in arrays.items():
        assert value.numpy().dtype == expected[name].dtype
        np.testing.assert_array_equal(value.numpy(), expected[name])
