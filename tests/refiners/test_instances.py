"""Instances from IRNet's displacements: files, numbers of COCO, the centred network, pictures without objects."""

import json

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from wsss.data.augment import crop_picture, top_left
from wsss.data.files import read_mask, write_cams
from wsss.errors import BadInput
from wsss.networks.irnet import IRNet
from wsss.refiners.irnet import KIND, Instances, IRNetSettings, IRNetWalk, centre, find_instances, load
from wsss.refiners.task import RefinementTask
from wsss.weights import WEIGHTS, write_weights

WALK = IRNetWalk(radius=3, doublings=3, pad_to=0)


def network(folder, images, displacement=True):
    torch.manual_seed(0)
    made = IRNet("test_resnet", output_stride=16, displacement=displacement)
    metadata = {"backbone": "test_resnet", "output_stride": 16, "displacement": displacement}
    write_weights(folder / WEIGHTS, made.state_dict(), {"kind": KIND, **metadata, "classes": list(images.class_names)})
    return folder / WEIGHTS


def write_maps(images, folder):
    for index, name in enumerate(images.names):
        truth, classes = images.read_mask(index), np.array(images.classes(index))
        maps = np.stack([(truth == label + 1).astype(np.float32) for label in classes])
        write_cams(folder / f"{name}.npz", classes, maps, maps[:, ::4, ::4])
    return folder


def test_files_hold_the_same_instances(tmp_path, squares):
    weights, cams = network(tmp_path, squares), write_maps(squares, tmp_path / "cams")
    out = find_instances(Instances(smallest=0.0), WALK, squares, cams=cams, weights=weights, out=tmp_path / "out")
    together = []
    for index, name in enumerate(squares.names):
        results = json.loads((out / f"{name}.json").read_text())
        drawn = read_mask(out / f"{name}.png")
        assert drawn.shape == squares.size_hw(index)
        assert set(np.unique(drawn)) - {0} == set(range(1, len(results) + 1))
        assert [r["score"] for r in results] == sorted((r["score"] for r in results), reverse=True)
        for number, result in enumerate(results, start=1):
            assert result["image_id"] == name
            assert result["category_id"] - 1 in squares.classes(index)
            np.testing.assert_array_equal(coco_mask.decode(result["segmentation"]), drawn == number)
            rows, columns = np.nonzero(drawn == number)
            left, top, width, height = result["bbox"]
            assert (left, top) == (columns.min(), rows.min())
            assert (left + width, top + height) == (columns.max() + 1, rows.max() + 1)
        together += results
    assert together
    assert json.loads((out / "coco_results.json").read_text()) == together


def test_small_fragments_are_left_out(tmp_path, squares):
    weights, cams = network(tmp_path, squares), write_maps(squares, tmp_path / "cams")
    out = find_instances(Instances(smallest=1.0), WALK, squares, cams=cams, weights=weights, out=tmp_path / "out")
    assert json.loads((out / "coco_results.json").read_text()) == []


def test_a_picture_without_classes_has_none(tmp_path, squares):
    one = squares.subset([0])
    size = one.size_hw(0)
    empty = np.zeros((0, *size), np.float32)
    write_cams(tmp_path / "cams" / f"{one.names[0]}.npz", np.zeros(0, np.int16), empty, empty[:, ::4, ::4])
    out = find_instances(
        Instances(), WALK, one, cams=tmp_path / "cams", weights=network(tmp_path, one), out=tmp_path / "out"
    )
    assert not read_mask(out / f"{one.names[0]}.png").any()


def test_a_network_without_displacements_is_refused(tmp_path, squares):
    weights, cams = network(tmp_path, squares, displacement=False), write_maps(squares, tmp_path / "cams")
    for make in (
        lambda: find_instances(Instances(), WALK, squares, cams=cams, weights=weights, out=tmp_path / "out"),
        lambda: centre(squares, weights=weights, crop=32, batch=2, out=tmp_path / "centred"),
    ):
        with pytest.raises(BadInput, match="without displacements"):
            make()


@pytest.mark.parametrize(("batch", "used"), [(3, 6), (100, 8)])
def test_the_centre_is_the_mean_over_whole_batches(tmp_path, squares, batch, used):
    images = squares.subset(range(8))
    weights = network(tmp_path, images)
    out = centre(images, weights=weights, crop=48, batch=batch, out=tmp_path / "centred")
    plain = load(weights)
    views = torch.from_numpy(
        np.stack([crop_picture(top_left(images.read(i).shape[:2], 48), images.read(i)) for i in range(used)])
    )
    with torch.no_grad():
        expected = plain(views.to(next(plain.parameters()).device)).displacement.mean((0, 2, 3))
    torch.testing.assert_close(load(out).mean_shift.running_mean, expected, atol=1e-6, rtol=1e-5)


def test_weights_that_were_not_centred_are_centred(tmp_path, squares):
    weights, cams = network(tmp_path, squares), write_maps(squares, tmp_path / "cams")
    instances = Instances(crop=32, batch=2)
    raw = IRNetSettings(weights=str(weights), walk=WALK, instances=instances)
    raw.instances_of(RefinementTask(squares, cams, tmp_path / "raw"))
    centred = tmp_path / "raw" / "irnet-centred" / WEIGHTS
    assert load(centred).mean_shift.running_mean.any()
    once = IRNetSettings(weights=str(centred), walk=WALK, instances=instances)
    once.instances_of(RefinementTask(squares, cams, tmp_path / "once"))
    assert not (tmp_path / "once" / "irnet-centred").exists()
    results = [(tmp_path / out / "instances" / "coco_results.json").read_bytes() for out in ("raw", "once")]
    assert results[0] == results[1]
