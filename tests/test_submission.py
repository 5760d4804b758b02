"""What the VOC server takes is written byte for byte alike, and what it would reject is refused by name."""

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss.errors import BadInput
from wsss.submission import check_voc_submission, write_voc_submission

NAMES = ["2008_000006", "2008_000011", "2011_003276"]
FOLDER = "results/VOC2012/Segmentation/comp6_test_cls"


def save(path: Path, labels: np.ndarray, mode: str = "P") -> Path:
    image = Image.fromarray(labels)
    if mode == "P":
        image.putpalette(list(range(256)) * 3)
    image.save(path)
    return path


@pytest.fixture
def masks(tmp_path: Path) -> dict[str, Path]:
    """A mask of every name, of three sizes; one is grey, the others have palettes."""
    draw = np.random.default_rng(0)
    sizes = [(8, 10), (12, 7), (9, 9)]
    return {
        name: save(tmp_path / f"{name}.png", draw.integers(0, 21, size, np.uint8), "L" if i == 1 else "P")
        for i, (name, size) in enumerate(zip(NAMES, sizes, strict=True))
    }


@pytest.fixture
def pictures(tmp_path: Path, masks: dict[str, Path]) -> dict[str, Path]:
    made = {}
    for name, mask in masks.items():
        made[name] = tmp_path / f"{name}.jpg"
        Image.new("RGB", Image.open(mask).size).save(made[name])
    return made


def test_archive_holds_the_masks_as_they_are(tmp_path: Path, masks: dict[str, Path], pictures: dict[str, Path]) -> None:
    out = tmp_path / "server" / "results.tar.gz"
    write_voc_submission(out, masks.items(), NAMES, pictures=pictures)
    check_voc_submission(out, NAMES, pictures=pictures)
    with tarfile.open(out) as archive:
        assert archive.getnames() == [f"{FOLDER}/{name}.png" for name in NAMES]
        assert all(member.mode == 0o644 for member in archive)
        archive.extractall(tmp_path / "there", filter="data")
    for name, path in masks.items():
        assert (tmp_path / "there" / FOLDER / f"{name}.png").read_bytes() == path.read_bytes()


def test_archive_does_not_depend_on_order_time_or_file_name(tmp_path: Path, masks: dict[str, Path]) -> None:
    one, other = tmp_path / "a.tar.gz", tmp_path / "b.tar.gz"
    write_voc_submission(one, masks.items(), NAMES)
    for path in masks.values():
        path.touch()
    write_voc_submission(other, reversed(masks.items()), NAMES[::-1])
    assert one.read_bytes() == other.read_bytes()
    assert gzip.decompress(one.read_bytes())[:4] == b"resu"
    assert one.read_bytes()[4:8] == bytes(4)


def test_competition_names_the_folder(tmp_path: Path, masks: dict[str, Path]) -> None:
    out = tmp_path / "results.tar.gz"
    write_voc_submission(out, masks.items(), NAMES, "comp5")
    with tarfile.open(out) as archive:
        assert archive.getnames()[0] == f"results/VOC2012/Segmentation/comp5_test_cls/{NAMES[0]}.png"
    check_voc_submission(out, NAMES, "comp5")
    with pytest.raises(BadInput, match=r"comp5_test_cls/2008_000006.png: .*comp6_test_cls/NAME.png"):
        check_voc_submission(out, NAMES)
    with pytest.raises(BadInput, match="comp5 or comp6"):
        write_voc_submission(out, masks.items(), NAMES, "comp7")  # type: ignore[arg-type]


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
    image.putpalette(list(range(48)))
    image.save(path, bits=4)


def jpeg(path: Path) -> None:
    Image.new("L", (10, 8)).save(path, format="JPEG")


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def empty(path: Path) -> None:
    path.write_bytes(b"")


SPOILT: list[tuple[Callable[[Path], None], str]] = [
    (small_labels, r"8 x 9 pixels \(height x width\); expected 8 x 10 as .*2008_000006.jpg"),
    (ignored_labels, r"labels \[255\]; expected labels 0..20"),
    (colours, "8 bits and colour type 2"),
    (sixteen_bits, "16 bits and colour type 0"),
    (four_bits, "4 bits and colour type 3"),
    (jpeg, "no PNG"),
    (cut_off, "truncated"),
    (empty, "no PNG"),
]


@pytest.mark.parametrize(("spoil", "message"), SPOILT, ids=[spoil.__name__ for spoil, _ in SPOILT])
def test_spoilt_mask_is_refused(
    spoil: Callable[[Path], None], message: str, tmp_path: Path, masks: dict[str, Path], pictures: dict[str, Path]
) -> None:
    spoil(masks[NAMES[0]])
    out = tmp_path / "server" / "results.tar.gz"
    with pytest.raises(BadInput, match=f"2008_000006.png: found .*{message}"):
        write_voc_submission(out, masks.items(), NAMES, pictures=pictures)
    assert not list(out.parent.iterdir())

    with tarfile.open(out, "w:gz") as archive:
        for name, path in masks.items():
            archive.add(path, f"{FOLDER}/{name}.png")
    with pytest.raises(BadInput, match=f"results.tar.gz: {FOLDER}/2008_000006.png: found .*{message}"):
        check_voc_submission(out, NAMES, pictures=pictures)


def test_names_have_to_be_those_of_the_split(tmp_path: Path, masks: dict[str, Path]) -> None:
    out = tmp_path / "server" / "results.tar.gz"
    for wanted, message in (
        ([*NAMES, "2011_999999"], "no mask of 2011_999999"),
        (NAMES[1:], "masks that the split does not have: 2008_000006"),
        ([str(i) for i in range(9)], "no mask of 0, 1, 2, 3, 4 and 4 more"),
    ):
        with pytest.raises(BadInput, match=f"results.tar.gz: found {message}"):
            write_voc_submission(out, masks.items(), wanted)
        assert not out.exists()
    write_voc_submission(out, masks.items(), NAMES)
    with pytest.raises(BadInput, match="no mask of 2011_999999"):
        check_voc_submission(out, [*NAMES, "2011_999999"])
    with pytest.raises(BadInput, match="does not have: 2008_000006"):
        check_voc_submission(out, NAMES[1:])


def test_masks_have_to_be_there_and_once(tmp_path: Path, masks: dict[str, Path], pictures: dict[str, Path]) -> None:
    out = tmp_path / "results.tar.gz"
    with pytest.raises(BadInput, match="a second mask of 2008_000011"):
        write_voc_submission(out, [*masks.items(), (NAMES[1], masks[NAMES[0]])], NAMES)
    with pytest.raises(BadInput, match="no picture of 2008_000006"):
        write_voc_submission(out, masks.items(), NAMES, pictures={})
    masks[NAMES[2]].unlink()
    with pytest.raises(BadInput, match=r"2011_003276\.png: found no such file"):
        write_voc_submission(out, masks.items(), NAMES, pictures=pictures)
    assert not out.exists()


def test_archives_of_others_are_checked(tmp_path: Path, masks: dict[str, Path]) -> None:
    out = tmp_path / "results.tar.gz"

    def packed(*members: tuple[str, bytes]) -> Path:
        with tarfile.open(out, "w:gz") as archive:
            folder = tarfile.TarInfo("./results")
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
            for name, content in members:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return out

    contents = {name: path.read_bytes() for name, path in masks.items()}
    good = [(f"./{FOLDER}/{name}.png", content) for name, content in contents.items()]
    check_voc_submission(packed(*good), NAMES)
    with pytest.raises(BadInput, match=r"2008_000006\.png: found another or a second one"):
        check_voc_submission(packed(*good, good[0]), NAMES)
    with pytest.raises(BadInput, match=r"readme\.txt: found another or a second one"):
        check_voc_submission(packed(*good, ("results/readme.txt", b"hello")), NAMES)

    whole = packed(*good).read_bytes()
    for content in (whole[: len(whole) // 2], b"no archive at all", b""):
        out.write_bytes(content)
        with pytest.raises(BadInput, match=r"cut off or damaged|no whole tar"):
            check_voc_submission(out, NAMES)
    out.unlink()
    with pytest.raises(BadInput, match="no such file"):
        check_voc_submission(out, NAMES)
