"""True masks that do not say what the tags say: meaningless ones stop a run with what to type, doubtful ones are noted."""

import numpy as np
import pytest
from PIL import Image

from tests.data.conftest import write_picture, write_text
from wsss.data.info import check_pictures, mask_doubts, overview, render
from wsss.data.open import open_dataset
from wsss.errors import BadInput
from wsss.stages.check import open_checked

TAGS = ("cat", "dog", "", "cat;dog", "cow", "dog")


def data_set(tmp_path, values, tags=TAGS, everywhere=()):
    """Pictures with a table of tags, and masks that hold the value of each tag's class and the values `everywhere`."""
    rows = ["image,tags"]
    for index, words in enumerate(tags):
        write_picture(tmp_path / f"images/{index}.png", (12, 16), seed=index)
        mask = np.full((12, 16), everywhere[0] if everywhere else 0, np.uint8)
        for row, value in enumerate([*everywhere[1:], *(values[word] for word in words.split(";") if word)], 1):
            mask[row] = value
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(tmp_path / f"masks/{index}.png")
        rows.append(f"{index}.png,{words}")
    write_text(tmp_path / "tags.csv", "\n".join(rows) + "\n")
    return tmp_path


def found(root, **options):
    images = open_dataset(root, **options).split("train")
    return mask_doubts(images, check_pictures(images))


def test_masks_that_fit_raise_no_doubt(tmp_path):
    doubtful = found(data_set(tmp_path, {"cat": 1, "cow": 2, "dog": 3}))
    assert not doubtful.stops
    assert not doubtful.notes


@pytest.mark.parametrize(
    ("values", "tags", "everywhere", "remedy"),
    [
        # what a painter writes for the only class
        ({"crack": 255}, ("crack", "crack", "", "crack"), (0,), "255=crack"),
        ({"crack": 255}, ("crack", "crack", "crack"), (0,), "255=crack"),
        ({"crack": 1}, ("crack", "", "crack"), (0,), None),
        # labels from 0, the rest ignored
        ({"cat": 0, "cow": 1, "dog": 2}, TAGS, (255,), "0=cat; 1=cow; 2=dog; 255=background"),
        # 1 is background
        ({"cat": 2, "cow": 3, "dog": 4}, TAGS, (1,), "2=cat; 3=cow; 4=dog; 1=background"),
        # the tool's own order
        ({"cat": 3, "cow": 1, "dog": 2}, TAGS, (0,), "1=cow; 2=dog; 3=cat"),
        # shades of grey
        ({"cat": 64, "cow": 128, "dog": 192}, TAGS, (0, 255), "64=cat; 128=cow; 192=dog"),
    ],
)
def test_another_meaning_of_the_values(tmp_path, values, tags, everywhere, remedy):
    root = data_set(tmp_path, values, tags, everywhere)
    doubtful = found(root)
    if remedy is None:
        assert not doubtful.stops
        return
    assert f"--mask-values '{remedy}'" in str(doubtful.stops[0])
    mended = found(root, mask_values=remedy)
    assert not mended.stops
    assert not mended.notes
    images = open_dataset(root, mask_values=remedy).split("train")
    for index in range(len(images)):
        present = set(np.unique(images.read_mask(index)).tolist()) - {0, 255}
        assert present == {position + 1 for position in images.classes(index)}


def test_no_class_anywhere_without_a_remedy(tmp_path):
    stop = found(data_set(tmp_path, {"cat": 0, "cow": 0, "dog": 0})).stops[0]
    assert "no class in any of 6 masks, but the values 0" in str(stop)
    assert "If the values mean something else" in str(stop)


def test_masks_of_other_pictures(tmp_path):
    # classes cat, cow, dog; no one-to-one meaning of 1 and 2 explains it
    stop = found(data_set(tmp_path, {"cat": 2, "dog": 2, "cow": 1}, ("cat", "dog", "cow", "cat", "dog"))).stops[0]
    assert "not one mask with a class that its picture is tagged with" in str(stop)


def test_tags_that_are_all_alike_say_nothing_of_values(tmp_path):
    # 255 is in each mask, as the only tag is with each picture
    root = data_set(tmp_path, {"cat": 1}, ("cat",) * 5, everywhere=(0, 255))
    mask = np.zeros((12, 16), np.uint8)
    mask[1] = 255
    for index in range(4):
        Image.fromarray(mask).save(root / f"masks/{index}.png")
    doubtful = found(root)
    assert not doubtful.stops
    assert "4 of 5 pictures have a tag whose class is not in their mask (cat 4)" in doubtful.notes[0]


def test_some_disagreement_is_a_note(tmp_path):
    root = data_set(tmp_path, {"cat": 1, "cow": 2, "dog": 3})
    mask = np.zeros((12, 16), np.uint8)
    mask[0] = 2
    Image.fromarray(mask).save(root / "masks/0.png")
    doubtful = found(root)
    assert not doubtful.stops
    assert [note.partition(": ")[2] for note in doubtful.notes] == [
        "1 of 6 pictures have a tag whose class is not in their mask (cat 1)",
        "1 of 6 pictures have a class in their mask that is not among their tags (cow 1)",
    ]


def test_mostly_ignored_and_half_there(tmp_path):
    root = data_set(tmp_path, {"cat": 1, "cow": 2, "dog": 3}, everywhere=(255,))
    (root / "masks/2.png").unlink()
    notes = found(root).notes
    assert any("5 of 6 pictures have a true mask: nothing is scored" in note for note in notes)
    assert any("% of all mask pixels are 255" in note for note in notes)


def test_a_run_stops_and_an_overview_says_so(tmp_path):
    root = data_set(tmp_path, {"crack": 255}, ("crack", "", "crack"))
    with pytest.raises(BadInput, match="--mask-values '255=crack'"):
        open_checked(root, skip_bad=False)
    assert "a run stops at:\n  true masks of" in render(overview(open_dataset(root), decode=True))
    assert open_checked(root, skip_bad=False, mask_values="255=crack").notes == ("mask values are read as 255=crack",)


def test_notes_are_remembered_with_the_run(tmp_path):
    root = data_set(tmp_path / "data", {"cat": 1, "cow": 2, "dog": 3})
    (root / "masks/2.png").unlink()
    first = open_checked(root, skip_bad=False, remember=tmp_path / "run").notes
    assert any("5 of 6 pictures have a true mask" in note for note in first)
    assert open_checked(root, skip_bad=False, remember=tmp_path / "run").notes == first
