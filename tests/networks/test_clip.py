"""The way through CLIP's layers, against torch's own layers, OpenCV's resize and the definitions."""

import functools

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPConfig, CLIPModel

from tests.parity import inputs
from wsss.errors import BadInput
from wsss.networks.clip import CLIP, Vocabulary, unit_text_features
from wsss.pretrained import openai_tokenizer

PATCH, GRID, WIDTH, LAYERS, JOINT = 4, 5, 128, 3, 16


@functools.cache
def tiny() -> CLIP:
    tower = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
    config = CLIPConfig(
        projection_dim=JOINT,
        vision_config={**tower, "image_size": PATCH * GRID, "patch_size": PATCH},
        text_config={**tower, "max_position_embeddings": 20},
    )
    model = CLIPModel(config)
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        gain = 2.0 if "_proj" in name else 1.0
        parameter.data = torch.from_numpy(np.asarray(inputs.tensor(name, shape, gain=gain))).reshape(shape)
    return CLIP(model.double(), Vocabulary(openai_tokenizer(), 20)).requires_grad_(False).eval()


def picture(grid: tuple[int, int], count: int = 1) -> torch.Tensor:
    shape = (count, 3, grid[0] * PATCH, grid[1] * PATCH)
    return torch.from_numpy(inputs.array("picture", shape, low=-2, high=2)).double()


def tokens(grid: tuple[int, int], count: int = 1) -> torch.Tensor:
    return tiny().embed(picture(grid, count), tiny().positions(grid))


def reference_block(index: int) -> nn.TransformerEncoderLayer:
    """torch's own block with the same weights."""
    ours = tiny().model.vision_model.encoder.layers[index]
    attention, state = ours.self_attn, {}
    for kind in ("weight", "bias"):
        parts = [getattr(projection, kind) for projection in (attention.q_proj, attention.k_proj, attention.v_proj)]
        state[f"self_attn.in_proj_{kind}"] = torch.cat(parts)
        for theirs, layer in (
            ("self_attn.out_proj", attention.out_proj),
            ("norm1", ours.layer_norm1),
            ("norm2", ours.layer_norm2),
            ("linear1", ours.mlp.fc1),
            ("linear2", ours.mlp.fc2),
        ):
            state[f"{theirs}.{kind}"] = getattr(layer, kind)
    block = nn.TransformerEncoderLayer(
        WIDTH,
        2,
        64,
        0.0,
        lambda z: z * torch.sigmoid(1.702 * z),
        batch_first=True,
        norm_first=True,
        dtype=torch.float64,
    )
    block.load_state_dict(state)
    return block


# 4 x 19 and 2 x 38 patches make 77 tokens, which CLIP-ES' code takes for a text
@pytest.mark.parametrize("grid", [(5, 5), (3, 7), (4, 19), (38, 2)])
def test_blocks_are_those_of_torch(grid):
    x = expected = tokens(grid)
    assert x.shape == (1, 1 + grid[0] * grid[1], WIDTH)
    for index in range(tiny().n_blocks):
        block = reference_block(index)
        y = block.norm1(expected)
        _, weights = block.self_attn(y, y, y)
        # in training mode, since torch's fused way for inference knows no activation of ours
        expected = block.train()(expected)
        (fused, none), (explicit, average) = tiny().block(index, x), tiny().block(index, x, average=True)
        assert none is None
        for ours in (fused, explicit):
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-11)
        torch.testing.assert_close(average, weights, rtol=0, atol=1e-12)
        x = fused
    assert tiny().project(x).shape == (1, 1 + grid[0] * grid[1], JOINT)


def test_embedding():
    grid, clip = (3, 4), tiny()
    image, vision = picture(grid, 2), clip.model.vision_model.embeddings
    weight = vision.patch_embedding.weight.flatten(1)
    # patches in the order of reading
    patches = [
        image[:, :, i * PATCH : (i + 1) * PATCH, j * PATCH : (j + 1) * PATCH].flatten(1) @ weight.T
        for i in range(grid[0])
        for j in range(grid[1])
    ]
    rows = torch.stack([vision.class_embedding.expand(2, -1), *patches], 1) + clip.positions(grid)
    expected = clip.model.vision_model.pre_layrnorm(rows)
    torch.testing.assert_close(clip.embed(image, clip.positions(grid)), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("grid", [(GRID, GRID), (3, 7), (11, 2), (4, 19)])
def test_positions(grid):
    own = tiny().model.vision_model.embeddings.position_embedding.weight
    ours = tiny().positions(grid, rounded=False)
    # torch's bilinear resize and OpenCV's, of the height first
    square = own[1:].reshape(GRID, GRID, WIDTH)

    def torchs(weight):
        resized = F.interpolate(weight[1:].T.reshape(1, WIDTH, GRID, GRID), grid, mode="bilinear", align_corners=False)
        return torch.cat([weight[:1], resized[0].permute(1, 2, 0).reshape(-1, WIDTH)])

    assert torch.equal(ours, torchs(own))
    resized = [cv2.resize(channel, grid[::-1]) for channel in square.permute(2, 0, 1).numpy()]
    np.testing.assert_allclose(ours[1:].T.reshape(WIDTH, *grid), np.stack(resized), atol=1e-7)
    if grid == (GRID, GRID):
        torch.testing.assert_close(ours, own, rtol=0, atol=1e-12)
    rounded = tiny().positions(grid)
    assert rounded.dtype == own.dtype
    # the bytes of processors that multiply and add at once, on every processor
    single = torchs(own.float())
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        assert torch.equal(rounded, single.half().double())
    assert torch.equal(rounded, rounded.half().double())
    assert ((rounded - single).abs() <= torch.finfo(torch.float16).eps / 2 * single.abs() + 1e-6).all()
    assert not torch.equal(rounded, ours)


@pytest.mark.parametrize("count", [1, 3])
def test_bias_of_the_attention(count):
    grid = (3, 4)
    x = tokens(grid, count)
    length = x.shape[1]
    for shape in ((length, length), (count, 1, length, length)):
        bias = torch.from_numpy(inputs.array("bias", shape, low=-4, high=4)).double()
        fused, _ = tiny().block(1, x, bias)
        explicit, average = tiny().block(1, x, bias, average=True)
        torch.testing.assert_close(fused, explicit, rtol=0, atol=1e-12)
        plain, unbiased = tiny().block(1, x, average=True)
        assert (explicit - plain).abs().max() > 1e-3
        # the attention is given as it is without the bias
        torch.testing.assert_close(average, unbiased, rtol=0, atol=0)
        mask = bias.expand(count, 1, length, length).repeat_interleave(2, 0)[:, 0]
        block = reference_block(1).train()
        torch.testing.assert_close(fused, block(x, src_mask=mask), rtol=0, atol=1e-11)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("biased", [False, True])
def test_averaging_the_attention_changes_no_gradient(count, biased):
    x = tokens((3, 4), count)
    shape = (count, 1, x.shape[1], x.shape[1])
    bias = torch.from_numpy(inputs.array("bias", shape, low=-4, high=4)).double() if biased else None
    up = torch.from_numpy(inputs.array("up", tuple(x.shape))).double()
    found = []
    for average in (False, True):
        entering = x.clone().requires_grad_()
        out, mean = tiny().block(1, entering, bias, average)
        found.append(torch.autograd.grad(out, entering, up, retain_graph=average)[0])
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-11)
    # the average has a gradient of its own, and is the same if none is asked for
    assert torch.autograd.grad(mean[:, 0, 3].sum(), entering)[0].abs().max() > 0
    torch.testing.assert_close(tiny().block(1, x, bias, average=True)[1], mean.detach(), rtol=0, atol=1e-14)


def test_a_token_that_is_masked_has_no_influence():
    x = tokens((3, 4))
    bias = torch.zeros(13, 13, dtype=torch.float64)
    bias[:, 5] = float("-inf")
    changed = x.clone()
    changed[:, 5] += 1
    for average in (False, True):
        a, b = (tiny().block(0, t, bias, average)[0] for t in (x, changed))
        kept = [i for i in range(13) if i != 5]
        assert torch.equal(a[:, kept], b[:, kept])


def test_rows_of_the_attention_sum_to_one():
    x = tokens((4, 6), 2)
    for index in range(tiny().n_blocks):
        x, attention = tiny().block(index, x, average=True)
        assert attention.shape == (2, 25, 25)
        assert attention.min() > 0
        torch.testing.assert_close(attention.sum(2), torch.ones(2, 25).double(), rtol=0, atol=1e-12)


def test_pictures_of_a_batch_do_not_mix():
    both = tokens((3, 5), 2)
    for index in range(tiny().n_blocks):
        both, _ = tiny().block(index, both)
    for i in range(2):
        alone = tiny().embed(picture((3, 5), 2)[i : i + 1], tiny().positions((3, 5)))
        for index in range(tiny().n_blocks):
            alone, _ = tiny().block(index, alone)
        torch.testing.assert_close(both[i : i + 1], alone, rtol=0, atol=1e-12)


TEXTS = ("dog", "a clean origami tvmonitor screen.", "", "person with clothes,people,human")


def test_texts_do_not_depend_on_their_batch():
    together = tiny().encode_text(tiny().vocabulary(TEXTS))
    assert together.shape == (4, JOINT)
    for text, row in zip(TEXTS, together, strict=True):
        ids = tiny().vocabulary([text])
        torch.testing.assert_close(tiny().encode_text(ids)[0], row, rtol=0, atol=1e-12)
        padded = F.pad(ids, (0, 20 - ids.shape[1]))
        torch.testing.assert_close(tiny().encode_text(padded)[0], row, rtol=0, atol=1e-12)
    theirs = tiny().model.get_text_features(input_ids=F.pad(tiny().vocabulary(TEXTS), (0, 3)))
    theirs = theirs if isinstance(theirs, torch.Tensor) else theirs.pooler_output
    torch.testing.assert_close(together, theirs, rtol=0, atol=1e-11)
    assert torch.cdist(together, together).add(torch.eye(4)).min() > 1e-2


def test_unit_text_features():
    templates = ("a clean origami {}.", "{} on {}", "itap of the {}.")
    names = ("dog", "cat", "sofa")
    ours = unit_text_features(tiny(), names, templates, batch=4)
    for name, row in zip(names, ours, strict=True):
        raw = tiny().encode_text(tiny().vocabulary([t.replace("{}", name) for t in templates]))
        mean = (raw / raw.norm(dim=1, keepdim=True)).mean(0)
        torch.testing.assert_close(row, mean / mean.norm(), rtol=0, atol=1e-12)


def test_temperature():
    assert float(tiny().temperature) == pytest.approx(np.exp(float(tiny().model.logit_scale)))


def test_tokens_of_texts():
    vocabulary = tiny().vocabulary
    ids = vocabulary(["dog", "  A &amp;amp; B \n2023 ", "", " \t"])
    assert ids.dtype == torch.long
    assert ids[0].tolist() == [49406, 1929, 49407, *[0] * (ids.shape[1] - 3)]
    # each digit is a word of its own
    plain = [vocabulary.words(word) for word in ("a", "&", "b", "2", "0", "2", "3")]
    assert [len(word) for word in plain] == [1] * 7
    assert ids[1].tolist() == [49406, *(word[0] for word in plain), 49407]
    assert ids[2].tolist() == ids[3].tolist() == [49406, 49407, *[0] * (ids.shape[1] - 2)]
    assert vocabulary([]).shape == (0, 0)
    assert vocabulary.words("") == []


def test_long_texts():
    vocabulary = tiny().vocabulary
    fits, long = " ".join(["dog"] * 18), " ".join(["dog"] * 19)
    assert vocabulary([fits]).shape == (1, 20)
    with pytest.raises(BadInput, match=r"the text 'dog dog .*': found 21 tokens; expected at most 20") as caught:
        vocabulary(["cat", long])
    assert "shorter" in caught.value.do
    cut = vocabulary(["cat", long], truncate=True)
    assert cut.shape == (2, 20)
    assert cut[1].tolist() == vocabulary([fits])[0].tolist()
    assert cut[0, 2] == cut[1, 19] == 49407
