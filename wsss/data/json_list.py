"""Long lists in JSON files, decoded item by item."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wsss.errors import Unreadable, reading

# Characters that are read at once
_PIECE = 1 << 20
_SPACE = re.compile(r"[ \t\r\n]*")


def json_list(path: Path, expected: str, do: str) -> Iterator[Any]:
    """The items of the list in a JSON file. Memory holds one of them, and as much text as it takes, or 1 MiB.

    Args:
        path: the file.
        expected: what it should contain, for errors.
        do: what the user can do about a broken file.

    Raises:
        BadInput: the file is missing or broken, or holds no list of objects, lists or texts.
    """
    decoder = json.JSONDecoder()
    with reading(path, expected, do), path.open(encoding="utf-8-sig") as stream:
        # what came last: nothing, the opening bracket, an item, or a comma
        text, at, size, before = stream.read(_PIECE), 0, _PIECE, ""
        while True:
            at = _after_space(text, at)
            next_ = text[at : at + 1]
            if (before, next_) in (("", "["), ("item", ",")):
                before, at = next_, at + 1
                continue
            if before in ("[", "item") and next_ == "]":
                if (text[at + 1 :] + stream.read(_PIECE)).strip():
                    raise Unreadable("more text after a JSON list")
                return
            if before in ("[", ",") and next_ in ("{", "[", '"'):
                try:
                    item, at = decoder.raw_decode(text, at)
                except json.JSONDecodeError:
                    pass  # perhaps only the end is missing
                else:
                    yield item
                    before, size = "item", _PIECE
                    continue
            elif next_:
                raise Unreadable(f"{text[at : at + 20]!r} where a JSON list should {'go on' if before else 'begin'}")
            more = stream.read(size)
            if not more:
                raise Unreadable("broken JSON, or a list that is cut off" if before else "an empty file")
            text, at, size = text[at:] + more, 0, 2 * size


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at
