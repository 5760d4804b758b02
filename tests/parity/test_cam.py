"""The CAM baseline against IRNet and CLIMS: forward, gradients, maps, thresholded labels, optimiser."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.parity import fixtures, inputs
from wsss import classifier
from wsss.data.augment import resize_bicubic, scaled_size
from wsss.data.images import Images
from wsss.methods import cam
from wsss.stages.train import Training, make_optimizer, poly_factor

IRNET, CLIMS = fixtures.arrays("irnet/cam"), fixtures.arrays("clims/forward_cam")
MULTISCALE, OPTIMIZER = fixtures.arrays("clims/multiscale_cam"), fixtures.arrays("irnet/optimizer")
POLY, SCHEDULES = fixtures.arrays("clims/poly_optimizer"), fixtures.arrays("deeplab/schedules")
CLASSES = tuple(f"class {i}" for i in range(20))


def filled(seed: int, stride: int = 16) -> classifier.CAMNetwork:
    """A ResNet-50 classifier of 20 classes with the fixtures' weights."""
    network = classifier.CAMNetwork("resnet50", 20, stride)
    for name, value in network.state_dict().items():
        value.copy_(torch.from_numpy(inputs.tensor(name, tuple(value.shape), seed)))
    return network


def learning(network: classifier.CAMNetwork, frozen: str) -> cam.CAMObjective:
    nothing = Images("none", (), (), CLASSES, np.zeros((0, 20), bool), ())
    return cam.CAMObjective(cam.CAMSettings(frozen=frozen), network, nothing).train()


def batch(height: int, width: int) -> torch.Tensor:
    return torch.stack([torch.from_numpy(inputs.normalised(inputs.image(height, width, i))) for i in range(2)])


def close(ours: torch.Tensor, theirs: np.ndarray, tolerance: float) -> None:
    """Within a share of the largest value."""
    np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


def stats(values: np.ndarray) -> list[float]:
    """Mean, deviation, sum and largest size."""
    v = np.asarray(values, np.float64)
    return [v.mean(), v.std(), v.sum(), np.abs(v).max()]


def pair_of_mirrored(image: torch.Tensor) -> torch.Tensor:
    return torch.stack([image, image.flip(2)])


@pytest.mark.parametrize("manifest", ["irnet/manifest-cam.json", "clims/manifest-resnet50_cam.json"])
def test_state_dict_has_the_published_names_and_shapes(manifest):
    wanted = fixtures.table(manifest)
    wanted = wanted.get("shapes", wanted)
    own = {name: list(value.shape) for name, value in classifier.CAMNetwork("resnet50", 20).state_dict().items()}
    for name in wanted:
        assert own[name] == list(wanted[name])
    assert {name for name in own if name not in wanted} <= {name for name in own if "num_batches" in name}


def test_irnet_training_forward_and_gradients():
    trainable = learning(filled(0), "stages")
    label = torch.zeros(2, 20)
    label[0, [3, 14]] = label[1, 7] = 1
    images = batch(64, 80)
    close(trainable.network(images), IRNET["logits"], 1e-5)  # 1.5e-6 measured
    # in float64, where no ReLU hangs on the rounding of one processor: 7e-7 measured for layer3
    trainable.network.double()
    loss = trainable({"image": images.double(), "label": label})["classification"]
    np.testing.assert_allclose(loss.item(), IRNET["loss"], rtol=1e-6)
    loss.backward()
    close(trainable.network.classifier.weight.grad[:, ::64, 0, 0], IRNET["classifier_grad"].reshape(20, -1), 1e-5)
    body = trainable.network.body
    close(body.layer3[0].conv1.weight.grad[::32, ::32, 0, 0], IRNET["layer3_0_conv1_grad"], 1e-5)
    assert IRNET["frozen"].all()
    for conv in (body.conv1, body.layer1[0].conv1, body.layer2[0].conv1):
        assert conv.weight.grad is None


def test_irnet_maps_and_labels():
    localizer = classifier.CAMLocalizer(filled(0).eval(), cam.CAMInference())
    image, label = inputs.image(90, 124, 4), np.zeros(20, bool)
    label[[3, 14]] = True
    views = localizer.prepare(image)
    with torch.no_grad():
        pair = localizer.network.maps(torch.cat([views[0], views[0].flip(3)])).relu()
        large = localizer.network.maps(pair_of_mirrored(views[3][0])).relu()
    close((pair[0] + pair[1].flip(2))[[3, 14]], IRNET["cam_scale1"], 1e-5)
    close((large[0] + large[1].flip(2))[[3, 14], ::2, ::2], IRNET["cam_scale2_sample"], 1e-5)
    for key, scale, step in (("rescaled_15_sample", 1.5, 9), ("rescaled_05_sample", 0.5, 5)):
        rescaled = resize_bicubic(image, scaled_size((90, 124), scale))
        np.testing.assert_array_equal(rescaled[::step, ::step], IRNET[key])
    classes, maps, strided = localizer.cams(views, (90, 124), label)
    np.testing.assert_array_equal(classes, IRNET["keys"])
    whole = [-(-side // localizer.multiple) * localizer.multiple for side in (90, 124)]
    np.testing.assert_array_equal([*strided.shape[1:], *whole], IRNET["sizes"])
    np.testing.assert_allclose(strided, IRNET["cam"], atol=2e-5)  # 6e-6 measured
    np.testing.assert_allclose(maps[:, 1::3, 2::3], IRNET["high_res_sample"], atol=2e-5)
    joined = np.concatenate([np.full((1, 90, 124), 0.15, np.float32), maps])
    np.testing.assert_array_equal(np.concatenate([[0], classes + 1])[joined.argmax(0)], IRNET["pred_thr015"])


def test_clims_training_forward_and_gradients():
    trainable = learning(filled(0), "stem")
    images = torch.stack([torch.from_numpy(inputs.normalised(inputs.image(96, 128, i))) for i in range(2)])
    label = torch.from_numpy((inputs.array("label", (2, 20), 0) > 0.6).astype(np.float32))
    np.testing.assert_array_equal(label, CLIMS["label"])
    running = trainable.network.body.bn1.running_mean.clone()
    close(trainable.network(images), CLIMS["logits_train"], 1e-5)
    assert torch.equal(trainable.network.body.bn1.running_mean, running) == CLIMS["running_mean_unchanged"]
    trainable.network.double()  # see above
    logits = trainable.network(images.double())
    logits.retain_grad()
    loss = F.multilabel_soft_margin_loss(logits, label)
    np.testing.assert_allclose(loss.item(), CLIMS["msm_loss"], rtol=1e-6)
    loss.backward()
    close(logits.grad, CLIMS["msm_grad_logits"], 1e-5)
    close(
        trainable.network.classifier.weight.grad[:, :64, 0, 0],
        CLIMS["grad_classifier_weight_0_64"].reshape(20, 64),
        1e-5,
    )
    gradients = {name: value.grad for name, value in trainable.network.named_parameters()}
    compared = [key for key in CLIMS if key.startswith("gradstats/")]
    assert compared
    for key in compared:
        value = gradients[key.removeprefix("gradstats/")].double()
        stats = [value.mean(), value.std(correction=0), value.sum(), value.abs().max()]
        # sums of thousands of terms that nearly cancel: judged by the size of the terms
        allowed = [1e-5 * stats[3], 1e-5 * stats[3], 1e-6 * stats[3] * value.numel(), 1e-5 * stats[3]]
        assert np.all(np.abs(np.array(stats) - CLIMS[key]) <= np.array(allowed)), key
    without = [gradients[f"resnet50.{name}"] is None for name in ("conv1.weight", "bn1.weight", "bn1.bias")]
    np.testing.assert_array_equal(without, CLIMS["no_grad_conv1_bn1"])


def test_clims_forward_in_evaluation():
    network = filled(0).eval()
    images = torch.stack([torch.from_numpy(inputs.normalised(inputs.image(96, 128, i))) for i in range(2)])
    with torch.no_grad():
        close(network(images), CLIMS["logits_eval"], 1e-5)
        feature = network.body(images)[-1]
        raw = network.maps(pair_of_mirrored(images[0]))
    close(feature[:, :48], CLIMS["feature_slice"], 1e-5)
    np.testing.assert_allclose(stats(feature.numpy()), CLIMS["feature_stats"], rtol=1e-5)
    close(raw, CLIMS["cam_separate"], 1e-5)
    close(raw[0].relu() + raw[1].relu().flip(2), CLIMS["cam"], 1e-5)


def test_clims_maps_at_stride_8():
    images = torch.stack([torch.from_numpy(inputs.normalised(inputs.image(96, 128, 0)))])
    pair = torch.cat([images, images.flip(3)])
    with torch.no_grad():
        raw = filled(0, stride=8).eval().maps(pair).relu()
    close(raw[0] + raw[1].flip(2), CLIMS["cam_stride8"], 1e-5)


def test_clims_multi_scale_maps():
    localizer, label = classifier.CAMLocalizer(filled(1).eval(), cam.CAMInference()), np.zeros(20, bool)
    label[[2, 14]] = True
    image = inputs.image(120, 160, 7)
    np.testing.assert_array_equal(localizer.settings.scales, MULTISCALE["0/scales"])
    for scale in localizer.settings.scales:
        scaled = resize_bicubic(image, scaled_size((120, 160), scale))
        np.testing.assert_array_equal(scaled.shape, MULTISCALE[f"0/scaled_shape/{scale:g}"])
        np.testing.assert_array_equal(scaled[:6, :10], MULTISCALE[f"0/scaled_slice/{scale:g}"])
        np.testing.assert_allclose(stats(scaled), MULTISCALE[f"0/scaled_stats/{scale:g}"], rtol=1e-12)
    classes, maps, strided = localizer.cams(localizer.prepare(image), (120, 160), label)
    np.testing.assert_array_equal(classes, MULTISCALE["0/keys"])
    np.testing.assert_allclose(strided, MULTISCALE["0/cam"], atol=5e-6)
    np.testing.assert_array_equal(maps.shape, MULTISCALE["0/high_res_shape"])
    np.testing.assert_allclose(maps[:, ::3, ::3], MULTISCALE["0/high_res_stride3"], atol=5e-6)
    for ours, theirs in zip(maps, MULTISCALE["0/high_res_stats"], strict=True):
        np.testing.assert_allclose(stats(ours), theirs, rtol=1e-5)


def run_optimizer(training: Training, values, gradient, lrs, decays, n_steps, steps):
    """The rates in force and the parameters after each step of our optimiser under our schedule."""
    parameters = [torch.nn.Parameter(torch.from_numpy(value.copy())) for value in values]
    groups = [
        {"params": [p], "lr": lr, "weight_decay": decay} for p, lr, decay in zip(parameters, lrs, decays, strict=True)
    ]
    optimizer, rates, after = make_optimizer(training, groups), [], []
    for step in range(steps):
        for group, lr in zip(optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr * poly_factor(training, step, n_steps)
        for i, parameter in enumerate(parameters):
            parameter.grad = torch.from_numpy(gradient(i, step))
        optimizer.step()
        rates.append([group["lr"] for group in optimizer.param_groups])
        after.append(np.stack([parameter.detach().numpy().copy() for parameter in parameters]))
    return np.array(rates), np.stack(after)


def groups(training: Training, *decays: float) -> list[dict]:
    """The optimiser's parameter groups, each with a weight decay of its own."""
    return make_optimizer(
        training, [{"params": [torch.nn.Parameter(torch.zeros(1))], "weight_decay": decay} for decay in decays]
    ).param_groups


def test_irnet_optimizer():
    rates, after = run_optimizer(
        Training(momentum=1e-2),
        [inputs.array(f"opt/w{i}", (4,), 0, -1, 1) for i in range(2)],
        lambda i, step: inputs.array(f"opt/g{i}/{step}", (4,), 0, -1, 1),
        [0.1, 1.0],
        [1e-4, 5e-2],
        20,
        23,
    )
    made = groups(Training(momentum=1e-2), 1e-4, 5e-2)
    np.testing.assert_array_equal([group["momentum"] for group in made], OPTIMIZER["poly_group_momentum"])
    np.testing.assert_array_equal([group["weight_decay"] for group in made], OPTIMIZER["poly_group_weight_decay"])
    np.testing.assert_allclose(rates, OPTIMIZER["poly_lr"], rtol=1e-12)
    np.testing.assert_allclose(after.reshape(23, 8), OPTIMIZER["poly_weights"], atol=1e-6)


def test_clims_optimizer():
    rates, after = run_optimizer(
        Training(),
        [inputs.tensor(f"p{i}.weight", (3, 4), 21) for i in range(2)],
        lambda i, step: inputs.tensor(f"grad{i}.{step}.weight", (3, 4), 21),
        [0.1, 1.0],
        [1e-4, 1e-4],
        7,
        10,
    )
    made = groups(Training(), 1e-4, 1e-4)
    np.testing.assert_array_equal([group["momentum"] for group in made], POLY["a/momentum_of_groups"])
    np.testing.assert_array_equal([group["weight_decay"] for group in made], POLY["a/weight_decay_of_groups"])
    np.testing.assert_allclose(rates, POLY["a/lr_used"], rtol=1e-12)
    np.testing.assert_allclose(after, POLY["a/params_after_step"], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "bases", "total", "every"),
    [("poly_100_10", (2.5e-4, 2.5e-3, 5e-3), 100, 10), ("poly_57_7", (1e-3,), 57, 7)],
)
def test_deeplab_schedule(name, bases, total, every):
    training = Training(poly_every=every)
    ours = [[base * poly_factor(training, step, total) for base in bases] for step in range(total)]
    # the last row belongs to an update after the last
    np.testing.assert_allclose(ours, SCHEDULES[name].reshape(total + 1, -1)[:-1], rtol=1e-9)


def test_long_deeplab_schedules():
    base = float(SCHEDULES["poly_20000"][0])
    steps = SCHEDULES["poly_20000_at"].tolist()
    assert steps.pop() == 20_000
    ours = [base * poly_factor(Training(poly_every=10), step, 20_000) for step in steps]
    np.testing.assert_allclose(ours, SCHEDULES["poly_20000"][:-1], rtol=1e-9)
    # MMCV's: from lr to min_lr
    factors = [poly_factor(Training(), step, 20_000) for step in SCHEDULES["mmcv_poly_min_at"].tolist()]
    np.testing.assert_allclose(
        [(0.005 - 1e-4) * factor + 1e-4 for factor in factors], SCHEDULES["mmcv_poly_min"], rtol=1e-9
    )
