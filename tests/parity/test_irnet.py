"""IRNet against its repository: paths, pairs, losses and gradients, network, random walk, instances; PSA's pairs."""

from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.ops.irnet_order import by_path_length
from tests.parity import fixtures, inputs
from wsss.data.augment import reduce_label
from wsss.networks import irnet
from wsss.ops import affinity, instances
from wsss.refiners import crf
from wsss.refiners import irnet as refiner
from wsss.refiners.irnet import IRNetWalk

PATHS, LABELS, LOSSES, NETWORK, WALK, INSTANCE, IR_LABEL = (
    fixtures.arrays(f"irnet/{name}")
    for name in ("path-index", "affinity-labels", "losses", "network", "random-walk", "instance", "ir-label")
)
PAIRS = fixtures.arrays("affinitynet/pairs")


def close(ours: torch.Tensor, theirs: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=0, atol=tolerance)


def cells(rows: int, columns: int) -> torch.Tensor:
    return torch.arange(rows * columns).view(rows, columns)


@pytest.mark.parametrize(("radius", "rows", "columns"), [(5, 12, 14), (10, 24, 31)])
def test_pairs_and_paths(radius, rows, columns):
    order, path = (
        by_path_length(radius),
        dict(zip(affinity.directions(radius), affinity.paths(radius), strict=True)),
    )
    np.testing.assert_array_equal(order, PATHS[f"dst_r{radius}"])
    np.testing.assert_array_equal([c for d in order for c in path[d]], PATHS[f"path_cells_r{radius}"])
    lengths = Counter(len(path[d]) for d in order)
    np.testing.assert_array_equal(list(lengths), PATHS[f"group_length_r{radius}"])
    np.testing.assert_array_equal(list(lengths.values()), PATHS[f"group_count_r{radius}"])
    numbered = cells(rows, columns)
    np.testing.assert_array_equal(affinity.at_sources(numbered, radius), PATHS[f"src_r{radius}"])
    np.testing.assert_array_equal(affinity.at_destinations(numbered, radius, order), PATHS[f"dst_index_r{radius}"])
    if radius == 5:
        every = [affinity.at_destinations(numbered, radius, path[d]).flatten() for d in order]
        np.testing.assert_array_equal(torch.cat(every), PATHS["path_index_r5"])


@pytest.mark.parametrize(("radius", "rows", "columns"), [(5, 12, 14), (3, 7, 9)])
def test_pairs_of_psa(radius, rows, columns):
    numbered = cells(rows, columns)
    np.testing.assert_array_equal(affinity.at_sources(numbered, radius), PAIRS[f"from_r{radius}"])
    ends = affinity.at_destinations(numbered, radius, affinity.directions(radius))
    np.testing.assert_array_equal(ends.flatten(), PAIRS[f"to_r{radius}"])


def check_labels(found: affinity.PairLabels, b: int, wanted, name: str) -> None:
    for kind, mask in found._asdict().items():
        key = name.format(kind)
        assert mask.shape[1:] == tuple(wanted[f"{key}_shape"])
        assert mask[b].sum() == wanted[f"{key}_sum"]
        np.testing.assert_array_equal(np.packbits(mask[b].numpy()), wanted[key])


def labels() -> torch.Tensor:
    maps = [inputs.mask(32, 32, 5, b, ignore=0.05) for b in range(2)]
    for b, label in enumerate(maps):
        label[inputs.array("irn/void", (32, 32), b) < 0.01] = 200
    return torch.from_numpy(np.stack(maps))


def test_labels_of_pairs():
    found = affinity.pair_labels(labels(), 10, by_path_length(10), 21)
    for b in range(2):
        check_labels(found, b, LABELS, f"{{}}_{b}")


def test_labels_at_a_quarter_of_the_size():
    label = inputs.mask(66, 50, 21, 0, ignore=0.03)
    np.testing.assert_array_equal(reduce_label(label, 4), LABELS["reduced_label"])


def test_labels_of_pairs_of_psa():
    label = torch.from_numpy(inputs.mask(14, 14, 4, 0, ignore=0.06))[None]
    check_labels(affinity.pair_labels(label, 5, affinity.directions(5), 255), 0, PAIRS, "label_{}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_and_gradients(dtype):
    edge = torch.from_numpy(inputs.array("irn/edge", (2, 1, 32, 32), 0, -3, 3)).to(dtype).requires_grad_()
    displacement = torch.from_numpy(inputs.array("irn/dp", (2, 2, 32, 32), 0, -6, 6)).to(dtype).requires_grad_()
    losses = irnet.irnet_losses(irnet.Branches(edge, displacement), labels(), 21)
    total = torch.stack(list(losses.values())).sum()
    bg, fg = 4 * losses["background_pairs"], 4 * losses["foreground_pairs"]
    values = [bg, fg, (bg + fg) / 2, *(2 * losses[name] for name in list(losses)[2:]), total]
    np.testing.assert_allclose([value.item() for value in values], LOSSES["values"], rtol=1e-6)  # 4e-7 measured
    total.backward()
    for gradient, wanted in ((edge.grad, LOSSES["edge_grad"]), (displacement.grad, LOSSES["dp_grad"])):
        close(gradient, wanted, 2e-6 * np.abs(wanted).max())  # 9e-7 measured
    a = affinity.path_affinity(edge[:, 0].sigmoid(), 10, by_path_length(10))
    close(a[:, ::7, ::11], LOSSES["affinity_sample"], 1e-6)


@pytest.fixture(scope="module")
def network():
    """ResNet-50's IRNet with the fixtures' weights."""
    network = irnet.IRNet("resnet50")
    for name, value in network.state_dict().items():
        value.copy_(torch.from_numpy(inputs.tensor(name, tuple(value.shape), 0)))
    network.mean_shift.running_mean.copy_(torch.from_numpy(inputs.array("irn/mean_shift", (2,), 0, -2, 2)))
    return network.eval()


def normalised(height: int, width: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(inputs.normalised(inputs.image(height, width, seed)))


def test_state_dict_has_the_published_names_and_shapes(network):
    wanted = fixtures.table("irnet/manifest-irnet.json")
    own = {name: list(value.shape) for name, value in network.state_dict().items()}
    assert {name: shape for name, shape in own.items() if "num_batches" not in name} == {
        name: shape for name, shape in wanted.items() if "num_batches" not in name
    }
    for branch, count in (("fc_edge", 125_409), ("fc_dp", 1_269_120)):
        assert sum(p.numel() for name, p in network.named_parameters() if name.startswith(branch)) == count


def test_network(network):
    images = torch.stack([normalised(96, 128, i) for i in range(2)])
    with torch.no_grad():
        training, evaluation = network.train()(images), network.eval()(images)
    close(training.edge, NETWORK["train_edge"], 2e-5)  # 6e-6 measured at most, here and below
    close(training.displacement, NETWORK["train_dp"], 2e-5)
    shift = evaluation.displacement - training.displacement
    close(shift, np.broadcast_to(NETWORK["eval_dp_minus_train_dp"][:, None, None], shift.shape), 2e-5)


def test_mean_displacement(network):
    def crops():
        for b in range(2):
            batch = torch.zeros(2, 3, 64, 64)
            for i in range(2):
                image = normalised(70 + 13 * b, 61, 3 + b + i)[:, :64, :64]
                batch[i, :, : image.shape[1], : image.shape[2]] = image
            yield batch

    close(network.mean_displacement(crops()), NETWORK["mean_shift_estimate"], 2e-5)


@pytest.mark.parametrize(("pad_to", "name"), [(512, "pad512"), (0, "nopad")])
def test_inference(network, pad_to, name):
    edge, displacement = irnet.boundaries(network, normalised(118, 157, 2), pad_to)
    close(edge[None], NETWORK[f"infer_edge_{name}"], 2e-5)
    close(displacement, NETWORK[f"infer_dp_{name}"], 2e-5)


def walked(cam: np.ndarray, edge: np.ndarray, settings: IRNetWalk) -> torch.Tensor:
    """The random walk of activation maps over the affinity that an edge map leaves."""
    return refiner.walked(torch.from_numpy(cam).double(), torch.from_numpy(edge).double(), settings)


def pseudo_mask(scores: torch.Tensor, background: float, keys) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Full-size scores over their maximum, labels, and where the best two are so close that either label is right."""
    full = refiner.enlarged(scores, 4, (118, 157))
    joined = F.pad(full, (0, 0, 0, 0, 1, 0), value=background)
    best, second = joined.sort(0, descending=True).values[:2]
    return full, np.array(keys, np.uint8)[joined.argmax(0)], (best - second < 1e-4).numpy()


@pytest.mark.parametrize(("beta", "exponent"), [(10, 8), (10, 0), (10, 3), (8, 6)])
def test_random_walk(beta, exponent):
    edge, cam = inputs.array("irn/rw_edge", (1, 30, 40), 0) ** 2, inputs.array("irn/rw_cam", (2, 30, 40), 0)
    found = walked(cam, edge[0], IRNetWalk(beta=beta, doublings=exponent))
    close(found[:, None], WALK[f"rw_beta{beta}_exp{exponent}"], 5e-5)  # 2.4e-5 measured: the fixture is float32
    if (beta, exponent) == (10, 8):
        full, label, unsure = pseudo_mask(found, float(WALK["label_thr"]), (0, 3, 15))
        close(full[:, 2::7, 3::7], WALK["rw_up_sample"], 1e-4)
        np.testing.assert_array_equal(label[~unsure], WALK["label"][~unsure])
        assert unsure.mean() < 0.01


def test_random_walk_over_the_edges_of_the_network(network):
    edge = irnet.boundaries(network, normalised(118, 157, 2)).edge.numpy()
    found = walked(inputs.blocky("irn/e2e_cam", 2, 30, 40, 0, 4), edge, IRNetWalk())
    close(found[:, None], WALK["e2e_rw"], 1e-4)
    _, label, unsure = pseudo_mask(found, 0.5, (0, 3, 15))
    np.testing.assert_array_equal(label[~unsure], WALK["e2e_label"][~unsure])
    assert unsure.mean() < 0.01


def test_instances():
    np.testing.assert_array_equal(instances.centroids(INSTANCE["disp"]), INSTANCE["centroids"])
    found = instances.instance_map(INSTANCE["disp"])
    np.testing.assert_array_equal(found, INSTANCE["instance_map"])
    assert found.max() + 1 == INSTANCE["n_instances"]
    cam = inputs.array("irn/ins_cam", (2, 24, 30), 0)
    np.testing.assert_allclose(instances.split_cams(cam, found).sum((2, 3)), INSTANCE["score_sum"], rtol=1e-6)
    scores, masks, classes = instances.detections(cam[:1], found[None] > 0, np.array([5]), 4)
    np.testing.assert_array_equal(scores, INSTANCE["det_score"])
    np.testing.assert_array_equal(masks.sum((1, 2)), INSTANCE["det_area"])
    np.testing.assert_array_equal(classes, INSTANCE["det_class"])


@pytest.mark.parametrize(("upper", "lower"), [(0.30, 0.05), (0.35, 0.10)])
def test_labels_for_irnet(upper, lower):
    image, keys = inputs.image(120, 160, 5), np.array([2, 14])
    maps = inputs.blocky("irn/ir_cam", 2, 120, 160, 0, 16) * inputs.blocky("irn/ir_gain", 1, 120, 160, 0, 24) ** 3
    maps = maps / (maps.max((1, 2), keepdims=True) + np.float32(1e-5))
    tail = f"{upper:.2f}_{lower:.2f}".replace("0.", "")
    for name, settings in (
        ("fg", crf.MaskSettings("crf", upper)),
        ("bg", crf.MaskSettings("crf", lower)),
        ("ir_label", crf.MaskSettings("crf", upper, lower)),
    ):
        ours = crf.pseudo_mask(image, keys, maps, settings)
        assert (ours == IR_LABEL[f"{name}_{tail}"]).mean() >= 0.9995
