"""EMANet against its authors' code: the EMA unit, both networks, loss, schedule, views, evaluation, three training steps."""

import numpy as np
import pytest
import torch

from tests.parity import fixtures, inputs
from wsss.data.augment import View
from wsss.data.mask_augment import EMANetAugment
from wsss.metrics import ConfusionMatrix, scores
from wsss.networks.emanet import EMANet, EMANetLayers, EMAUnit
from wsss.segmenters import emanet
from wsss.segmenters.trained import logits_of
from wsss.stages.train import make_optimizer, poly_factor
from wsss.weights import trained_weights

pytestmark = pytest.mark.usefixtures("one_torch_thread")

UNIT, LOSS, SCHEDULE, VIEWS, EVALUATION, STEPS = (
    fixtures.arrays(f"emanet/{name}") for name in ("emau", "loss", "schedule", "data", "evaluation", "train_steps")
)
UNITS = {"small": (16, 8, 3, 5, 6, 1, 1), "onestage": (16, 8, 1, 5, 6, 1, 1), "full": (512, 64, 3, 9, 11, 8, 16)}
NETWORKS = {"emanet50": ("resnet50s", 8, (65, 81)), "emanet101": ("resnet101s", 16, (65, 97))}


def fill(network: torch.nn.Module, prefix: str = "") -> torch.nn.Module:
    """The fixtures' weights; the bases have length 1."""
    for name, value in network.state_dict().items():
        filled = torch.from_numpy(inputs.tensor(prefix + name, tuple(value.shape)))
        value.copy_(filled / (1e-6 + filled.norm(dim=1, keepdim=True)) if f"{prefix}{name}" == "emau.mu" else filled)
    return network


def without_dropout(network: torch.nn.Module) -> torch.nn.Module:
    for layer in network.modules():
        if isinstance(layer, torch.nn.Dropout2d):
            layer.p = 0
    return network


def made(name: str) -> EMANet:
    backbone, stride, _ = NETWORKS[name]
    with torch.device("meta"):
        network = EMANet(21, EMANetLayers(backbone, stride))
    return fill(network.to_empty(device="cpu"))


def unit_input(name: str, kind: str) -> torch.Tensor:
    channels, _, _, height, width, *_ = UNITS[name]
    return torch.from_numpy(np.maximum(inputs.array(kind, (2, channels, height, width), 0, -0.6, 1), 0))


def pair(height: int, width: int) -> torch.Tensor:
    return torch.stack([torch.from_numpy(inputs.normalised(inputs.image(height, width, i))) for i in (1, 2)])


@pytest.mark.parametrize("name", UNITS)
def test_unit_in_evaluation(name):
    channels, bases, stages, _, _, step, sparse = UNITS[name]
    unit = fill(EMAUnit(channels, bases, stages), "emau.").eval()
    x = unit_input(name, "emau_x").requires_grad_()
    before = unit.mu.clone()
    out, mu = unit(x)
    (out * torch.from_numpy(inputs.array("emau_g", tuple(x.shape), 0, -1, 1))).sum().backward()
    close(out[:, ::step], UNIT[f"{name}_eval_out"], 2e-6)  # 5e-7 measured
    close(mu[:, ::step], UNIT[f"{name}_eval_mu"], 2e-6)
    close(x.grad[:, ::step], UNIT[f"{name}_grad_x"], 2e-6)
    close(unit.conv2[0].weight.grad[::sparse, ::sparse, 0, 0], UNIT[f"{name}_grad_conv2_weight"], 1e-5)
    close(unit.conv2[1].weight.grad, UNIT[f"{name}_grad_conv2_bn_weight"], 1e-5)
    close(unit.conv2[1].bias.grad, UNIT[f"{name}_grad_conv2_bn_bias"], 1e-5)
    assert unit.conv1.weight.grad is None
    assert unit.conv1.bias.grad is None
    assert torch.equal(unit.mu, before)


@pytest.mark.parametrize("name", UNITS)
def test_unit_in_training_moves_its_bases(name):
    channels, bases, stages, _, _, step, sparse = UNITS[name]
    unit = fill(EMAUnit(channels, bases, stages), "emau.").train()
    unit.conv2[1].momentum = 3e-4
    for i in range(3):
        out, _ = unit(unit_input(name, f"emau_x{i}"))
        np.testing.assert_allclose(out.detach()[:, ::sparse], UNIT[f"{name}_train_out"][i], rtol=0, atol=1e-4)
        close(unit.mu[0, ::step], UNIT[f"{name}_bases"][i], 1e-5)
    close(unit.conv2[1].running_mean, UNIT[f"{name}_bn_running_mean"], 1e-5)
    close(unit.conv2[1].running_var, UNIT[f"{name}_bn_running_var"], 1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_state_dict_has_the_published_names_and_shapes(name):
    with torch.device("meta"):
        state = EMANet(21, EMANetLayers(*NETWORKS[name][:2])).state_dict()
    manifest = fixtures.table(f"emanet/manifest-{name}.json")
    assert [(key, list(value.shape)) for key, value in state.items()] == list(manifest.items())


@pytest.fixture(scope="module", params=NETWORKS)
def whole(request):
    return request.param, fixtures.arrays(f"emanet/net_{request.param}_stride{NETWORKS[request.param][1]}")


def test_network_in_evaluation(whole):
    name, stored = whole
    network, images, kept = made(name).eval(), pair(*NETWORKS[name][2]), []
    network.emau.register_forward_hook(lambda _, __, out: kept.append(out[1]))
    with torch.no_grad():
        feature = network.extractor(images)[-1]
        low = network.low(images)
        logits = network(images)
    assert list(feature.shape) == stored["features_shape"].tolist()
    close(feature.mean((2, 3)), stored["features_mean"], 1e-5)
    close(kept[0][:, ::4], stored["mu"], 1e-5)
    close(low, stored["logits_low"], 1e-5)
    close(logits[:, :, ::6, ::6], stored["pred_sub"], 1e-5)
    close(logits.mean((2, 3)), stored["pred_mean"], 1e-5)
    assert (logits.argmax(1).numpy() != stored["pred_argmax"]).sum() <= 2


def test_network_in_training(whole):
    # in float64, as stored: batch statistics of few cells magnify rounding
    name, stored = whole
    height, width = NETWORKS[name][2]
    network, kept = without_dropout(made(name).double().train()), []
    network.emau.register_forward_hook(lambda _, __, out: kept.append(out[1]))
    masks = [inputs.mask(height, width, 21, 1), inputs.mask(height, width, 21, 2, ignore=0.3)]
    labels = torch.from_numpy(np.stack(masks))
    logits = network(pair(height, width).double())
    losses = [pixel_mean(logits[i : i + 1], labels[i : i + 1]) for i in range(2)]
    np.testing.assert_allclose([loss.item() for loss in losses], stored["train_loss"], rtol=1e-6)
    torch.stack(losses).mean().backward()
    np.testing.assert_allclose(kept[0][:, ::4], stored["train_mu"], rtol=0, atol=1e-7)
    np.testing.assert_allclose(network.fc2.weight.grad[:, :32, 0, 0], stored["grad_fc2_weight"], rtol=1e-6)
    norms = [np.nan if p.grad is None else p.grad.norm().item() for p in network.parameters()]
    np.testing.assert_allclose(norms, stored["grad_norm"], rtol=1e-6)
    np.testing.assert_allclose(network.fc0.bn.running_mean, stored["bn_fc0_running_mean"], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(network.fc0.bn.running_var, stored["bn_fc0_running_var"], rtol=1e-6)


def pixel_mean(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return emanet.LOSSES["all"](logits, labels)


def test_loss():
    logits = torch.from_numpy(inputs.array("seg_logits", (3, 21, 9, 11), 0, -3, 3)).requires_grad_()
    labels = np.stack([inputs.mask(9, 11, 21, i, ignore=0.03 + 0.3 * i) for i in range(3)])
    labels[2] = 255
    assert (labels != 255).sum((1, 2)).tolist() == LOSS["valid"].tolist()
    each = [pixel_mean(logits[i : i + 1], torch.from_numpy(labels[i : i + 1])).item() for i in range(3)]
    np.testing.assert_allclose(each, LOSS["loss"], rtol=1e-6)
    pixel_mean(logits, torch.from_numpy(labels)).backward()
    np.testing.assert_allclose(logits.grad, LOSS["grad"], rtol=1e-5, atol=1e-9)


def test_schedule():
    training = emanet.EMANetSettings().training
    n_steps = int(SCHEDULE["max_iter"])
    assert training.steps == n_steps
    with torch.device("meta"):
        groups = EMANet(21, EMANetLayers("resnet50s")).param_groups(training.lr, training.weight_decay)
    rates = [[group["lr"] * poly_factor(training, step - 1, n_steps) for group in groups] for step in SCHEDULE["step"]]
    np.testing.assert_allclose(rates, SCHEDULE["lr_f64"], rtol=1e-12, atol=1e-18)


@pytest.mark.parametrize("case", range(3))
def test_view(case):
    height, width, scale, top, left, draw = VIEWS[f"case{case}"]
    scaled = [int(side * scale) for side in (height, width)]
    np.testing.assert_array_equal(scaled, VIEWS[f"case{case}_scaled"])
    np.testing.assert_array_equal([max(side, 65) for side in scaled], VIEWS[f"case{case}_padded"])
    image = inputs.image(int(height), int(width), case)
    label = inputs.mask(int(height), int(width), 21, case)
    view, cropped = EMANetAugment.apply(
        View.flipped_last((scaled[0], scaled[1]), bool(draw < 0.5), int(top), int(left), 65),
        float(scale),
        image,
        label,
    )
    assert view.dtype == np.float32
    np.testing.assert_allclose(view[:, ::5, ::5], VIEWS[f"case{case}_image_sub"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(view.sum((1, 2), dtype=np.float64), VIEWS[f"case{case}_image_sum"], rtol=1e-4)
    np.testing.assert_array_equal(cropped, VIEWS[f"case{case}_label"])


@pytest.mark.parametrize("case", range(4))
def test_padding_of_test_pictures(case):
    height, width, *padded = VIEWS[f"pad{case}"].tolist()
    assert emanet.padded(torch.zeros(1, 3, height, width), 8).shape == (1, 3, *padded)
    # labels are not padded here: 255 in what is drawn, and beside it
    added = padded[0] * padded[1] - height * width
    assert (inputs.mask(height, width, 21, 5) == 255).sum() + added == VIEWS[f"pad{case}_label_ignored"]


def test_single_scale_evaluation(tmp_path):
    torch.save({"net": made("emanet50").state_dict(), "step": 30000}, tmp_path / "final.pth")
    trained = emanet.TrainedEMANet(*trained_weights(tmp_path / "final.pth"))
    matrix = ConfusionMatrix(21)
    for i, size in enumerate(((61, 90), (72, 75))):
        image, truth = inputs.image(*size, i), inputs.mask(*size, 21, i)
        assert emanet.padded(trained.view(image, 1.0), 8).shape[2:] == tuple(EVALUATION[f"padded{i}"])
        logits = logits_of(trained, trained.view(image, 1.0), size)
        mask = logits[0].argmax(0).numpy().astype(np.uint8)
        stored = EVALUATION[f"pred{i}"][: size[0], : size[1]]
        assert (mask != stored).sum() <= 2
        matrix.add(truth, mask, str(i))
    np.testing.assert_array_equal(matrix.counts, EVALUATION["confusion"])
    same_scores(matrix, "")


def same_scores(matrix: ConfusionMatrix, prefix: str) -> None:
    ours = scores(matrix.counts, "nan")
    overall = [ours.pixel_accuracy, ours.mean_accuracy, ours.frequency_weighted_iou, ours.miou]
    np.testing.assert_allclose(overall, EVALUATION[f"{prefix}scores_f64"], rtol=1e-12)
    iou = [np.nan if value is None else value for value in ours.iou]
    np.testing.assert_allclose(iou, EVALUATION[f"{prefix}class_iou_f64"], rtol=1e-12)


def test_metric():
    matrix = ConfusionMatrix(21)
    for i in range(3):
        matrix.add(inputs.mask(50, 60, 9, 20 + i), inputs.mask(50, 60, 12, 30 + i, ignore=0), str(i))
    np.testing.assert_array_equal(matrix.counts, EVALUATION["metric_confusion"])
    same_scores(matrix, "metric_")


def test_three_training_steps():
    network = without_dropout(made("emanet50").double().train())
    before = {name: value.clone() for name, value in network.named_parameters()}
    lr = float(STEPS["lr_f64"])
    training = emanet.EMANetSettings().training
    groups = network.param_groups(lr, training.weight_decay)
    assert [len(group["params"]) for group in groups] == STEPS["group_sizes"].tolist()
    optimizer = make_optimizer(training, groups)
    labels = torch.from_numpy(np.stack([inputs.mask(65, 65, 21, i) for i in (1, 2)]))
    for step in range(3):
        loss = pixel_mean(network(pair(65, 65).double()), labels)
        assert loss.item() == pytest.approx(STEPS["loss_f64"][step], rel=1e-9)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        np.testing.assert_allclose(network.emau.mu[0, ::16], STEPS["bases"][step], rtol=0, atol=1e-7)
    change = [(value - before[name]).norm().item() for name, value in network.named_parameters()]
    np.testing.assert_allclose(change, STEPS["param_change"], rtol=1e-6, atol=1e-12)


def close(ours: torch.Tensor, theirs: np.ndarray, tolerance: float) -> None:
    """Within a share of the largest value."""
    np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=0, atol=tolerance * np.abs(theirs).max())
