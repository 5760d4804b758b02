"""CLIMS on small networks: its losses by hand, batches with few pairs or none, memory, processes, a stop, errors of the user."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

from tests.conftest import check_a_stop
from tests.methods.taught import (
    TRAINING,
    at_clip_size,
    bytes_kept,
    check_two_processes,
    drawn,
    picture_feature,
    text_feature,
    train_on_one_of_two,
    write_baseline,
    write_clip,
)
from tests.methods.test_cam import SMALL
from wsss import classifier, clip_regions
from wsss.data.augment import ClassifierAugment, normalise
from wsss.data.words import read_words
from wsss.errors import BadInput
from wsss.methods import cam, clims
from wsss.networks.clip import CLIP, Vocabulary
from wsss.networks.clip_resnet import ResNetCLIP
from wsss.pretrained import load_any_clip, openai_tokenizer
from wsss.stages.localize import localize
from wsss.stages.train import HISTORY, train
from wsss.storage import read_json
from wsss.weights import WEIGHTS, read_weights, write_weights

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def settings_of(folder: Path, images, **changes) -> clims.CLIMSSettings:
    """Settings with a CLIP, a classifier and words in `folder`."""
    if not folder.exists():
        write_clip(folder / "clip", images)
        write_baseline(folder, images)
        words = {"background": ["grey", "noise", "water"], "cooccurring": {"red": ["fire", "grey"]}}
        (folder / "words.yaml").write_text(yaml.safe_dump(words))
    small = clims.CLIMSSettings(
        init=str(folder / WEIGHTS),
        clip=str(folder / "clip"),
        words=str(folder / "words.yaml"),
        threshold=0.1,
        augment=ClassifierAugment(long_side=(32, 40), crop=32),
        training=TRAINING,
    )
    return dataclasses.replace(small, **changes)


@pytest.fixture
def settings(tmp_path, squares):
    return settings_of(tmp_path / "given", squares)


def by_hand(settings: clims.CLIMSSettings, clip: CLIP, maps, image, label, images) -> dict[str, torch.Tensor]:
    """The losses pair by pair, through the forward passes of transformers."""
    words = settings.read_words(images)

    def text(word: str) -> torch.Tensor:
        return text_feature(clip, settings.template.replace("{}", word))

    matches, backgrounds, suppressed = [], [], []
    for n in range(len(label)):
        for c in range(label.shape[1]):
            if label[n, c] == 0:
                continue
            x, picture = at_clip_size(maps[n : n + 1, c : c + 1]), at_clip_size(image[n : n + 1])
            inside, own = picture_feature(clip, x * picture), text(words.prompts[c])
            matches.append(-torch.log((inside @ own).clamp(1e-4, 0.9999)))
            backgrounds.append(-torch.log(1 - (picture_feature(clip, (1 - x) * picture) @ own).clamp(1e-4, 0.9999)))
            for word in words.cooccurring[c]:
                r = inside @ text(word)
                if r > settings.threshold:
                    suppressed.append(-torch.log(1 - r))
    weights = settings.weights
    return {
        "object_text": weights.object_text * sum(matches) / len(matches),
        "background_text": weights.background_text * sum(backgrounds) / len(backgrounds),
        "suppression": weights.suppression * sum(suppressed, torch.zeros(())),
        "area": weights.area * maps.mean(),
    }


def test_losses_pair_by_pair(squares, settings):
    learning = settings.trainable(squares)
    clip = load_any_clip(settings.clip)
    assert isinstance(clip, CLIP)
    # the class red is told from its own words, blue from those of all
    assert settings.read_words(squares).cooccurring == (("fire", "grey"), ("grey", "noise", "water"))
    felt = dict.fromkeys(("object_text", "background_text", "suppression", "area"), 0.0)
    for seed in range(6):
        maps, image, label = drawn([[1, 0], [0, 0], [1, 1]], seed)
        ours, wanted = learning.losses(maps, image, label), by_hand(settings, clip, maps, image, label, squares)
        assert list(ours) == list(wanted)
        for name, value in wanted.items():
            torch.testing.assert_close(ours[name], value, rtol=2e-5, atol=1e-6)
            if value.requires_grad:
                (gradient,) = torch.autograd.grad(value, maps, retain_graph=True)
                mine = torch.autograd.grad(ours[name], maps, retain_graph=True)[0]
                torch.testing.assert_close(mine, gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))
                felt[name] += float(gradient.abs().sum())
    assert all(felt.values())


@pytest.mark.parametrize("variant", ["improved", "camera-ready"])
@pytest.mark.parametrize("label", [[[0, 0], [0, 0]], [[0, 1], [0, 0]]])
def test_batches_with_one_pair_and_with_none(squares, settings, label, variant):
    changes = {"variant": variant, "threshold": 0.1 if variant == "improved" else None}
    if variant == "camera-ready":
        changes |= {"init": str(resnet18(Path(settings.init).parent / "r18", squares)), "colours": "clip"}
    learning = dataclasses.replace(settings, **changes).trainable(squares).train()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    losses = learning({"image": images, "label": torch.tensor(label).float()})
    total = sum(losses.values())
    total.backward()
    assert torch.isfinite(total)
    assert (
        learning.network.get_submodule("classifier" if variant == "improved" else "cam_head.1").weight.grad.abs().max()
    )
    if not torch.tensor(label).any():
        assert all(losses[name] == 0 for name in ("object_text", "background_text", "suppression"))
        assert total == losses["area"] > 0


def test_pictures_without_tags_count_in_the_area_alone(squares, settings):
    learning = settings.trainable(squares)
    maps, image, label = drawn([[1, 1], [0, 1], [0, 0]])
    all_, tagged = learning.losses(maps, image, label), learning.losses(maps[:2], image[:2], label[:2])
    for name in ("object_text", "background_text", "suppression"):
        torch.testing.assert_close(all_[name], tagged[name], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(all_["area"], settings.weights.area * maps.mean())


@pytest.mark.parametrize("regions", [2, 3, 6, 8])
def test_few_regions_at_a_time_give_the_same(squares, settings, regions, monkeypatch):
    seen, encode = [], clip_regions.encode_image
    monkeypatch.setattr(clims, "encode_image", lambda clip, image: seen.append(len(image)) or encode(clip, image))
    maps, image, label = drawn([[1, 1], [1, 1], [0, 1]])
    results = []
    for most in (clims.CLIMSSettings.regions, regions):
        seen.clear()
        learning = dataclasses.replace(settings, regions=most).trainable(squares)
        losses = learning.losses(maps, image, label)
        results.append([*losses.values(), torch.autograd.grad(sum(losses.values()), maps)[0]])
        assert max(seen) <= most
        assert sum(seen) >= 10
    for one, few in zip(*results, strict=True):
        torch.testing.assert_close(few, one, rtol=1e-5, atol=1e-6 * float(one.detach().abs().max()))


def test_few_regions_keep_less_for_the_backward_pass(squares, settings):
    data, kept = drawn([[1, 1]] * 16), []
    for regions in (64, 8):
        learning = dataclasses.replace(settings, regions=regions).trainable(squares)
        kept.append(bytes_kept(learning.encode.args[0], lambda learning=learning: learning.losses(*data)))
    assert kept[1] < kept[0] / 3


def test_clip_neither_learns_nor_is_saved_and_reads_each_text_once(squares, settings, monkeypatch):
    read = []
    encode_text = CLIP.encode_text
    monkeypatch.setattr(CLIP, "encode_text", lambda self, tokens: read.append(len(tokens)) or encode_text(self, tokens))
    learning = settings.trainable(squares).train()
    clip = learning.encode.args[0]
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    images = torch.randn(4, 3, 32, 32)
    for _ in range(2):
        sum(learning({"image": images, "label": torch.ones(4, 2)}).values()).backward()
    assert read == [2 + 4]
    assert not clip.training
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in clip.parameters())
    assert all(torch.equal(value, before[name]) for name, value in clip.state_dict().items())
    assert learning.state_dict().keys() == {f"network.{name}" for name in learning.network.state_dict()}


def test_what_learns(squares, settings):
    learning = settings.trainable(squares).train()
    body = learning.network.body
    assert not any(parameter.requires_grad for parameter in body.parameters_until(0))
    body_group, head = learning.param_groups(settings.training)
    assert head["lr"] == pytest.approx(10 * body_group["lr"])
    assert {id(p) for g in (body_group, head) for p in g["params"]} == {
        id(p) for p in learning.network.parameters() if p.requires_grad
    }
    before = {name: value.clone() for name, value in learning.network.named_buffers() if "running" in name}
    learning({"image": torch.randn(4, 3, 32, 32), "label": torch.ones(4, 2)})
    moved = {name: value for name, value in learning.network.named_buffers() if name in before}
    assert all(not torch.equal(value, before[name]) for name, value in moved.items())
    free = dataclasses.replace(settings, frozen="nothing").trainable(squares)
    assert all(parameter.requires_grad for parameter in free.network.parameters())


def test_clip_may_see_its_own_colours(squares, settings):
    picture = squares.read(0)
    ours, theirs = (torch.from_numpy(normalise(picture, colours))[None] for colours in ("imagenet", "clip"))
    learning = dataclasses.replace(settings, clip_colours="clip").trainable(squares)
    torch.testing.assert_close(ours * learning.scale + learning.shift, theirs, rtol=0, atol=1e-5)


def test_a_killed_training_ends_in_the_same_bytes(tmp_path, squares, settings):
    check_a_stop(lambda out: train(settings, squares, out=out), tmp_path, clims.CLIMSObjective, 2)
    terms = read_json(tmp_path / "whole" / HISTORY, "losses")
    assert set(terms[0]) == {"step", "lr", "object_text", "background_text", "suppression", "area"}


def test_what_it_learned_localizes(tmp_path, squares, settings):
    trained = train(settings, squares, out=tmp_path / "clims")
    before, _ = read_weights(Path(settings.init))
    after, metadata = read_weights(trained / WEIGHTS)
    assert before.keys() == after.keys()
    assert any(not torch.equal(value, before[name]) for name, value in after.items())
    assert metadata["backbone"] == SMALL.backbone
    localize(clims.CLIMSInference(scales=(1.0,)), squares, weights=trained, out=tmp_path / "cams")
    others = dataclasses.replace(squares, class_names=("red", "green"))
    with pytest.raises(BadInput, match=r"a classifier of 2 classes \(red, blue\)"):
        clims.CLIMSInference().localizer(others, trained)


def resnet18(folder: Path, images) -> Path:
    """A baseline for the camera-ready version."""
    small = dataclasses.replace(SMALL, backbone="resnet18", colours="clip")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        small.trainable(images).write(folder)
    return folder / WEIGHTS


@pytest.mark.whole
def test_the_camera_ready_version(tmp_path, squares, settings):
    baseline = resnet18(tmp_path / "baseline", squares)
    ready = dataclasses.replace(
        settings, variant="camera-ready", init=str(baseline), colours="clip", threshold=None, emphasised=("blue",)
    )
    learning = ready.trainable(squares)
    (group,) = learning.param_groups(ready.training)
    convolutions = [module.weight for module in learning.network.modules() if isinstance(module, torch.nn.Conv2d)]
    assert [id(p) for p in group["params"]] == [id(p) for p in convolutions]
    state, _ = read_weights(baseline)
    for name, value in learning.network.state_dict().items():
        if not name.startswith("cam_head."):
            assert torch.equal(value, state[f"resnet18.{name}"])
    assert learning.emphasis.tolist() == [1, 3]
    trained = train(ready, squares, out=tmp_path / "clims")
    localizer = clims.CLIMSInference(scales=(1.0,)).localizer(squares, trained)
    assert localizer.colours == "clip"
    view = localizer.prepare(squares.read(0))[0]
    np.testing.assert_array_equal(view[0], normalise(squares.read(0), "clip"))
    found = localizer.cams([view], (32, 36), np.array([True, True]))
    assert found.maps.shape == (2, 32, 36)
    with pytest.raises(BadInput, match="weights of another network"):
        cam.CAMInference().localizer(squares, trained)
    with pytest.raises(BadInput, match="a classifier of 2 classes"):
        clims.CLIMSInference().localizer(dataclasses.replace(squares, class_names=("red", "green")), trained)


def test_a_published_camera_ready_baseline(tmp_path, squares, settings):
    network = classifier.CAMNetwork("resnet50", 2)
    state = {name.removeprefix("resnet50."): value for name, value in network.body.state_dict().items()}
    torch.save({**state, "fc.weight": torch.zeros(20, 2048, 1, 1)}, tmp_path / "baseline.pth")
    ready = dataclasses.replace(settings, variant="camera-ready", init=str(tmp_path / "baseline.pth"), colours="clip")
    for name, value in ready.trainable(squares).network.state_dict().items():
        if not name.startswith("cam_head."):
            assert torch.equal(value, state[name])


def test_without_words_nothing_is_suppressed(squares, settings, tmp_path):
    (tmp_path / "none.yaml").write_text("background: []\n")
    for threshold in (0.1, None):
        changed = dataclasses.replace(settings, words=str(tmp_path / "none.yaml"), threshold=threshold)
        maps, image, label = drawn([[1, 1]])
        assert changed.trainable(squares).losses(maps, image, label)["suppression"] == 0


def test_mean_over_the_words_of_a_class():
    similarity = torch.tensor([[0.2, -0.3, 0.5], [0.1, 0.2, 0.4]])
    words = torch.tensor([[True, True, False], [False, False, False]])
    found = clims.suppression_loss(similarity, words, None)
    np.testing.assert_allclose(found, [(-np.log(0.8) - np.log(1.3)) / 2, 0], rtol=1e-6)


def test_saturated_cosines_have_no_gradient():
    similarity = torch.tensor([-0.5, 0.0, 1e-4 / 2, 1.0], requires_grad=True)
    for loss in (clims.object_text_loss, clims.background_text_loss):
        (gradient,) = torch.autograd.grad(loss(similarity).sum(), similarity)
        assert not gradient.any()


def new_resnet_clip() -> ResNetCLIP:
    """A CLIP with a ResNet of random weights, for pictures of 64x64."""
    from open_clip.model import CLIP as OpenCLIP
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(layers=(1, 1, 1, 1), width=8, image_size=64, patch_size=None)
    model = OpenCLIP(16, vision, CLIPTextCfg(vocab_size=49408, width=64, heads=1, layers=1), quick_gelu=True)
    return ResNetCLIP(model, Vocabulary(openai_tokenizer(), 77)).eval()


def test_a_clip_with_a_resnet_teaches(tmp_path, squares, settings):
    model = new_resnet_clip()
    torch.save(model.model.state_dict(), tmp_path / "RN.pt")
    changed = dataclasses.replace(settings, clip=str(tmp_path / "RN.pt"))
    learning = changed.trainable(squares)
    assert learning.size == 64
    texts = [clims.CLIMSSettings.template.replace("{}", word) for word in ("red", "blue")]
    with torch.no_grad():
        wanted = F.normalize(model.encode_text(model.vocabulary(texts)), dim=1)
    torch.testing.assert_close(learning.class_texts, wanted, rtol=0, atol=1e-6)
    maps, image, label = drawn([[1, 0], [1, 1]])
    losses = learning.losses(maps, image, label)
    assert torch.autograd.grad(sum(losses.values()), maps)[0].any()


def test_half_precision(tmp_path, squares, settings):
    half = dataclasses.replace(settings, training=dataclasses.replace(TRAINING, precision="bf16"))
    for name, chosen in (("half", half), ("full", settings)):
        train(chosen, squares, out=tmp_path / name)
    first = [read_json(tmp_path / name / HISTORY, "losses")[0] for name in ("half", "full")]
    for name, value in first[1].items():
        assert first[0][name] == pytest.approx(value, rel=0.2, abs=0.02)


BAD = [
    ({"init": clims.BASELINE}, "`baseline`, which only `wsss run` trains"),
    ({"colours": "clip"}, "weights trained with colours imagenet; expected colours clip"),
    ({"emphasised": ("rad",)}, "emphasised: found rad"),
    ({"variant": "camera-ready"}, "not a ResNet of the camera-ready version"),
    ({"clip": "nowhere.pt"}, "no such file or folder"),
]


@pytest.mark.parametrize(("changes", "found"), BAD, ids=[found[:12] for _, found in BAD])
def test_bad_settings_that_meet_the_pictures(squares, settings, changes, found):
    with pytest.raises(BadInput, match=found):
        dataclasses.replace(settings, **changes).trainable(squares)


@pytest.mark.parametrize(
    "changes",
    [{"template": "no place"}, {"regions": 1}, {"emphasis": -1.0}, {"threshold": 1.5}],
    ids=str,
)
def test_bad_settings(changes):
    with pytest.raises(BadInput):
        clims.CLIMSSettings(**changes)
    with pytest.raises(BadInput, match=r"weights\.area"):
        clims.CLIMSWeights(area=-1)


def test_weights_of_other_classes_are_refused(tmp_path, squares, settings):
    others = dataclasses.replace(squares, class_names=("red", "green"))
    changed = dataclasses.replace(settings, words="auto")
    with pytest.raises(BadInput, match=r"a classifier of 2 classes \(red, blue\)"):
        changed.trainable(others)
    network = clims.CameraReadyNetwork("resnet18", 5)
    torch.save(network.state_dict(), tmp_path / "five.pth")
    with pytest.raises(BadInput, match="a classifier of 6 channels"):
        clims.CLIMSInference().localizer(squares, tmp_path / "five.pth")
    write_weights(tmp_path / WEIGHTS, network.state_dict(), {"kind": "deeplab"})
    with pytest.raises(BadInput, match="weights of a `deeplab` network"):
        clims.CLIMSInference().localizer(squares, tmp_path)


def test_own_classes_are_told_from_the_words_for_voc():
    words = read_words("auto", ("river", "tractor"), "clims")
    assert words.prompts == ("river", "tractor")
    assert words.background == ("tree", "sea", "lake", "water", "railway", "railroad", "track", "stone", "rocks")
    assert words.cooccurring == (words.background, words.background)
    assert read_words("auto", ("river", "tractor"), "clims_camera_ready") == words


def in_double(settings: clims.CLIMSSettings, images) -> clims.CLIMSObjective:
    torch.manual_seed(0)
    learning = settings.trainable(images).double().train()
    learning.encode.args[0].double()
    return learning


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path):
    check_two_processes("tests.methods.test_clims", tmp_path, settings_of, in_double)


if __name__ == "__main__":
    train_on_one_of_two(Path(sys.argv[1]), settings_of, in_double)
