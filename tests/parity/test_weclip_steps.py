"""Whole training steps of WeCLIP and WeCLIP+ against their repository, on tiny frozen networks."""

import copy
import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

from tests.parity import fixtures, inputs
from tests.parity.test_clip_es import CLASSES, TEMPLATE, WORDS, texts
from tests.parity.test_weclip import SEED, check_gradients, learned_values, part_of, picture
from tests.parity.tiny_clip import tiny_clip
from wsss.data.images import Images
from wsss.methods import weclip
from wsss.methods.weclip import WeCLIPObjective, WeCLIPSettings
from wsss.methods.weclip_labels import TextVectors, at_size
from wsss.methods.weclip_losses import cell_labels, pairs
from wsss.networks.clip import CLIP
from wsss.networks.deeplab import resize_logits
from wsss.networks.features import TransformerFeatures
from wsss.networks.weclip import FrozenNetworks
from wsss.stages.train import make_optimizer, poly_factor

# size of the pictures, their tags, number of the update
STEPS = {
    ("step", "voc early"): ((96, 112), ([11, 14], [3]), 100),
    ("step", "voc late"): ((96, 112), ([11, 14], [3]), 18_001),
    ("step", "coco"): ((80, 96), ([0, 16], [56, 60, 4]), 100),
    ("step-weclip", "voc early"): ((96, 112), ([3, 11], [14]), 0),
    ("step-weclip", "voc late"): ((96, 112), ([3, 11], [14]), 15_000),
    ("step-weclip", "coco late"): ((80, 96), ([0, 16], [4, 56, 60]), 40_000),
}


@functools.cache
def tiny_dino() -> TransformerFeatures:
    """The DINOv2 of the fixtures."""
    config = Dinov2Config(hidden_size=48, num_hidden_layers=2, num_attention_heads=3, patch_size=14, image_size=98)
    model, manifest = Dinov2Model(config), fixtures.table("weclip/manifest-tiny-dinov2.json")
    state = {key: torch.from_numpy(inputs.tensor(f"dino.{key}", tuple(s), SEED)) for key, s in manifest.items()}
    model.load_state_dict(state)
    return TransformerFeatures(model.requires_grad_(False).eval(), "dinov2")


def objective(file: str, case: str) -> WeCLIPObjective:
    """The learned layers with the values of the fixtures."""
    plus, coco = file == "step", case.startswith("coco")
    classes = CLASSES["coco" if coco else "voc"]
    size, tags, _ = STEPS[file, case]
    read = [inputs.image(*size, SEED + index) for index in range(2)]
    images = Images.from_arrays(read, [[classes[tag] for tag in row] for row in tags], classes)
    settings = WeCLIPSettings(variant="weclip+" if plus else "weclip", embedding=32, dropout=0.0)
    steps, lr = 80_000 if coco else 30_000, 2e-4 if plus else 2e-3
    settings = dataclasses.replace(settings, training=dataclasses.replace(settings.training, steps=steps, lr=lr))
    learning = WeCLIPObjective(settings, images, FrozenNetworks(tiny_clip(), tiny_dino() if plus else None))
    shapes = {name: list(value.shape) for name, value in learning.network.state_dict().items()}
    values = learned_values(shapes, pred_gain=1.5)
    values["decoder.linear_pred.bias"] = torch.from_numpy(fixtures.arrays(f"weclip/{file}")[f"{case}/linear_pred_bias"])
    learning.network.load_state_dict(values)
    return learning.train()


def batch_of(file: str, case: str) -> tuple[Tensor, Tensor]:
    """Pictures and tags."""
    size, tags, _ = STEPS[file, case]
    label = torch.zeros(2, 80 if case.startswith("coco") else 20)
    for index, row in enumerate(tags):
        label[index, row] = 1
    return torch.stack([picture(*size, SEED + index) for index in range(2)]), label


@pytest.fixture(autouse=True)
def same_texts(monkeypatch):
    """Text vectors of CLIP-ES, which other tests compare, are computed once."""

    def cached(clip: CLIP, prompts: Sequence[str], backgrounds: Sequence[str], templates: Sequence[str]) -> TextVectors:
        (dataset,) = (name for name, words in WORDS.items() if words.prompts == prompts)
        assert (WORDS[dataset].background, tuple(templates)) == (backgrounds, (TEMPLATE,))
        return TextVectors(*texts(dataset))

    monkeypatch.setattr(weclip, "text_vectors", cached)


@pytest.mark.parametrize(("file", "case"), STEPS)
def test_training_step(file, case):
    reference, plus, update = fixtures.arrays(f"weclip/{file}"), file == "step", STEPS[file, case][2]
    learning, (image, tags) = objective(file, case), batch_of(file, case)
    size = image.shape[2:]

    tokens = learning.tokens(image)
    assert len(tokens.attention) == learning.maker.rule.attentions
    # stored in double precision, like the networks of this comparison
    exact = FrozenNetworks(*(copy.deepcopy(one).double() for one in (tiny_clip(), tiny_dino())))(image.double())
    np.testing.assert_allclose(exact.blocks[-1][:, :, ::8], reference[f"{case}/clip_tokens"], atol=1e-4)
    if plus:
        np.testing.assert_allclose(exact.dino[:, ::3], reference[f"{case}/dino_tokens"], atol=1e-5)
    decoded = learning.network(tokens, torch.ones(2, learning.network.n_adapters, 32))
    step = 9 if case.startswith("coco") else 2
    names = ("logits_c", "logits_d") if plus else ("logits",)
    for name, logits in zip(names, decoded.logits, strict=True):
        np.testing.assert_allclose(logits[:, ::step].detach(), reference[f"{case}/{name}"], atol=1e-3)
    affinity = decoded.affinity().detach()
    np.testing.assert_allclose(affinity[:, ::7], reference[f"{case}/affinity"], atol=3e-4)

    probability = decoded.mean().detach().softmax(1)
    chosen = None if update < learning.plain_updates else affinity
    present = tags[0].nonzero()[:, 0]
    maps = learning.maker.grid_maps(tokens, 0, present, None if chosen is None else chosen[0], probability[0])
    np.testing.assert_allclose(at_size(maps, image, size)[:, ::4, ::4], reference[f"{case}/refined_maps"], atol=1e-3)
    made = learning.made_labels(image, tags, tokens, decoded, update)
    stored_made, stored = (
        torch.from_numpy(reference[f"{case}/{name}"].astype(np.int64)) for name in ("maps_label", "label")
    )
    assert (made == stored_made).float().mean() >= 0.999
    logits = [resize_logits(one, (size[0], size[1])) for one in decoded.logits]
    final = learning.final_labels(made, logits, update)
    assert (final == stored).float().mean() >= 0.999
    near = pairs(cell_labels(stored_made, tokens.grid), 8)
    np.testing.assert_array_equal(near.numbers() + 1, reference[f"{case}/pair_counts"])

    terms = learning.losses(logits, decoded.features, stored_made, stored)
    check_parts(terms, reference[f"{case}/parts"], plus)
    total = torch.stack([*terms.values()]).sum()
    np.testing.assert_allclose(total.detach(), reference[f"{case}/total"], atol=2e-4)
    training = learning.settings.training
    rate = training.lr * poly_factor(training, 60, training.steps)
    (group,) = learning.param_groups(training)
    optimizer = make_optimizer(training, [{**group, "lr": rate}])
    before = {name: value.detach().clone() for name, value in learning.network.named_parameters()}
    total.backward()
    check_gradients(learning.network, reference, case, 3e-4)
    optimizer.step()
    check_update(learning, before, reference, case, rate)

    # the fixtures hold the next loss for information; labels have changed by then
    learning.batches += update
    factors = torch.ones(2, learning.network.n_adapters, 32)
    again = learning({"image": image, "label": tags, "factors": factors})
    assert int(learning.batches) == update + 1
    second = torch.stack([*again.values()]).sum().detach()
    np.testing.assert_allclose(second, reference[f"{case}/total_second"], rtol=0.05)


def check_parts(terms: dict[str, Tensor], parts: np.ndarray, plus: bool) -> None:
    """The terms are the weighted parts: seg, dice, both cross losses and affinity, or seg and affinity."""
    names, factors = ("segmentation", "dice", "cross", "affinity"), (1.0, 1.0, 0.1, 0.1)
    sums = (parts[0], parts[1], parts[2] + parts[3], parts[4]) if plus else (parts[0], None, None, parts[1])
    wanted = {name: factor * part for name, factor, part in zip(names, factors, sums, strict=True) if part is not None}
    assert wanted.keys() == terms.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(terms[name].detach(), value, atol=2e-4, err_msg=name)


def check_update(
    learning: WeCLIPObjective, before: dict[str, Tensor], reference: fixtures.Arrays, case: str, rate: float
) -> None:
    """The first update of AdamW, which is nearly the sign of the gradient where that is not small."""
    after = dict(learning.network.named_parameters())
    names = [key.split("/", 2)[2] for key in reference if key.startswith(f"{case}/after/")]
    assert len(names) >= 9
    for name in names:
        gradient = after[name].grad
        large = part_of(gradient.abs() > 1e-3 * gradient.abs().max()).numpy()
        change = part_of(after[name].detach() - before[name]).numpy()
        np.testing.assert_allclose(
            change[large], reference[f"{case}/after/{name}"][large], atol=2e-2 * rate, err_msg=name
        )
