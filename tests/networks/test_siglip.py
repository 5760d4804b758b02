"""SigLIP, SigLIP 2 and MetaCLIP 2 from folders of transformers, against their own forward passes, and Grad-CAM against finite differences."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests import image_text
from tests.image_text import CONTEXT, GRID, LETTERS, PATCH
from tests.parity import inputs
from wsss.errors import BadInput
from wsss.methods import clip_es
from wsss.networks.clip import CLIP, ImageText
from wsss.networks.features import _as_patches
from wsss.networks.siglip import SigLIP
from wsss.pretrained import load_clip, load_image_text

TEXTS = ("A photo of a Dog, isn't it?", "cat", "two\n birds &amp; a TV-set")
KINDS = ("siglip", "siglip2", "metaclip_2")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each kind, and the network of transformers in it."""

    @cache
    def made(kind: str):
        folder = tmp_path_factory.mktemp(kind)
        return folder, image_text.write(folder, kind)

    return made


def picture(grid: tuple[int, int], count: int = 2) -> torch.Tensor:
    return torch.from_numpy(inputs.array("picture", (count, 3, grid[0] * PATCH, grid[1] * PATCH), low=-1, high=1))


def seen_by_transformers(kind: str, pictures: torch.Tensor) -> dict[str, object]:
    if kind == "siglip2":
        return _as_patches(pictures, PATCH)
    return {"pixel_values": pictures, "interpolate_pos_encoding": True}


@pytest.mark.parametrize("grid", [(GRID, GRID), (3, 7), (GRID**2, 1)])
@pytest.mark.parametrize("kind", KINDS[:2])
def test_pictures_and_texts_belong_together_as_in_transformers(folders, kind, grid):
    folder, model = folders(kind)
    ours = load_image_text(str(folder))
    assert isinstance(ours, SigLIP)
    assert (ours.FAMILY, ours.patch, ours.native_grid, ours.n_blocks) == ("SigLIP", PATCH, GRID, 3)
    assert {(p.dtype, p.requires_grad) for p in ours.parameters()} == {(torch.float32, False)}
    tokens = ours.vocabulary(TEXTS)
    with torch.no_grad():
        wanted = model(input_ids=tokens, **seen_by_transformers(kind, picture(grid)))
        pictures, texts = ours.encode_image(picture(grid)), ours.encode_text(tokens)
        logits = ours.temperature * F.normalize(pictures, dim=1) @ F.normalize(texts, dim=1).T + ours.bias
        # pixels beyond the last patch are not seen
        wider = F.pad(picture(grid), (0, PATCH - 1, 0, 1), value=9.0)
        torch.testing.assert_close(ours.embedding(wider), F.normalize(pictures, dim=1), rtol=0, atol=1e-6)
    torch.testing.assert_close(logits, wanted.logits_per_image, rtol=0, atol=1e-4)
    assert wanted.logits_per_image.std() > 0.1


def test_texts_are_padded_to_the_whole_context(folders):
    first, second = (load_image_text(str(folders(kind)[0])).vocabulary for kind in KINDS[:2])
    clean = {"siglip": "a photo of a dog isnt it", "siglip2": "a photo of a dog, isn't it?"}
    for vocabulary, text, padding in ((first, clean["siglip"], "</s>"), (second, clean["siglip2"], "<pad>")):
        letters = [LETTERS.index(letter) for letter in text]
        end = [LETTERS.index("</s>"), *[LETTERS.index(padding)] * (CONTEXT - len(text) - 1)]
        assert vocabulary(TEXTS)[0].tolist() == [*letters, *end]
        assert vocabulary([]).shape == (0, 0)
        assert vocabulary.words("") == []
        assert vocabulary(["x" * (CONTEXT - 1)]).shape == (1, CONTEXT)
        with pytest.raises(BadInput, match=f"found {CONTEXT + 1} tokens; expected at most {CONTEXT}"):
            vocabulary(["x" * CONTEXT])
        assert vocabulary(["x" * 99], truncate=True)[0].tolist() == [LETTERS.index("x")] * (CONTEXT - 1) + end[:1]
    # only the words change a text's features: not its case, not its place in a batch
    clip = load_image_text(str(folders("siglip")[0]))
    alone, together = clip.encode_text(first(["DOG"])), clip.encode_text(first(["a much longer text", "dog"]))
    torch.testing.assert_close(alone[0], together[1], rtol=0, atol=1e-5)


def test_metaclip_2_has_its_own_tokens(folders):
    folder, model = folders("metaclip_2")
    ours = load_clip(str(folder))
    tokens = ours.vocabulary(TEXTS)
    assert tokens[1].tolist() == [0, *[LETTERS.index(letter) for letter in "cat"], 2, *[0] * (tokens.shape[1] - 5)]
    assert tokens[0, 1] == LETTERS.index("A")
    native = (GRID, GRID)
    with torch.no_grad():
        torch.testing.assert_close(
            ours.encode_text(tokens), model.get_text_features(input_ids=tokens).pooler_output, rtol=0, atol=1e-5
        )
        x = ours.embed(picture(native), ours.positions(native, rounded=False))
        for index in range(ours.n_blocks):
            x, _ = ours.block(index, x)
        theirs = model.get_image_features(pixel_values=picture(native)).pooler_output
        torch.testing.assert_close(ours.project(x[:, 0]), theirs, rtol=0, atol=1e-5)


def test_pictures_are_normalised_as_the_folder_says(folders, tmp_path):
    usual, _ = folders("siglip")
    assert load_image_text(str(usual)).colours == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert load_image_text(str(folders("metaclip_2")[0])).colours[0][0] == pytest.approx(0.48145466)
    image_text.write(tmp_path, "metaclip_2")
    own = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(own))
    clip = load_image_text(str(tmp_path))
    assert clip.colours == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    image = inputs.image(PATCH, PATCH)
    expected = ((image / 255 - own["image_mean"]) / own["image_std"]).transpose(2, 0, 1)
    np.testing.assert_allclose(clip_es.patched(image, PATCH, clip.colours), expected, atol=1e-6)


@pytest.mark.parametrize("competing", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_differences(folders, kind, competing):
    """The mean over the patches of the gradient is the derivative along a change that all patches share."""
    clip = load_image_text(str(folders(kind)[0])).double()
    grid, n_classes = (4, 6), 2
    view = picture(grid, 1).double()
    texts = F.normalize(clip.encode_text(clip.vocabulary(["dog", "tree", "sky"])), dim=1)
    x = clip.embed(view, clip.positions(grid))
    for index in range(clip.n_blocks - 1):
        x, _ = clip.block(index, x)
    _, activations, weights = clip_es.last_block(clip, x, texts, n_classes, competing=competing)
    torch.testing.assert_close(activations, clip.last_block().layer_norm1(x)[0, clip.FIRST :], rtol=0, atol=1e-12)

    def scores(change: torch.Tensor) -> torch.Tensor:
        # the probability, or the logarithm of the sigmoid's odds
        layer = clip.last_block()
        y = layer.layer_norm1(x).clone()
        y[:, clip.FIRST :] += change
        q, k, v = (
            projection(y).unflatten(2, (layer.self_attn.num_heads, -1)).transpose(1, 2)
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
        )
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        z = x + layer.self_attn.out_proj(attended)
        z = z + layer.mlp(layer.layer_norm2(z))
        vision = clip.model.vision_model
        if isinstance(clip, CLIP):
            f = clip.model.visual_projection(vision.post_layernorm(z))[0, 1:].mean(0)
        else:
            f = vision.head(vision.post_layernorm(z))[0]
        logits = clip.model.logit_scale.exp() * (texts @ f / f.norm())
        return logits.softmax(0) if competing else logits

    along = torch.from_numpy(inputs.array("along", (3, clip.model.config.vision_config.hidden_size))).double()
    for direction in along:
        step = 1e-5 * direction / direction.norm()
        numeric = (scores(step) - scores(-step))[:n_classes] / (2 * step.norm())
        ours = len(activations) * weights @ (step / step.norm())
        torch.testing.assert_close(ours, numeric, rtol=1e-5, atol=1e-7)
        assert numeric.abs().max() > 1e-3


def maps(clip: ImageText, names: tuple[str, ...], backgrounds: tuple[str, ...], **settings) -> np.ndarray:
    options = clip_es.CLIPESInference(cache=False, **settings)
    features = clip_es.text_features(clip, names, backgrounds, options.templates, cache=False)
    localizer = clip_es.CLIPESLocalizer(clip, *features, options, 0.4)
    return localizer.grid_maps(localizer.prepare(inputs.image(18, 26)), [np.array([0])])[0]


def test_by_a_sigmoid_the_other_texts_change_nothing(folders):
    clip = load_image_text(str(folders("siglip")[0]))
    for names, backgrounds in ((("dog", "cat"), ()), (("dog", "tree"), ("sky", "water"))):
        # but for the rounding of texts that are encoded together
        np.testing.assert_allclose(maps(clip, names, backgrounds), maps(clip, ("dog",), ()), atol=1e-5)
        assert np.abs(maps(clip, names, (*backgrounds, "x"), score="softmax") - maps(clip, ("dog",), ())).max() > 0.01
    with pytest.raises(BadInput, match=r"competitors: found all, with a sigmoid"):
        maps(clip, ("dog",), (), competitors="all")
    assert 0 <= maps(clip, ("dog",), ()).min() < 1e-6 < 0.999 < maps(clip, ("dog",), ()).max() <= 1


def refused(folder: Path, found: str) -> None:
    with pytest.raises(BadInput, match=rf"(?s)found .*{found}.*; expected ") as caught:
        load_image_text(str(folder))
    assert folder.name in caught.value.where
    assert caught.value.do


@pytest.mark.parametrize(
    ("kind", "vision", "text", "found"),
    [
        ("siglip", {"vision_use_head": False}, {}, "no attention pooling"),
        ("siglip2", {"num_patches": 24}, {}, "patches of 4, 24 of them"),
        ("siglip", {}, {"projection_size": 16}, "text features of 16 numbers"),
        ("siglip", {}, {"vocab_size": 50}, "a vocabulary of .* tokens for a network with 50"),
        ("metaclip_2", {}, {"eos_token_id": 5}, "start 0 and end 2"),
    ],
)
def test_networks_that_cannot_be_used(tmp_path, kind, vision, text, found):
    image_text.write(tmp_path, kind, vision, text)
    refused(tmp_path, found)


def test_folders_without_their_tokenizer(tmp_path):
    image_text.write(tmp_path, "siglip")
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    refused(tmp_path, "without a padding token")
    (tmp_path / "tokenizer.json").unlink()
    refused(tmp_path, "no tokenizer.json")


def test_methods_that_need_the_class_token_say_so(folders):
    folder, _ = folders("siglip")
    with pytest.raises(BadInput, match=r"found a SigLIP, which has no class token; .*CLIP-ES, CLIMS and QA-CLIMS also"):
        load_clip(str(folder))
