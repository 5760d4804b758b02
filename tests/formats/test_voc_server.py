"""What the VOC server takes is written byte for byte alike, and what it would reject is refused by name."""

import dataclasses
import gzip
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss.cli import main
from wsss.data.labels import voc_palette
from wsss.errors import BadInput
from wsss.formats import format_named
from wsss.formats.export import export_masks
from wsss.formats.voc_server import VOCServerOptions

NAMES = ("2008_000006", "2008_000011", "2011_003276")
FOLDER = "results/VOC2012/Segmentation/comp6_test_cls"


def write(options: VOCServerOptions) -> Path:
    return export_masks(format_named("voc-server"), options).path


def save(path: Path, labels: np.ndarray, mode: str = "P") -> Path:
    image = Image.fromarray(labels)
    if mode == "P":
        image.putpalette(voc_palette().ravel().tolist())
    image.save(path)
    return path


@pytest.fixture
def options(tmp_path: Path) -> VOCServerOptions:
    """A test split without tags, and a mask of every name, of three sizes; one is grey, the others have palettes."""
    draw, root = np.random.default_rng(0), tmp_path / "VOC2012"
    for folder in (root / "JPEGImages", root / "ImageSets/Segmentation", tmp_path / "masks"):
        folder.mkdir(parents=True)
    for i, (name, size) in enumerate(zip(NAMES, [(8, 10), (12, 7), (9, 9)], strict=True)):
        save(tmp_path / "masks" / f"{name}.png", draw.integers(0, 21, size, np.uint8), "L" if i == 1 else "P")
        Image.new("RGB", size[::-1]).save(root / "JPEGImages" / f"{name}.jpg")
    (root / "ImageSets/Segmentation/test.txt").write_text("\n".join(reversed(NAMES)))
    return VOCServerOptions(data=tmp_path, out=tmp_path / "server", masks=tmp_path / "masks", format="voc-server")


def test_archive_holds_the_masks_as_they_are(
    options: VOCServerOptions, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [options.masks, "--format", "voc-server", "--data", options.data, "--out", options.out]
    assert main(["export", "masks", *map(str, words)]) == 0
    out = options.out / "results.tar.gz"
    assert capsys.readouterr().out.strip() == str(out)
    with tarfile.open(out) as archive:
        assert archive.getnames() == [f"{FOLDER}/{name}.png" for name in NAMES]
        assert all(member.mode == 0o644 for member in archive)
        archive.extractall(tmp_path / "there", filter="data")
    for name in NAMES:
        there = tmp_path / "there" / FOLDER / f"{name}.png"
        assert there.read_bytes() == (options.masks / f"{name}.png").read_bytes()


def test_archive_does_not_depend_on_order_or_time(options: VOCServerOptions, tmp_path: Path) -> None:
    one = write(options).read_bytes()
    for path in options.masks.iterdir():
        path.touch()
    (options.data / "VOC2012/ImageSets/Segmentation/test.txt").write_text("\n".join(NAMES))
    again = dataclasses.replace(options, out=tmp_path / "b", masks=options.masks)
    assert write(again).read_bytes() == one
    assert gzip.decompress(one)[:4] == b"resu"
    assert one[4:8] == bytes(4)


def test_competition_names_the_folder(options: VOCServerOptions) -> None:
    with tarfile.open(write(dataclasses.replace(options, competition="comp5"))) as archive:
        assert archive.getnames()[0] == f"results/VOC2012/Segmentation/comp5_test_cls/{NAMES[0]}.png"


def small_labels(path: Path) -> None:
    save(path, np.zeros((8, 9), np.uint8))


def ignored_labels(path: Path) -> None:
    save(path, np.full((8, 10), 255, np.uint8))


def colours(path: Path) -> None:
    Image.new("RGB", (10, 8)).save(path)


def sixteen_bits(path: Path) -> None:
    Image.fromarray(np.zeros((8, 10), np.uint16)).save(path)


def four_bits(path: Path) -> None:
    image = Image.fromarray(np.ones((8, 10), np.uint8))
    image.putpalette(voc_palette()[:16].ravel().tolist())
    image.save(path, bits=4)


def jpeg(path: Path) -> None:
    Image.new("L", (10, 8)).save(path, format="JPEG")


def bitmap(path: Path) -> None:
    Image.new("L", (10, 8)).save(path, format="BMP")


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def empty(path: Path) -> None:
    path.write_bytes(b"")


SPOILT: list[tuple[Callable[[Path], None], str]] = [
    (small_labels, r"8x9 \(height x width\); expected 8x10 like its picture .*2008_000006.jpg"),
    (ignored_labels, r"labels \[255\]; expected labels 0..20"),
    (colours, "8 bits and colour type 2"),
    (sixteen_bits, "16 bits and colour type 0"),
    (four_bits, "4 bits and colour type 3"),
    (jpeg, "format JPEG"),
    (bitmap, "no PNG"),
    (cut_off, "truncated"),
    (empty, "no picture"),
]


@pytest.mark.parametrize(("spoil", "message"), SPOILT, ids=[spoil.__name__ for spoil, _ in SPOILT])
def test_spoilt_mask_is_refused(spoil: Callable[[Path], None], message: str, options: VOCServerOptions) -> None:
    spoil(options.masks / f"{NAMES[0]}.png")
    with pytest.raises(BadInput, match=f"2008_000006.png: found .*{message}"):
        write(options)
    assert not list(options.out.iterdir())


def test_names_have_to_be_those_of_the_split(options: VOCServerOptions) -> None:
    listed = options.data / "VOC2012/ImageSets/Segmentation/test.txt"
    listed.write_text("\n".join(NAMES[1:]))
    with pytest.raises(BadInput, match="masks: found masks that the split does not have: 2008_000006"):
        write(options)
    listed.write_text("\n".join(NAMES))
    for name in NAMES[1:]:
        (options.masks / f"{name}.png").unlink()
    with pytest.raises(BadInput, match=r"masks: found no mask of 2008_000011, 2011_003276; expected .* 3 pictures"):
        write(options)
    listed.write_text("\n".join([*NAMES, "2011_999999"]))
    with pytest.raises(BadInput, match=r"test\.txt: found 2011_999999, which is not in JPEGImages"):
        write(options)
    listed.write_text("\n".join(NAMES))
    for change, found in (
        ({"masks": options.masks / "nowhere"}, "nowhere: found no such folder"),
        ({"split": "val"}, r"val\.txt: found no such file"),
        ({"data": options.masks}, "masks: found no folder JPEGImages"),
    ):
        with pytest.raises(BadInput, match=found):
            write(dataclasses.replace(options, **change))
    assert not options.out.exists()
