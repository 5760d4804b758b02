"""The door that all files come in through."""

import csv
import json
import os
import struct
import zipfile
import zlib
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsss.errors import BadInput, is_regular, printable, reading


def raised(error: BaseException) -> BaseException:
    with pytest.raises(BaseException) as caught, reading("some place", "something", "Do this.", missing="Find it."):  # noqa: PT011
        raise error
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        ValueError("odd"), KeyError("name"), IndexError("at 3"), RecursionError(), MemoryError(), OverflowError("huge"), EOFError(),
        zlib.error("bad stream"), struct.error("short"), zipfile.BadZipFile("no zip"), csv.Error("quote"), ElementTree.ParseError("tag"),
        json.JSONDecodeError("comma", "{", 1), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "start"), OSError("decoder error"),
        RuntimeError("in C"), SyntaxError("literal"),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_what_a_parser_raises_becomes_bad_input(error):
    caught = raised(error)
    assert type(caught) is BadInput
    assert caught.__cause__ is error
    assert (caught.where, caught.expected, caught.do) == ("some place", "something", "Do this.")
    assert caught.found
    assert "\n" not in caught.found


def test_a_long_or_many_lined_message_is_cut():
    assert raised(RuntimeError("first\nsecond")).found == "content that cannot be read (first)"
    assert len(raised(RuntimeError("x" * 10_000)).found) < 300


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)], ids=lambda error: type(error).__name__)
def test_what_is_no_error_passes(error):
    assert raised(error) is error


def test_a_check_of_its_own_passes_unchanged():
    error = BadInput("a", "b", "c", "d")
    assert raised(error) is error


def test_a_slip_of_this_package_is_not_hidden_in_tests(monkeypatch):
    slip = {"__name__": "wsss.some_reader"}
    exec("def read(value):\n    return value.no_such_attribute", slip)
    with pytest.raises(AttributeError), reading("a", "b"):
        slip["read"](3)
    # the same in a library is a matter of the file
    library = {"__name__": "numpy.some_reader"}
    exec("def read(value):\n    return value.no_such_attribute", library)
    with pytest.raises(BadInput), reading("a", "b"):
        library["read"](3)
    # and users, who can do nothing about either, get the file's name
    monkeypatch.delenv("WSSS_STRICT")
    with pytest.raises(BadInput), reading("a", "b"):
        slip["read"](3)


def test_files_that_are_not_there(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for path, found in (
        (tmp_path / "absent", "no such file"),
        (tmp_path / "folder", "a folder"),
        (tmp_path / "file" / "x", "a file in place of a folder"),
        (tmp_path / "circle", "symbolic links in a circle"),
        (tmp_path / ("x" * 300), "a name that is too long for a file"),
        (Path("zero\0byte"), "content that cannot be read (embedded null byte)"),
    ):
        with pytest.raises(BadInput) as caught, reading(path, "a file"):
            path.read_bytes()
        assert caught.value.found == found
        assert not is_regular(path)
    assert is_regular(tmp_path / "file")


def test_a_pipe_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, found in ((tmp_path / "pipe", "a named pipe"), (Path("/dev/null"), "a device")):
        with pytest.raises(BadInput) as caught, reading(path, "a file"):
            pytest.fail("opened")
        assert caught.value.found == found
        assert not is_regular(path)


@given(st.text())
def test_nothing_steers_the_terminal(text):
    shown = printable(text)
    shown.encode()
    assert not set(shown) & {
        chr(code) for code in (*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F), 0x2066)
    }
    if text.isprintable():
        assert shown == text


def test_a_name_with_an_escape_sequence():
    assert str(BadInput("\x1b[2Ja", "x\u202e", "y", "z")) == "\\x1b[2Ja: found x\\u202e; expected y. z"
    assert printable("日本\u200dß\n\t") == "日本\u200dß\n\t"
    assert printable("\udcff\r") == "\\udcff\\r"
