"""Training, maps and `wsss predict` see the same numbers, whatever the pictures hold."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import tree, write_squares
from tests.stages.test_predict import SMALL
from wsss.cli import main
from wsss.data.files import write_mask
from wsss.data.images import Images
from wsss.data.samples import DEFAULT_READING, PictureReading
from wsss.errors import BadInput
from wsss.methods import cam
from wsss.stages.localize import localize
from wsss.stages.predict import PredictSettings, Segmenter, pictures, predict
from wsss.stages.train import Training, train
from wsss.weights import read_metadata, read_weights, reading_of, write_weights

TWELVE = PictureReading((0, 4095), ("integer",), strict=True)


def deepened(images: Images, reading: PictureReading = TWELVE) -> Images:
    """The same pictures in 12 of 16 bits, which are these 8 bits again once they are read."""
    paths = []
    for index, path in enumerate(images.paths):
        deep = np.rint(images.read(index) / 255 * 4095).astype(np.uint16)
        paths.append(path.with_name(f"{path.stem}-deep.png"))
        paths[-1].write_bytes(cv2.imencode(".png", deep[..., ::-1])[1].tobytes())
    return dataclasses.replace(images, paths=tuple(paths), reading=reading)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Pictures of 8 and of 12 bits, and a segmenter trained on each."""
    folder = tmp_path_factory.mktemp("both")
    plain = write_squares(folder / "squares", 12)
    deep = deepened(plain)
    for index, name in enumerate(plain.names):
        write_mask(folder / f"masks/{name}.png", plain.read_mask(index))
    for name, images in (("plain", plain), ("deep", deep)):
        train(SMALL, images, masks=folder / "masks", out=folder / name)
    return folder, plain, deep


def test_12_bits_train_the_same_network_as_8(both):
    folder, plain, deep = both
    for index in range(len(plain)):
        np.testing.assert_array_equal(deep.read(index), plain.read(index))
    states = [read_weights(folder / name / "weights.safetensors")[0] for name in ("plain", "deep")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_weights_know_how_pictures_were_read(both):
    folder, _, _ = both
    assert reading_of(folder / "deep") == TWELVE
    assert reading_of(folder / "plain") == DEFAULT_READING
    assert "reading" not in read_metadata(folder / "plain" / "weights.safetensors")
    assert Segmenter(folder / "deep", PredictSettings()).reading == TWELVE


def test_predict_reads_pictures_as_the_training_did(both, tmp_path, capsys):
    folder, plain, deep = both
    for images, name in ((plain, "plain"), (deep, "deep")):
        (tmp_path / name).mkdir()
        for index in range(3):
            (tmp_path / name / f"{index}.png").write_bytes(images.paths[index].read_bytes())
        command = ["predict", "--weights", str(folder / name), "--pictures", str(tmp_path / name)]
        assert main([*command, "--out", str(tmp_path / "out" / name), "--device", "cpu"]) == 0
    masks = [
        {k: v for k, v in tree(tmp_path / "out" / name).items() if k.endswith("png")} for name in ("plain", "deep")
    ]
    assert len(masks[0]) == 3
    assert masks[0] == masks[1]
    # pictures of the other kind
    for name, other, message in (
        ("deep", "plain", "PNG of uint8 with 3 bands.*; expected integer samples, values 0 to 4095"),
        ("plain", "deep", "PNG of uint16 with 3 bands.*; expected 8-bit pictures"),
    ):
        with pytest.raises(BadInput, match=message):
            pictures(tmp_path / other, weights=folder / name)
    capsys.readouterr()
    command = ["predict", "--weights", str(folder / "plain"), "--pictures", str(tmp_path / "deep"), "--device", "cpu"]
    assert main([*command, "--out", str(tmp_path / "refused")]) == 2
    assert "--value-range LOW,HIGH" in capsys.readouterr().err
    assert main([*command, "--out", str(tmp_path / "asked"), "--value-range", "0,4095"]) == 0
    assert "values 0 to 4095 become black to white (--value-range)" in capsys.readouterr().err
    assert {k: v for k, v in tree(tmp_path / "asked").items() if k.endswith("png")} == masks[0]


def test_8_bit_pictures_are_not_taken_for_others_by_predict(both, tmp_path):
    folder, plain, _ = both
    with pytest.raises(BadInput, match=r"opened with values 0 to 255; expected values 0 to 4095"):
        predict(PredictSettings(), plain, weights=folder / "deep", out=tmp_path / "out")


def test_published_checkpoints_take_the_range_of_the_pictures(both, tmp_path):
    folder, _, deep = both
    state, _ = read_weights(folder / "plain" / "weights.safetensors")
    torch.save(state, tmp_path / "published.pth")
    (tmp_path / "a.png").write_bytes(deep.paths[0].read_bytes())
    images, notes = pictures(tmp_path / "a.png", weights=tmp_path / "published.pth")
    assert images.reading.value_range == (0, 4095)
    assert "values 0 to 4095 become black to white (12 bits" in notes[0]
    assert reading_of(tmp_path / "published.pth") is None


def test_maps_want_the_range_of_the_training(both, tmp_path):
    _, plain, deep = both
    settings = cam.CAMSettings("test_resnet", 16, "none", training=Training(batch=4, epochs=None, steps=1, workers=0))
    train(settings, deep, out=tmp_path / "cam")
    other = dataclasses.replace(deep, reading=PictureReading((0, 65535), ("integer",)))
    for images in (plain, other):
        with pytest.raises(BadInput, match=r"expected values 0 to 4095, as for .*Give --value-range=0,4095"):
            localize(cam.CAMInference(), images, weights=tmp_path / "cam", out=tmp_path / "maps")
    localize(cam.CAMInference(scales=(1.0,)), deep.subset([0]), weights=tmp_path / "cam", out=tmp_path / "same")


def test_a_reading_that_makes_no_sense_is_refused(tmp_path):
    write_weights(
        tmp_path / "weights.safetensors", {"w": torch.zeros(1)}, {"kind": "deeplab", "reading": {"bands": "x"}}
    )
    with pytest.raises(BadInput, match=r"weights\.safetensors: found .*not a picture reading"):
        reading_of(tmp_path)


def test_a_single_picture(both, tmp_path):
    folder, _, deep = both
    images, notes = pictures(deep.paths[0], weights=folder / "deep")
    assert (len(images), images.reading, notes) == (1, TWELVE, [])
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(BadInput, match="expected integer samples"):
        pictures(tmp_path / "a.png", weights=folder / "deep")
