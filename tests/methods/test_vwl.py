"""VWE, VWL-L and VWL-M: any size of picture, words and bank against slow oracles, which weights are trained, kill and resume, two processes."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import check_a_stop, write_squares
from tests.double import Double
from tests.end_to_end.conftest import ENVIRONMENT
from wsss import launch
from wsss.data.augment import ClassifierAugment
from wsss.errors import BadInput
from wsss.methods import vwl
from wsss.networks.deeplab import create_deeplab
from wsss.stages.localize import localize
from wsss.stages.train import Training, train
from wsss.weights import WEIGHTS, read_weights, write_weights

VARIANTS = ("vwe", "vwl-l", "vwl-m")
# new weights, but with what is frozen in the published ones
FROZEN = {"vwe": "stages", "vwl-l": "stages", "vwl-m": "stem"}

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def small(variant: str, **changes: object) -> vwl.VWLSettings:
    """Settings that train in a second."""
    return vwl.VWLSettings(
        variant=variant,
        backbone="test_resnet",
        init="none",
        words=8,
        augment=ClassifierAugment(long_side=(32, 40), crop=40),
        training=Training(batch=4, epochs=None, steps=5, lr=0.02, workers=0, momentum=0.9, checkpoint_steps=2),
        **changes,
    )


def batch_of(count: int, size: int = 40) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    label = (torch.rand(count, 2, generator=generator) < 0.5).float()
    return {"image": torch.randn(count, 3, size, size + 8, generator=generator), "label": label}


def pooled_slowly(x: np.ndarray, levels: tuple[int, ...], gamma: float) -> float:
    total = gamma * x.mean()
    for level in levels:
        high, wide = (max(side // level, 1) for side in x.shape)
        starts = [(i, j) for i in range(0, x.shape[0] - high + 1, high) for j in range(0, x.shape[1] - wide + 1, wide)]
        total += np.mean([x[i : i + high, j : j + wide].max() for i, j in starts])
    return total / (gamma + len(levels))


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 19), st.integers(1, 19)),
    levels=st.sampled_from([(1, 2, 4), (1,), (2, 3)]),
    gamma=st.sampled_from([0.0, 2.0]),
)
def test_hybrid_pooling_of_any_size(size, levels, gamma):
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 2, *size))).requires_grad_()
    out = vwl.hybrid_pooling(x, levels, gamma)
    wanted = [[pooled_slowly(plane, levels, gamma) for plane in x.detach().numpy()[0]]]
    np.testing.assert_allclose(out.detach(), wanted, rtol=1e-12)
    out.sum().backward()
    # every part is a mean, so that adding to all cells adds as much to the pooled value
    np.testing.assert_allclose(x.grad.sum((2, 3)), 1, rtol=1e-12)


def test_words_of_pictures_and_their_sums_are_those_of_one_hot_vectors():
    x = torch.rand(3, 5, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assigned = vwl.similarities(x, torch.randn(9, 5, generator=torch.Generator().manual_seed(1)).double()).argmax(1)
    one_hot = F.one_hot(assigned, 9)
    assert torch.equal(vwl.word_labels(assigned, 9), one_hot.amax((1, 2)).float())
    sums, counts = vwl.word_sums(x, assigned, 9)
    assert torch.equal(counts, one_hot.sum((0, 1, 2)).double())
    torch.testing.assert_close(sums, torch.einsum("nhwk,ndhw->kd", one_hot.double(), x))
    assert (counts == 0).any()


def test_a_hotter_histogram_counts_cells():
    similarity = torch.rand(2, 6, 5, 7, generator=torch.Generator().manual_seed(0))
    counts = vwl.histogram(similarity, 1e5)
    wanted = F.one_hot(similarity.argmax(1), 6).sum((1, 2)).float()
    torch.testing.assert_close(counts, wanted)
    torch.testing.assert_close(vwl.histogram(similarity).sum(1), torch.full((2,), 35.0))


def test_decorrelation_is_the_difference_of_norms():
    words = torch.randn(20, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    centred = words - words.mean(1, keepdim=True)
    gram = centred @ centred.T
    wanted = 0.5 * (gram.norm() - gram.diagonal().norm())
    torch.testing.assert_close(vwl.decorrelation_loss(words), wanted, rtol=1e-12, atol=0)


def test_the_memory_bank_starts_with_features_and_then_follows_them():
    x = torch.rand(2, 6, 3, 4, generator=torch.Generator().manual_seed(0))
    rows = x.permute(0, 2, 3, 1).flatten(0, 2)
    banks = [vwl.MemoryBank(torch.randn(5, 6)) for _ in range(3)]
    for bank, seed in zip(banks, (1, 1, 2), strict=True):
        bank.update(x, torch.zeros(2, 3, 4, dtype=torch.int64), 0.5, seed)
        assert all((rows == word).all(1).any() for word in bank.codebook)
    assert torch.equal(banks[0].codebook, banks[1].codebook)
    assert not torch.equal(banks[0].codebook, banks[2].codebook)
    before = banks[0].codebook.clone()
    assigned = torch.zeros(2, 3, 4, dtype=torch.int64)
    assigned[0, 0, 0] = 3
    banks[0].update(x, assigned, 0.25, 1)
    after = banks[0].codebook
    torch.testing.assert_close(after[3], 0.75 * before[3] + 0.25 * x[0, :, 0, 0] / 1.0001)
    torch.testing.assert_close(after[0], 0.75 * before[0] + 0.25 * rows[1:].sum(0) / 23.0001)
    # a word without cells becomes shorter, and keeps its direction
    torch.testing.assert_close(after[[1, 2, 4]], 0.75 * before[[1, 2, 4]])
    assert banks[0].updates == 2


def test_published_defaults():
    assert [vwl.VWLSettings(variant=v).body for v in VARIANTS] == ["resnet50", "resnet101", "resnet101"]
    assert {v: vwl.VWLSettings(variant=v).frozen_layers for v in VARIANTS} == FROZEN
    assert {vwl.VWLSettings(variant=v, init="none").frozen_layers for v in VARIANTS} == {"nothing"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_learns(variant, squares):
    chosen = small(variant, frozen=FROZEN[variant])
    learning = chosen.trainable(squares).train()
    losses = learning(batch_of(2))
    assert (
        set(losses)
        == {"classification", "words"}
        | {
            "vwe": {"classes_of_words"},
            "vwl-l": {"classes_of_words", "decorrelation"},
            "vwl-m": set(),
        }[variant]
    )
    sum(losses.values()).backward()
    reached = {name for name, value in learning.network.named_parameters() if value.grad is not None}
    body, heads = learning.param_groups(chosen.training)
    named = {id(value): name for name, value in learning.network.named_parameters()}
    assert {named[id(value)] for group in (body, heads) for value in group["params"]} == reached
    learned = {"VWE.centroid", "fc_a.weight"} if variant != "vwl-m" else set()
    assert {named[id(value)] for value in heads["params"]} == {"classifier.weight", "fc_b.weight"} | learned
    assert heads["lr"] == 10 * body["lr"] == 10 * chosen.training.lr
    assert not any(m.training for m in learning.modules() if isinstance(m, torch.nn.BatchNorm2d))


@pytest.mark.parametrize("term", ["classes_of_words", "decorrelation", "words", "classification"])
def test_where_gradients_go(term, squares):
    learning = small("vwl-l").trainable(squares)
    learning(batch_of(2))[term].backward()
    reached = {name for name, value in learning.network.named_parameters() if value.grad is not None}
    heads = {name for name in reached if not name.startswith("backbone.")}
    wanted = {
        "classes_of_words": {"fc_a.weight", "VWE.centroid"},
        "decorrelation": {"VWE.centroid"},
        "words": {"fc_b.weight"},
        "classification": {"classifier.weight"},
    }
    assert heads == wanted[term]
    assert (reached > heads) == (term in ("words", "classification"))


def test_the_bank_moves_in_training_alone(squares):
    learning = small("vwl-m").trainable(squares)
    before = learning.network.bank.codebook.clone()
    learning.eval()(batch_of(2))
    assert torch.equal(learning.network.bank.codebook, before)
    learning.train()(batch_of(2))
    assert not torch.equal(learning.network.bank.codebook, before)
    assert learning.network.bank.updates == 1


def test_weighted_losses(squares):
    torch.manual_seed(0)
    learning = small("vwl-l", decorrelation=0.0, entropy=0.5).trainable(squares)
    losses = learning(batch_of(2))
    assert losses["decorrelation"] == 0
    assert 0 < losses["entropy"] < 0.5 * np.log(8) + 1e-3
    with torch.autocast("cpu", torch.bfloat16):
        halved = learning(batch_of(2))
    for name, value in halved.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, losses[name], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("changes", [{"words": 0}, {"temperature": 0.0}, {"levels": (0,)}, {"bank_rate": 2.0}])
def test_settings_that_make_no_sense(changes):
    with pytest.raises(BadInput, match=next(iter(changes))):
        vwl.VWLSettings(**changes)


@pytest.mark.parametrize("variant", VARIANTS)
def test_pictures_smaller_than_a_cell(variant, tmp_path, squares):
    settings = dataclasses.replace(small(variant), augment=ClassifierAugment(long_side=(8, 9), crop=9))
    train(settings, squares, out=tmp_path / "vwl")
    localizer = vwl.VWLInference().localizer(squares, tmp_path / "vwl")
    label = np.array([True, True])
    classes, maps, strided = localizer.cams(localizer.prepare(np.zeros((3, 5, 3), np.uint8)), (3, 5), label)
    assert (classes.tolist(), maps.shape, strided.shape) == ([0, 1], (2, 3, 5), (2, 1, 2))
    assert np.isfinite(maps).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_killed_training_ends_in_the_same_bytes(tmp_path, squares, variant):
    check_a_stop(lambda out: train(small(variant), squares, out=out), tmp_path, vwl.VWLObjective, 3)
    if variant == "vwl-m":
        state, _ = read_weights(tmp_path / "whole" / WEIGHTS)
        assert state["bank.updates"] == 5
        assert state["bank.codebook"].shape == (8, state["fc_b.weight"].shape[1])


def train_all(folder: Path) -> None:
    """All variants, on however many processes there are."""
    images = launch.decided_by_first(lambda: write_squares(folder / "squares", 12))
    for variant in VARIANTS:
        # a high rate, so that words are seen to move
        settings = Double(small(variant, bank_rate=0.2, frozen=FROZEN[variant]))
        train(settings, images, out=folder / str(launch.processes()) / variant)


@pytest.mark.slow
def test_two_processes_learn_the_same_words(tmp_path):
    for start in ([], ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]):
        words = [sys.executable, *start, "-m", "tests.methods.test_vwl", str(tmp_path)]
        done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    for variant in VARIANTS:
        one, two = (read_weights(tmp_path / count / variant / WEIGHTS)[0] for count in "12")
        assert one.keys() == two.keys()
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=1e-9, atol=1e-11, msg=f"{variant} {name}")
    # words that no batch moved would be alike too
    assert two["bank.updates"] == 5
    assert len(torch.unique(two["bank.codebook"], dim=0)) > 2


def test_published_checkpoints_of_other_pictures_are_refused(tmp_path, squares):
    torch.save(vwl.VWLNetwork("resnet50", 3, 16, True).state_dict(), tmp_path / "three.pth")
    with pytest.raises(BadInput, match="a classifier of 3 classes"):
        vwl.load(tmp_path / "three.pth", squares)
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(BadInput, match="no network of VWE or VWL"):
        vwl.load(tmp_path / "other.pth", squares)
    write_weights(tmp_path / WEIGHTS, {"a": torch.zeros(1)}, {"kind": "cam"})
    with pytest.raises(BadInput, match="weights of a `cam` network; expected those of a `vwl` network"):
        vwl.load(tmp_path, squares)


def test_the_number_of_words_is_that_of_the_file(tmp_path, squares):
    state = vwl.VWLNetwork("resnet50", 2, 16, False).state_dict()
    torch.save({f"module.{name}": v for name, v in state.items() if not name.startswith("bank.")}, tmp_path / "m.pth")
    assert vwl.load(tmp_path / "m.pth", squares).codebook.shape == (16, 2048)
    localize(vwl.VWLInference(scales=(0.5,)), squares, weights=tmp_path / "m.pth", out=tmp_path / "cams")
    # its words are not in it
    with pytest.raises(BadInput, match=r"without its memory bank.*words\.pictures"):
        vwl.show_words(vwl.WordFigureSettings(), squares, weights=tmp_path / "m.pth", out=tmp_path / "words")


if __name__ == "__main__":
    train_all(Path(sys.argv[1]))


def test_vwl_l_ends_after_five_of_its_six_epochs():
    assert vwl.VWLSettings().stop_epochs == 5
    assert vwl.VWLSettings(variant="vwe").stop_epochs is None
    training = vwl.VWLSettings().training
    assert vwl.VWLSettings(training=dataclasses.replace(training, epochs=20)).stop_epochs is None
    assert vwl.VWLSettings(training=dataclasses.replace(training, steps=100)).stop_epochs is None


def test_head_of_the_segmenter_learns_as_in_its_authors_code():
    settings = vwl.METHOD.segmenter
    with torch.device("meta"):
        network = create_deeplab(21, settings.network)
    body, weights, biases = network.param_groups(1e-3, 5e-4, settings.head_lr)
    assert (body["lr"], weights["lr"], biases["lr"]) == (1e-3, 1e-3, 0)
