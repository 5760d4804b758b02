"""CLIMS and QA-CLIMS with a SigLIP: their losses from the forward passes of transformers."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from tests import image_text
from tests.methods import test_clims, test_qa_clims
from tests.methods.taught import drawn
from wsss.errors import BadInput
from wsss.pretrained import load_image_text
from wsss.weights import WEIGHTS, read_weights

pytestmark = pytest.mark.usefixtures("one_torch_thread")

SIDE = image_text.PATCH * image_text.GRID


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    """A folder with a SigLIP of random weights, and the network of transformers in it."""
    folder = tmp_path_factory.mktemp("siglip")
    return folder, image_text.write(folder, "siglip")


def regions(maps, image, n, c):
    """The object region and the background region of a pair, at the network's size."""
    x, picture = (
        F.interpolate(value, (SIDE, SIDE), mode="bilinear", align_corners=True)
        for value in (maps[n : n + 1, c : c + 1], image[n : n + 1])
    )
    # from ImageNet's normalisation to values from -1 to 1
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    own = (picture * deviation[:, None, None] + mean[:, None, None] - 0.5) / 0.5
    return torch.cat([x * own, (1 - x) * own])


@pytest.mark.parametrize("threshold", [0.1, None])
def test_clims_takes_the_probabilities_of_the_sigmoid(tmp_path, squares, siglip, threshold):
    folder, model = siglip
    changes = {"clip": str(folder), "clip_colours": "clip", "threshold": threshold}
    settings = test_clims.settings_of(tmp_path / "given", squares, **changes)
    learning, vocabulary = settings.trainable(squares), load_image_text(str(folder)).vocabulary
    words = settings.read_words(squares)

    def probability(pictures: torch.Tensor, word: str) -> torch.Tensor:
        tokens = vocabulary([settings.template.replace("{}", word)])
        return model(input_ids=tokens, pixel_values=pictures).logits_per_image[:, 0].sigmoid()

    maps, image, label = drawn([[1, 0], [0, 0], [1, 1]], 3)
    ours = learning.losses(maps, image, label)
    matched, differing, suppressed = [], [], []
    for n, c in label.nonzero().tolist():
        both = regions(maps, image, n, c)
        inside, outside = probability(both, words.prompts[c])
        matched.append(-inside.log())
        differing.append(-(1 - outside).log())
        r = torch.stack([probability(both[:1], word)[0] for word in words.cooccurring[c]])
        assert threshold is None or (r > threshold).any()
        counted = r if threshold is None else r[r > threshold]
        total = -(1 - counted).log().sum()
        suppressed.append(total / len(r) if threshold is None else total)
    weights = settings.weights
    wanted = {
        "object_text": weights.object_text * sum(matched) / 3,
        "background_text": weights.background_text * sum(differing) / 3,
        "suppression": weights.suppression * sum(suppressed),
    }
    for name, value in wanted.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5)
        mine, theirs = (torch.autograd.grad(one, maps, retain_graph=True)[0] for one in (ours[name], value))
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))
        assert theirs.abs().max() > 0


def test_an_unlikely_pair_still_has_a_gradient(tmp_path, squares, siglip):
    """A probability of 1e-9 is below what CLIMS clamps cosines to."""
    changes = {"clip": str(siglip[0]), "clip_colours": "clip"}
    learning = test_clims.settings_of(tmp_path / "given", squares, **changes).trainable(squares)
    learning.sigmoid = (learning.sigmoid[0], -20.0)
    maps, image, label = drawn([[1, 1]])
    losses = learning.losses(maps, image, label)
    assert losses["object_text"] > 10 * 15
    losses["object_text"].backward()
    assert maps.grad is not None
    assert maps.grad.abs().max() > 1e-3
    assert losses["background_text"] < 1e-3


def test_the_weights_say_what_they_were_trained_with(tmp_path, squares, siglip):
    plain = test_clims.settings_of(tmp_path / "given", squares)
    for settings, expected in (
        (plain, ("CLIP", "cosine")),
        (dataclasses.replace(plain, clip=str(siglip[0]), clip_colours="clip"), ("SigLIP", "sigmoid")),
    ):
        settings.trainable(squares).write(tmp_path / "given")
        _, metadata = read_weights(tmp_path / "given" / WEIGHTS)
        assert (metadata["image_text"], metadata["similarity"]) == expected


def test_qa_clims_compares_cosines(tmp_path, squares, siglip):
    folder, model = siglip
    settings = test_qa_clims.settings_of(tmp_path / "given", squares, clip=str(folder), clip_colours="clip")
    learning, vocabulary = settings.trainable(squares), load_image_text(str(folder)).vocabulary
    assert learning.metadata["similarity"] == "cosine"
    maps, image, label = drawn([[0, 1]])
    index = torch.tensor([int(squares.labels[:, 1].argmax())])
    ours = learning.losses(maps, image, label, index)
    pair = learning.texts(index, torch.tensor([1]))

    def unit(out) -> torch.Tensor:
        return F.normalize(out.pooler_output, dim=1)

    # the name's feature is a mean of features of transformers
    tokens = vocabulary([settings.template.replace("{}", squares.class_names[1])])
    name = unit(model.get_text_features(input_ids=tokens))[0]
    torch.testing.assert_close(learning.texts.func.table[1], name, rtol=0, atol=1e-5)
    both = regions(maps, image, 0, 1)
    x = F.interpolate(maps[:, 1:], (SIDE, SIDE), mode="bilinear", align_corners=True)
    mask = x >= settings.alpha * x.amax()
    inside, outside = unit(model.get_image_features(pixel_values=both * torch.cat([mask, ~mask])))
    texts, tau = pair.surroundings[0][pair.valid[0]], settings.temperature
    s, others = inside @ pair.name[0] / tau, texts @ inside / tau
    r, away = outside @ pair.name[0] / tau, texts @ outside / tau
    foreground = -(s.exp() / (s.exp() + others.exp().sum())).log()
    background = -(away.exp().mean() / (away.exp().mean() + r.exp())).log()
    torch.testing.assert_close(ours["foreground"], settings.weights.foreground * foreground, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours["background"], settings.weights.background * background, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [test_clims, test_qa_clims])
def test_pictures_of_other_colours_are_refused(tmp_path, squares, siglip, method):
    settings = method.settings_of(tmp_path / "given", squares, clip=str(siglip[0]))
    with pytest.raises(BadInput, match=r"clip_colours: found same, with a SigLIP, .*Set clip_colours to clip"):
        settings.check(squares)
