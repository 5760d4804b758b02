"""ICAM, its follow-up and SEAM: draws, which weights are trained, maps of any picture, kill and resume, two processes, files that do not fit."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import yaml

from tests.conftest import check_a_stop, write_squares
from tests.double import Double
from tests.end_to_end.conftest import ENVIRONMENT
from wsss import launch, recipe
from wsss.cli import main
from wsss.configs import CONFIGS
from wsss.data.augment import JitteredAugment
from wsss.data.images import Dataset, Images
from wsss.errors import BadInput
from wsss.methods import icam, seam
from wsss.networks.seam import SEAMNetwork
from wsss.refiners import affinitynet
from wsss.refiners.task import RefinementTask
from wsss.stages.train import Training, train
from wsss.weights import WEIGHTS, read_weights, write_weights

VARIANTS = ("icam", "hfpl", "seam")

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def small(variant: str, **changes: object) -> icam.ICAMSettings:
    """Settings that train in seconds."""
    return icam.ICAMSettings(
        **{
            "variant": variant,
            "backbone": "test_resnet",
            "init": "none",
            "dropout": 0.0,
            "view_scale": 0.5,
            "augment": JitteredAugment(long_side=(32, 40), crop=40),
            "training": Training(batch=4, epochs=None, steps=5, lr=0.002, workers=0, momentum=0.9, checkpoint_steps=2),
            **changes,
        }
    )


def batch_of(learning: icam.ICAMObjective, count: int = 2) -> dict[str, torch.Tensor]:
    rows = [learning.examples(index, np.random.default_rng([0, index])) for index in range(count)]
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def test_published_defaults():
    chosen = {variant: icam.ICAMSettings(variant=variant).resolved for variant in VARIANTS}
    assert chosen == {"icam": (0.8, 100, 0.5), "hfpl": (0.2, 10, 1.0), "seam": (0.0, 10, 0.0)}
    assert icam.ICAMSettings(variant="hfpl", similarity=0.2).resolved == (0.2, 10, 0.2)
    labels, walk = icam.METHOD.refiner.labels, icam.METHOD.refiner.walk
    assert (labels.low, labels.high) == (2, 4)
    assert (walk.alpha, walk.beta, walk.doublings, walk.shrink) == (6, 8, 6, True)
    assert (icam.METHOD.segmenter.kind, icam.METHOD.segmenter.similarity) == ("deeplab_v1", 0.5)


@pytest.mark.parametrize("name", ["icam_coco", "hfpl", "hfpl_coco", "seam"])
def test_presets(name, capsys):
    """Every key is one of the settings; what they print is what they say."""
    words = ["run", "icam", "--data", "D", "--out", "O", "--config", str(CONFIGS / f"{name}.yaml"), "--print_config"]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0
    said, given = yaml.safe_load(capsys.readouterr().out), yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    assert holds(said, given)
    # what they leave out is ICAM's
    assert said["refiner"]["walk"]["alpha"] == 6
    assert said["segmenter"]["kind"] == "deeplab_v1"


def holds(content, part) -> bool:
    if isinstance(part, dict):
        return all(key in content and holds(content[key], value) for key, value in part.items())
    return content == part


@pytest.mark.parametrize(
    ("variant", "draws", "terms"),
    [
        ("icam", (2, 2, 100), {"feature_similarity"}),
        ("hfpl", (1, 2, 10), {"feature_similarity"}),
        ("seam", None, set()),
    ],
)
def test_losses_and_what_learns(variant, draws, terms, squares):
    learning = small(variant).trainable(squares).train()
    batch = batch_of(learning)
    assert (tuple(batch["draws"].shape[1:]) if "draws" in batch else None) == draws
    losses = learning(batch)
    assert set(losses) == {"classification", "equivariance", "cross_equivariance"} | terms
    sum(losses.values()).backward()
    learned = {name for name, value in learning.network.named_parameters() if value.grad is not None}
    assert learned == {name for name, _ in learning.network.named_parameters()}
    groups = learning.param_groups(Training(lr=0.01, weight_decay=5e-4))
    assert sum(len(group["params"]) for group in groups) == len(learned)
    assert [group["lr"] for group in groups[:4]] == [0.01, 0.02, 0.1, 0.2]
    alike = icam.ICAMObjective(small(variant, heads_lr=1.0), learning.network, squares).param_groups(Training(lr=0.01))
    assert [group["lr"] for group in alike[:4]] == [0.01, 0.02, 0.01, 0.02]


def test_examples_draw_from_their_own_stream(squares):
    """Cells are drawn by the numbers that come with a picture, so they depend on seed, pass and picture alone."""
    learning = small("icam").trainable(squares)
    first, again, other = (learning.examples(3, np.random.default_rng([0, epoch, 3])) for epoch in (0, 0, 1))
    for name in first:
        assert torch.equal(first[name], again[name])
    assert not torch.equal(first["draws"], other["draws"])
    assert first["draws"].dtype == torch.float64
    batch = batch_of(learning)
    torch.manual_seed(1)
    one = learning(batch)
    torch.manual_seed(2)
    two = learning(batch)
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("variant", ["icam", "hfpl"])
def test_infinitely_many_samples_are_the_mean_of_many(variant, squares):
    learning = small(variant, samples=0).trainable(squares).eval()
    exact = batch_of(learning)
    assert "draws" not in exact
    shape = (2, 2 if variant == "icam" else 1, 2, 20_000)
    many = exact | {"draws": ((torch.arange(shape[-1]) + 0.5) / shape[-1]).double().expand(shape)}
    torch.testing.assert_close(learning(many)["classification"], learning(exact)["classification"], rtol=1e-4, atol=0)


def test_settings_move_their_losses(squares):
    base = small("icam").trainable(squares).eval()
    batch = batch_of(base)

    def losses(**changes: object) -> dict[str, float]:
        other = icam.ICAMObjective(small("icam", **changes), base.network, squares).eval()
        return {name: value.item() for name, value in other(batch).items()}

    usual = losses()
    for changes in ({"importance": 0.0}, {"pooling": "max"}, {"revised_pooling": "avg"}):
        found = losses(**changes)
        assert found["classification"] != usual["classification"]
        assert found["equivariance"] == usual["equivariance"]
    assert losses(similarity=1.0)["feature_similarity"] == pytest.approx(2 * usual["feature_similarity"])
    assert losses(sigma=None)["feature_similarity"] != usual["feature_similarity"]
    assert losses(mu=0.0)["feature_similarity"] != usual["feature_similarity"]
    assert "feature_similarity" not in losses(similarity=0.0)


@pytest.mark.parametrize("variant", ["icam", "hfpl"])
def test_cells_beside_the_picture_count_unless_masked(variant, squares):
    torch.manual_seed(0)
    base = small(variant).trainable(squares).eval()
    batch = batch_of(base)
    batch["image"] = torch.rand_like(batch["image"]) + 0.1  # crops that are full
    masked = icam.ICAMObjective(small(variant, mask_padding=True), base.network, squares).eval()
    for name, value in masked(batch).items():
        torch.testing.assert_close(value, base(batch)[name])
    batch["image"][:, :, :20] = 0
    usual, found = base(batch), masked(batch)
    changed = {name for name in usual if usual[name].item() != found[name].item()}
    assert changed == {"classification", "feature_similarity"}


def test_pictures_without_tags_train(squares):
    untagged = dataclasses.replace(squares, labels=np.zeros_like(squares.labels))
    for variant in VARIANTS:
        losses = small(variant).trainable(untagged).train()(batch_of(small(variant).trainable(untagged)))
        assert all(torch.isfinite(value) for value in losses.values())


def test_half_precision_ends_at_the_losses(squares):
    learning = small("icam").trainable(squares).eval()
    batch = batch_of(learning)
    whole = learning(batch)
    with torch.autocast("cpu", torch.bfloat16):
        half = learning(batch)
    for name, value in half.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, whole[name], rtol=0.1, atol=0.02)


def test_pretrained_layers_are_fixed_as_published(tmp_path, squares):
    torch.save(SEAMNetwork(2, "test_resnet").state_dict(), tmp_path / "given.pth")
    learning = small("icam", init=str(tmp_path / "given.pth")).trainable(squares).train()
    assert not any(module.training for module in learning.modules() if isinstance(module, torch.nn.BatchNorm2d))
    assert not any(parameter.requires_grad for parameter in learning.network.body.parameters_until(0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"importance": 1.5}, "importance"),
        ({"samples": -1}, "samples"),
        ({"sigma": 0.0}, "sigma"),
        ({"dropout": 2.0}, "dropout"),
        ({"view_scale": 0.0}, "view_scale"),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(BadInput, match=message):
        icam.ICAMSettings(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "no_such_thing"}, "backbone no_such_thing"),
        ({"backbone": "resnet38", "init": "imagenet"}, r"classifier.init: found `imagenet`.*ilsvrc-cls_rna-a1"),
        (
            {"augment": JitteredAugment(long_side=(8, 9), crop=8)},
            r"classifier.augment.crop: found a second view of 4 pixels",
        ),
        ({"init": "missing.pth"}, "missing.pth: found no such file"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_the_work(changes, message, tmp_path, squares):
    settings = recipe.settings_of(icam.METHOD)(classifier=small("icam", **changes))
    data = Dataset("folder", tmp_path, {"train": squares}, "train")
    with pytest.raises(BadInput, match=message):
        recipe.run(icam.METHOD, settings, data, tmp_path / "run")
    with pytest.raises(BadInput, match=message):
        settings.classifier.trainable(squares)


def localizer(squares: Images, variant: str, **changes: object) -> icam.ICAMLocalizer:
    torch.manual_seed(0)
    return icam.ICAMLocalizer(SEAMNetwork(2, "test_resnet").eval(), icam.ICAMInference(**changes), variant)


@pytest.mark.parametrize("variant", ["icam", "seam"])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (33, 20)])
def test_maps_of_pictures_of_any_size(variant, size, squares):
    maps_of = localizer(squares, variant)
    picture = np.random.default_rng(0).integers(0, 255, (*size, 3)).astype(np.uint8)
    for label, classes in (([True, True], [0, 1]), ([False, True], [1]), ([False, False], [])):
        found = maps_of.cams(maps_of.prepare(picture), size, np.array(label))
        assert (found.classes.tolist(), found.maps.shape) == (classes, (len(classes), *size))
        assert found.maps_stride4.shape == (len(classes), -(-size[0] // 4), -(-size[1] // 4))
        for maps in (found.maps, found.maps_stride4):
            assert np.isfinite(maps).all()
            assert ((maps >= 0) & (maps <= 1)).all()


def test_fused_maps_are_conditioned_on_the_tags(squares):
    """Two classes: each pixel has one. A class alone shares its pixels with the background alone."""
    maps_of = localizer(squares, "icam")
    views = maps_of.prepare(squares.read(0))
    both = maps_of.cams(views, (32, 36), np.array([True, True])).maps
    assert ((both > 0).sum(0) == 1).all()
    p = torch.tensor([0.2, 0.5, 0.3]).view(1, 3, 1, 1)
    torch.testing.assert_close(icam.conditioned(p, torch.tensor([1])).item(), 0.3 / 0.5)
    torch.testing.assert_close(icam.conditioned(p, torch.tensor([0, 1])).flatten(), torch.tensor([0.5, 0.3]))


def test_the_mirror_image_has_mirrored_maps(squares):
    maps_of, picture, label = localizer(squares, "icam"), squares.read(0), np.array([True, True])
    one = maps_of.cams(maps_of.prepare(picture), (32, 36), label).maps
    other = maps_of.cams(maps_of.prepare(picture[:, ::-1].copy()), (32, 36), label).maps
    np.testing.assert_allclose(one, other[:, :, ::-1], atol=1e-5)


@pytest.mark.parametrize("tagged", [True, False])
def test_val_without_tags_has_no_maps_to_score(tagged, squares, tmp_path, monkeypatch):
    val = dataclasses.replace(squares, labels=squares.labels & tagged)
    data = Mock(Dataset, scored_split=None, val="val", split=Mock(return_value=val))
    made = []
    for module, stage in (
        (recipe, "localize"),
        (recipe, "evaluate_cams"),
        (affinitynet, "walk_to_masks"),
        (recipe, "evaluate_masks"),
    ):
        monkeypatch.setattr(module, stage, lambda *_, out, **__: (made.append(out.name), out)[1])
    task = RefinementTask(squares, tmp_path / "cams", tmp_path)
    recipe._score_both_splits(
        icam.METHOD, recipe.settings_of(icam.METHOD)(), data, task, {"weights": tmp_path / "classifier"}
    )
    assert made == (["cams-val", "cams-val-scores", "masks-val", "masks-val-scores"] if tagged else [])


def test_the_lowest_pixels_of_seam():
    """The published normalisation puts them below 0 where a map is above 0 everywhere; maps are written from 0 on."""
    total = torch.tensor([[[2.0, 2.5, 3.0]], [[0.0, 1.0, 4.0]]])
    network = SEAMNetwork(2, "test_resnet")
    maps_of = icam.ICAMLocalizer(network.eval(), icam.ICAMInference(), "seam")
    as_published = maps_of._normalised(total)
    torch.testing.assert_close(as_published[:, 0, 0], torch.tensor([-2.0, 0.0]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(as_published[:, 0, 1:], torch.tensor([[0.5, 1.0], [0.25, 1.0]]), rtol=1e-4, atol=1e-4)
    views, label = maps_of.prepare(np.zeros((33, 20, 3), np.uint8)), np.array([True, True])
    ((_, published, _),) = maps_of.published_cams([views], (33, 20), label[None])
    written = maps_of.cams(views, (33, 20), label).maps
    assert published.min() < 0
    np.testing.assert_array_equal(written, np.maximum(published, 0))


def test_competing_maps_of_seam():
    logits = torch.tensor([[5.0, 5.0, 5.0], [2.0, 1.0, -1.0], [1.0, 4.0, -3.0]]).view(1, 3, 1, 3)
    wanted = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]).view(1, 3, 1, 3)
    torch.testing.assert_close(seam.competing(logits), wanted, rtol=0, atol=2e-5)


def test_maps_are_those_of_the_trained_variant(tmp_path, squares):
    train(small("hfpl"), squares, out=tmp_path / "hfpl")
    assert icam.ICAMInference().localizer(squares, tmp_path / "hfpl").variant == "hfpl"
    assert icam.ICAMInference(variant="icam").localizer(squares, tmp_path / "hfpl").variant == "icam"
    other = dataclasses.replace(squares, class_names=("red", "green"))
    with pytest.raises(BadInput, match=r"a classifier of 2 classes \(red, blue\)"):
        icam.ICAMInference().localizer(other, tmp_path / "hfpl")


@pytest.mark.parametrize("variant", ["icam", "hfpl"])
def test_a_killed_training_ends_in_the_same_bytes(tmp_path, squares, variant):
    check_a_stop(lambda out: train(small(variant, dropout=0.5), squares, out=out), tmp_path, icam.ICAMObjective, 3)


def train_all(folder: Path) -> None:
    """ICAM and its follow-up, on however many processes there are."""
    images = launch.decided_by_first(lambda: write_squares(folder / "squares", 12))
    for variant in ("icam", "hfpl"):
        train(Double(small(variant)), images, out=folder / str(launch.processes()) / variant)


@pytest.mark.slow
def test_two_processes_draw_and_learn_alike(tmp_path):
    for start in ([], ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]):
        words = [sys.executable, *start, "-m", "tests.methods.test_icam", str(tmp_path)]
        done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    for variant in ("icam", "hfpl"):
        one, two = (read_weights(tmp_path / count / variant / WEIGHTS)[0] for count in "12")
        assert one.keys() == two.keys()
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=1e-9, atol=1e-11, msg=f"{variant} {name}")


def test_published_checkpoints(tmp_path, squares):
    """Files as published: ResNet-38 without prefixes, here with all shapes and no values to speak of."""
    with torch.device("meta"):
        state = {name: torch.zeros_like(value, device="cpu") for name, value in SEAMNetwork(2).state_dict().items()}
    few = {name: value for name, value in state.items() if not name.startswith(("b4", "b5", "b6", "b7.", "bn7"))}
    torch.save(few | {"b7.conv_branch1.weight": torch.zeros(1)}, tmp_path / "cut.pth")
    with pytest.raises(BadInput, match="weights of another network"):
        icam.load(tmp_path / "cut.pth", squares)
    three = dataclasses.replace(squares, class_names=("a", "b", "c"), labels=np.zeros((12, 3), bool))
    with pytest.raises(BadInput, match="a classifier of 2 classes and the background; expected a ResNet-38"):
        icam.load(tmp_path / "cut.pth", three)
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(BadInput, match="no network of ICAM or SEAM"):
        icam.load(tmp_path / "other.pth", squares)
    write_weights(tmp_path / WEIGHTS, {"a": torch.zeros(1)}, {"kind": "cam"})
    with pytest.raises(BadInput, match="weights of a `cam` network; expected those of a `icam` network"):
        icam.load(tmp_path, squares)


if __name__ == "__main__":
    train_all(Path(sys.argv[1]))
