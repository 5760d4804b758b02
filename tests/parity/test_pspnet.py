"""PSPNet on Res2Net-101 and ResNet-38, its loss and its schedule against PMM's MMSegmentation."""

import numpy as np
import pytest
import torch

from tests.parity import fixtures, inputs
from tests.parity.test_resnet38 import batch, close, close_stats, filled, shapes
from wsss.networks.deeplab import pretended_underfitting, resize_logits
from wsss.networks.pspnet import AuxiliaryHead, PSPNet, PSPNetLayers, PyramidHead
from wsss.ops.windows import average_over_windows, windows
from wsss.segmenters import pspnet
from wsss.segmenters.trained import logits_of
from wsss.stages.predict import PredictSettings, Segmenter
from wsss.stages.train import poly_factor

pytestmark = pytest.mark.usefixtures("one_torch_thread")

STORED, SCHEDULES = fixtures.arrays("icam/psp_nets"), fixtures.arrays("icam/schedules")
PMM = fixtures.arrays("deeplab/pmm")
BODIES = {"r2n": "res2net101d", "res38": "resnet38"}


def build(body: str) -> PSPNet:
    return PSPNet(21, PSPNetLayers(BODIES[body]))


@pytest.mark.parametrize("body", BODIES)
def test_state_dict_has_the_published_names_and_shapes(body):
    assert shapes(lambda: build(body)) == list(fixtures.table(f"icam/manifest-psp-{body}.json").items())


@pytest.mark.parametrize("body", ["r2n", pytest.param("res38", marks=pytest.mark.slow)])
def test_features_and_logits(body):
    network, images = filled(lambda: build(body)).double(), batch(65, 81, 7).double()
    with torch.no_grad():
        features = network.backbone(images)[1:]
        logits, auxiliary = network.decode_head(features[-1]), network.auxiliary_head(features[-2])
        whole = network(images)
    for i, feature in enumerate(features):
        summary = STORED[f"{body}_feat{i}_stats"]
        close(feature[0, :: 64 if feature.shape[1] >= 512 else 32], STORED[f"{body}_feat{i}"], 1.3e-6, summary[4])
        close_stats(feature[0], summary, 1.3e-6)
    close(logits[0], STORED[f"{body}_logits"], 1.3e-6)
    close(auxiliary[0], STORED[f"{body}_aux"], 1.3e-6)
    close(whole[0, :, ::8, ::8], STORED[f"{body}_logits_full"], 1.3e-6)


@pytest.mark.parametrize("case", range(3))
def test_pretended_underfitting(case):
    beta, k, loss = STORED[f"pus{case}"].tolist()
    logits = torch.from_numpy(STORED[f"pus{case}_logits"]).requires_grad_()
    value = pretended_underfitting(logits, torch.from_numpy(STORED[f"pus{case}_labels"]), beta=beta, k=k)
    value.backward()
    assert value.item() == pytest.approx(loss, rel=1e-6)
    np.testing.assert_allclose(logits.grad, STORED[f"pus{case}_grad"], rtol=1e-5, atol=1e-9)


def test_schedule():
    base, low, power, n_steps = SCHEDULES["mmseg_args"].tolist()
    training = pspnet.PSPNetSettings().training
    assert (training.lr, training.min_lr, training.poly_power, training.steps) == (base, low, power, n_steps)
    factors = [poly_factor(training, i, int(n_steps)) for i in SCHEDULES["mmseg_its"].tolist()]
    rates = [(base - training.min_lr) * factor + training.min_lr for factor in factors]
    np.testing.assert_allclose(rates, SCHEDULES["mmseg_lr"], rtol=1e-12)


def test_checkpoint_is_known_by_its_tensors(tmp_path):
    torch.manual_seed(0)
    network = build("r2n").eval()
    torch.save({"meta": {"iter": 20000}, "state_dict": network.state_dict()}, tmp_path / "final_et_r2n.pth")
    segmenter = Segmenter(tmp_path / "final_et_r2n.pth", PredictSettings(scales=(1.0,), flip=False))
    assert segmenter.classes[0] == "aeroplane"
    view = segmenter.trained.view(inputs.image(30, 90, 0), 0.125)
    # 256 and 64 are the longest sides at that scale
    assert view.shape == (1, 3, 64, 192)
    with torch.no_grad():
        expected = resize_logits(network(view), (30, 90))
        close(logits_of(segmenter.trained, view, (30, 90)), expected.numpy(), 1e-6)


def test_heads_of_pmm():
    channels, width, n_classes = PMM["note_channels"].tolist()
    heads = torch.nn.ModuleDict(
        {
            "decode_head": PyramidHead(channels, n_classes, width),
            "auxiliary_head": AuxiliaryHead(channels, n_classes, width),
        }
    ).eval()
    state = heads.state_dict()
    assert {name: list(value.shape) for name, value in state.items()} == fixtures.table(
        "deeplab/manifest-pmm-heads-small.json"
    )
    for name, value in state.items():
        value.copy_(torch.from_numpy(inputs.tensor(name, tuple(value.shape), 5)))
    feature = torch.from_numpy(inputs.array("pmm/feat", (2, channels, 13, 17), 5, -1, 1))
    with torch.no_grad():
        np.testing.assert_allclose(heads["decode_head"](feature), PMM["psp_logits"], atol=1e-5)
        np.testing.assert_allclose(heads["auxiliary_head"](feature), PMM["aux_logits"], atol=1e-5)


def boxes(height: int, width: int, window: int, step: int) -> list[list[int]]:
    return [
        [rows.start, rows.stop, columns.start, columns.stop] for rows, columns in windows((height, width), window, step)
    ]


@pytest.mark.parametrize("size", [(375, 500), (512, 683), (768, 1024), (896, 1195)])
def test_windows_of_pmm(size):
    np.testing.assert_array_equal(boxes(*size, 512, 480), PMM["slide_boxes_{}_{}".format(*size)])


def test_the_mean_over_windows_of_pmm():
    np.testing.assert_array_equal(boxes(40, 55, 24, 16), PMM["slide_boxes_small"])
    image = torch.from_numpy(inputs.array("pmm/img", (1, 3, 40, 55), 5))

    def compute(rows: slice, columns: slice) -> torch.Tensor:
        part = image[..., rows, columns]
        return part + part.mean((2, 3), keepdim=True)

    ours = average_over_windows(compute, (40, 55), 24, 16)
    np.testing.assert_allclose(ours[0, :, ::3, ::3], PMM["slide_average"], atol=1e-5)
