"""Text files in UTF-8."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

from wsss.errors import BadInput, reading


def read_text(path: Path, expected: str) -> str:
    """The text of a UTF-8 file, without a byte order mark; `expected` describes its content in errors.

    Raises:
        BadInput: the file is missing, not a regular file, or not UTF-8 (the message names the line and the byte).
    """
    with reading(path, expected):
        blob = path.read_bytes()
    do = "Save the file as UTF-8."
    if blob[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise BadInput(
            path, f"UTF-16 text (line 1 begins with the bytes {blob[:2].hex(' ')})", f"{expected} in UTF-8", do
        )
    for at, what in ((blob.find(b"\0"), "a zero byte"), (_first_not_utf8(blob), "a byte that is not UTF-8")):
        if at >= 0:
            line = blob.count(b"\n", 0, at) + 1
            raise BadInput(path, f"{what} (0x{blob[at]:02x}) in line {line}, at byte {at}", f"{expected} in UTF-8", do)
    return blob.decode("utf-8-sig")


def _first_not_utf8(blob: bytes) -> int:
    # bytes that cannot be decoded become surrogates, which UTF-8 cannot encode
    text = blob.decode(errors="surrogateescape")
    broken = re.search("[\udc80-\udcff]", text)
    return len(text[: broken.start()].encode()) if broken else -1


def is_text(value: object) -> TypeGuard[str]:
    """Whether a value is text that can be written as UTF-8; JSON can hold lone surrogates."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def read_lines(path: Path, expected: str) -> Iterator[tuple[int, str]]:
    """Line numbers (from 1) and stripped lines of a UTF-8 file, without empty lines."""
    # names may contain other characters at which str.splitlines would split
    for number, line in enumerate(re.split("\r\n|\r|\n", read_text(path, expected)), 1):
        if line.strip():
            yield number, line.strip()
