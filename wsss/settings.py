"""From plain values to settings: frozen dataclasses, whose fields are the keys of a YAML file and the flags of the command line.

The types of the fields alone decide what a value becomes. Nothing that a value says is imported or called.
"""

import ast
import dataclasses
import functools
import inspect
import itertools
import math
import re
import reprlib
import textwrap
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from wsss.data.documents import Keys, check_no_code, dotted
from wsss.errors import BadInput, suggestion

# what fits into NumPy's and torch's integers
_LARGEST = 2**63 - 1
_YES, _NO = ("true", "yes", "on"), ("false", "no", "off")
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Field:
    """One setting.

    Attributes:
        kind: int, float, bool, str, Path, None, Literal of texts, tuple or list of these, a dataclass of further settings, a
            union of these, or dict: plain values that are read later, as other settings.
        default: where nothing is given.
        path: whether a text may be a path, and so hold bytes that are not UTF-8.
    """

    kind: Any
    default: Any
    path: bool = False


class Given:
    """Plain values from files and flags, nested by the names of settings; what comes later is put over what came before."""

    def __init__(self) -> None:
        self.content: dict[str, Any] = {}
        self._places: dict[Keys, str] = {}

    def add(self, keys: Keys, value: Any, named: Callable[[Keys], str]) -> None:
        """Put a value at the place that `keys` lead to; mappings are merged.

        Args:
            keys: from the top.
            value: plain.
            named: says where each part of the value was found, from the keys that lead to it from the top.
        """
        content = value
        for key in reversed(keys):
            content = {key: content}
        self.content = merged(self.content, content)
        self._note(keys, value, named)

    def _note(self, keys: Keys, value: Any, named: Callable[[Keys], str]) -> None:
        self._places[keys] = named(keys)
        if isinstance(value, Mapping):
            for key, inner in value.items():
                self._note((*keys, key), inner, named)

    def where(self, keys: Keys) -> str:
        """Where a setting was found, or its dotted name."""
        for n in range(len(keys), 0, -1):
            if keys[:n] in self._places:
                return dotted((self._places[keys[:n]], *keys[n:]))
        return dotted(keys)


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings, with the values of `above` where both have one."""
    both = dict(below)
    for key, value in above.items():
        inner = both.get(key)
        both[key] = merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return both


def build(kind: type[T], content: Mapping[str, Any], where: Callable[[Keys], str] = dotted) -> T:
    """Settings from plain nested values; what is not given is as in the defaults.

    Args:
        kind: a dataclass whose fields all have defaults.
        content: plain values by the fields' names.
        where: the name of a setting for errors, from the keys that lead to it.

    Raises:
        BadInput: a key that is no setting, a value of the wrong type, or one that the settings themselves refuse.
    """
    return _section(kind, kind(), content, (), where)


def fields(kind: type) -> Mapping[str, Field]:
    """The settings of a dataclass by their names."""
    return _fields(kind)


@functools.cache
def _fields(kind: Any) -> Mapping[str, Field]:
    hints = get_type_hints(kind)
    return {
        field.name: Field(hints[field.name], field.default, path=bool(field.metadata.get("maybe_file")))
        for field in dataclasses.fields(kind)
    }


@functools.cache
def helps(kind: type) -> Mapping[str, str]:
    """What each setting means: the text below its field."""
    found = {}
    for part in reversed(kind.__mro__):
        if dataclasses.is_dataclass(part):
            (definition,) = ast.parse(textwrap.dedent(inspect.getsource(part))).body
            for line, below in itertools.pairwise(definition.body):  # type: ignore[attr-defined]
                match line, below:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                        found[name] = " ".join(text.split())
    return found


def members(kind: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def section_of(kind: Any) -> type | None:
    """The dataclass of further settings among the types of a setting, if there is one."""
    return next(
        (member for member in members(kind) if isinstance(member, type) and dataclasses.is_dataclass(member)), None
    )


def words(kind: Any) -> tuple[str, ...]:
    """The words that a setting may be."""
    return tuple(word for member in members(kind) if get_origin(member) is Literal for word in get_args(member))


def is_verbatim(kind: Any) -> bool:
    """Whether a flag's text is the value as it stands, and no YAML."""
    return all(member in (str, Path, type(None)) or get_origin(member) is Literal for member in members(kind))


def check_known(name: str, known: Iterable[str], where: str) -> None:
    """Raise BadInput unless there is a setting of that name."""
    check_no_code(name, where)
    names = list(known)
    if name not in names:
        expected = f"one of {', '.join(names)}" if names else "none below it"
        raise BadInput(where, "no such setting", expected, f"{suggestion(name, names)}Correct or remove it.")


def values(
    table: Mapping[str, Field], base: Any, content: Mapping[str, Any], keys: Keys, where: Callable[[Keys], str]
) -> dict[str, Any]:
    """The typed values of those settings of a table that are given.

    Args:
        table: the settings that there are.
        base: has the settings' values, as attributes, that sections are put over; None for the defaults of the table.
        content: what is given.
        keys: lead from the top to the table.
        where: the name of a setting for errors.
    """
    typed = {}
    for key, value in content.items():
        check_known(key, table, where((*keys, key)))
        field = table[key]
        typed[key] = _typed(field, value, getattr(base, key, field.default), (*keys, key), where)
    return typed


def _section(kind: type[T], base: T, content: Mapping[str, Any], keys: Keys, where: Callable[[Keys], str]) -> T:
    return replaced(base, values(fields(kind), base, content, keys, where), keys, where)


def replaced(base: T, given: Mapping[str, Any], keys: Keys, where: Callable[[Keys], str]) -> T:
    """Settings with other typed values.

    Raises:
        BadInput: as the settings raise it about themselves, with the whole name of the setting.
    """
    try:
        return dataclasses.replace(base, **given)  # type: ignore[type-var]
    except BadInput as error:
        raise _renamed(error, type(base), keys, where) from error


def _renamed(error: BadInput, kind: type, keys: Keys, where: Callable[[Keys], str]) -> BadInput:
    parts, known = re.split(r"[. ]", error.where), fields(kind)
    inner = next((tuple(parts[n:]) for n in range(len(parts)) if _leads(parts[n:], known)), ())
    place = where((*keys, *inner)) if keys or inner else error.where
    found = error.found if inner or not keys or parts[-1] == keys[-1] else f"{error.where}: {error.found}"
    return BadInput(place, found, error.expected, error.do)


def _leads(names: Sequence[str], table: Mapping[str, Field]) -> bool:
    if names[0] not in table:
        return False
    section = section_of(table[names[0]].kind)
    return len(names) == 1 or (section is not None and _leads(names[1:], fields(section)))


def _typed(field: Field, value: Any, base: Any, keys: Keys, where: Callable[[Keys], str]) -> Any:
    kinds = members(field.kind)
    section = section_of(field.kind)
    if section is not None and isinstance(value, Mapping):
        return _section(section, base if isinstance(base, section) else section(), value, keys, where)
    for kind in kinds:
        if isinstance(value, list) and get_origin(kind) in (tuple, list):
            return _items(field, kind, value, keys, where)
    for kind in kinds:
        found, typed = _leaf(kind, value, field.path)
        if found:
            return typed
    do = suggestion(value, words(field.kind)) if isinstance(value, str) else ""
    if isinstance(value, int | float) and str in kinds:
        do = "Put it in quotes. "
    raise BadInput(where(keys), described(value), expected(*members(field.kind)), f"{do}Change it.")


def _items(field: Field, kind: Any, value: list[Any], keys: Keys, where: Callable[[Keys], str]) -> Any:
    inner = get_args(kind)
    if get_origin(kind) is list or inner[-1] is Ellipsis:
        inner = (inner[0],) * len(value)
    if len(inner) != len(value):
        raise BadInput(where(keys), described(value), expected(*members(field.kind)), "Change it.")
    items = [
        _typed(dataclasses.replace(field, kind=item), one, None, (*keys, str(index)), where)
        for index, (item, one) in enumerate(zip(inner, value, strict=True))
    ]
    return items if get_origin(kind) is list else tuple(items)


def _leaf(kind: Any, value: Any, path: bool) -> tuple[bool, Any]:
    """Whether a value is of that type, and what it is then."""
    if kind is type(None):
        return value is None, None
    if kind is bool:
        word = value.lower() if isinstance(value, str) else ""
        return isinstance(value, bool) or word in _YES + _NO, value if isinstance(value, bool) else word in _YES
    if isinstance(value, bool):
        return False, None
    if kind is int:
        return isinstance(value, int) and abs(value) <= _LARGEST, value
    if kind is float:
        fits = isinstance(value, int | float) and math.isfinite(value)
        return fits, float(value) if fits else None
    if kind is str:
        return isinstance(value, str) and _is_sound(value, path), value
    if kind is Path:
        fits = isinstance(value, str) and _is_sound(value, True) and value != ""
        return fits, Path(value) if fits else None
    if kind is dict:
        return isinstance(value, Mapping), value
    return get_origin(kind) is Literal and isinstance(value, str) and value in get_args(kind), value


def _is_sound(text: str, path: bool) -> bool:
    try:
        text.encode(errors="surrogateescape" if path else "strict")
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def described(value: Any) -> str:
    """A plain value in a few words."""
    if value is None or isinstance(value, bool):
        return {None: "nothing (null)", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return f"settings below it ({', '.join(map(str, list(value)[:3])) or 'none'})"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, int) and abs(value) > _LARGEST:
        return f"{reprlib.repr(value)}, which is too large"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value}, which is not finite"
    return reprlib.repr(value)


def expected(*kinds: Any) -> str:
    """Types in words, of which a value has one."""
    names: dict[Any, str] = {
        bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path", type(None): "null",
        dict: "keys and values", object: "a value in YAML",
    }  # fmt: skip
    parts = []
    for member in kinds:
        inner = get_args(member)
        if get_origin(member) is Literal:
            parts.append(f"one of {', '.join(inner)}")
        elif get_origin(member) in (tuple, list):
            variable = get_origin(member) is list or inner[-1] is Ellipsis
            parts.append(
                f"a list of {_plural(inner[0])}" if variable else f"a list of {len(inner)} {_plural(inner[0])}"
            )
        elif dataclasses.is_dataclass(member):
            parts.append(f"settings ({', '.join(fields(member))})")  # type: ignore[arg-type]
        else:
            parts.append(names[member])
    return " or ".join(parts)


def _plural(kind: Any) -> str:
    return {int: "whole numbers", float: "numbers", str: "texts", Path: "paths"}[kind]


def shown(value: Any) -> Any:
    """Settings as plain values, all of them, as a YAML file holds them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: shown(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: shown(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [shown(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value
