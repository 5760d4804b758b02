"""Reads YAML of plain values.

A document consists of strings, numbers, true, false and null in lists and mappings. Anything that could name code (tags, and the keys by
which jsonargparse and similar libraries instantiate classes) is refused, and so is anything that could make a small file large (aliases of
aliases). Plain words have the meaning of YAML 1.2: `no`, `off` and `2020-01-01` are strings.
"""

import re
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsss.data.text import read_text
from wsss.errors import BadInput, reading

if TYPE_CHECKING:
    # imported where YAML is read or written, which most commands do not need in order to begin
    import yaml

DEEPEST, MOST_VALUES, MOST_BYTES, MOST_DIGITS = 50, 100_000, 1 << 22, 100
Keys = tuple[str, ...]
# keys that name classes and functions to call in the settings files of other libraries
CODE = ("class_path", "init_args", "dict_kwargs")

# underscores separate thousands; `2007_000032`, a picture of VOC, and the class `7_11` are strings
_THOUSANDS = r"0|[1-9][0-9]*|[1-9][0-9]{0,2}(_[0-9]{3})+"
_INTEGER = re.compile(rf"[-+]?({_THOUSANDS}|0x[0-9a-fA-F]+|0o[0-7]+|0b[01]+)")
_FLOAT = re.compile(
    rf"[-+]?(({_THOUSANDS})(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_WORDS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False} | dict.fromkeys(
    ("", "~", "null", "Null", "NULL")
)
_DO = "Correct it."


def dotted(keys: Keys) -> str:
    """The name of a setting, from the keys that lead to it."""
    return ".".join(keys)


def in_file(path: str | Path, keys: Keys) -> str:
    """The name of a value in a file."""
    return f"{path}: {dotted(keys)}" if keys else str(path)


def read_document(path: Path, expected: str) -> Any:
    """The plain value in a YAML file; None for an empty one.

    Raises:
        BadInput: the file cannot be read or is no YAML of plain values, see `parse`; `expected` describes its content.
    """
    with reading(path, expected, _DO):
        size = path.stat().st_size
    if size > MOST_BYTES:
        raise BadInput(path, f"{size} bytes", f"{expected}, at most {MOST_BYTES} bytes", "Give another file.")
    return parse(read_text(path, expected), expected, partial(in_file, path))


def parse(text: str, expected: str, named: Callable[[Keys], str]) -> Any:
    """The plain value in a YAML text; None for an empty one.

    Args:
        text: one document.
        expected: the expected content, for errors.
        named: returns the name of a value from the keys that lead to it, and that of the whole document from no keys.

    Raises:
        BadInput: broken YAML; a tag; an alias inside its own anchor; a key that occurs twice, is no string, or could name
            code; values nested deeper than 50, or more than 100,000 values with aliases expanded; a number of more
            than 100 digits; a second document.
    """
    import yaml

    try:
        with reading(named(()), expected, _DO):
            return _Document(text, expected, named).value
    except BadInput as error:
        if isinstance(error.__cause__, yaml.YAMLError):
            found = f"broken YAML ({_problem(error.__cause__)})"
            raise BadInput(named(()), found, expected, _DO) from error.__cause__
        raise


def check_no_code(name: str, where: str) -> None:
    """Raise BadInput if the name of a setting would make other libraries call code, such as `class_path`."""
    if name in CODE:
        raise BadInput(where, f"the key `{name}`", "only values: no file or flag names code to run", "Remove it.")


def dump(content: object) -> str:
    """YAML of plain values, from which `parse` reads the same values."""
    import yaml

    return yaml.dump(content, Dumper=_dumper(), sort_keys=False, allow_unicode=True)


@cache
def _dumper() -> type["yaml.SafeDumper"]:
    """Quotes strings that would be read as other values."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    Dumper.add_representer(str, _represent_text)
    return Dumper


def _represent_text(dumper: "yaml.SafeDumper", text: str) -> "yaml.ScalarNode":
    style = '"' if not text.isprintable() else None if _is_text(text) else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


class _Document:
    """Builds the value from the parser's events, so that the text never selects a constructor."""

    def __init__(self, text: str, expected: str, named: Callable[[Keys], str]) -> None:
        import yaml

        self.expected, self.named = expected, named
        self.values = 0
        # by anchor: a value, the number of values in it, and its depth; None while it is being read
        self.anchors: dict[str, tuple[Any, int, int] | None] = {}
        self.events: Iterator[Any] = yaml.parse(text, Loader=yaml.SafeLoader)
        next(self.events)  # the stream's start
        self.value = None
        if isinstance(next(self.events), yaml.DocumentStartEvent):
            self.value, _ = self._read(next(self.events), ())
            next(self.events)
            if not isinstance(event := next(self.events), yaml.StreamEndEvent):
                raise self._refused("a second document", event)

    def _refused(self, found: str, event: Any, keys: Keys = ()) -> BadInput:
        line = event.start_mark.line
        return BadInput(f"{self.named(keys)}{f', line {line + 1}' if line else ''}", found, self.expected, _DO)

    def _read(self, event: Any, keys: Keys) -> tuple[Any, int]:
        """The value that begins with an event, and its depth; `keys` lead to it."""
        import yaml

        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, keys)
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            raise self._refused(f"the YAML tag {tag}", event, keys)
        self._count(1, event)
        before = self.values
        if event.anchor is not None:
            self.anchors[event.anchor] = None
        if isinstance(event, yaml.ScalarEvent):
            value = event.value if event.style else _plain(event.value, self.named(keys))
            depth = 0
        else:
            self._check_depth(len(keys) + 1, event, keys)
            is_list = isinstance(event, yaml.SequenceStartEvent)
            value, depth = self._list(keys) if is_list else self._mapping(keys)
        if event.anchor is not None:
            self.anchors[event.anchor] = value, self.values - before + 1, depth
        return value, depth

    def _count(self, more: int, event: Any) -> None:
        self.values += more
        if self.values > MOST_VALUES:
            raise self._refused(f"more than {MOST_VALUES} values (with aliases expanded)", event)

    def _check_depth(self, depth: int, event: Any, keys: Keys) -> None:
        if depth > DEEPEST:
            raise self._refused(f"values nested deeper than {DEEPEST}", event, keys[:3])

    def _alias(self, event: Any, keys: Keys) -> tuple[Any, int]:
        if event.anchor not in self.anchors:
            raise self._refused(f"the alias *{event.anchor} of nothing before it", event, keys)
        known = self.anchors[event.anchor]
        if known is None:
            raise self._refused(f"the alias *{event.anchor} inside its own anchor", event, keys)
        value, values, depth = known
        self._count(values, event)
        self._check_depth(len(keys) + depth, event, keys)
        return value, depth

    def _list(self, keys: Keys) -> tuple[list[Any], int]:
        import yaml

        found: list[Any] = []
        deepest = 0
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            value, depth = self._read(event, (*keys, str(len(found))))
            found.append(value)
            deepest = max(deepest, depth)
        return found, deepest + 1

    def _mapping(self, keys: Keys) -> tuple[dict[str, Any], int]:
        import yaml

        found: dict[str, Any] = {}
        deepest = 0
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent) or event.tag is not None:
                raise self._refused("a key that is no plain string", event, keys)
            key = event.value
            inner = (*keys, key)
            check_no_code(key, self.named(inner))
            if key in found:
                raise self._refused("the same key twice", event, inner)
            if event.anchor is not None:
                self.anchors[event.anchor] = key, 1, 0
            self._count(1, event)
            found[key], depth = self._read(next(self.events), inner)
            deepest = max(deepest, depth)
        return found, deepest + 1


def _is_text(text: str) -> bool:
    return not (text in _WORDS or _INTEGER.fullmatch(text) or _FLOAT.fullmatch(text))


def _plain(text: str, where: str) -> Any:
    """The value of a text without quotes."""
    if _is_text(text):
        return text
    if text in _WORDS:
        return _WORDS[text]
    if len(text) > MOST_DIGITS:
        do = "Shorten it, or put a text in quotes."
        raise BadInput(where, f"a number of {len(text)} digits", f"at most {MOST_DIGITS}", do)
    return (
        int(text, 0) if _INTEGER.fullmatch(text) else float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    )


def _problem(error: "yaml.YAMLError") -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"{problem} in line {mark.line + 1}" if mark else problem
