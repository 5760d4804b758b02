"""QA-CLIMS against its repository: answers, texts, files, regions, mask prompts, losses and gradients, training, maps, scores.

What single precision would leave to the processor is compared in double precision.
"""

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import BertTokenizer

from tests.parity import fixtures, inputs
from wsss import classifier, clip_regions
from wsss.data import augment
from wsss.data.images import Images
from wsss.data.nouns import lemma
from wsss.data.voc import VOC_CLASSES
from wsss.data.words import read_words
from wsss.methods import qa_clims, questions
from wsss.methods.qa_clims import PairTexts, Prompted
from wsss.methods.questions import Answers
from wsss.metrics import ThresholdSweep, scores
from wsss.networks import blip
from wsss.networks.clip import CLIP, Vocabulary, from_openai
from wsss.pretrained import openai_tokenizer
from wsss.recipe import preset_settings
from wsss.stages.train import Training, make_optimizer, poly_factor

pytestmark = pytest.mark.usefixtures("one_torch_thread")

VOC = dict(zip(read_words("auto", VOC_CLASSES, "qa_clims").prompts, range(20), strict=True))


@functools.cache
def fixture(name: str):
    return fixtures.arrays(f"qa-clims/{name}")


def near(ours: object, theirs: np.ndarray, error: float) -> None:
    """Within five times the error of the fixtures' own float32, at least 1e-6, as their README allows."""
    ours = ours.detach().numpy() if isinstance(ours, torch.Tensor) else ours
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=max(5 * error, 1e-6))


def nothing() -> Images:
    return Images("none", (), (), VOC_CLASSES, np.zeros((0, 20), bool), ())


def batch(height: int, width: int, seeds) -> torch.Tensor:
    return torch.from_numpy(np.stack([inputs.normalised(inputs.image(height, width, seed)) for seed in seeds]))


@functools.cache
def prompted(kind: torch.dtype = torch.float32) -> Prompted:
    """The small CLIP of the fixtures, with its mask prompts."""
    shapes = fixtures.table("qa-clims/manifest-clip-small.json")
    prompts = shapes.pop("visual.mask_embedding")
    state = {
        name: torch.from_numpy(np.asarray(inputs.tensor(name, tuple(shape), 11))) for name, shape in shapes.items()
    }
    clip = CLIP(from_openai(state, "fixture"), Vocabulary(openai_tokenizer(), 77)).requires_grad_(False).eval()
    gain = float(np.sqrt(prompts[1]))
    tokens = torch.from_numpy(inputs.tensor("visual.mask_embedding", tuple(prompts), 11, gain))
    return Prompted(clip.to(kind), tokens.to(kind))


# --- answers


@functools.cache
def answering(seed: int) -> blip.BLIP:
    """The miniature BLIP of the fixtures."""
    state = {}
    for name, shape in fixtures.table("qa-clims/manifest-blip-small.json").items():
        tied = {
            "text_decoder.cls.predictions.decoder.weight": "text_decoder.bert.embeddings.word_embeddings.weight",
            "text_decoder.cls.predictions.decoder.bias": "text_decoder.cls.predictions.bias",
        }.get(name, name)
        state[name] = torch.from_numpy(inputs.tensor(tied, tuple(shape), seed))
        if tied == "text_decoder.cls.predictions.bias":
            state[name][102] += 4
    special = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}
    tokenizer = BertTokenizer(vocab={special.get(i, f"word{i}"): i for i in range(30522)})
    return blip.BLIP(blip.from_published(state, "fixture", heads=(3, 4)), tokenizer).requires_grad_(False).eval()


def asked() -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """Pixels, questions as the network takes them, and both in one batch with padding."""
    ids = [
        [101, 2054, 2003, 2682, 1996, 3899, 1029, 102, 0, 0],
        [101, 2054, 2828, 1997, 4937, 2003, 1999, 1996, 6302, 102],
    ]
    padded = torch.tensor(ids)
    padded[:, 0] = answering(5).question_start
    single = [row[row != 0][None] for row in padded]
    return torch.from_numpy(inputs.array("pixels", (2, 3, 64, 64), 5, -2, 2)), single, padded


def until_end(ids) -> list[int]:
    ids = list(ids)
    return ids[: ids.index(102) + 1] if 102 in ids else ids


def test_blip_layer_by_layer():
    wanted, network, (pixels, single, _) = fixture("vqa_blip"), answering(5), asked()
    assert (network.answer_start, network.question_start) == (30522, 30523)
    pictures = network.embed(pixels)
    near(pictures, wanted["image_embeds"], 3e-6)
    for picture, ids, states in zip(pictures, single, wanted["question_states"], strict=True):
        near(network.states(network.cross_attention(picture[None]), ids)[0], states[: ids.shape[1]], 3e-6)
    near(padded_states(network), wanted["question_states"], 3e-6)
    states = torch.from_numpy(wanted["question_states"])
    logits = network.model.text_decoder(
        input_ids=torch.full((2, 1), network.answer_start), encoder_hidden_states=states
    ).logits[:, -1]
    near(logits[:, ::64], wanted["first_logits[:, ::64]"], 3e-6)
    np.testing.assert_array_equal(logits.argmax(1), wanted["first_logits_argmax"])


def padded_states(network: blip.BLIP) -> torch.Tensor:
    """Both questions as one batch, in which the encoder is kept from the padding: the layers as transformers runs them."""
    pixels, _, padded = asked()
    return network.model.text_encoder(
        input_ids=padded, attention_mask=(padded != 0).long(), encoder_hidden_states=network.embed(pixels)
    )[0]


@pytest.mark.parametrize("seed", [5, 6, 7, 8])
def test_answers_of_a_padded_batch(seed):
    """The decoder looks at padding too, which a padded batch in the published code does."""
    wanted, network = fixture("vqa_blip")[f"{seed}.padded_batch"], answering(seed)
    for ours, theirs in zip(network.generate(padded_states(network)).tolist(), wanted.tolist(), strict=True):
        assert until_end(ours) == until_end(theirs)


@pytest.mark.parametrize("seed", [5, 6, 7, 8])
def test_answers_one_by_one(seed):
    wanted, network, (pixels, single, _) = fixture("vqa_blip"), answering(seed), asked()
    for row, ids in enumerate(single):
        looked = network.cross_attention(network.embed(pixels[row : row + 1]))
        # twice in a batch of its own length
        for found in network.generate(network.states(looked, ids.repeat(2, 1))).tolist():
            assert until_end(found) == until_end(wanted[f"{seed}.one_by_one"][row].tolist())


def test_pictures_as_blip_takes_them():
    settings = questions.QuestionSettings(size=48)
    found = settings.prepare(inputs.image(75, 100, 15))
    near(found[0], fixture("vqa_blip")["preprocess"], 3e-6)


def test_positions_of_another_grid():
    positions = torch.from_numpy(inputs.tensor("pos", (1, 37, 16), 5))
    near(blip.resized_positions(positions, 4), fixture("vqa_blip")["pos_embed_resized"], 3e-6)


def test_singulars():
    wanted = fixture("text")
    for raw, singular in zip(wanted["lemma.raw"].tolist(), wanted["lemma.out"].tolist(), strict=True):
        assert lemma(raw) == singular, raw


# --- texts


def text_features(
    settings: qa_clims.QACLIMSSettings, answers: list[dict[int, Answers]], features=None
) -> qa_clims.Texts:
    words = settings.read_words(nothing())
    return qa_clims.Texts(settings, prompted(torch.float64).clip, words, answers, features or {}, nothing())


@pytest.mark.parametrize("case", range(8))
def test_foreground_texts(case):
    wanted, words = fixture("text"), read_words("auto", VOC_CLASSES, "qa_clims")
    cls = VOC[str(wanted[f"fg{case}.label"])]
    answers = [lemma(raw) for raw in wanted[f"fg{case}.raw"].tolist()]
    assert answers == wanted[f"fg{case}.lemma"].tolist()
    assert qa_clims.phrases(answers, words.prompts[cls], words.short[cls]) == wanted[f"fg{case}.phrase"].tolist()
    texts = text_features(qa_clims.QACLIMSSettings(), [{cls: Answers(tuple(answers), ())}])
    found = texts(torch.tensor([0]), torch.tensor([cls]))
    near(found.name, wanted[f"fg{case}.feature"], 2e-7)
    assert not found.valid.any()


@pytest.mark.parametrize("case", range(6))
def test_background_texts(case):
    wanted, words = fixture("text"), read_words("auto", VOC_CLASSES, "qa_clims")
    cls = VOC[str(wanted[f"bg{case}.label"])]
    answers = [lemma(raw) for raw in wanted[f"bg{case}.raw"].tolist()]
    assert answers == wanted[f"bg{case}.lemma"].tolist()
    around = qa_clims.surroundings(answers, words.prompts[cls], ())
    assert sorted(around) == wanted[f"bg{case}.sorted_answers"].tolist()
    texts = text_features(qa_clims.QACLIMSSettings(), [{cls: Answers(("x",), tuple(answers))}])
    found = texts(torch.tensor([0]), torch.tensor([cls]))
    rows = found.surroundings[0][found.valid[0]].numpy()[np.argsort(around)]
    near(rows, wanted[f"bg{case}.sorted_features"], 2e-7)


def unit(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return F.normalize(torch.from_numpy(inputs.array(name, shape, seed, -1, 1)), dim=1)


def test_pooling():
    texts = text_features(qa_clims.QACLIMSSettings(), [{0: Answers(tuple("abcdef"), ())}])
    texts.table = torch.cat(
        [unit("label_feature", (1, 768), 11), torch.zeros(19, 768), unit("answer_features", (6, 768), 11)]
    )
    near(texts(torch.tensor([0]), torch.tensor([0])).name, fixture("text")["pool.feature"], 2e-7)


@pytest.mark.parametrize("kind", ["npy", "npy_numpy1"])
def test_published_files(tmp_path, kind):
    wanted = fixture("files")
    for name in ("fg_vqa", "bg_vqa", "fg_cache", "bg_cache"):
        (tmp_path / f"{name}.npy").write_bytes(wanted[f"{kind}.{name}"].tobytes())
    pairs = [(str(wanted[f"{j}.image"]), VOC[str(wanted[f"{j}.label"])]) for j in range(3)]
    names = sorted({name for name, _ in pairs})
    labels = np.zeros((len(names), 20), bool)
    for name, cls in pairs:
        labels[names.index(name), cls] = True
    images = Images(
        "voc", tuple(names), tuple(tmp_path / name for name in names), VOC_CLASSES, labels, (None,) * len(names)
    )
    settings = qa_clims.QACLIMSSettings(
        answers=str(tmp_path / "fg_vqa.npy"),
        background_answers=str(tmp_path / "bg_cache.npy"),
        text_features=str(tmp_path / "fg_cache.npy"),
    )
    words = settings.read_words(images)
    answers, features = qa_clims.answers_of(settings, images, words)
    alone = questions.read_published_answers(tmp_path / "bg_vqa.npy", questions.BACKGROUND)
    for j, (name, cls) in enumerate(pairs):
        index, spoken = names.index(name), words.prompts[cls]
        said = answers[index][cls]
        phrases = qa_clims.phrases(said.foreground, spoken, words.short[cls])
        np.testing.assert_array_equal([features[phrase] for phrase in phrases], wanted[f"{j}.fg_answer_features"])
        around = sorted(qa_clims.surroundings(said.background, spoken, ()))
        assert around == wanted[f"{j}.bg_answers_sorted"].tolist()
        # the features' file says what the answers' file says
        assert around == sorted(qa_clims.surroundings(alone[name, spoken], spoken, ()))
        rows = np.array([features[text] for text in around], np.float32).reshape(-1, 8)
        np.testing.assert_array_equal(rows, wanted[f"{j}.bg_features_sorted"])
        label = torch.from_numpy(wanted[f"{j}.label_feature"])
        texts = [torch.tensor(features[phrase]) for phrase in phrases]
        near(0.5 * label + 0.5 * torch.stack(texts).mean(0, keepdim=True), wanted[f"{j}.fg_feature"], 2e-7)


# --- regions and the CLIP with mask prompts


PAIRS = ((0, 14), (1, 4), (1, 7))


def maps() -> torch.Tensor:
    return torch.from_numpy(inputs.array("cam", (2, 20, 6, 8), 35, 0.001, 0.999) ** 6)


def tags() -> torch.Tensor:
    label = torch.zeros(2, 20)
    for row, cls in PAIRS:
        label[row, cls] = 1
    return label


@pytest.mark.parametrize("size", [56, 224])
def test_regions(size):
    wanted, rows = fixture("region"), clip_regions.pairs_of(tags())
    np.testing.assert_array_equal(np.stack([rows.rows, rows.classes], 1), wanted["pairs"])
    pictures = F.interpolate(batch(96, 128, (3, 4)), (size, size), mode="bilinear", align_corners=True)
    objects, backgrounds, masks = qa_clims.regions(maps()[rows][:, None], pictures[rows.rows], 0.1)
    step = 1 if size == 56 else 16
    for name, region in (("fg", objects), ("bg", backgrounds)):
        np.testing.assert_allclose(region[:, :, ::step, ::step], wanted[f"{size}.{name}"], rtol=0, atol=3e-5)
    sums = objects.double().sum((2, 3)), backgrounds.double().abs().sum((2, 3))
    np.testing.assert_allclose(sums[0], wanted[f"{size}.fg_sum"], rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(sums[1], wanted[f"{size}.bg_abs_sum"], rtol=1e-5)
    np.testing.assert_array_equal(np.packbits(masks.flatten(1).numpy(), axis=1), wanted[f"{size}.fg_mask_bits"])
    for name, mask in (("fg", masks), ("bg", ~masks)):
        np.testing.assert_array_equal(qa_clims.visible_patches(mask, 14).numpy(), wanted[f"{size}.{name}_patch_mask"])


def test_adaptive_thresholds():
    wanted, small = fixture("region"), torch.from_numpy(inputs.array("small", (5, 1, 4, 6), 35))
    mask = qa_clims.foreground_masks(small, 0.3)
    np.testing.assert_array_equal(mask, wanted["adapter_in_seeded_small.binary"] > 0)
    np.testing.assert_array_equal(small * mask, wanted["adapter_in_seeded_small.mask_cam"])


def test_mask_prompts():
    wanted = fixture("clip_mask_prompt")
    pixels = torch.from_numpy(inputs.array("pixels", (3, 3, 56, 56), 11, -2, 2)).requires_grad_()
    masks = torch.from_numpy(inputs.array("mask", (3, 1, 56, 56), 11) > 0.9965)
    masks[1], masks[2] = True, False
    seen = qa_clims.visible_patches(masks, 14).flatten(1)
    np.testing.assert_array_equal(seen.numpy(), wanted["patch_mask"].reshape(3, 16) > 0)
    features = prompted().encode(pixels, masks)
    near(features, wanted["features_masked"], 4e-6)
    weights = torch.from_numpy(inputs.array("w", (3, 32), 11, -1, 1))
    (gradient,) = torch.autograd.grad((weights * features).sum(), pixels)
    near(gradient[:, :, ::4, ::4], wanted["grad_image_masked"], 4e-6)
    near(clip_regions.encode_image(prompted().clip, pixels), wanted["features_plain"], 4e-6)


def test_texts_of_the_clip():
    wanted, clip = fixture("clip_mask_prompt"), prompted().clip
    tokens = clip.vocabulary(wanted["prompts"].tolist())
    np.testing.assert_array_equal(F.pad(tokens, (0, 16 - tokens.shape[1])), wanted["tokens"])
    features = clip.encode_text(tokens)
    near(features, wanted["text_features"], 4e-6)
    near(F.normalize(features, dim=1), wanted["text_features_normalised"], 4e-6)


@pytest.mark.slow
def test_vision_tower_of_real_size():
    wanted = fixture("clip_vitl14")
    shapes = fixtures.table("qa-clims/manifest-clip-vitl14-visual.json")
    shapes = {name if name.startswith("visual.") else f"visual.{name}": shape for name, shape in shapes.items()}
    prompts = shapes.pop("visual.mask_embedding")
    state = {name: torch.from_numpy(inputs.tensor(name, tuple(shape), 12)) for name, shape in shapes.items()}
    # a text tower of the least size, which is not looked at
    small = fixtures.table("qa-clims/manifest-clip-small.json")
    for name, shape in small.items():
        if not name.startswith("visual."):
            state[name] = torch.zeros(shape if name != "text_projection" else [shape[0], 768])
    tokens = torch.from_numpy(inputs.tensor("visual.mask_embedding", tuple(prompts), 12, 16.0))
    clip = CLIP(from_openai(state, "fixture"), Vocabulary(openai_tokenizer(), 77)).requires_grad_(False).eval()
    picture = F.interpolate(batch(97, 130, (12,)), (224, 224), mode="bilinear", align_corners=True)
    low = torch.from_numpy(inputs.array("cam", (1, 1, 7, 9), 12) ** 2)
    objects, backgrounds, masks = qa_clims.regions(low, picture, 0.4)
    both = torch.cat([masks, ~masks])
    np.testing.assert_array_equal(qa_clims.visible_patches(both, 14).numpy(), wanted["patch_mask"])
    with torch.no_grad():
        near(Prompted(clip, tokens).encode(torch.cat([objects, backgrounds]), both), wanted["features_masked"], 3e-6)
        near(clip_regions.encode_image(clip, torch.cat([objects, backgrounds])), wanted["features_plain"], 3e-6)


# --- losses and training


@pytest.mark.parametrize(
    ("case", "width", "count", "tau", "seed"),
    [(0, 768, 7, 0.7, 1), (1, 32, 1, 0.7, 2), (2, 64, 10, 1.0, 3), (3, 64, 4, 0.07, 4)],
)
def test_contrasts(case, width, count, tau, seed):
    wanted = fixture("losses")
    look = torch.from_numpy(inputs.array("img", (1, width), seed, -3, 3)).requires_grad_()
    # two rows more, which are not meant
    around = torch.cat([unit("bg", (count, width), seed), torch.ones(2, width)])[None]
    there = torch.tensor([[True] * count + [False] * 2])
    texts = PairTexts(0.8 * unit("fg", (1, width), seed), around, there)
    for name, contrast in (("frc", qa_clims.foreground_contrast), ("brc", qa_clims.background_contrast)):
        value = contrast(look, texts, tau)
        near(value[0], wanted[f"{case}.{name}"], 6e-7)
        near(torch.autograd.grad(value.sum(), look)[0][0], wanted[f"{case}.{name}.grad"], 1e-7)


class GivenTexts(torch.nn.Module):
    """The fixtures' text features of their three pairs; of pair 1 nothing is known around it if `skip`."""

    def __init__(self, skip: bool, kind: torch.dtype) -> None:
        super().__init__()
        self.skip, self.kind = skip, kind

    def forward(self, index, classes) -> PairTexts:
        order = [PAIRS.index(pair) for pair in zip(index.tolist(), classes.tolist(), strict=True)]
        own = torch.cat([0.9 * unit(f"fgtext{i}", (1, 32), 35) for i in order])
        around, there = torch.zeros(len(order), 5, 32), torch.zeros(len(order), 5, dtype=torch.bool)
        for row, i in enumerate(order):
            count = 0 if self.skip and i == 1 else 3 + i
            around[row, :count], there[row, :count] = unit(f"bgtext{i}", (3 + i, 32), 35)[:count], True
        return PairTexts(own.to(self.kind), around.to(self.kind), there)


def learning(
    network: classifier.CAMNetwork,
    skip: bool = False,
    plain: bool = False,
    most: int = 32,
    kind: torch.dtype = torch.float32,
) -> qa_clims.QACLIMSObjective:
    # one sum over the whole batch, as each of the published processes has it
    settings = qa_clims.QACLIMSSettings(sum_over=2, regions=most)
    teacher = prompted(kind)
    teacher = Prompted(teacher.clip, None) if plain else teacher
    return qa_clims.QACLIMSObjective(settings, network, {}, teacher, GivenTexts(skip, kind), nothing()).to(kind)


TERMS = {"foreground": ("FRC", 10), "background": ("BRC", 8), "area": ("REG", 0.2)}


@pytest.mark.parametrize("most", [32, 2])
@pytest.mark.parametrize("variant", ["mask", "plain", "skip"])
def test_losses_of_given_maps(variant, most):
    wanted = fixture("train_step")
    teacher = learning(classifier.CAMNetwork("resnet18", 20), variant == "skip", variant == "plain", most)
    x, image, label = maps().requires_grad_(), batch(96, 128, (3, 4)), tags()
    losses = teacher.losses(x, image, label, torch.arange(2))
    for name, (key, weight) in TERMS.items():
        near(losses[name].item() / weight, wanted[f"{variant}.{key}"], 5e-6)
    total = sum(losses.values())
    near(total, wanted[f"{variant}.loss"], 5e-6)
    (gradient,) = torch.autograd.grad(total, x)
    rows = clip_regions.pairs_of(label)
    near(gradient[rows], wanted[f"{variant}.grad_pairs"], 5e-6)
    others = gradient.clone()
    others[rows] = 0
    np.testing.assert_allclose(others.abs().max(), wanted[f"{variant}.grad_other_max"], rtol=1e-5)
    with torch.no_grad():
        pictures = F.interpolate(image, (56, 56), mode="bilinear", align_corners=True)[rows.rows]
        look = qa_clims.encode_regions(teacher.encode.args[0], 0.1, x[rows][:, None], pictures)
    near(look[:, 0], wanted[f"{variant}.fg_features"], 5e-6)
    near(look[:, 1], wanted[f"{variant}.bg_features"], 5e-6)


def filled(network: torch.nn.Module, seed: int) -> torch.nn.Module:
    for name, value in network.state_dict().items():
        value.copy_(torch.from_numpy(np.asarray(inputs.tensor(name, tuple(value.shape), seed))))
    return network


def test_two_steps():
    """In float64, where no ReLU hangs on the rounding of one processor: random weights in train mode are ill-conditioned."""
    wanted = fixture("train_two_steps")
    network = filled(classifier.CAMNetwork("resnet50", 20), 7)
    classifier.freeze(network.body, "stem")
    teacher = learning(network, kind=torch.float64).train()
    training = Training(batch=2, epochs=10, lr=1e-5)
    groups = teacher.param_groups(training)
    optimizer, base = make_optimizer(training, groups), [group["lr"] for group in groups]
    data = {"image": batch(96, 128, (3, 4)).double(), "label": tags(), "index": torch.arange(2)}

    def exactly(ours: torch.Tensor, name: str, tolerance: float) -> None:
        np.testing.assert_allclose(ours.detach().numpy(), wanted[name], rtol=0, atol=tolerance)

    for step, tolerance in ((0, 3e-5), (1, 0.1)):
        for group, lr in zip(optimizer.param_groups, base, strict=True):
            group["lr"] = lr * poly_factor(training, step, 10)
        np.testing.assert_allclose([group["lr"] for group in optimizer.param_groups], wanted[f"lr{step}"], rtol=1e-12)
        losses = teacher(data)
        terms = [losses[name] / weight for name, (_, weight) in TERMS.items()]
        total = sum(losses.values())
        exactly(torch.stack([*terms, total]), f"losses{step}", tolerance)
        optimizer.zero_grad()
        total.backward()
        if step == 0:
            body = network.body
            exactly(network.classifier.weight.grad[:, :32, 0, 0], "grad.classifier.weight[:, :32]", 1e-4)
            exactly(body.layer4[2].conv3.weight.grad[:8, :8, 0, 0], "grad.layer4.2.conv3.weight[:8,:8]", 1e-4)
            norm = torch.stack([p.grad.norm() for p in groups[0]["params"]]).norm()
            exactly(norm, "grad_norm_backbone", 1.01)  # 1.0008, which the README rounds
        optimizer.step()
    # updates are gradients times rates of 1e-4 and 1e-5
    exactly(network.classifier.weight[:, :32, 0, 0], "after.classifier.weight[:, :32]", 5e-6)
    exactly(network.body.layer4[2].conv3.weight[:8, :8, 0, 0], "after.layer4.2.conv3.weight[:8,:8]", 1e-6)
    exactly(network.body.conv1.weight[:4], "after.conv1.weight[:4]", 0)
    with torch.no_grad():
        out = network.eval().maps(data["image"]).sigmoid()
    exactly(out[:, :4], "after.eval_sigmoid[:, :4]", 7e-4)


NETWORKS = {"network": (16, 7, 96, 128, (3, 4)), "network_stride8": (8, 8, 64, 96, (5, 6))}


@pytest.mark.parametrize("name", NETWORKS)
def test_network(name):
    wanted, (stride, seed, height, width, seeds) = fixture(name), NETWORKS[name]
    # in float64: rounding takes some ReLU of these weights to the other side
    network = filled(classifier.CAMNetwork("resnet50", 20, stride), seed).double()
    images = batch(height, width, seeds).double()
    classifier.freeze(network.body, "stem")
    shape = wanted["eval_sigmoid"].shape
    weights = torch.from_numpy(inputs.array("w", shape, seed, -1, 1))
    parameters = dict(network.named_parameters())
    parts = {
        "classifier.weight[:,:32]": lambda grads: grads["classifier.weight"][:, :32, 0, 0],
        "resnet50.layer4.2.conv2.weight[:8,:8]": lambda grads: grads["resnet50.layer4.2.conv2.weight"][:8, :8],
        "resnet50.layer1.0.conv1.weight[:8,:8]": lambda grads: grads["resnet50.layer1.0.conv1.weight"][:8, :8, 0, 0],
        "resnet50.layer3.2.bn2.weight[:32]": lambda grads: grads["resnet50.layer3.2.bn2.weight"][:32],
    }
    out = network.eval().maps(images).sigmoid()
    near(out, wanted["eval_sigmoid"], 1e-6)
    near(network(images), wanted["eval_gap_logits"], 1e-6)
    (weights * out).sum().backward()
    for key in (key for key in wanted if key.startswith("evalgrad.")):
        gradients = {name: parameter.grad for name, parameter in parameters.items()}
        near(parts[key.removeprefix("evalgrad.")](gradients), wanted[key], 1e-6)
    assert wanted["frozen"].all()
    assert parameters["resnet50.conv1.weight"].grad is None
    assert parameters["resnet50.bn1.weight"].grad is None
    with torch.no_grad():
        raw = network.maps(torch.stack([images[0], images[0].flip(2)]))
    near(raw, wanted["cam_separate"], 5e-6)
    near(raw[0].relu() + raw[1].relu().flip(2), wanted["cam"], 5e-6)
    network.zero_grad()
    out = network.train().maps(images).sigmoid()
    near(out, wanted["train_sigmoid"], 6e-5)
    (weights * out).sum().backward()
    gradients = {name: parameter.grad for name, parameter in parameters.items()}
    for key, tolerance in (("classifier.weight[:,:32]", 4e-4), ("resnet50.layer4.2.conv2.weight[:8,:8]", 4e-3)):
        near(parts[key](gradients), wanted[f"grad.{key}"], tolerance)
    state = network.state_dict()
    for key in (key for key in wanted if key.startswith("after_train.")):
        near(state[key.removeprefix("after_train.")][:64], wanted[key], 2e-6)


@pytest.mark.parametrize(("case", "lr", "steps"), [(0, 3.5e-4, 19830), (1, 1e-5, 155205)])
def test_learning_rates(case, lr, steps):
    wanted, training = fixture("schedule"), Training(batch=8, steps=steps, lr=lr)
    for step, rates in zip(wanted[f"{case}.step"].tolist(), wanted[f"{case}.lr"], strict=True):
        ours = lr * poly_factor(training, step, steps)
        np.testing.assert_allclose((ours, 10 * ours), rates, rtol=1e-12)


def test_optimiser():
    wanted, training = fixture("schedule")["sgd_trajectory"], Training(batch=8, steps=4, lr=0.05)
    values = [torch.nn.Parameter(torch.from_numpy(inputs.array(name, (6,), 41, -1, 1)).double()) for name in "pq"]
    base = (0.05, 0.5)
    groups = [{"params": [v], "lr": lr, "weight_decay": 1e-4} for v, lr in zip(values, base, strict=True)]
    optimizer = make_optimizer(training, groups)
    for step in range(6):
        for name, value, group, lr in zip("pq", values, optimizer.param_groups, base, strict=True):
            value.grad = torch.from_numpy(inputs.array(f"g{name}{step}", (6,), 41, -1, 1)).double()
            # after the last step it keeps its value
            group["lr"] = lr * poly_factor(training, min(step, 3), 4)
        optimizer.step()
        np.testing.assert_allclose(torch.stack(values).detach(), wanted[step], rtol=0, atol=1e-12)


# --- maps and scores


def published_checkpoint(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The network's tensors under all the names of the manifest."""
    aliases = {"stage1.0": "conv1", "stage1.1": "bn1", "stage1.4": "layer1"}
    aliases |= {f"stage{n}.0": f"layer{n}" for n in (2, 3, 4)}
    aliases |= {"backbone.0.0": "conv1", "backbone.0.1": "bn1", "backbone.0.4": "layer1"}
    aliases |= {f"backbone.{n - 1}.0": f"layer{n}" for n in (2, 3, 4)}
    own, state = network.state_dict(), {}
    for name, shape in fixtures.table("qa-clims/manifest-network-20.json").items():
        source = "classifier.weight" if name == "newly_added.0.weight" else name
        for alias, layer in aliases.items():
            if name.startswith(f"{alias}."):
                source = f"resnet50.{layer}{name.removeprefix(alias)}"
        assert list(own[source].shape) == list(shape)
        state[name] = own[source]
    assert len(state) == 956
    return state


def test_published_weights_localize(tmp_path):
    wanted, picture, label = fixture("infer"), inputs.image(120, 160, 9), np.zeros(20, bool)
    label[[2, 14]] = True
    torch.save(published_checkpoint(filled(classifier.CAMNetwork("resnet50", 20), 7)), tmp_path / "res50_qa_clims.pth")
    localizer = qa_clims.QACLIMSInference().localizer(nothing(), tmp_path / "res50_qa_clims.pth")
    views = localizer.prepare(picture)
    assert [list(view.shape[2:]) for view in views] == wanted["scale_sizes"].tolist()
    found = localizer.cams(views, (120, 160), label)
    np.testing.assert_array_equal(found.classes, wanted["keys"])
    near(found.maps_stride4, wanted["cam"], 4e-6)
    near(found.maps[:, ::2, ::2], wanted["high_res[:, ::2, ::2]"], 4e-6)
    near(found.maps.mean((1, 2), dtype=np.float64), wanted["high_res_sum"] / (120 * 160), 4e-6)
    best = np.concatenate([np.full((1, 120, 160), 0.15, np.float32), found.maps]).argmax(0)
    labels = np.array([0, *(found.classes + 1)])[best]
    assert (labels != wanted["pred_0.15"]).mean() <= 1e-4
    none = localizer.cams(views, (120, 160), np.zeros(20, bool))
    assert none.classes.shape == wanted["nolabel.keys"].shape
    assert none.maps_stride4.shape == wanted["nolabel.cam"].shape
    assert none.maps.shape == wanted["nolabel.high_res"].shape


SETS = {"a": ((60, 80), 51, (1, 1, 1, 1)), "b": ((40, 30), 56, (0.25, 1, 1, 0.25))}


@pytest.mark.parametrize("which", SETS)
def test_scores(which):
    wanted, ((height, width), base, factors) = fixture("eval"), SETS[which]
    thresholds = wanted[f"{which}.curve"][:, 0].tolist()
    sweep = ThresholdSweep(thresholds, 20)
    for i, factor in enumerate(factors):
        truth = inputs.mask(height, width, 21, base + i)
        classes = [int(label) for label in np.unique(truth) if 0 < label < 255][:3] or [1]
        drawn = [inputs.array(f"score{i}.{cls - 1}", (height, width), base) for cls in classes]
        maps = [
            np.float32(factor) * np.clip(0.55 * (truth == cls) + 0.5 * draw - 0.1, 0, 1).astype(np.float32)
            for cls, draw in zip(classes, drawn, strict=True)
        ]
        np.testing.assert_array_equal(np.array(classes) - 1, wanted[f"{which}.keys{i}"])
        sweep.add(truth, np.stack(maps), wanted[f"{which}.keys{i}"], f"image {i}")
    matrices = sweep.matrices()
    found = [scores(counts, "nan").miou for counts in matrices]
    np.testing.assert_allclose(found, wanted[f"{which}.curve"][:, 1], rtol=0, atol=1e-12)
    at = int(np.argmin(np.abs(np.array(thresholds) - 0.15)))
    size = len(wanted[f"{which}.confusion"])
    np.testing.assert_array_equal(matrices[at][:size, :size], wanted[f"{which}.confusion"])
    iou = np.array([np.nan if value is None else value for value in scores(matrices[at], "nan").iou[:size]])
    np.testing.assert_allclose(iou, wanted[f"{which}.iou"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found[at], wanted[f"{which}.miou"], rtol=0, atol=1e-12)
    among = matrices[at][0, 1:].sum() / matrices[at][:, 1:].sum()
    np.testing.assert_allclose(among, wanted[f"{which}.among_predfg_bg"], rtol=0, atol=1e-12)
    # the published search stops at the first threshold that is no better; the sweep has the best of all
    for key, start, step in (("greedy_voc", 0, 1), ("greedy_coco", 5, 2)):
        best = start
        while best + step < len(found) and found[best + step] > found[best]:
            best += step
        np.testing.assert_allclose((thresholds[best], found[best]), wanted[f"{which}.{key}"], rtol=0, atol=1e-12)
    assert max(found) >= found[at]


AUGMENTED = {0: ((90, 130, 13), 80, True, 5, 3), 1: ((70, 50, 14), 60, False, 10, 3)}


@pytest.mark.parametrize("case", AUGMENTED)
def test_augmentation(case):
    wanted, (shape, long_side, flip, left, top) = fixture("augment"), AUGMENTED[case]
    picture = inputs.image(*shape)
    size = augment.scaled_size(picture.shape[:2], augment.long_side_scale(picture.shape[:2], long_side))
    assert augment.resize_bicubic(picture, size).shape == tuple(wanted[f"{case}.resized_shape"])
    view = augment.crop_picture(augment.View(size, flip, top, left, 64), picture)
    np.testing.assert_allclose(view, wanted[f"{case}.out"], rtol=0, atol=1e-6)


def test_the_defaults_are_the_scripts():
    settings, method = qa_clims.QACLIMSSettings(), qa_clims.METHOD
    training = settings.training
    assert (training.batch, training.epochs, training.lr, training.weight_decay, training.momentum) == (
        8, 15, 3.5e-4, 1e-4, 1e-4,
    )  # fmt: skip
    assert (settings.weights.foreground, settings.weights.background, settings.weights.area) == (10, 8, 0.2)
    assert (settings.alpha, settings.temperature, settings.name_weight, settings.sum_over) == (0.1, 0.7, 0.5, 4)
    refiner = preset_settings(method, "paper").refiner
    labels, masks = refiner.labels, refiner.masks
    assert (labels.threshold, labels.lower, masks.threshold) == (0.3, 0.1, 0.2)
    assert method.inference.scales == (1.0, 0.5, 1.5, 2.0)
    assert method.needs["baseline"].settings.frozen_layers == "stem"
