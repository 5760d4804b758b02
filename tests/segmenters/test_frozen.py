"""A head on a frozen network: cached tokens are the features of the views, padding shifts nothing, and what does not fit is refused."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.conftest import tree, write_squares
from tests.networks.test_features import model_of
from tests.segmenters.tiny import SHORT, frozen
from wsss.data.files import read_mask, write_mask
from wsss.data.images import IGNORE
from wsss.errors import BadInput
from wsss.foundations import FeatureSettings
from wsss.networks.features import IMAGENET, DenseFeatures, FrozenNetwork, TransformerFeatures
from wsss.networks.frozen import FrozenHead, FrozenSegmenter, HeadLayers
from wsss.segmenters.frozen import FrozenSettings
from wsss.segmenters.tokens import INDEX, TokenCache, View, ViewSettings
from wsss.segmenters.trained import logits_of
from wsss.stages import tokens as stage
from wsss.stages.predict import PredictSettings, Segmenter, predict
from wsss.stages.segment import segment
from wsss.stages.tokens import cache_tokens
from wsss.weights import WEIGHTS, read_weights

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def ours(classifier):
    return frozen(classifier)


@pytest.fixture(scope="module")
def made(ours, data, tmp_path_factory):
    images, masks = data
    out = tmp_path_factory.mktemp("made") / "frozen"
    longer = dataclasses.replace(ours, training=dataclasses.replace(ours.training, steps=60))
    return segment(longer, images, masks=masks, out=out, classifier=None)


class Cells(FrozenNetwork):
    """Two feature maps: the mean colours of cells of 6 pixels, and of 12."""

    colours, stride, strides, channels = IMAGENET, 12, (6, 12), (3, 3)

    def maps(self, pictures: Tensor, layers: int) -> list[Tensor]:
        return [torch.nn.functional.avg_pool2d(pictures, side) for side in (6, 12)][-layers:]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 1 << 20))
def test_padding_shifts_nothing(height, width, seed):
    """The logits of the top left part of a picture are those of the picture, where its cells are complete."""
    torch.manual_seed(seed)
    network = FrozenSegmenter(DenseFeatures(Cells(), layers=2), FrozenHead(3, [3, 3], [1, 2], 32, 0)).eval()
    picture = torch.randint(0, 256, (1, 3, 60, 60)).float()
    with torch.inference_mode():
        whole, part = network(picture), network(picture[..., :height, :width])
    assert part.shape == (1, 3, height, width)
    # a point depends on the cells around it: at most a coarse one and a fine one further on
    rows, columns = (max(side // 12 * 12 - 12 - 6, 0) for side in (height, width))
    torch.testing.assert_close(part[..., :rows, :columns], whole[..., :rows, :columns])


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 20), st.integers(1, 20), st.sampled_from([0.5, 1.0, 1.7]), st.booleans(), st.sampled_from([1.5, 2.0, 4.0])
)  # fmt: skip
def test_labels_are_those_at_the_centres_of_the_points(height, width, scale, mirrored, cell):
    mask = np.random.default_rng(0).integers(0, 250, (height, width)).astype(np.uint8)
    view = View(scale, mirrored)
    seen = view.size_hw((height, width))
    grid_hw = tuple(int(side / cell) + 2 for side in seen)
    found = view.labels(mask, grid_hw, cell)
    for row, column in np.ndindex(grid_hw):
        y, x = (row + 0.5) * cell, (column + 0.5) * cell
        if y >= seen[0] or x >= seen[1]:
            assert found[row, column] == IGNORE
            continue
        source = min(int(y * height / seen[0]), height - 1), min(int(x * width / seen[1]), width - 1)
        assert found[row, column] == mask[source[0], width - 1 - source[1] if mirrored else source[1]]


def test_the_cache_holds_the_features_of_each_view(made, data, ours):
    images, cache = data[0], TokenCache(made / "tokens")
    trained = Segmenter(made, PredictSettings()).trained.network.features
    assert [(view.scale, view.mirrored) for view in cache.views] == [
        (1.0, False),
        (1.0, True),
        (0.5, False),
        (0.5, True),
    ]
    total = 0
    for picture in range(len(images)):
        for number, view in enumerate(cache.views):
            planes = view.planes(images.read(picture))
            expected = trained(planes)
            found = cache.maps(picture, number)
            assert [one.shape[1:] for one in found] == [one.shape[2:] for one in expected]
            for one, other in zip(found, expected, strict=True):
                assert torch.equal(one, other[0].half())
            total += sum(2 * one.numel() for one in found)
    assert cache.index.size == total
    every = torch.cat([cache.maps(p, v)[-1].flatten(1) for p in range(len(images)) for v in range(4)], 1).double()
    np.testing.assert_allclose(cache.index.means[-1], every.mean(1), atol=1e-9)
    np.testing.assert_allclose(cache.index.deviations[-1], every.std(1, correction=0), rtol=1e-6)


def test_squares_are_found_in_new_pictures(made, tmp_path):
    images = write_squares(tmp_path / "new", 8, seed=5)
    settings = PredictSettings(scales=(0.5, 1.0), flip=True)
    out = predict(settings, images, weights=made, out=tmp_path / "out", also=["probabilities"])
    right = total = 0
    for index, name in enumerate(images.names):
        truth, mask = images.read_mask(index), read_mask(out / f"{name}.png")
        right += int((mask == truth)[truth > 0].sum())
        total += int((truth > 0).sum())
    assert right > 0.7 * total


def test_an_example_is_a_square_of_a_view(ours, data, made):
    """Squares that are larger than the picture: tokens at their place, labels of its points, and the rest outside."""
    images, masks = data
    learning = ours.trainable(images, masks, made / "tokens")
    cache = TokenCache(made / "tokens")
    example = learning.examples(3, np.random.default_rng(1))
    view = int(np.random.default_rng(1).integers(4))
    tokens = cache.maps(3, view)
    rows, columns = tokens[-1].shape[1:]
    assert torch.equal(example["map_1"][:, :rows, :columns], tokens[-1])
    outside = example["outside"]
    assert not outside[:rows, :columns].any()
    assert outside[rows:].all()
    assert outside[:, columns:].all()
    labels = cache.views[view].labels(images.read_mask(3), (rows, columns), 4)
    np.testing.assert_array_equal(example["label"][:rows, :columns], labels)
    assert (example["label"][rows:] == IGNORE).all()
    kept = example["factors"][example["factors"] > 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / 0.9))
    assert 0 < len(kept) < 32


def test_a_killed_stage_continues_and_ends_in_the_same_bytes(made, ours, data, tmp_path, monkeypatch):
    images, _ = data
    seen: list[int] = []
    real = stage._tokens

    def dying(features, views, image):
        seen.append(1)
        if len(seen) == 7:
            raise KeyboardInterrupt
        return real(features, views, image)

    monkeypatch.setattr(stage, "_tokens", dying)
    with pytest.raises(KeyboardInterrupt):
        cache_tokens(ours.of_tokens, images, out=tmp_path / "tokens")
    out = cache_tokens(ours.of_tokens, images, out=tmp_path / "tokens")
    assert len(seen) == 7 + 6
    before, after = tree(made / "tokens"), tree(out)
    assert {name for name in before if name.endswith(".safetensors")} == {
        f"tokens-{n:05d}.safetensors" for n in range(12)
    }
    assert after == before


def changed(folder, copy, change):
    """A copy of a folder of tokens with another index."""
    shutil.copytree(folder, copy)
    for path in copy.glob("done.json"):
        path.unlink()
    index = json.loads((copy / INDEX).read_text())
    change(index)
    (copy / INDEX).write_text(json.dumps(index))
    return copy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index["features"]["libraries"].update(timm="0.1"), r"made with timm 0\.1; expected timm \d"),
        (lambda index: index["features"].update(digest="0"), "expected the network of the tokens"),
        (lambda index: index["digests"].reverse(), "tokens of another picture"),
        (lambda index: index["names"].reverse(), "tokens of another picture"),
        (lambda index: index["names"].__setitem__(0, "other"), "no tokens of teil 0/bild_0"),
        (lambda index: index.pop("cell"), "an object with features"),
    ],
)
def test_tokens_of_something_else_are_refused(made, ours, data, tmp_path, change, message):
    images, masks = data
    tokens = changed(made / "tokens", tmp_path / "tokens", change)
    given = dataclasses.replace(ours, tokens=tokens)
    with pytest.raises(BadInput, match=message):
        segment(given, images, masks=masks, out=tmp_path / "out", classifier=None)
    assert not (tmp_path / "out" / WEIGHTS).exists()


def test_shards_of_other_versions_are_refused(ours, data, tmp_path, monkeypatch):
    images, _ = data
    monkeypatch.setattr(stage, "_index", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cache_tokens(ours.of_tokens, images, out=tmp_path / "tokens")
    monkeypatch.setattr("wsss.segmenters.tokens.version", lambda name: "9.9")
    with pytest.raises(BadInput, match=r"tokens made with timm .*, transformers .*expected timm 9\.9"):
        cache_tokens(ours.of_tokens, images, out=tmp_path / "tokens")


def test_a_cache_that_is_too_large(ours, data, tmp_path):
    small = dataclasses.replace(ours.of_tokens, views=dataclasses.replace(ours.views, most_gb=1e-4))
    with pytest.raises(BadInput, match=r"0\.00 GB of tokens; expected at most 0\.0001 GB.*views\.flip false"):
        cache_tokens(small, data[0], out=tmp_path / "tokens")


def test_it_goes_on_from_a_segmenter_with_its_network(made, data, tmp_path):
    """The classifier is not needed again, and tokens of an earlier command are used."""
    images, masks = data
    before, known = read_weights(made / WEIGHTS)
    again = FrozenSettings(init=str(made), tokens=made / "tokens", crop=48)
    again.check()
    torch.manual_seed(0)
    learning = again.after(None).trainable(images, masks, made / "tokens")
    for name, value in {**learning.network.state_dict(), **learning.constant}.items():
        assert torch.equal(value, before[name]), name
    assert learning.metadata["features"] == known["features"]
    others = dataclasses.replace(images, class_names=("blue", "red"))
    new = again.after(None).trainable(others, masks, made / "tokens").network.state_dict()
    differing = [name for name in new if not torch.equal(new[name], before[name])]
    assert sorted(differing) == ["head.decoder.linear_pred.bias", "head.decoder.linear_pred.weight"]
    with pytest.raises(BadInput, match=r"a network with embedding 32; expected embedding 64"):
        dataclasses.replace(again, network=HeadLayers(64)).trainable(images, masks, made / "tokens")


def test_corrected_masks_are_used_more_often(made, ours, data, tmp_path):
    images, masks = data
    write_mask(tmp_path / "corrected" / f"{images.names[1]}.png", np.full((32, 36), 2, np.uint8))
    weighted = dataclasses.replace(ours, corrected_weight=3)
    learning = weighted.trainable(images, masks, made / "tokens", tmp_path / "corrected")
    assert learning.repeats == [3 if index == 1 else 1 for index in range(12)]
    assert learning.metadata["corrected"] == [images.names[1]]
    labels = learning.examples(1, np.random.default_rng(0))["label"]
    assert set(labels.unique().tolist()) <= {2, IGNORE}


@pytest.mark.parametrize("kind", ["dinov2", "siglip_vision_model", "clip_vision_model"])
def test_networks_of_transformers(kind, data, tmp_path):
    """Pictures that are no multiples of the patch; the file of the segmenter names the network, which must not change."""
    images, masks = data
    model_of(kind).save_pretrained(tmp_path / "network")
    settings = FrozenSettings(features=FeatureSettings(str(tmp_path / "network")), crop=48, training=SHORT)
    settings.check()
    made = segment(settings, images, masks=masks, out=tmp_path / "head", classifier=None)
    state, known = read_weights(made / WEIGHTS)
    assert all(name.startswith("head.") for name in state)
    assert known["features"]["body"] is None
    network, cache = DenseFeatures(TransformerFeatures(model_of(kind), kind)), TokenCache(made / "tokens")
    picture = torch.from_numpy(images.read(0).transpose(2, 0, 1).copy())[None]
    assert max(side % network.cell for side in picture.shape[2:])
    with torch.inference_mode():
        assert torch.equal(cache.maps(0, 0)[0], network(picture)[0][0].half())
    segmenter = Segmenter(made, PredictSettings())
    logits = logits_of(segmenter.trained, segmenter.trained.view(images.read(0), 1.0), images.size_hw(0))
    assert logits.shape == (1, 3, *images.size_hw(0))
    changed_model = model_of(kind)
    with torch.no_grad():
        next(changed_model.parameters()).add_(1)
    changed_model.save_pretrained(tmp_path / "network")
    with pytest.raises(BadInput, match="a network with digest"):
        Segmenter(made, PredictSettings())


def test_heads_fit_their_networks():
    """WeCLIP's 256 channels and 3 blocks on wide networks, smaller heads on small ones."""
    sizes = {96: (32, 1), 384: (192, 2), 512: (256, 3), 768: (256, 3)}
    assert {width: dataclasses.astuple(HeadLayers().on(width)) for width in sizes} == sizes
    head = FrozenHead(21, [768], [1], 256, 3)
    published = 768 * 256 + 256 + 2 * (256 * 256 + 256) + 3 * 789_760 + 256 * 21 + 21
    assert sum(value.numel() for value in head.parameters()) == published
    with pytest.raises(BadInput, match="a multiple of 32"):
        HeadLayers(embedding=40)


def test_settings_that_cannot_work(classifier, tmp_path):
    with pytest.raises(BadInput, match="no classifier that was trained here"):
        FrozenSettings().check()
    with pytest.raises(BadInput, match="a segmenter of kind `cam`"):
        FrozenSettings(init=str(classifier)).check()
    with pytest.raises(BadInput, match=r"segmenter\.dropout"):
        FrozenSettings(dropout=1.0)
    with pytest.raises(BadInput, match=r"tokens\.json"):
        FrozenSettings(tokens=tmp_path).check()
    with pytest.raises(BadInput, match="features"):
        FrozenSettings(features=FeatureSettings(str(classifier), layers=9)).check()


def test_views_out_of_range():
    with pytest.raises(BadInput, match=r"views\.scales"):
        ViewSettings(scales=(0.0,))


@pytest.mark.skipif(
    "ATEN_CPU_CAPABILITY" in os.environ,
    reason="attention of torch 2.15 in bfloat16 raises an error on processors with AVX-512 that are told to do without it",
)
def test_features_in_bfloat16(made, data):
    image = data[0].read(3)
    segmenters = (Segmenter(made, PredictSettings(precision=one)) for one in ("no", "bf16"))
    single, half = (one.probabilities(one.prepare(image)) for one in segmenters)
    assert half.dtype == np.float32
    assert (single.argmax(0) == half.argmax(0)).mean() > 0.98
