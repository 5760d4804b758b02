"""Training a CLIP: the contrast, what is written, the same result whatever the number of processes."""

import dataclasses

import numpy as np
import pytest
import torch
from transformers import CLIPModel, CLIPTokenizer

from tests.conftest import tree
from wsss.data.augment import ClassifierAugment
from wsss.errors import BadInput
from wsss.methods import clip
from wsss.pretrained import load_clip, new_tokenizer
from wsss.stages.train import Training, train

SETTINGS = clip.CLIPSettings(
    init="none",
    architecture=clip.Architecture(
        patch=8, width=32, blocks=2, heads=2, text_width=16, text_blocks=1, joint=16, tokens=600
    ),
    templates=("a clean origami {}.", "a photo of a {}."),
    augment=ClassifierAugment(long_side=(32, 40), crop=32),
    training=Training(batch=6, epochs=2, optimizer="adamw", lr=3e-3, workers=0, checkpoint_steps=1),
)


def test_contrast_without_false_captions_is_zero():
    scores = torch.randn(5, 5)
    assert clip.contrast(scores, torch.zeros(5, 5, dtype=torch.bool)) == 0


def test_contrast_is_the_papers_where_all_captions_differ():
    scores, own = torch.randn(5, 5, dtype=torch.float64), torch.arange(5)
    false = ~torch.eye(5, dtype=torch.bool)
    paper = (torch.nn.functional.cross_entropy(scores, own) + torch.nn.functional.cross_entropy(scores.T, own)) / 2
    torch.testing.assert_close(clip.contrast(scores, false), paper)


def test_captions_name_tags_of_their_picture(squares):
    examples = SETTINGS.trainable(squares).examples
    vocabulary = SETTINGS.trainable(squares).network.vocabulary
    for index in range(len(squares)):
        for seed in range(4):
            item = examples(index, np.random.default_rng(seed))
            assert ((item["named"] > 0) <= torch.from_numpy(squares.labels[index])).all()
            assert item["named"].any()
            words = vocabulary.tokenizer.decode(item["tokens"])
            for named, name in zip(item["named"], squares.class_names, strict=True):
                assert (name in words) == bool(named)


@pytest.mark.slow
def test_training_learns_and_is_written_as_transformers_does(tmp_path, squares):
    settings = dataclasses.replace(SETTINGS, training=dataclasses.replace(SETTINGS.training, epochs=90))
    out = train(settings, squares, out=tmp_path / "clip")
    model = CLIPModel.from_pretrained(out)
    tokens = CLIPTokenizer.from_pretrained(out)("a photo of a red.", return_tensors="pt")["input_ids"]
    ours = load_clip(str(out))
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        x = ours.embed(pixels, ours.positions((4, 4), rounded=False))
        for index in range(ours.n_blocks):
            x, _ = ours.block(index, x)
        theirs = model.get_image_features(pixel_values=pixels)
        theirs = getattr(theirs, "pooler_output", theirs)
        torch.testing.assert_close(ours.project(x)[:, 0], theirs, atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(ours.vocabulary(["a photo of a red."]), tokens)
    # pictures with one colour alone are told apart
    rows = [i for i in range(len(squares)) if squares.labels[i].sum() == 1]
    learning = settings.trainable(squares)
    batch = [learning.examples(i, np.random.default_rng(0)) for i in rows]
    images = torch.stack([item["image"] for item in batch])
    with torch.no_grad():
        texts = torch.nn.functional.normalize(
            ours.encode_text(ours.vocabulary(["a photo of a red.", "a photo of a blue."]))
        )
        x = ours.embed(images, ours.positions((4, 4), rounded=False))
        for index in range(ours.n_blocks):
            x, _ = ours.block(index, x)
        looked = ours.project(x)[:, 0] @ texts.T
    assert (looked.argmax(1).numpy() == squares.labels[rows].argmax(1)).mean() > 0.8


def test_a_killed_training_ends_in_the_same_bytes(tmp_path, squares, monkeypatch):
    train(SETTINGS, squares, out=tmp_path / "whole")
    calls, forward = [], clip.CLIPObjective.forward

    def killed(self, batch):
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return forward(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(clip.CLIPObjective, "forward", killed)
        with pytest.raises(KeyboardInterrupt):
            train(SETTINGS, squares, out=tmp_path / "killed")
    train(SETTINGS, squares, out=tmp_path / "killed")
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")


def test_new_vocabularies_are_equal_and_know_their_words():
    texts = ["a photo of a zebra.", "a clean origami cat."]
    first, second = new_tokenizer(texts, 1000), new_tokenizer(texts, 1000)
    assert first.get_vocab() == second.get_vocab()
    assert first.tokenize("a photo of a zebra.") == ["a</w>", "photo</w>", "of</w>", "a</w>", "zebra</w>", ".</w>"]
    assert len(new_tokenizer(texts, 520)) == 520


def test_bad_settings(squares):
    crop = dataclasses.replace(SETTINGS, augment=ClassifierAugment(long_side=(32, 40), crop=30))
    with pytest.raises(BadInput, match="a multiple of 8"):
        crop.trainable(squares)
    untagged = dataclasses.replace(squares, labels=squares.labels & (np.arange(len(squares)) > 0)[:, None])
    with pytest.raises(BadInput, match="without tags"):
        SETTINGS.trainable(untagged)
    with pytest.raises(BadInput, match="sentences with"):
        clip.CLIPSettings(templates=("no place",))
    with pytest.raises(BadInput, match="a multiple"):
        clip.Architecture(width=33, heads=2)
