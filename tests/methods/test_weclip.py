"""WeCLIP and WeCLIP+: rules, labels, losses over several processes, dropout, words, what cannot work."""

import dataclasses
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from tests.conftest import write_squares
from tests.methods.taught import NEW_CLIP, check_two_processes, train_on_one_of_two, write_clip
from wsss.data.augment import WeCLIPAugment, normalise
from wsss.data.images import Images
from wsss.errors import BadInput
from wsss.health.sample import sampled
from wsss.methods.weclip import WeCLIPObjective, WeCLIPSettings, example
from wsss.methods.weclip_labels import LabelSettings, joint_attention, label_rule
from wsss.methods.weclip_losses import affinity_loss, cell_labels, cross_losses, dice_loss, pairs, replaced
from wsss.methods.weclip_maps import LabelScoreSettings, WeCLIPInference, score_labels
from wsss.metrics import ConfusionMatrix, scores
from wsss.networks.deeplab import balanced_cross_entropy
from wsss.run import read_record
from wsss.segmenters.weclip import WeCLIPSegmenterSettings
from wsss.stages.adopt import adopt
from wsss.stages.predict import PredictSettings, Segmenter
from wsss.stages.records import ancestors, read_stages
from wsss.stages.train import Training, train, update_count
from wsss.supervision import SUPERVISION
from wsss.weights import WEIGHTS

TRAINING = Training(
    batch=4, epochs=None, steps=3, optimizer="adamw", lr=0.003, poly_power=1.0, workers=0, checkpoint_steps=1
)


def write_dino(folder: Path) -> Path:
    """A DINOv2 of random weights."""
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=7, image_size=28)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        Dinov2Model(config).save_pretrained(folder)
    return folder


def settings_of(folder: Path, images: Images, **changes) -> WeCLIPSettings:
    """Settings with small frozen networks, which are written into the folder."""
    clip, dino = folder / "clip", folder / "dino"
    if not clip.exists():
        write_clip(clip, images)
        write_dino(dino)
    given = {
        "clip": str(clip),
        "dino": str(dino),
        "embedding": 16,
        "heads": 2,
        "decoder_blocks": 1,
        "labels": LabelSettings(skipped_blocks=0),
        "views": WeCLIPAugment((0.75, 1.5), 32),
        "training": TRAINING,
        "test_side": 48,
    }
    return WeCLIPSettings(**{**given, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("weclip")


@pytest.fixture(scope="module")
def squares(folder):
    return write_squares(folder / "squares", 12)


def example_batch(learning: WeCLIPObjective, count: int) -> dict[str, torch.Tensor]:
    rows = [learning.examples(index, np.random.default_rng(index)) for index in range(count)]
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def test_published_rules():
    """The table of the specification: blocks among which the affinity chooses, boxes, the block of Grad-CAM."""
    rules = {
        (plus, coco, blocks): label_rule(LabelSettings(), plus, coco, blocks)
        for plus in (True, False)
        for coco in (True, False)
        for blocks in (12, 24)
    }
    chosen = {key: rule.chosen_blocks for key, rule in rules.items() if key[0] or key[2] == 12}
    assert chosen == {
        (True, False, 12): 6,
        (True, True, 12): 8,
        (True, False, 24): 12,
        (True, True, 24): 12,
        (False, False, 12): 6,
        (False, True, 12): 10,
    }
    assert {key: rule.box_threshold for key, rule in rules.items() if key[2] == 12} == {
        (True, False, 12): None,
        (True, True, 12): 0.7,
        (False, False, 12): 0.4,
        (False, True, 12): 0.7,
    }
    assert [key for key, rule in rules.items() if rule.skipped] == [(True, False, 12), (True, False, 24)]
    assert {rule.sharpness for key, rule in rules.items() if key[2] == 24} == {0.25}
    with pytest.raises(BadInput, match="clip: found 2 blocks; expected at least 3"):
        label_rule(LabelSettings(), True, False, 2)
    given = LabelSettings(skipped_blocks=0, attention_blocks=3, boxes=True, box_threshold=0.2)
    rule = label_rule(given, True, False, 12)
    assert (rule.skipped, rule.chosen_blocks, rule.box_threshold) == (0, 3, 0.2)


def test_the_affinity_chooses_the_matrices_with_the_largest_sums():
    attention = [torch.full((4, 4), value) for value in (9.0, 0.1, 0.4, 0.2, 0.5)]
    rule = dataclasses.replace(label_rule(LabelSettings(), True, False, 12), chosen_blocks=4, plain_blocks=2)
    affinity = torch.rand(4, 4)
    torch.testing.assert_close(joint_attention(attention, affinity, rule), 0.9 / 2.00001 * affinity)
    torch.testing.assert_close(joint_attention(attention, None, rule), torch.full((4, 4), 0.35))


def test_affinity_loss_against_a_loop():
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.choice([0, 0, 1, 3, 255], (2, 20, 28)))
    cells, affinity = cell_labels(labels, (4, 5)), torch.rand(2, 20, 20)
    sums, numbers = [0.0, 0.0], [1, 1]
    for picture in range(2):
        for one in range(20):
            for other in range(20):
                (y, x), (v, w) = divmod(one, 5), divmod(other, 5)
                first, second = (int(labels[picture, i * 20 // 4, j * 28 // 5]) for i, j in ((y, x), (v, w)))
                if max(abs(y - v), abs(x - w)) <= 2 and 255 not in (first, second):
                    unlike = int(first != second)
                    value = float(affinity[picture, one, other])
                    sums[unlike] += value if unlike else 1 - value
                    numbers[unlike] += 1
    wanted = (sums[0] / numbers[0] + sums[1] / numbers[1]) / 2
    assert float(affinity_loss(affinity, pairs(cells, 2))) == pytest.approx(wanted, rel=1e-5)


def test_a_view_is_black_outside_the_picture():
    image = np.full((20, 30, 3), 200, np.uint8)
    augment = WeCLIPAugment((0.5, 0.5), 40)
    view = augment(image, np.random.default_rng(0))
    assert view.shape == (3, 40, 40)
    black, white = (normalise(np.full((1, 1, 3), value, np.uint8)) for value in (0, 200))
    assert np.count_nonzero((view == white).all(0)) == 10 * 15
    assert np.count_nonzero((view == black).all(0)) == 40 * 40 - 150
    sizes = {augment.view((21, 31), np.random.default_rng(seed)).size_hw for seed in range(3)}
    assert sizes == {(10, 15)}


def test_dropout_belongs_to_the_picture(squares):
    draws = [
        example(squares, WeCLIPAugment(crop=32), 0.25, (2, 400), 3, np.random.default_rng(seed))["factors"]
        for seed in (5, 5, 6)
    ]
    torch.testing.assert_close(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert set(draws[0].unique().tolist()) == {0.0, np.float32(4 / 3)}
    assert 0.6 < float((draws[0] > 0).float().mean()) < 0.9


@pytest.mark.parametrize("variant", ["weclip", "weclip+"])
def test_late_in_the_training(folder, squares, variant):
    """WeCLIP's affinity chooses in the second half; WeCLIP+ replaces labels after six tenths."""
    settings = settings_of(folder, squares, variant=variant, confidence=0.0)
    learning = settings.trainable(squares).train()
    batch = example_batch(learning, 4)
    assert learning.plain_updates == (1.5 if variant == "weclip" else 0)
    tokens = learning.tokens(batch["image"])
    decoded = learning.network(tokens, batch["factors"])
    made = [learning.made_labels(batch["image"], batch["label"], tokens, decoded, update) for update in (0, 2)]
    assert all(set(labels.unique().tolist()) <= {0, 1, 2} for labels in made)
    logits = [torch.nn.functional.interpolate(one, (32, 32)) for one in decoded.logits]
    final = [learning.final_labels(made[1], logits, update) for update in (1, 2)]
    assert torch.equal(final[0], made[1])
    predicted = torch.stack(logits).mean(0).argmax(1)
    assert torch.equal(final[1], predicted if variant == "weclip+" else made[1])


def test_a_picture_without_tags_is_background(folder, squares):
    learning = settings_of(folder, squares).trainable(squares).train()
    batch = example_batch(learning, 4)
    batch["label"][1] = 0
    tokens = learning.tokens(batch["image"])
    decoded = learning.network(tokens)
    labels = learning.made_labels(batch["image"], batch["label"], tokens, decoded, 0)
    assert not labels[1].any()
    assert labels[0].any()
    batch["label"][:] = 0
    losses = learning(batch)
    assert all(value.isfinite() for value in losses.values())


def test_a_large_clip_and_a_large_dino(tmp_path, squares):
    """ViT-L: 24 blocks, of which the affinity chooses among the last 12, a softer Grad-CAM, and a decoder of 5 blocks."""
    settings = settings_of(tmp_path, squares, decoder_blocks=None, labels=LabelSettings())
    shutil.rmtree(tmp_path / "clip")
    deep = dataclasses.replace(NEW_CLIP, architecture=dataclasses.replace(NEW_CLIP.architecture, blocks=24))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        (tmp_path / "clip").mkdir()
        deep.trainable(squares).write(tmp_path / "clip")
        wide = Dinov2Config(
            hidden_size=1024, num_hidden_layers=1, num_attention_heads=8, patch_size=7, image_size=28, mlp_ratio=1
        )
        Dinov2Model(wide).save_pretrained(tmp_path / "dino")
    learning = settings.trainable(squares).train()
    assert len(learning.network.decoder.transformer.resblocks) == 5
    assert (learning.maker.rule.sharpness, learning.maker.rule.attentions) == (0.25, 11)
    batch = example_batch(learning, 2)
    assert len(learning.tokens(batch["image"]).attention) == 11
    losses = learning(batch)
    assert losses.keys() == {"segmentation", "dice", "cross", "affinity"}
    assert all(value.isfinite() for value in losses.values())
    other = settings_of(tmp_path, squares, decoder_blocks=2, labels=LabelSettings(attention_blocks=3)).trainable(
        squares
    )
    assert (len(other.network.decoder.transformer.resblocks), other.maker.rule.chosen_blocks) == (2, 3)


@pytest.mark.parametrize("label", [0, 1])
def test_one_label_everywhere_is_no_nan(label):
    """The published losses are not a number where predictions, or labels that predictions replaced, have no background or nothing else."""
    certain = torch.zeros(1, 3, 4, 4)
    certain[:, label] = 9
    labels = replaced(torch.randint(0, 3, (1, 4, 4)), certain, 0.75)
    assert (labels == label).all()
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    losses = [*cross_losses(logits, certain), balanced_cross_entropy(logits, labels), dice_loss(logits, labels)]
    sum(losses).backward()
    assert all(value.isfinite() for value in losses)
    assert logits.grad.isfinite().all()
    assert logits.grad.any()


def test_updates_are_those_of_the_schedule():
    assert update_count(Training(epochs=3, batch=4, accumulate=2), 50) == 18
    assert update_count(Training(steps=7), 50) == 7


def test_the_trained_decoder_localizes_and_segments(tmp_path, folder, squares):
    weights = train(settings_of(folder, squares), squares, out=tmp_path / "trained")
    localizer = WeCLIPInference(cache=False).localizer(squares, weights)
    image = squares.read(0)
    cams = localizer.cams(localizer.prepare(image), image.shape[:2], squares.labels[0])
    assert cams.maps.shape == (squares.labels[0].sum(), *image.shape[:2])
    assert 0 <= cams.maps.min() < cams.maps.max() <= 1
    none = localizer.cams(localizer.prepare(image), image.shape[:2], np.zeros(2, bool))
    assert none.maps.shape == (0, *image.shape[:2])
    segmenter = Segmenter(weights, PredictSettings())
    assert segmenter.scales == (1.0, 1.5)
    probabilities = segmenter.probabilities(segmenter.prepare(image))
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)
    # a mirrored picture has mirrored probabilities
    mirrored = segmenter.probabilities(segmenter.prepare(np.ascontiguousarray(image[:, ::-1])))
    np.testing.assert_allclose(mirrored[:, :, ::-1], probabilities, atol=1e-4)
    thin = np.zeros((200, 3, 3), np.uint8)
    assert segmenter(thin).shape == (200, 3)


def test_weights_are_moved_with_their_frozen_networks(tmp_path, squares):
    """Local networks are copied beside the weights; one that is missing or another one is refused."""
    own = tmp_path / "given"
    settings = settings_of(own, squares, training=dataclasses.replace(TRAINING, steps=1))
    words = own / "clip" / "words.yaml"
    words.write_text("background: [sky]\n")
    weights = train(dataclasses.replace(settings, words=str(words)), squares, out=tmp_path / "trained")
    adopted = adopt(WeCLIPSegmenterSettings(), squares, weights=weights, out=tmp_path / "segmenter")
    # copies of what settings name do not make a stage its own ancestor
    stages = read_stages(tmp_path)
    assert [[one.name for one in ancestors(stage, stages)] for stage in stages] == [[], ["trained"]]
    assert [*read_record(adopted)[SUPERVISION].values()] == [["image-text pairs"], ["pictures alone"]]
    shutil.rmtree(own)
    for folder in (weights, adopted):
        assert str(tmp_path).encode() not in (folder / WEIGHTS).read_bytes()
        moved = folder.rename(tmp_path / f"moved-{folder.name}")
        assert Segmenter(moved, PredictSettings(scales=(1.0,)))(squares.read(0)).shape == squares.size_hw(0)
    moved = tmp_path / "moved-trained"
    localizer = WeCLIPInference(cache=False).localizer(squares, moved)
    vectors = np.stack([localizer.describe(squares.read(index)) for index in range(2)])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    model = Dinov2Model.from_pretrained(moved / "dino")
    with torch.no_grad():
        model.embeddings.cls_token += 1
    model.save_pretrained(moved / "dino")
    with pytest.raises(BadInput, match="dino: found a network with digest"):
        WeCLIPInference().localizer(squares, moved)
    shutil.rmtree(moved / "dino")
    with pytest.raises(BadInput, match=r"dino: found no such file or folder.*Copy the whole folder"):
        WeCLIPInference().localizer(squares, moved)


def test_labels_of_the_first_and_the_last_step(tmp_path, folder, squares):
    """Scored with the learned layers before and after the training, as each training step makes them."""
    changed = dataclasses.replace(TRAINING, steps=4, lr=0.05)
    settings = settings_of(folder, squares, variant="weclip", training=changed)
    weights = train(settings, squares, out=tmp_path / "trained")
    score_labels(LabelScoreSettings(pictures=5), squares, weights, tmp_path / "labels")
    result = read_record(tmp_path / "labels")["result"]
    assert result["images"] == 5
    few, wanted = squares.subset(sampled(squares, 5)), []
    localizer = WeCLIPInference().localizer(squares, weights)
    assert (localizer.choosing.first, localizer.choosing.last) == (False, True)
    torch.manual_seed(changed.seed)
    initial = settings.trainable(squares)
    networks = (initial.network.eval(), localizer.network)
    for network, chosen in zip(networks, (False, True), strict=True):
        matrix = ConfusionMatrix(3)
        for index in range(5):
            view = localizer.prepare(few.read(index))
            tokens = localizer.tokens(view)
            decoded = network(tokens)
            tags = torch.from_numpy(few.labels[index : index + 1]).float()
            affinity = decoded.affinity() if chosen else None
            made = localizer.maker.labels(view, tags, tokens, affinity, decoded.mean().softmax(1))
            truth = few.read_mask(index)
            nearest = np.ix_(*(((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(truth.shape, made.shape[1:])))
            matrix.add(truth, made[0].numpy().astype(np.uint8)[nearest], "made")
        wanted.append(scores(matrix.counts, "present").miou)
    assert [result[f"mIoU of the labels of the {name} step"] for name in ("first", "last")] == pytest.approx(wanted)
    score_labels(LabelScoreSettings(pictures=0), squares, weights, tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding": 15}, "classifier.embedding: found 15; expected a multiple of classifier.heads"),
        ({"confidence": 1.5}, "classifier.confidence"),
        ({"labels": LabelSettings()}, "clip: found 2 blocks"),
        ({"views": WeCLIPAugment(crop=6)}, "classifier.views.crop"),
        ({"dino": "./nowhere"}, "nowhere: found no such file or folder"),
    ],
)
def test_settings_that_cannot_work(folder, squares, changes, message):
    with pytest.raises(BadInput, match=message):
        settings_of(folder, squares, **changes).check(squares)


def test_only_its_own_run_trains_the_segmenter(squares):
    segmenter = WeCLIPSegmenterSettings()
    segmenter.check_run("weclip", corrected=False)
    for refused in (
        lambda: segmenter.check_run("cam", corrected=False),
        lambda: segmenter.check_run("weclip", corrected=True),
        lambda: segmenter.trainable(squares, Path("masks")),
        lambda: segmenter.given(None),
    ):
        with pytest.raises(BadInput, match=r"segmenter\.kind: found weclip"):
            refused()


def in_double(settings: WeCLIPSettings, images: Images) -> WeCLIPObjective:
    torch.manual_seed(0)
    learning = settings.trainable(images).double().train()
    learning.tokens.func.double()
    texts = learning.maker.texts
    learning.maker.texts = type(texts)(texts.classes.double(), texts.backgrounds.double())
    inner = learning.forward
    factors = torch.linspace(0.5, 1.5, 6 * 2 * 16, dtype=torch.float64).view(6, 2, 16)

    def forward(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return inner({**batch, "factors": factors[batch["index"]]})

    learning.forward = forward  # type: ignore[method-assign]
    return learning


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path):
    """Gradients in double precision, and a training with dropout."""
    check_two_processes("tests.methods.test_weclip", tmp_path, settings_of, in_double)


if __name__ == "__main__":
    train_on_one_of_two(Path(sys.argv[1]), settings_of, in_double)
