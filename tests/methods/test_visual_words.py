"""The look inside: which words are shown, what is drawn where, and the stage that writes it."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.conftest import tree
from tests.methods.test_vwl import small
from wsss.errors import BadInput
from wsss.methods import vwl
from wsss.ops.visual_words import GAP, LINE, NAMES, PATCH, Word, WordAssignment, characteristic_words, draw_words
from wsss.outputs import RECORDS
from wsss.stages.train import train

NAMED = ("cat", "собака")
RED, GREY = (250, 10, 10), (128, 128, 128)


def fired(
    label: list[bool], words: list[list[int]], similarity: list[list[float]], red: tuple[int, int]
) -> WordAssignment:
    """A grey picture of 16 pixels a cell, with one red cell."""
    cells = np.array(words)
    image = np.full((*(16 * side for side in cells.shape), 3), GREY, np.uint8)
    row, column = (slice(16 * position, 16 * position + 16) for position in red)
    image[row, column] = RED
    return WordAssignment(image, np.array(label), cells, np.array(similarity, np.float32))


def pictures() -> list[WordAssignment]:
    """Word 3 goes with cats, 5 with dogs, 1 with neither."""
    sure = [[0.1, 0.2, 0.9], [0.3, 0.1, 0.1]]
    unsure = [[0.1, 0.2, 0.5], [0.3, 0.1, 0.1]]
    return [
        fired([True, False], [[1, 1, 3], [1, 3, 3]], unsure, (0, 2)),
        fired([True, False], [[1, 1, 3], [1, 1, 1]], sure, (0, 2)),
        fired([False, True], [[5, 5, 5], [1, 1, 1]], sure, (1, 0)),
    ]


def test_words_are_shown_with_the_class_in_whose_pictures_they_fire():
    words = characteristic_words(pictures(), 3)
    # the first of each class, those with most cells more than chance, then the second ones
    assert [(word.number, word.label) for word in words] == [(5, 1), (3, 0), (1, 0)]
    np.testing.assert_allclose([word.share for word in words], [1, 1, 8 / 11])
    np.testing.assert_allclose([word.chance for word in words], [1 / 3, 2 / 3, 2 / 3])
    assert characteristic_words(pictures(), 2) == words[:2]


def test_what_is_drawn_where():
    shown = pictures()
    words = [Word(3, 0, 1.0, 2 / 3), Word(5, 1, 1.0, 1 / 3)]
    figure = draw_words(shown, words, NAMED, patches=5, examples=2)
    rows = [figure.shape[0] - (2 - position) * (GAP + PATCH) for position in range(2)]
    patches = [[cell(figure, row, column) for column in range(5)] for row in rows]
    # the surest cell of the first word is the red one of the second picture, then that of the first; no third picture has it
    # the cell lies in the upper right corner of the picture, and so of the patch
    middles = [[patch[PATCH // 4, PATCH * 3 // 4] for patch in line] for line in patches]
    for middle in middles[0][:2]:
        assert middle[0] > 200
        assert middle[1] < 60
    assert (middles[0][2] == 255).all()
    assert np.abs(middles[1][0].astype(int) - GREY).max() < 10
    # each row begins with its word's colour; cells of a word have it in the examples
    first, second = (figure[row + PATCH // 2, GAP + 5].astype(int) for row in rows)
    assert np.abs(first - second).max() > 50
    tinted = figure[2 * GAP + LINE :][:200].reshape(-1, 3).astype(int)
    for colour in (first, second):
        wanted = 0.45 * np.array(GREY) + 0.55 * colour
        assert (np.abs(tinted - wanted).max(1) < 6).sum() > 500


def cell(figure: np.ndarray, top: int, column: int) -> np.ndarray:
    left = 2 * GAP + NAMES + column * (GAP + PATCH)
    return figure[top : top + PATCH, left : left + PATCH]


@pytest.mark.parametrize("variant", ["vwl-l", "vwl-m"])
def test_the_stage_writes_one_picture(tmp_path, squares, variant):
    train(small(variant), squares, out=tmp_path / "vwl")
    look = vwl.WordFigureSettings(pictures=9, words=4, patches=2, examples=2)
    for name in ("words", "again"):
        vwl.show_words(look, squares, weights=tmp_path / "vwl", out=tmp_path / name)
    files = tree(tmp_path / "words")
    assert set(files) - set(RECORDS) == {"figure.jpg"}
    assert files["figure.jpg"] == tree(tmp_path / "again")["figure.jpg"]
    picture = Image.open(io.BytesIO(files["figure.jpg"]))
    assert picture.size[0] >= 960
    assert picture.size[1] > 2 * PATCH


def test_words_that_fire_are_those_of_the_nearest_codebook_rows(tmp_path, squares):
    train(small("vwl-l"), squares, out=tmp_path / "vwl")
    network = vwl.load(tmp_path / "vwl", squares).eval()
    words, similarity = vwl.assign_words(network, squares.read(0))
    assert words.shape == similarity.shape == (2, 3)
    assert ((similarity <= 1 + 1e-6) & (words >= 0) & (words < 8)).all()


def test_settings_that_make_no_sense():
    for changes in ({"words": 21}, {"patches": 0}, {"pictures": -1}):
        with pytest.raises(BadInput, match=f"words.{next(iter(changes))}"):
            vwl.WordFigureSettings(**changes)
