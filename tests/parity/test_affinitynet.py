"""AffinityNet and the classifiers of PSA, and ICAM's affinity network.

Features, affinities, losses, gradients, maps; then the refinement: labels of training, the walk end to end, ICAM's CRF.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.parity import fixtures, inputs
from tests.parity.test_resnet38 import batch, close, filled, shapes, stats
from wsss.data.augment import CAFFE_MEAN_BGR, PosteriorAugment, View, normalise, resize_bicubic, scaled_size
from wsss.methods import icam
from wsss.networks.affinitynet import VGG_BODY, AffinityNet, Classifier, affinity_losses
from wsss.networks.seam import SEAMNetwork
from wsss.ops import affinity
from wsss.refiners.affinitynet import (
    AffinityNetWalk,
    confident_labels,
    crf_scores,
    walked,
    walked_scores,
    with_background,
)

pytestmark = pytest.mark.usefixtures("one_torch_thread")

NETWORK, CAM, VGG, LABEL, WALK = (
    fixtures.arrays(f"affinitynet/{name}")
    for name in ("network-resnet38", "cam-resnet38", "network-vgg16", "train-label", "random-walk")
)


def pair_labels(labels: np.ndarray) -> affinity.PairLabels:
    """Of maps (b, h, w), for radius 5."""
    return affinity.pair_labels(torch.from_numpy(labels), 5, affinity.directions(5), 255)


@pytest.fixture(scope="module")
def network():
    return filled(AffinityNet)


@pytest.fixture(scope="module")
def taps_and_feature(network):
    with torch.no_grad():
        images = batch(96, 112, 0, 1)
        return network.body(images)[-3:], network(images)


@pytest.fixture(scope="module")
def classifier(network):
    with torch.device("meta"):
        built = Classifier(20)
    state = network.body.state_dict()
    state["fc8.weight"] = torch.from_numpy(inputs.tensor("fc8.weight", (20, 4096, 1, 1)))
    built.load_state_dict(state, assign=True)
    return built.eval()


@pytest.mark.parametrize(
    ("manifest", "build"),
    [
        ("resnet38-aff", AffinityNet),
        ("vgg16-aff", lambda: AffinityNet(VGG_BODY)),
        ("resnet38-cls", lambda: Classifier(20)),
    ],
)
def test_state_dict_has_the_published_names_and_shapes(manifest, build):
    assert shapes(build) == list(fixtures.table(f"affinitynet/manifest-{manifest}.json").items())


def test_features(taps_and_feature):
    taps, feature = taps_and_feature
    for name, tap in zip(("conv4", "conv5", "conv6"), taps, strict=True):
        close(tap[:, :: tap.shape[1] // 16, ::4, ::4], NETWORK[f"{name}_sample"], 1e-5)  # 3.1e-6 measured
        mean, _, total, _, greatest = stats(tap)
        ours = [mean, tap.double().std().item(), total, greatest]
        np.testing.assert_allclose(ours, NETWORK[f"{name}_stats"], rtol=1e-5)  # 2.9e-6 measured
    close(feature[:, ::28], NETWORK["f9_sample"], 1e-5)  # 3.5e-6 measured
    np.testing.assert_allclose(affinity.feature_affinity(feature, 5), NETWORK["aff"], atol=2e-6)  # 7e-7 measured


def test_losses_and_gradients(taps_and_feature):
    feature = taps_and_feature[1].clone().requires_grad_()
    a = affinity.feature_affinity(feature, 5)
    a.retain_grad()
    labels = pair_labels(np.stack([inputs.mask(12, 14, 4, b, ignore=0.05) for b in range(2)]))
    assert [int(kind.sum()) for kind in labels] == NETWORK["loss_counts"].round().astype(int).tolist()
    losses = affinity_losses(a, *labels)
    total = sum(losses.values())
    total.backward()
    ours = [4 * losses["background_pairs"], 4 * losses["foreground_pairs"], 2 * losses["different_pairs"], total]
    np.testing.assert_allclose([v.item() for v in ours], NETWORK["loss_values"], rtol=1e-6)
    close(a.grad, NETWORK["aff_grad"], 5e-6)  # 1.4e-6 measured
    close(feature.grad[:, ::28], NETWORK["f9_grad_sample"], 3e-6)  # 6e-7 measured


@pytest.mark.parametrize(("size", "seed", "radius"), [((96, 112), 3, 5), ((64, 72), 4, 3)])
def test_affinities_of_icam(network, size, seed, radius):
    expected, tag = fixtures.arrays("icam/aff_net"), "{}x{}".format(*size)
    with torch.no_grad():
        feature = network(batch(*size, seed))
    ours = affinity.feature_affinity(feature, radius)[0]
    np.testing.assert_allclose(ours, expected[f"aff_{tag}"], atol=2e-6)  # 6e-7 measured
    dense = matrix(affinity.feature_affinity_planes(feature[0], radius), radius)
    np.testing.assert_allclose(dense, expected[f"dense_{tag}"], atol=2e-6)
    np.testing.assert_array_equal(dense > 0, expected[f"dense_{tag}"] > 0)


@pytest.mark.parametrize(("radius", "height", "width"), [(5, 56, 56), (5, 11, 14), (3, 8, 9)])
def test_pairs_of_icam(radius, height, width):
    cells = torch.arange(height * width).view(height, width)
    sources = affinity.at_sources(cells, radius)
    partners = affinity.at_destinations(cells, radius, affinity.directions(radius)).flatten()
    ours = [
        len(sources),
        len(partners),
        sources.sum(),
        partners.sum(),
        sources[0],
        sources[-1],
        partners[0],
        partners[-1],
    ]
    expected = fixtures.arrays("icam/aff_net")[f"pairs_r{radius}_{height}x{width}"]
    np.testing.assert_array_equal([int(value) for value in ours], expected)


def test_losses_and_gradient_of_icam():
    expected = fixtures.arrays("icam/aff_loss")
    shape = tuple(int(n) for n in expected["lab_shape"])
    kinds = [
        torch.from_numpy(np.unpackbits(expected[f"lab_{kind}"])[: np.prod(shape)].reshape(1, *shape[-2:]))
        for kind in ("bg", "fg", "neg")
    ]
    for ours, theirs in zip(pair_labels(expected["mask"][None]), kinds, strict=True):
        assert torch.equal(ours, theirs.bool())
    a = torch.from_numpy(inputs.array("aff_vals", (1, *shape[-2:]), 0, 0.01, 0.99)).requires_grad_()
    losses = affinity_losses(a, *kinds)
    total = sum(losses.values())
    total.backward()
    ours = [total, 4 * losses["background_pairs"], 4 * losses["foreground_pairs"], 2 * losses["different_pairs"]]
    np.testing.assert_allclose([v.item() for v in ours], expected["losses"][:4], rtol=1e-6)
    np.testing.assert_array_equal([kind.sum() for kind in kinds], expected["losses"][4:].round())
    close(a.grad.reshape(expected["grad"].shape), expected["grad"], 1e-6)


def test_what_is_fixed_and_the_groups():
    groups = fixtures.table("icam/icam-cam-groups.json")
    with torch.device("meta"):
        affinity, classifier = AffinityNet().train().freeze(), Classifier(20).train().freeze()
    names = {id(parameter): name for name, parameter in affinity.named_parameters()}
    ours = [[names[id(p)] for p in group["params"]] for group in affinity.param_groups(0.01)]
    heads = ["f8_3.weight", "f8_4.weight", "f8_5.weight", "f9.weight"]
    assert ours == [groups["groups_lr_x1"], [], heads, []]
    trained = {name for name, parameter in affinity.named_parameters() if parameter.requires_grad}
    assert trained == {name for name in groups["trainable_after_train_call"] if name.startswith("b")} | set(heads)
    # PSA's classifier makes its groups after it has fixed its first layers
    sizes = [len([p for p in group["params"] if p.requires_grad]) for group in classifier.param_groups(0.1)]
    assert sizes == CAM["group_sizes"].tolist()
    norms = [layer for layer in classifier.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    assert any(norm.training for norm in norms) == CAM["bn_training"]
    assert classifier.b7.dropout_2b1.training
    assert classifier.dropout7.training


def test_classifier(classifier):
    images = batch(72, 88, 0, 1)
    with torch.no_grad():
        np.testing.assert_allclose(classifier(images), CAM["logits"], atol=1e-5)  # 2.9e-6 measured
        np.testing.assert_allclose(classifier.maps(images)[0], CAM["cam"], atol=3e-5)  # 8.3e-6 measured


def test_maps_over_scales(classifier):
    picture, present, fused = inputs.image(72, 88, 5), [2, 9], torch.zeros(2, 72, 88)
    for scale in (1.0, 0.5, 1.5, 2.0):
        view = torch.from_numpy(normalise(resize_bicubic(picture, scaled_size((72, 88), scale))))[None]
        with torch.no_grad():
            maps = classifier.maps(torch.cat([view, view.flip(3)]))[:, present]
        full = F.interpolate(maps, (72, 88), mode="bilinear", align_corners=False)
        fused += full[0] + full[1].flip(2)
    fused /= fused.amax((1, 2), keepdim=True) + 1e-5
    np.testing.assert_allclose(fused[:, ::4, ::4], CAM["fused_cam"], atol=1e-5)  # 2.6e-6 measured
    scores = np.concatenate([np.full((1, 72, 88), 0.2, np.float32), fused])
    np.testing.assert_array_equal(np.array([0, 3, 10])[scores.argmax(0)], CAM["cam_pred"])


def vgg_picture() -> torch.Tensor:
    bgr = inputs.image(80, 96, 0)[..., ::-1].astype(np.float64) - CAFFE_MEAN_BGR
    return torch.from_numpy((bgr / 64).astype(np.float32).transpose(2, 0, 1).copy())[None]


def test_vgg_affinities():
    network = filled(lambda: AffinityNet(VGG_BODY))
    with torch.no_grad():
        taps = network.body(vgg_picture())[-3:]
        a = affinity.feature_affinity(network(vgg_picture()), 5)
    np.testing.assert_array_equal([list(tap.shape) for tap in taps], VGG["shapes"])
    np.testing.assert_allclose(a, VGG["aff"], atol=2e-6)  # 3.6e-7 measured


def test_vgg_classifier():
    network = filled(lambda: Classifier(20, VGG_BODY))
    with torch.no_grad():
        np.testing.assert_allclose(network(vgg_picture()), VGG["cls_logits"], atol=1e-6)  # 4e-8 measured
        # roots of small numbers: 8.7e-6 measured
        np.testing.assert_allclose(network.maps(vgg_picture())[0], VGG["cls_cam"], atol=3e-5)


def test_labels_of_training():
    low = inputs.blocky("psa/la", 3, 100, 130, 0, 16)
    high = 0.6 * inputs.blocky("psa/ha", 3, 100, 130, 0, 16) + 0.4 * low
    sets = [np.exp(3 * scores) / np.exp(3 * scores).sum(0) for scores in (low, high)]
    view, cells = PosteriorAugment(112).apply(
        View.flipped_last((100, 130), True, 6, 9, 112), inputs.image(100, 130, 0), np.concatenate(sets), "imagenet"
    )
    np.testing.assert_allclose(view[:, ::16, ::16], LABEL["train_image_sample"], atol=1e-6)  # 2.4e-7 measured
    np.testing.assert_allclose(view[:, 0, 0], LABEL["padding_value"], atol=1e-6)
    label = confident_labels(*np.split(cells, 2))
    np.testing.assert_array_equal(label, LABEL["train_label"])
    for kind, pairs in pair_labels(label[None])._asdict().items():
        assert pairs.sum() == LABEL[f"train_{kind}_sum"]


@pytest.mark.parametrize("flip", [0, 1])
def test_labels_of_training_of_icam(flip):
    expected, (height, width) = fixtures.arrays("icam/transforms"), (72, 88)
    maps = (1.3 * inputs.blocky("affcrf", 2, height + 1, width + 1, 0, 8)[:, :height, :width] - 0.3).clip(0, 1)
    scores = [with_background(maps, alpha) for alpha in (2.0, 4.0)]
    (across, left), (down, top) = expected[f"aff_draws_flip{flip}"].tolist()
    assert (across, down) == (width - 64 + 1, height - 64 + 1)
    picture, sets = inputs.image(height, width, 5), np.concatenate([s / s.sum(0) for s in scores])
    view, cells = PosteriorAugment(64).apply(
        View.flipped_last((height, width), bool(flip), top, left, 64), picture, sets, "imagenet"
    )
    np.testing.assert_allclose(view[:, ::8, ::8], expected[f"aff_img_flip{flip}"], atol=1e-6)  # 4.8e-7 measured
    np.testing.assert_array_equal(confident_labels(*np.split(cells, 2)), expected[f"aff_label_flip{flip}"])


def matrix(planes: torch.Tensor, radius: int) -> np.ndarray:
    """A of all cells, dense."""
    height, width = planes.shape[1:]
    dense = np.eye(height * width, dtype=np.float32)
    for plane, (dy, dx) in zip(planes.numpy(), affinity.directions(radius), strict=True):
        for y in range(height - dy):
            for x in range(max(0, -dx), width - max(0, dx)):
                one, other = y * width + x, (y + dy) * width + x + dx
                dense[one, other] = dense[other, one] = plane[y, x]
    return dense


def test_the_walk_end_to_end(network):
    picture, classes = inputs.image(120, 160, 3), np.array([4, 11])
    maps = inputs.blocky("psa/cam", 2, 120, 160, 0, 8)
    maps = maps / (maps.max((1, 2), keepdims=True) + np.float32(1e-5))
    with torch.no_grad():
        features = network(torch.from_numpy(normalise(picture))[None])[0]
    dense = matrix(affinity.feature_affinity_planes(features, 5), 5)
    assert np.count_nonzero(dense) == WALK["aff_nonzero"]
    assert bool((dense == dense.T).all()) == WALK["aff_symmetric"]
    np.testing.assert_allclose(dense[:60, :60], WALK["aff_block"], atol=2e-6)  # 3.0e-7 measured
    np.testing.assert_allclose(dense.sum(1), WALK["aff_row_sums"], rtol=1e-5)  # 2.9e-7 measured
    for prefix, settings in (("", AffinityNetWalk()), ("icam_", AffinityNetWalk(alpha=6, doublings=6))):
        scores = torch.from_numpy(with_background(maps, settings.alpha))
        if not prefix:
            pooled = walked(scores, features, AffinityNetWalk(doublings=0, beta=1e9))  # no cell is linked with another
            np.testing.assert_allclose(pooled, WALK["pooled_cam"], rtol=1e-5, atol=1e-11)  # 1.7e-6 measured
        after = walked(scores, features, settings)
        np.testing.assert_allclose(after, WALK[f"{prefix}rw"], atol=1e-5)  # 3.9e-6 measured
        full = walked_scores(network, picture, maps, settings)
        best, second = np.sort(full, 0)[:-3:-1]
        clear = best - second > 1e-4
        label = np.array([0, *classes + 1])[full.argmax(0)]
        np.testing.assert_array_equal(label[clear], WALK[f"{prefix}label"][clear])
        assert clear.mean() > 0.99


def maps_of_icam(network: AffinityNet, picture: np.ndarray, classes: list[int]) -> np.ndarray:
    """The maps of ICAM's own network, whose trunk has the same weights in the fixtures."""
    with torch.device("meta"):
        own = SEAMNetwork(20)
    state = network.body.state_dict()
    for name in ("fc8", "f8_3", "f8_4", "f9"):
        shape = tuple(getattr(own, name).weight.shape)
        state[f"{name}.weight"] = torch.from_numpy(inputs.tensor(f"{name}.weight", shape))
    own.load_state_dict(state, assign=True)
    localizer = icam.ICAMLocalizer(own.eval(), icam.ICAMInference(), "icam")
    return localizer.cams(localizer.prepare(picture), picture.shape[:2], np.isin(np.arange(20), classes)).maps


@pytest.mark.parametrize(
    ("name", "size", "classes"),
    [
        pytest.param("2007_000001", (120, 160), [7, 8, 10], marks=pytest.mark.slow),
        # 10 x 13 cells: ICAM's radius is 4 there
        ("2007_000002", (75, 100), [5, 14]),
    ],
)
def test_the_walk_of_icam(network, name, size, classes):
    expected, picture = fixtures.arrays("icam/infer_aff"), inputs.image(*size, int(name[-1]) - 1)
    maps = maps_of_icam(network, picture, classes)
    np.testing.assert_allclose(maps[:, ::3, ::3], fixtures.arrays("icam/infer_cam")[f"{name}_cam"], atol=5e-6)  # 1.1e-6
    labels = np.array([0, *(label + 1 for label in classes)], np.uint8)
    usual, other = (
        AffinityNetWalk(alpha=6, doublings=6, shrink=True),
        AffinityNetWalk(alpha=16, beta=4, doublings=3, shrink=True),
    )
    for tag, settings in (("default", usual), ("a16_b4_t3", other), ("crf", usual)):
        scores = walked_scores(network, picture, maps, settings)
        if tag == "crf":
            scores = crf_scores(picture, labels, scores, 21, network.colours)[labels]
        # 1.9e-6 measured; the CRF on the picture as it is, or of the present classes alone, is off by 1e-2 and 1e-4
        np.testing.assert_allclose(scores[:, ::4, ::4], expected[f"{name}_{tag}_scores"], atol=5e-6)
        mask = labels[scores.argmax(0)][: size[0], : size[1]]
        np.testing.assert_array_equal(mask, expected[f"{name}_{tag}_labels"])
