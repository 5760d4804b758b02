"""Nouns to their singular."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsss.data import nouns
from wsss.data.nouns import lemma


@pytest.mark.parametrize(
    ("text", "singular"),
    [
        ("trees", "tree"), ("women", "woman"), ("people", "people"), ("men", "men"), ("glasses", "glass"), ("skies", "sky"),
        ("cookies", "cooky"), ("vases", "vas"), ("boss", "bos"), ("us", "u"), ("media", "medium"), ("geese", "goose"),
        ("hot dogs", "hot dogs"), ("hot_dogs", "hot_dog"), ("Trees", "Trees"), ("", ""), ("xyzzys", "xyzzys"),
    ],
)  # fmt: skip
def test_known_words(text, singular):
    assert lemma(text) == singular


@given(st.text(st.characters(codec="utf-8"), max_size=12))
def test_anything_else_stays(text):
    found = lemma(text)
    assert found == text or (found in nouns._nouns()[0] and len(found) <= len(text))


def test_the_list_is_whole():
    known, irregular = nouns._nouns()
    assert (len(known), len(irregular)) == (117798, 2050)
    assert irregular["mice"] == ["mouse"]
