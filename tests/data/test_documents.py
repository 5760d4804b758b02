"""Documents of plain values: what YAML means here, that what is written reads back, and one error for whatever else a file may hold."""

import math
from functools import partial

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from wsss.data.documents import dump, in_file, parse, read_document
from wsss.errors import BadInput


def read(text):
    return parse(text, "settings", partial(in_file, "f.yaml"))


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text().filter(lambda key: "_" not in key), inner),
    max_leaves=15,
)


@given(plain)
def test_what_is_written_reads_back(value):
    text = dump(value)
    assert read(text) == value
    # other programs read the same, but for numbers that they take for texts
    if isinstance(value, str):
        assert yaml.safe_load(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("1e5", 1e5), (".5", 0.5), ("-3", -3), ("1_000", 1000), ("0x1F", 31), ("1.", 1.0), ("-.inf", -math.inf),
        ("true", True), ("FALSE", False), ("null", None), ("~", None), ("", None), ("# nothing", None),
        # what YAML 1.1 reads otherwise
        ("no", "no"), ("on", "on"), ("2020-01-01", "2020-01-01"), ("1:30", "1:30"), ("010", "010"), ("=", "="),
        ("2007_000032", "2007_000032"), ("7_11", "7_11"), ("1_0.5", "1_0.5"), ("12_500.5", 12500.5),
        ("'1'", "1"), ('"null"', "null"), ("|\n  1\n", "1\n"),
        ("{1: a, null: b}", {"1": "a", "null": "b"}),
        ("{a: &x [1, {b: 2}], c: *x, d: [*x, *x]}", {"a": [1, {"b": 2}], "c": [1, {"b": 2}], "d": [[1, {"b": 2}]] * 2}),
        ("&k a: *k", {"a": "a"}),
        ("\ufeffa: 1", {"a": 1}),
        ("[" * 50 + "]" * 50, None),
    ],
)  # fmt: skip
def test_values(text, value):
    found = read(text)
    if value is None and found is not None:
        for _ in range(50):
            assert isinstance(found, list)
            found = found[0] if found else None
    assert found == value
    assert type(found) is type(value)


BOMB = "- &a0 [x, x]\n" + "".join(f"- &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(5))
CHAIN = "- &a0 [x]\n" + "".join(f"- &a{i + 1} [*a{i}]\n" for i in range(60))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {b: !!python/object/apply:os.system [x]}", "f.yaml: a.b: found the YAML tag !!python/object/apply:os.system"),
        ("!!python/name:os.system", "the YAML tag !!python/name:os.system"),
        ("a: !mine 1", "f.yaml: a: found the YAML tag !mine"),
        ("! a", "f.yaml: found the YAML tag !"),
        ("!!str 1", "the YAML tag !!str"),
        ("!!int x: 1", "f.yaml: found a key that is no plain string"),
        ("%TAG ! tag:yaml.org,2002:python/\n---\n!name:os.system", "found the YAML tag !!python/name:os.system"),
        ("x:\n- class_path: os.system", "f.yaml: x.0.class_path: found the key `class_path`"),
        ("'init_args': 1", "f.yaml: init_args: found the key `init_args`"),
        ('a: {"dict\\u005fkwargs": 1}', "f.yaml: a.dict_kwargs: found the key `dict_kwargs`"),
        ("a: &a [*a]", r"a.0: found the alias \*a inside its own anchor"),
        ("a: &a {b: [*a]}", r"a.b.0: found the alias \*a inside its own anchor"),
        ("a: 1\nb: *c", r"f.yaml: b, line 2: found the alias \*c of nothing before it"),
        ("a: 1\nb: {c: 1, c: 2}", "f.yaml: b.c, line 2: found the same key twice"),
        ("? [a]\n: b", "a key that is no plain string"),
        ("a: 1\n--- \nb: 1", "line 2: found a second document"),
        ("[" * 51 + "]" * 51, "values nested deeper than 50"),
        ("{a: " * 60, "values nested deeper than 50"),
        (CHAIN, "values nested deeper than 50"),
        (BOMB, r"more than 100000 values \(with aliases expanded\)"),
        ("a: " + "9" * 5000, "f.yaml: a: found a number of 5000 digits; expected at most 100"),
        ("a: 1." + "0" * 5000, "a number of 5002 digits"),
        ("a:\n\tb: 1", "broken YAML .*character .*t.* in line 2"),
        ("a: [1", "broken YAML"),
        ("a: b: c", "broken YAML .mapping values are not allowed here in line 1"),
        ("a: \x07", "broken YAML"),
        ('a: "\\U00110000"', "cannot be read"),
        ('a: "\\UFFFFFFFF"', "cannot be read"),
        ("%YAML " + "9" * 5000 + ".1\n---\na: 1", "cannot be read"),
        ("%YAML 7.0\n---\na: 1", "broken YAML"),
    ],
)  # fmt: skip
def test_what_is_refused(text, message):
    with pytest.raises(BadInput, match=message) as caught:
        read(text)
    assert caught.value.where.startswith("f.yaml")
    assert caught.value.do
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfea\x00", "UTF-16"),
        (b"a: \xff", "not UTF-8"),
        (bytes(range(256)), "a zero byte"),
        (b"a: [1", "broken YAML"),
    ],
)
def test_files_that_are_no_text(tmp_path, content, message):
    path = tmp_path / "settings.yaml"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=message) as caught:
        read_document(path, "settings")
    assert caught.value.where.startswith(str(path))


def test_a_file_too_large_is_not_read(tmp_path):
    path = tmp_path / "settings.yaml"
    with path.open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(BadInput, match="1099511627776 bytes"):
        read_document(path, "settings")
