"""A segmenter is trained on from another one, and on masks that a person corrected."""

import dataclasses
import json
import logging

import numpy as np
import pytest
import torch

from tests.segmenters.tiny import ALL, DEEPLAB, lengthened
from wsss.corrections import corrected_pictures
from wsss.data.files import write_mask
from wsss.errors import BadInput
from wsss.networks.deeplab import DeepLabLayers
from wsss.run import DONE, INPUTS
from wsss.stages import train as train_module
from wsss.stages.train import train
from wsss.storage import read_packed
from wsss.weights import WEIGHTS, read_weights

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def trained(masked_squares, tmp_path_factory):
    """Gives the folder of a short training of a segmenter."""
    folder, (images, masks) = tmp_path_factory.mktemp("trained"), masked_squares
    return lambda kind: train(lengthened(ALL[kind], steps=1), images, masks=masks, out=folder / kind)


def started(settings, images, masks):
    """The weights that a training starts with."""
    torch.manual_seed(1)
    return settings.trainable(images, masks=masks).network.state_dict()


@pytest.mark.parametrize("kind", ALL)
def test_it_goes_on_with_all_weights_or_with_a_new_head(trained, masked_squares, kind, caplog):
    (images, masks), folder = masked_squares, trained(kind)
    settings = dataclasses.replace(ALL[kind], init=str(folder))
    settings.check()
    before, new = read_weights(folder / WEIGHTS)[0], started(ALL[kind], images, masks)
    with caplog.at_level(logging.INFO, "wsss"):
        for name, value in started(settings, images, masks).items():
            assert torch.equal(value, before[name]), name
    assert "trained on, with its head: the classes are the same" in caplog.text
    others = dataclasses.replace(images, class_names=("blue", "red"))
    head = [name for name in before if any(name.startswith(pattern.removesuffix("*")) for pattern in settings.head)]
    assert head
    with caplog.at_level(logging.INFO, "wsss"):
        for name, value in started(settings, others, masks).items():
            assert torch.equal(value, new[name] if name in head else before[name]), name
    assert "trained on, with a new head: its classes are red, blue, and not blue, red" in caplog.text


def test_other_layers_and_other_kinds(trained, masked_squares):
    images, masks = masked_squares
    wider = dataclasses.replace(DEEPLAB, network=DeepLabLayers("test_resnet", 8, (1, 4), (0.5,), batch_norm="live"))
    message = r"a network with atrous_rates \[1, 2\]; expected atrous_rates \[1, 4\].*--segmenter.network.atrous_rates '\[1, 2\]'"
    with pytest.raises(BadInput, match=message):
        dataclasses.replace(wider, init=str(trained("deeplab"))).check()
    # the backbone of another kind of segmenter
    settings = dataclasses.replace(ALL["pspnet"], init=str(trained("deeplab")))
    settings.check()
    before, after = read_weights(trained("deeplab") / WEIGHTS)[0], started(settings, images, masks)
    assert torch.equal(after["backbone.body.conv1.0.weight"], before["base.backbone.body.conv1.0.weight"])


@pytest.fixture
def corrected(masked_squares, tmp_path):
    """Corrected masks of two of the pictures, which have the classes exchanged."""
    images, _ = masked_squares
    for index in (2, 7):
        mask = images.read_mask(index)
        write_mask(tmp_path / "corrected" / f"{images.names[index]}.png", np.array([0, 2, 1], np.uint8)[mask])
    return tmp_path / "corrected"


@pytest.mark.parametrize("kind", ALL)
def test_corrected_masks_are_used_more_often(masked_squares, corrected, kind):
    images, masks = masked_squares
    settings = dataclasses.replace(ALL[kind], corrected_weight=3)
    learning = settings.trainable(images, masks=masks, corrected=corrected)
    assert learning.repeats == [3 if index in (2, 7) else 1 for index in range(12)]
    assert learning.metadata["corrected"] == [images.names[index] for index in (2, 7)]
    for index in (2, 3):
        seen = [learning.examples(index, np.random.default_rng(seed))["label"] for seed in range(8)]
        truth = [settings.trainable(images, masks=masks).examples(index, np.random.default_rng(seed))["label"] for seed in range(8)]  # fmt: skip
        swapped = [torch.where(label == 1, 2, torch.where(label == 2, 1, label)) for label in truth]
        expected = swapped if index == 2 else truth
        assert all(torch.equal(one, other) for one, other in zip(seen, expected, strict=True))


def test_an_epoch_has_each_occurrence_once_and_the_examples_differ():
    occurrences = train_module._occurrences(4, [1, 3, 1, 1])
    training = train_module.Training(batch=2, epochs=None, steps=6)
    batches = [one for batch in train_module._Batches(training, occurrences, 3, 0, 6) for one in batch]
    for epoch in range(2):
        assert sorted(batches[6 * epoch : 6 * epoch + 6]) == [
            (epoch, index, copy) for index in range(4) for copy in range(3 if index == 1 else 1)
        ]
    seeded = train_module._Seeded(lambda index, rng: {"draw": rng.random()}, 0)
    draws = [seeded[0, 1, copy]["draw"] for copy in range(3)]
    assert len(set(draws)) == 3
    assert draws[0] == np.random.default_rng([0, 0, 1]).random()


def test_records_name_the_corrected_masks(masked_squares, corrected, tmp_path):
    images, masks = masked_squares
    settings = lengthened(DEEPLAB, steps=1)
    out = train(settings, images, masks=masks, corrected=corrected, out=tmp_path / "out")
    names = [images.names[index] for index in (2, 7)]
    assert sorted(read_packed(out / INPUTS, "inputs")["inputs.corrected"]) == sorted(f"{name}.png" for name in names)
    assert json.loads((out / DONE).read_text())["inputs"]["inputs"]["corrected"]["folder"] == "../corrected"
    assert read_weights(out / WEIGHTS)[1]["corrected"] == names
    write_mask(corrected / f"{images.names[3]}.png", images.read_mask(3))
    with pytest.raises(BadInput, match=r"1 file \(teil 1/bild_3ß\.png\) was added"):
        train(settings, images, masks=masks, corrected=corrected, out=tmp_path / "out")


def test_corrected_masks_that_do_not_fit(masked_squares, corrected):
    images, _ = masked_squares
    name = images.names[2]
    assert corrected_pictures(images, corrected) == [2, 7]
    (corrected / "other.png").write_bytes((corrected / f"{name}.png").read_bytes())
    with pytest.raises(BadInput, match=r"other\.png, which belongs to no picture.*squares"):
        corrected_pictures(images, corrected)
    (corrected / "other.png").rename(corrected / f"{images.names[4]}.txt")
    with pytest.raises(BadInput, match=r"bild_4ß\.txt, which belongs to no picture"):
        corrected_pictures(images, corrected)
    (corrected / f"{images.names[4]}.txt").unlink()
    write_mask(corrected / f"{images.names[4]}.png", np.zeros((9, 9), np.uint8))
    with pytest.raises(BadInput, match=r"bild_4ß\.png: found a mask of 9x9 .*expected 32x36 like its picture"):
        corrected_pictures(images, corrected)
    write_mask(corrected / f"{name}.png", np.full((32, 36), 7, np.uint8))
    with pytest.raises(BadInput, match=r"\(and 1 more masks .* that do not fit\)"):
        corrected_pictures(images, corrected)
    with pytest.raises(BadInput, match="no such folder"):
        corrected_pictures(images, corrected / "missing")
    (corrected / "empty").mkdir()
    with pytest.raises(BadInput, match="found no masks"):
        corrected_pictures(images, corrected / "empty")
