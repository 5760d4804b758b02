"""VWE, VWL-L and VWL-M against the published code: pooling, words, losses, bank, networks, training, maps, scores, CRF.

Largest differences measured (those of networks as a share of the largest value): pooling 0; words 2e-7; losses 2e-8, but 8e-6 for the
decorrelation of 256 words, which the published form loses to rounding; bank 6e-8, its histograms 5e-7; words that learn alone 1e-7; outputs of
the networks 2e-6, gradients 1e-5, their norms 5e-6 of each; losses over three updates 1e-5; maps in [0, 1] 1e-5; scores 1e-16; CRF 3e-6. The
published VWL-M script stops at its first step; its fixtures take the hard assignment that it needs.
"""

from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.parity import fixtures, inputs
from tests.parity.test_cam import run_optimizer
from wsss.data import augment
from wsss.data.files import voc_palette
from wsss.data.images import Images
from wsss.methods import vwl
from wsss.metrics import ConfusionMatrix, ThresholdSweep
from wsss.ops.crf import PRESETS, dense_crf, unary_from_scores
from wsss.stages.train import make_optimizer, poly_factor
from wsss.weights import write_weights

NETWORKS = {"vwe": "vwe_resnet50", "vwl-l": "vwl_l_resnet101", "vwl-m": "vwl_m_resnet101"}
NOTHING = Images("none", (), (), tuple(f"class {i}" for i in range(20)), np.zeros((0, 20), bool), ())

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def load(name: str) -> fixtures.Arrays:
    return fixtures.arrays(f"vwl/{name}")


def manifest(variant: str) -> dict:
    return fixtures.table(f"vwl/manifest-{NETWORKS[variant].replace('_resnet', '-resnet')}.json")


def tensor(name: str, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(inputs.tensor(name, shape, seed))


def array(name: str, shape: tuple[int, ...], low: float = 0, high: float = 1) -> torch.Tensor:
    return torch.from_numpy(inputs.array(name, shape, 0, low, high))


def codebook(n_words: int, width: int) -> torch.Tensor:
    return tensor("VWE.centroid", (n_words, width, 1, 1))[:, :, 0, 0].clone().requires_grad_()


def near(ours: object, theirs: np.ndarray, tolerance: float) -> None:
    ours = ours.detach().numpy() if isinstance(ours, torch.Tensor) else ours
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("size", ["8x8", "7x9", "5x4", "10x13", "32x32"])
def test_hybrid_pooling(size):
    stored, (height, width) = load("pool"), map(int, size.split("x"))
    x = array(f"pool_x_{size}", (2, 3, height, width), -1).requires_grad_()
    out = vwl.hybrid_pooling(x)
    out.backward(array("pool_g", (2, 3, 1, 1), -1)[:, :, 0, 0])
    near(out, stored[f"out_{size}"], 1e-6)
    near(x.grad, stored[f"grad_{size}"], 1e-6)


@pytest.mark.parametrize("tau", [1, 5])
def test_words(tau):
    stored, words = load("words"), codebook(12, 16)
    similarity = vwl.similarities(array("words_x", (2, 16, 5, 6), -0.5).relu(), words)
    counts = vwl.histogram(similarity, float(tau))
    counts.backward(array("words_g", (2, 12, 1, 1), -1)[:, :, 0, 0])
    near((tau * similarity).softmax(1), stored[f"corr_tau{tau}"], 1e-6)
    near(counts, stored[f"hist_tau{tau}"], 1e-5)
    near(words.grad, stored[f"grad_centroid_tau{tau}"], 1e-5)
    assigned = similarity.argmax(1)
    np.testing.assert_array_equal(assigned, stored["assignment"])
    np.testing.assert_array_equal(vwl.word_labels(assigned, 12), stored["y_word"])


def test_losses():
    stored = load("losses")
    logits = array("logits", (3, 20), -4, 4).requires_grad_()
    margin = F.multilabel_soft_margin_loss(logits, torch.from_numpy(stored["labels"]).float())
    words, word_logits, many = (
        codebook(12, 16),
        array("word_logits", (3, 12), -4, 4).requires_grad_(),
        codebook(256, 2048),
    )
    decorrelation, entropy = vwl.decorrelation_loss(words), vwl.entropy_loss(word_logits)
    of_many = vwl.decorrelation_loss(many)
    (margin + decorrelation + entropy + of_many).backward()
    near(margin, stored["msm"], 1e-6)
    near(logits.grad, stored["msm_grad"], 1e-6)
    near(decorrelation, stored["decov"], 1e-6)
    near(words.grad, stored["decov_grad"], 1e-6)
    near(entropy, stored["entropy"], 1e-6)
    near(word_logits.grad, stored["entropy_grad"], 1e-6)
    # half of 33 less 32: 8e-6 of the fixture's own float32
    near(vwl.decorrelation_loss(many.double()), stored["decov_full"], 1e-5)
    near(many.grad.norm(), stored["decov_full_grad_norm"], 1e-5)
    near(many.grad[:4, :16], stored["decov_full_grad_head"], 1e-6)
    near(of_many, vwl.decorrelation_loss(many.double()).detach().numpy(), 1e-5)


@pytest.mark.parametrize("rho", [0.001, 0.1])
def test_trajectory_of_the_memory_bank(rho):
    stored = load("bank")
    bank = vwl.MemoryBank(tensor("codebook", (12, 32)))
    near(bank.codebook, stored[f"codebook_rho{rho}"][0], 0)
    for step in range(5):
        x = array(f"bank_x{step}", (2, 32, 5, 6), -1).relu()
        similarity = vwl.similarities(x, bank.codebook)
        assigned = similarity.argmax(1)
        np.testing.assert_array_equal(assigned, stored[f"assignment_rho{rho}"][step])
        np.testing.assert_array_equal(vwl.word_labels(assigned, 12), stored[f"y_word_rho{rho}"][step])
        near(vwl.histogram(similarity), stored[f"hist_rho{rho}"][step], 1e-5)
        bank.update(x, assigned, rho, 0)
        if step == 0:  # drawn at random there and here
            bank.codebook.copy_(x.permute(0, 2, 3, 1).flatten(0, 2)[stored["init_rows"]])
        near(bank.codebook, stored[f"codebook_rho{rho}"][step + 1], 1e-6)


def test_words_that_learn_alone():
    """The histogram's loss and the decorrelation on fixed features, over five updates."""
    stored = load("codebook_learning")
    settings = vwl.VWLSettings(variant="vwl-l", backbone="resnet18", words=12, init="none")
    learning = settings.trainable(Images("none", (), (), tuple("abcde"), np.zeros((0, 5), bool), ()))
    words, fc_a = codebook(12, 16), tensor("fc_a.weight", (5, 12, 1, 1)).requires_grad_()
    learning.network.VWE.centroid = torch.nn.Parameter(words.detach()[:, :, None, None])
    learning.network.fc_a.weight = torch.nn.Parameter(fc_a.detach())
    learning.network.classifier = torch.nn.Conv2d(16, 5, 1, bias=False)
    learning.network.fc_b = torch.nn.Conv2d(16, 12, 1, bias=False)
    own = [learning.network.VWE.centroid, learning.network.fc_a.weight]
    optimizer = make_optimizer(settings.training, [{"params": own, "lr": 0.1, "weight_decay": 1e-4}])
    for step in range(5):
        optimizer.param_groups[0]["lr"] = 0.1 * poly_factor(settings.training, step, 6)
        near(np.float32(optimizer.param_groups[0]["lr"]), stored["lr"][step], 1e-8)
        losses = learning.losses(
            array(f"learn_x{step}", (2, 16, 5, 6), -0.5).relu(), torch.from_numpy(stored["labels"]).float()
        )
        near(losses["classes_of_words"], stored["loss2"][step], 1e-6)
        near(losses["decorrelation"], stored["loss4"][step], 1e-6)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        near(learning.network.codebook, stored["centroid"][step], 1e-6)
        near(learning.network.fc_a.weight[:, :, 0, 0], stored["fc_a"][step], 1e-6)


def test_schedule_and_optimiser():
    stored, training = load("schedule"), vwl.VWLSettings().training
    last = int(stored["max_step"])
    rates = [[lr * poly_factor(training, step, last) for lr in (0.01, 0.1)] for step in stored["step"].tolist()]
    np.testing.assert_allclose(rates, stored["lr_f64"], rtol=1e-12)
    assert training.momentum == stored["toy_momentum_f64"]
    start = inputs.array("toy", (4,), 0, -1, 1)
    _, after = run_optimizer(
        training, [start], lambda i, step: inputs.array(f"toy_g{step}", (4,), 0, -1, 1), [0.1], [1e-4], 6, 8
    )
    near(np.concatenate([start[None], after[:, 0]]), stored["toy"], 1e-6)


class Published(NamedTuple):
    """A variant, and the fixtures' weights of it under our names: 20 classes, 256 words."""

    variant: str
    state: dict[str, torch.Tensor]

    def learning(self) -> vwl.VWLObjective:
        frozen = "stem" if self.variant == "vwl-m" else "stages"
        learning = vwl.VWLSettings(variant=self.variant, init="none", frozen=frozen).trainable(NOTHING)
        learning.network.load_state_dict(self.state)
        return learning.train(self.variant != "vwl-m")  # the fixtures keep the bank as it is

    def parameters(self, learning: vwl.VWLObjective) -> list[torch.nn.Parameter]:
        """In the order of the fixtures."""
        named = dict(learning.network.named_parameters())
        return [named[name] for name in manifest(self.variant)["canonical"] if name in named]


@pytest.fixture(scope="module", params=NETWORKS)
def published(request) -> Published:
    return filled(request.param)


def filled(variant: str) -> Published:
    shapes = manifest(variant)["canonical"]
    state = {name: tensor(name, tuple(shape)) for name, shape in shapes.items()}
    if variant == "vwl-m":
        state |= {"bank.codebook": tensor("codebook", (256, 2048)), "bank.updates": torch.tensor(1)}
    return Published(variant, state)


def example() -> dict[str, torch.Tensor]:
    images = [torch.from_numpy(inputs.normalised(inputs.image(97, 129, seed))) for seed in (1, 2)]
    label = inputs.array("labels", (2, 20), 0) < 0.2
    for row in np.flatnonzero(~label.any(1)):
        label[row, row % 20] = True
    return {"image": torch.stack(images), "label": torch.from_numpy(label).float()}


def test_training_forward(published):
    variant, learning, batch = published.variant, published.learning(), example()
    stored = load(f"net_{NETWORKS[variant]}")
    np.testing.assert_array_equal(batch["label"], stored["labels"])
    network = learning.network
    with torch.no_grad():
        x = network.features(batch["image"])
        losses = learning(batch)
        similarity = vwl.similarities(x, network.codebook)
        raw = network.maps(batch["image"])
        assigned = similarity.argmax(1)
        logits = network.classifier(vwl.hybrid_pooling(x)[:, :, None, None])[:, :, 0, 0]
        of_words = network.fc_a(vwl.histogram(similarity)[:, :, None, None])[:, :, 0, 0]
        word_logits = network.fc_b(x.mean((2, 3), keepdim=True))[:, :, 0, 0]
    close(x.mean((2, 3)), stored["features_mean"], 2e-5)
    close(x[:, :64], stored["features_head"], 2e-5)
    near(logits, stored["out"], 1e-4)
    near(logits, stored["cam_out"], 1e-4)
    near(of_words, stored["hist_logits"], 1e-4)
    near(word_logits, stored["word_logits"], 1e-4)
    near(raw.relu(), stored["cam"], 2e-4)
    np.testing.assert_array_equal(vwl.word_labels(assigned, 256), stored["y_word"])
    terms = {"classification": "loss1", "words": "loss3"}
    if variant == "vwl-m":
        np.testing.assert_array_equal(assigned, stored["assignment"])
    else:
        terms["classes_of_words"] = "loss2"
    if variant == "vwl-l":
        terms["decorrelation"] = "loss_decov"
        near(vwl.entropy_loss(word_logits), stored["loss_entropy"], 1e-4)
    assert losses.keys() == terms.keys()
    for name, key in terms.items():
        near(losses[name], stored[key], 5e-5)
    near(sum(losses.values()), stored["loss"], 1e-4)
    # what VWL-M's script computes and does not minimise
    near(F.multilabel_soft_margin_loss(of_words, batch["label"]), stored["loss2"], 5e-5)


def close(ours: torch.Tensor, theirs: np.ndarray, tolerance: float) -> None:
    """Within a share of the largest value."""
    near(ours, theirs, tolerance * np.abs(theirs).max())


def test_gradients(published):
    """In float64, where no ReLU hangs on the rounding of one processor."""
    variant, learning, batch = published.variant, published.learning().double(), example()
    stored = load(f"net_{NETWORKS[variant]}")
    sum(learning({name: value.double() for name, value in batch.items()}).values()).backward()
    own = published.parameters(learning)
    norms = np.array([np.nan if value.grad is None else value.grad.norm() for value in own])
    np.testing.assert_array_equal(np.isnan(norms), np.isnan(stored["grad_norm"]))
    np.testing.assert_allclose(norms, stored["grad_norm"], rtol=1e-4)
    # what is frozen there is frozen here; what a detach keeps from learning there is frozen too
    learns = np.array([value.requires_grad for value in own])
    np.testing.assert_array_equal(learns, (stored["requires_grad"] > 0) & ~np.isnan(stored["grad_norm"]))
    network = learning.network
    close(network.classifier.weight.grad[:, :64, 0, 0], stored["grad_classifier_weight"], 1e-5)
    close(network.fc_b.weight.grad[:, :64, 0, 0], stored["grad_fc_b_weight"], 1e-5)
    close(network.body.layer3[0].conv1.weight.grad[:8, :32, 0, 0], stored["grad_layer3_0_conv1"], 1e-4)
    if variant != "vwl-m":
        close(network.fc_a.weight.grad[:, :64, 0, 0], stored["grad_fc_a_weight"], 1e-5)
        close(network.VWE.centroid.grad[:16, :64, 0, 0], stored["grad_centroid"], 1e-5)


def test_three_updates(published):
    stored, learning, batch = load(f"net_{NETWORKS[published.variant]}"), published.learning(), example()
    own, training = published.parameters(learning), vwl.VWLSettings().training
    before = [value.detach().clone() for value in own]
    base = float(stored["trajectory_lr_f64"])
    groups = learning.param_groups(training)
    optimizer = make_optimizer(training, groups)
    for step in range(3):
        for group, times in zip(optimizer.param_groups, (1, 10), strict=True):
            group["lr"] = times * base * poly_factor(training, step, 10)
        losses = learning(batch)
        for column, name in enumerate(("classification", "classes_of_words", "words")):
            if name in losses:
                near(losses[name], stored["trajectory"][step, column], 1e-4)
        near(sum(losses.values()), stored["trajectory"][step, 3], 1e-4)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    change = np.array([(value.detach() - old).norm() for value, old in zip(own, before, strict=True)])
    theirs = stored["trajectory_param_change"]
    np.testing.assert_array_equal(change == 0, theirs == 0)
    np.testing.assert_allclose(change, theirs, rtol=1e-2)


def test_published_checkpoints(published, tmp_path):
    """All 962, 1880 and 1878 tensors of a file, under all their names, behind `module.`."""
    listed = manifest(published.variant)
    state = {name: published.state[name] for name in listed["canonical"]}
    everything = state | {alias: state[name] for alias, name in listed["alias"].items()}
    assert len(everything) == listed["total_keys"]
    torch.save(
        {f"{listed['checkpoint_prefix']}{name}": value for name, value in everything.items()}, tmp_path / "p.pth"
    )
    network = vwl.load(tmp_path / "p.pth", NOTHING)
    own = network.state_dict()
    assert {name for name in own if not name.startswith("bank.")} == set(state)
    for name, value in state.items():
        assert torch.equal(own[name], value), name


def test_multi_scale_maps(tmp_path):
    stored, learning = load("cam_multiscale_vwe_resnet50"), filled("vwe").learning()
    write_weights(tmp_path / "weights.safetensors", learning.network.state_dict(), learning.metadata)
    localizer = vwl.VWLInference().localizer(NOTHING, tmp_path)
    for j, (size_hw, classes) in enumerate((((113, 150), [3, 14]), ((99, 131), [7]))):
        views = localizer.prepare(inputs.image(*size_hw, 10 + j))
        for view, scale in zip(views, ("1", "0.5", "1.5", "2"), strict=True):
            with torch.no_grad():
                pair = localizer.network.maps(torch.cat([view, view.flip(3)])).relu()[:, classes]
            near(torch.maximum(pair[0], pair[1].flip(2)), stored[f"img{j}_scale{scale}"], 5e-5)
        label = np.isin(np.arange(20), classes)
        keys, maps, strided = localizer.cams(views, size_hw, label)
        np.testing.assert_array_equal(keys, stored[f"img{j}_keys"])
        near(strided, stored[f"img{j}_cam"], 5e-5)
        near(maps, stored[f"img{j}_high_res"], 5e-5)


def test_preprocessing():
    """Integers exactly, normalised values to 1e-6; draws are given, since ours come from NumPy, not from Python's `random`."""
    stored, image = load("preprocess"), inputs.image(113, 150, 3)
    for name, scale in (("0.5", 0.5), ("1.5", 1.5), ("2", 2.0)):
        resized = augment.resize_bicubic(image, augment.scaled_size(image.shape[:2], scale))
        np.testing.assert_array_equal(resized.shape[:2], stored[f"rescale_{name}_shape"])
        np.testing.assert_array_equal(resized[::7, ::5], stored[f"rescale_{name}_sub"])
        np.testing.assert_array_equal(resized.sum((0, 1), dtype=np.int64), stored[f"rescale_{name}_sum"])
        normal = augment.normalise(resized)
        near(normal.mean((1, 2), dtype=np.float64), stored[f"normal_{name}_mean"], 1e-5)
        near(normal.transpose(1, 2, 0)[::23, ::19], stored[f"normal_{name}_sub"], 1e-6)
    for i in range(3):
        long_side, flip, left, top = stored[f"aug{i}_draws"].tolist()
        size = augment.scaled_size(image.shape[:2], augment.long_side_scale(image.shape[:2], long_side))
        np.testing.assert_array_equal(size, stored[f"aug{i}_resized"])
        view = augment.crop_picture(augment.View(size, bool(flip), top, left, 512), image)
        near(view[:, ::16, ::16], stored[f"aug{i}_sub"], 1e-6)
        np.testing.assert_allclose(view.sum((1, 2), dtype=np.float64), stored[f"aug{i}_sum"], rtol=1e-4)
        assert np.count_nonzero(view[0]) == stored[f"aug{i}_nonzero"]
    near(
        augment.crop_picture(augment.top_left(image.shape[:2], 512), image).transpose(1, 2, 0)[::16, ::16],
        stored["top_left"],
        1e-6,
    )


def maps_of(name: str, classes: int) -> np.ndarray:
    small = torch.from_numpy(inputs.array(name, (1, classes, 6, 8), 0)) ** 2
    maps = F.interpolate(small, (60, 80), mode="bilinear", align_corners=False)[0].numpy()
    return maps / (maps.max((1, 2), keepdims=True) + np.float32(1e-5))


def test_scores_of_maps():
    stored = load("eval")
    sweep, at_published = ThresholdSweep(stored["thresholds_f64"].tolist(), 20), ConfusionMatrix(21)
    for i, classes in enumerate(((0, 14), (3,), (7, 8, 19), (14,), (4, 5))):
        maps, truth, found = maps_of(f"eval_cam{i}", len(classes)), inputs.mask(60, 80, 21, i), np.array(classes)
        labels = np.concatenate([[0], found + 1]).astype(np.uint8)
        mask = labels[np.concatenate([np.full((1, 60, 80), 0.14, np.float32), maps]).argmax(0)]
        np.testing.assert_array_equal(mask, stored[f"pred{i}"])
        at_published.add(truth, mask, f"image {i}")
        sweep.add(truth, maps, found, f"image {i}")
    np.testing.assert_array_equal(at_published.counts, stored["confusion"])
    rows = [
        [scored.pixel_accuracy, scored.mean_accuracy, scored.miou, *scored.iou] for scored in sweep.scores("present")
    ]
    np.testing.assert_allclose(np.array(rows, np.float64), stored["scores_f64"], rtol=0, atol=1e-12, equal_nan=True)


def test_crf_script():
    """v2/crf.py, which no recipe needs: the preset `vwl` on the softmax of a background score of 0.15 and maps."""
    stored = load("crf")
    maps = np.concatenate([np.full((1, 60, 80), 0.15, np.float32), maps_of("crf_cam", 2)])
    probabilities = torch.from_numpy(maps).softmax(0).numpy()
    near(probabilities, stored["prob"], 1e-6)
    q = dense_crf(inputs.image(60, 80, 0), unary_from_scores(probabilities), PRESETS["vwl"], threads=1)
    near(q, stored["q"], 2e-4)
    labels = np.concatenate([[0], stored["keys"] + 1])
    np.testing.assert_array_equal(labels[q.argmax(0)], stored["pred"])
    np.testing.assert_array_equal(voc_palette(), stored["colormap"])
