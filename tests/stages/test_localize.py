"""Maps of pictures that go through a network together: the maps of each alone, in batches that depend on the data set only."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import tree
from tests.parity import inputs
from tests.parity.tiny_clip import tiny_clip
from wsss import classifier, launch, memory
from wsss.data.files import read_cams
from wsss.errors import BadInput
from wsss.methods import cam, clip_es, icam
from wsss.networks.clip import ImageText
from wsss.networks.seam import SEAMNetwork
from wsss.stages import localize as stages_localize
from wsss.stages.each import for_each_batch
from wsss.stages.localize import Together, _batches, localize, number_together
from wsss.weights import write_weights

SIZE_HW = (24, 40)
# the third picture has no tags
LABELS = np.array([[True, False, True], [False, True, False], [False] * 3, [True, True, True]])


def of_cam(**options) -> classifier.CAMLocalizer:
    settings = cam.CAMInference(scales=(1.0, 0.5, 1.5), flip=options.pop("flip", True))
    network = classifier.CAMNetwork("test_resnet", 3).eval().double()
    network.classifier.weight.data.abs_()  # so that maps are above 0
    return classifier.CAMLocalizer(network, settings, **options)


def of_icam(variant: str, flip: bool = True) -> icam.ICAMLocalizer:
    settings = icam.ICAMInference(scales=(1.0, 0.5), flip=flip)
    return icam.ICAMLocalizer(SEAMNetwork(3, "test_resnet").eval().double(), settings, variant)


def of_clip_es(**settings) -> clip_es.CLIPESLocalizer:
    clip: ImageText = tiny_clip()
    texts = torch.nn.functional.normalize(torch.randn(8, clip.model.config.projection_dim), dim=1)
    return clip_es.CLIPESLocalizer(clip, texts[:3], texts[3:], clip_es.CLIPESInference(**settings), 0.4)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(of_cam, id="CAM"),
        pytest.param(lambda: of_cam(flip=False), id="CAM without mirror images"),
        pytest.param(lambda: of_cam(fuse=torch.maximum, multiple=1), id="VWL"),
        pytest.param(lambda: of_icam("icam"), id="ICAM"),
        pytest.param(lambda: of_icam("seam"), id="SEAM"),
        pytest.param(lambda: of_icam("icam", flip=False), id="ICAM without mirror images"),
        pytest.param(of_clip_es, id="CLIP-ES"),
        pytest.param(lambda: of_clip_es(refined=False, score="sigmoid"), id="CLIP-ES, not refined"),
    ],
)
def test_each_picture_has_the_maps_that_it_has_alone(make):
    torch.manual_seed(0)
    localizer = make()
    # maps of CLIP-ES are in float32, whose rounding their normalisation magnifies
    atol = 1e-4 if isinstance(localizer, clip_es.CLIPESLocalizer) else 1e-6
    assert isinstance(localizer, Together)
    prepared = [localizer.prepare(inputs.image(*SIZE_HW, seed)) for seed in range(4)]
    prepared = [[view.double() for view in views] if isinstance(views, list) else views for views in prepared]
    alone = [localizer.cams(*one) for one in zip(prepared, [SIZE_HW] * 4, LABELS, strict=True)]
    together = localizer.cams_of(prepared, SIZE_HW, LABELS)
    assert [len(one.classes) for one in together] == [2, 1, 0, 3]
    for found, expected in zip(together, alone, strict=True):
        assert found.maps.shape == (len(found.classes), *SIZE_HW)
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)
    # pictures are told apart
    assert np.abs(together[0].maps[0] - together[3].maps[0]).max() > 1e-2


def test_pictures_without_tags_need_no_network():
    localizer = of_cam()
    localizer.network.maps = None
    views = localizer.prepare(inputs.image(*SIZE_HW, 0))
    assert [one.maps.shape for one in localizer.cams_of([views] * 2, SIZE_HW, np.zeros((2, 3), bool))] == [
        (0, 24, 40)
    ] * 2


def write(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


class Fake(classifier.CAMLocalizer):
    """Takes up to `most` pictures together, but those that are 40 pixels wide one by one."""

    def __init__(self, most):
        self.most = most

    def together(self, size_hw):
        return 1 if size_hw[1] == 40 else self.most


@given(st.lists(st.sampled_from([(10, 10), (20, 10), (30, 40)]), max_size=30), st.integers(1, 8))
def test_batches_hold_each_picture_once_with_others_of_its_size(sizes, most):
    batches = _batches(Fake(most), sizes)
    assert Counter(index for batch in batches for index in batch) == Counter(range(len(sizes)))
    numbers: Counter[tuple[int, int]] = Counter()
    for batch in batches:
        (size_hw,) = {sizes[index] for index in batch}
        assert batch == sorted(batch)
        numbers[size_hw] += 1
    # no more batches than there have to be
    for size_hw, count in Counter(sizes).items():
        assert numbers[size_hw] == -(-count // (1 if size_hw == (30, 40) else most))


def test_pictures_that_do_not_fit_together_are_computed_one_by_one(tmp_path, squares, monkeypatch):
    """The memory budget does not change which pictures belong together, since each process and each command has its own."""
    monkeypatch.setattr(memory, "budget", lambda: 25)
    made = []

    def compute(batch, loaded):
        made.append(list(batch))
        return loaded

    def needs(index):
        if index == 8:
            raise BadInput("picture 8", "a large picture", "a small one", "Shrink it.")
        return 10

    batches = [[0, 2], [1, 3, 4], [5], [6, 8]]
    with pytest.raises(BadInput, match="picture 8"):
        for_each_batch(squares, tmp_path, ".txt", str, compute, write, batches=batches, title="test", needs=needs)
    assert made == [[0, 2], [1], [3], [4], [5], [6]]


def test_large_pictures_in_tiles_are_computed_one_by_one(monkeypatch):
    localizer = of_cam()
    views = [localizer.prepare(inputs.image(*SIZE_HW, seed)) for seed in range(3)]
    seen = []
    monkeypatch.setattr(classifier.CAMLocalizer, "in_tiles", lambda self, size_hw: True)
    monkeypatch.setattr(
        localizer.network, "maps", lambda image: seen.append(len(image)) or torch.zeros(len(image), 3, 2, 3)
    )
    assert len(localizer.cams_of(views, SIZE_HW, np.ones((3, 3), bool))) == 3
    assert seen == [2] * 9  # each of three views, mirrored, by itself


def test_a_batch_with_a_missing_file_is_made_again(tmp_path, squares):
    """So that maps are those of a stage that was never stopped, however a batch is rounded."""
    made = []

    def compute(batch, loaded):
        made.append((list(batch), list(loaded)))
        return [f"{index} of {len(batch)}" for index in batch]

    def make(batches):
        for_each_batch(squares, tmp_path, ".txt", str, compute, write, batches=batches, title="test")

    make([[0, 2, 4], [1], [3, 5]])
    assert made == [([0, 2, 4], ["0", "2", "4"]), ([1], ["1"]), ([3, 5], ["3", "5"])]
    before = tree(tmp_path)
    (tmp_path / f"{squares.names[2]}.txt").unlink()
    made.clear()
    make([[0, 2, 4], [1], [3, 5]])
    assert made == [([0, 2, 4], ["0", "2", "4"])]
    assert tree(tmp_path) == before


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_share_the_batches(tmp_path, squares, monkeypatch, rank):
    monkeypatch.setattr(launch, "rank", lambda: rank)
    monkeypatch.setattr(launch, "processes", lambda: 2)
    made = []

    def compute(batch, loaded):
        made.append(batch)
        return loaded

    batches = [[0, 2, 4], [1], [3, 5]]
    for_each_batch(squares, tmp_path, ".txt", str, compute, write, batches=batches, title="test")
    assert made == batches[rank::2]


def test_a_stage_computes_pictures_together_and_goes_on_to_the_same_bytes(tmp_path, squares, monkeypatch):
    torch.manual_seed(0)
    network = classifier.CAMNetwork("test_resnet", 2)
    metadata = {
        "kind": "cam",
        "backbone": "test_resnet",
        "output_stride": 16,
        "classes": list(squares.class_names),
        "colours": "imagenet",
    }
    write_weights(tmp_path / "weights.safetensors", network.state_dict(), metadata)

    def make(out, batch):
        settings = cam.CAMInference(scales=(1.0, 0.5), batch=batch)
        return localize(settings, squares, out=out, weights=tmp_path / "weights.safetensors")

    def together(out):
        return json.loads((out / "done.json").read_text())["result"].get("batch")

    alone, by_five = make(tmp_path / "alone", 1), make(tmp_path / "five", 5)
    assert together(alone) is None
    assert together(by_five) == 5
    assert together(make(tmp_path / "default", 0)) == number_together(0, (32, 36), torch.device("cpu")) == 8
    for name in squares.names:
        ours, theirs = (read_cams(folder / f"{name}.npz") for folder in (by_five, alone))
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_allclose(ours[1], theirs[1], rtol=0, atol=1e-3)  # a step of float16
    write_one = stages_localize.write_cams

    def failing(path, *content, **more):
        if path.stem == Path(squares.names[7]).name:
            raise OSError("the disk is full")
        write_one(path, *content, **more)

    monkeypatch.setattr(stages_localize, "write_cams", failing)
    with pytest.raises(OSError, match="full"):
        make(tmp_path / "stopped", 5)
    monkeypatch.setattr(stages_localize, "write_cams", write_one)
    assert not all((tmp_path / "stopped" / f"{name}.npz").exists() for name in squares.names)
    assert tree(make(tmp_path / "stopped", 5)) == tree(by_five)


@pytest.mark.parametrize(
    ("asked", "size_hw", "device", "number"),
    [
        (3, (5000, 5000), "cpu", 3),
        (0, (64, 64), "cpu", 8),
        (0, (128, 128), "cpu", 4),
        (0, (375, 500), "cpu", 1),
        (0, (375, 500), "cuda", 8),
        (0, (1000, 1000), "cuda", 4),
        (0, (2500, 2500), "cuda", 1),
        (2, (375, 500), "cuda", 2),
    ],
)
def test_how_many(asked, size_hw, device, number):
    assert number_together(asked, size_hw, torch.device(device)) == number


def test_a_negative_batch_is_refused():
    for settings in (cam.CAMInference, clip_es.CLIPESInference):
        with pytest.raises(BadInput, match=r"inference\.batch"):
            settings(batch=-1)
