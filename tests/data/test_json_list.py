"""Long JSON lists are decoded item by item, at any place where the text happens to be cut."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsss.data import json_list as module
from wsss.data.json_list import json_list
from wsss.errors import BadInput

ITEMS = [{"a": [1, 2, {"b": "]"}]}, [], 'x, \\ " [', {}, ["é" * 30], {"long": list(range(50))}]


def read(path):
    return list(json_list(path, "a list", "Do."))


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 64, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_pieces_of_any_size(piece, indent, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_PIECE", piece)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ITEMS, indent=indent) + "\n", encoding="utf-8-sig")
    assert read(path) == ITEMS
    path.write_text(" [ ] \n")
    assert read(path) == []


@settings(max_examples=60)
@given(text=st.text('[]{},":a1 ', max_size=12))
def test_it_accepts_what_json_accepts(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(text)
    try:
        known = json.loads(text)
        known = known if isinstance(known, list) and all(isinstance(one, dict | list | str) for one in known) else None
    except json.JSONDecodeError:
        known = None
    if known is None:
        with pytest.raises(BadInput):
            read(path)
    else:
        assert read(path) == known


def test_items_before_a_break_are_given(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"a": 1}, {"b": ')
    items = json_list(path, "a list", "Do.")
    assert next(items) == {"a": 1}
    with pytest.raises(BadInput, match=r"a\.json: found broken JSON, or a list that is cut off"):
        next(items)
