"""Conversion of plain values to settings: frozen dataclasses, whose fields are the keys of YAML files and the flags of commands.

Only the types of the fields decide how a value is converted. Nothing that a value names is imported or called.

A setting whose type is a union of dataclasses is a choice between them. Each has the field `kind: Literal["word"] = "word"`, and
the plain value has one of these words under the key `kind`, or is the word itself.
"""

import dataclasses
import functools
import math
import re
import reprlib
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from wsss import declared
from wsss.data.documents import Keys, check_no_code, dotted
from wsss.errors import BadInput, NoSuchName, nearest, suggestion

# largest integer of NumPy and torch
_MAX_INT = 2**63 - 1
_YES, _NO = ("true", "yes", "on"), ("false", "no", "off")
# the field that chooses the member of a union
KIND = "kind"
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Field:
    """One setting.

    Attributes:
        kind: int, float, bool, str, Path, None, Literal of texts, tuple or list of these, dataclasses of further settings, a
            union of these, or dict: plain values that are converted later, as other settings.
        default: default value.
        path: whether a text may be a path, which may contain bytes that are not UTF-8.
        help: help text.
    """

    kind: Any
    default: Any
    path: bool = False
    help: str = ""


class Layer:
    """Plain values from one source (a file, or all flags), nested like the settings, and where each was found.

    Args:
        table: the existing settings.
    """

    def __init__(self, table: Mapping[str, Field]) -> None:
        self.content: dict[str, Any] = {}
        self._table = table
        self._places: dict[Keys, str] = {}

    def add(self, keys: Keys, value: Any, named: Callable[[Keys], str]) -> None:
        """Set the value of a setting; mappings are merged.

        Args:
            keys: keys that lead to the setting.
            value: plain value.
            named: maps the keys of each part of the value to the place where it was found, for errors.
        """
        content = value
        for key in reversed(keys):
            content = {key: content}
        self.content = _merged(self.content, content, self._table, None, replace=False)
        self._note(keys, value, named)

    def over(self, below: "Layer") -> "Layer":
        """This layer merged over another one; a section of another kind replaces the lower one completely."""
        both = Layer(self._table)
        both.content = _merged(below.content, self.content, self._table, None, replace=True)
        both._places = below._places | self._places
        return both

    def _note(self, keys: Keys, value: Any, named: Callable[[Keys], str]) -> None:
        self._places[keys] = named(keys)
        if isinstance(value, Mapping):
            for key, inner in value.items():
                self._note((*keys, key), inner, named)

    def where(self, keys: Keys) -> str:
        """Where a setting was found, or its dotted name if it was not given."""
        for n in range(len(keys), 0, -1):
            if keys[:n] in self._places:
                return dotted((self._places[keys[:n]], *keys[n:]))
        # otherwise where a part of it was found
        return next((place for known, place in self._places.items() if known[: len(keys)] == keys), dotted(keys))


def _merged(
    below: Mapping[str, Any], above: Mapping[str, Any], table: Mapping[str, Field], base: Any, replace: bool
) -> dict[str, Any]:
    """Nested values merged; those of `above` win.

    Args:
        below, above: the two layers.
        table: settings at this level, empty if there are none.
        base: object with their defaults as attributes; None to use the defaults in the table.
        replace: whether choosing another kind discards the settings of the lower layer.
    """
    both = dict(below)
    for key, value in above.items():
        field = table.get(key, _UNKNOWN)
        upper, lower = _as_mapping(field.kind, value), _as_mapping(field.kind, both.get(key))
        both[key] = upper
        if isinstance(upper, Mapping) and isinstance(lower, Mapping):
            default = getattr(base, key, field.default)
            choices = kinds(field.kind)
            before = lower.get(KIND, _implied(lower, default) if choices else None)
            after = upper.get(KIND, before if before is not None else tag(type(default)))
            if not (choices and replace and before not in (None, after)):
                section = choices.get(str(after)) or section_of(field.kind)
                start = default if section is None or isinstance(default, section) else None
                both[key] = _merged(lower, upper, fields(section) if section else {}, start, replace)
    return both


def _implied(given: Mapping[str, Any], default: Any) -> str | None:
    """The kind of the default, if all of these settings may be meant for it."""
    return tag(type(default)) if all(key in fields(type(default)) for key in given) else None


def _as_mapping(kind: Any, value: Any) -> Any:
    """A mapping for a bare word that chooses a kind; other values are unchanged."""
    return {KIND: value} if isinstance(value, str) and value in kinds(kind) else value


_UNKNOWN = Field(object, None)


def build(kind: type[T], content: Mapping[str, Any], where: Callable[[Keys], str] = dotted) -> T:
    """Settings from nested plain values, with defaults for missing values.

    Args:
        kind: dataclass whose fields all have defaults.
        content: plain values by field name.
        where: maps the keys of a setting to its name for errors.

    Raises:
        BadInput: an unknown setting, a value of the wrong type, or one that fails the checks of the settings.
    """
    return _section(kind(), content, (), where)


def fields(kind: type) -> Mapping[str, Field]:
    """The settings of a dataclass, real or mirror, by name.

    Raises:
        BadInput: the source of a mirror declares a setting in a way that cannot be read.
    """
    return _fields(kind)


@functools.cache
def _fields(kind: Any) -> Mapping[str, Field]:
    mirror = declared.is_mirror(kind)
    if mirror and (unread := getattr(kind, declared.UNREAD)):
        place, found = unread
        raise BadInput(place, found, declared.EXPECTED, "Declare all of its settings in this program.")
    hints = {} if mirror else get_type_hints(kind)
    table = {}
    for field in dataclasses.fields(kind):
        hint = hints.get(field.name, field.type)
        if mirror:
            _check_read(field, hint)
        about = field.metadata.get(declared.HELP, "")
        table[field.name] = Field(hint, field.default, bool(field.metadata.get("maybe_file")), about)
    return table


def _check_read(field: "dataclasses.Field[Any]", hint: Any) -> None:
    """Raise BadInput unless a mirror's field has a type and a default that are supported."""
    place = field.metadata[declared.PLACE]
    parts = members(hint)
    wrong = next((part for part in parts if not _is_setting(part)), None)
    if wrong is not None:
        found = f"{field.name} of the type {wrong if isinstance(wrong, declared.Opaque) else f'`{wrong}`'}"
        expected = (
            "int, float, bool, str, Path, None, Literal of texts, a tuple or list of these, or a dataclass of settings"
        )
        raise BadInput(place, found, expected, "Correct it.")
    several = sections(hint)
    if len(several) > 1 and len(kinds(hint)) < len(several):
        found = f"{field.name}, a union of dataclasses that do not all have a distinct `{KIND}`"
        raise BadInput(place, found, f'`{KIND}: Literal["word"] = "word"` in each', "Correct it.")
    if field.default is dataclasses.MISSING or not declared.is_readable(field.default):
        found = "no default" if field.default is dataclasses.MISSING else f"{field.default}"
        raise BadInput(place, f"{found} for {field.name}", declared.EXPECTED, "Correct it.")


def _is_setting(kind: Any) -> bool:
    if get_origin(kind) in (tuple, list):
        return all(_is_setting(part) for inner in get_args(kind) if inner is not Ellipsis for part in members(inner))
    if get_origin(kind) is Literal:
        return all(isinstance(word, str) for word in get_args(kind))
    return kind in (int, float, bool, str, Path, type(None), dict) or dataclasses.is_dataclass(kind)


def members(kind: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def sections(kind: Any) -> tuple[type, ...]:
    """The settings dataclasses among the types of a setting."""
    return sections_among(members(kind))


def sections_among(types_: Sequence[Any]) -> tuple[type, ...]:
    """The settings dataclasses among these types."""
    return tuple(one for one in types_ if isinstance(one, type) and dataclasses.is_dataclass(one))


def section_of(kind: Any) -> type | None:
    """The first settings dataclass among the types of a setting, if there is one."""
    return next(iter(sections(kind)), None)


def tag(section: type) -> str | None:
    """The word that chooses a dataclass in a union, None if it has none."""
    field = fields(section).get(KIND) if dataclasses.is_dataclass(section) else None
    choices = words(field.kind) if field else ()
    return choices[0] if len(choices) == 1 else None


def kinds(kind: Any) -> dict[str, type]:
    """The dataclasses among the types of a setting, by the words that choose them."""
    return {word: section for section in sections(kind) if (word := tag(section)) is not None}


def words(kind: Any) -> tuple[str, ...]:
    """The words that a setting accepts: those of its Literals, and those that choose a dataclass."""
    return words_among(members(kind))


def words_among(types_: Sequence[Any]) -> tuple[str, ...]:
    """The words that these types accept."""
    literals = [word for one in types_ if get_origin(one) is Literal for word in get_args(one)]
    return (*literals, *(word for section in sections_among(types_) if (word := tag(section)) is not None))


def is_verbatim(types_: Sequence[Any]) -> bool:
    """Whether the text of a flag for a setting of these types is used unchanged, and not parsed as YAML."""
    return all(one in (str, Path, type(None)) or get_origin(one) is Literal for one in types_)


def is_list(types_: Sequence[Any]) -> bool:
    """Whether a setting of these types is always a list, or null: its flag may then be given without brackets, as `0.5,1`."""
    return any(get_origin(one) in (tuple, list) for one in types_) and all(
        one is type(None) or get_origin(one) in (tuple, list) for one in types_
    )


def check_known(name: str, known: Iterable[str], where: str) -> None:
    """Raise BadInput unless a setting exists."""
    check_no_code(name, where)
    names = list(known)
    if name not in names:
        # short names are like many others
        near = nearest(name, names, 0.65)
        flag = where.removesuffix(name) if where.startswith("--") and " " not in where else ""
        do = "`--help-all` lists all settings." if names else "It has no settings below it."
        raise NoSuchName(where, "setting", f"Did you mean {flag}{near}?" if near else do)


def values(
    table: Mapping[str, Field], base: Any, content: Mapping[str, Any], keys: Keys, where: Callable[[Keys], str]
) -> dict[str, Any]:
    """The typed values of the given settings.

    Args:
        table: the existing settings.
        base: object with the values that the sections modify as attributes; None to use the defaults in the table.
        content: the given values.
        keys: keys that lead to the table.
        where: maps the keys of a setting to its name for errors.
    """
    typed = {}
    for key, value in content.items():
        check_known(key, table, where((*keys, key)))
        field = table[key]
        typed[key] = _typed(field, value, getattr(base, key, field.default), (*keys, key), where)
    return typed


def _section(base: T, content: Mapping[str, Any], keys: Keys, where: Callable[[Keys], str]) -> T:
    return replace_values(base, values(fields(type(base)), base, content, keys, where), keys, where)


def _base_settings(
    field: Field, content: Mapping[str, Any], default: Any, keys: Keys, where: Callable[[Keys], str]
) -> Any:  # the settings that `content` is put over
    """The settings that `content` modifies: the default, if it is of the chosen kind, or else the defaults of that kind.

    Raises:
        BadInput: there is no such kind, or `content` has a setting of another kind.
    """
    choices, known = kinds(field.kind), sections(field.kind)
    start = default if isinstance(default, known) else known[0]()
    if not choices:
        return start
    word = content.get(KIND, tag(type(start)))
    if not isinstance(word, str) or word not in choices:
        do = suggestion(word, choices) if isinstance(word, str) else ""
        raise BadInput(where((*keys, KIND)), describe(word), f"one of {', '.join(choices)}", f"{do}Change it.")
    if word != tag(type(start)):
        start = choices[word]()
    for below in _names(content):
        if not _leads(below, fields(type(start))):
            owners = [other for other, section in choices.items() if _leads(below, fields(section))]
            if owners:
                found = f"a setting of {' and '.join(owners)}, while {KIND} is {word}"
                do = f"Set `{KIND}: {owners[0]}`, or remove it."
                raise BadInput(where((*keys, *below)), found, f"settings of {word}", do)
    return start


def _names(content: Mapping[str, Any], before: Keys = ()) -> Iterator[Keys]:
    """The names of all settings in a document, at any depth."""
    for key, value in content.items():
        yield (*before, key)
        if isinstance(value, Mapping):
            yield from _names(value, (*before, key))


def replace_values(base: T, given: Mapping[str, Any], keys: Keys, where: Callable[[Keys], str]) -> T:
    """Settings with other typed values.

    Raises:
        BadInput: as the settings raise it about themselves, with the whole name of the setting.
    """
    try:
        return dataclasses.replace(base, **given)  # type: ignore[type-var]
    except BadInput as error:
        raise _with_full_name(error, type(base), keys, where) from error


def from_mirror(settings: Any, keys: Keys = (), where: Callable[[Keys], str] = dotted) -> Any:
    """Real settings with the values of a mirror's; imports the modules that declare them.

    Args:
        settings: an instance of a mirror (see `wsss.declared`), or a plain value, which stays as it is.
        keys: lead to it from the top.
        where: maps the keys of a setting to its name for errors.

    Raises:
        BadInput: as the settings raise it about themselves, with the whole name of the setting.
    """
    if not declared.is_mirror(type(settings)):
        return settings
    kind = declared.real(type(settings))
    given = {name: from_mirror(getattr(settings, name), (*keys, name), where) for name in fields(type(settings))}
    try:
        return kind(**given)
    except BadInput as error:
        raise _with_full_name(error, kind, keys, where) from error


def _with_full_name(error: BadInput, kind: type, keys: Keys, where: Callable[[Keys], str]) -> BadInput:
    parts, known = re.split(r"[. ]", error.where), fields(kind)
    inner = next((tuple(parts[n:]) for n in range(len(parts)) if _leads(parts[n:], known)), ())
    place = where((*keys, *inner)) if keys or inner else error.where
    found = error.found if inner or not keys or parts[-1] == keys[-1] else f"{error.where}: {error.found}"
    return BadInput(place, found, error.expected, error.do)


def _leads(names: Sequence[str], table: Mapping[str, Field]) -> bool:
    if names[0] not in table:
        return False
    inner = sections(table[names[0]].kind)
    return len(names) == 1 or any(_leads(names[1:], fields(section)) for section in inner)


def _typed(field: Field, value: Any, base: Any, keys: Keys, where: Callable[[Keys], str]) -> Any:
    possible = members(field.kind)
    value = _as_mapping(field.kind, value)
    if sections(field.kind) and isinstance(value, Mapping):
        return _section(_base_settings(field, value, base, keys, where), value, keys, where)
    for kind in possible:
        if isinstance(value, list) and get_origin(kind) in (tuple, list):
            return _items(field, kind, value, keys, where)
    for kind in possible:
        found, typed = _leaf(kind, value, field.path)
        if found:
            return typed
    do = suggestion(value, words(field.kind)) if isinstance(value, str) else ""
    if isinstance(value, int | float) and str in possible:
        do = "Put it in quotes. "
    raise BadInput(where(keys), describe(value), expected(*members(field.kind)), do.strip() or "Change it.")


def _items(field: Field, kind: Any, value: list[Any], keys: Keys, where: Callable[[Keys], str]) -> Any:
    inner = get_args(kind)
    if get_origin(kind) is list or inner[-1] is Ellipsis:
        inner = (inner[0],) * len(value)
    if len(inner) != len(value):
        raise BadInput(where(keys), describe(value), expected(*members(field.kind)), "Change it.")
    items = [
        _typed(dataclasses.replace(field, kind=item), one, None, (*keys, str(index)), where)
        for index, (item, one) in enumerate(zip(inner, value, strict=True))
    ]
    return items if get_origin(kind) is list else tuple(items)


def _leaf(kind: Any, value: Any, path: bool) -> tuple[bool, Any]:
    """Whether a value has this type, and the converted value."""
    if kind is type(None):
        return value is None, None
    if kind is bool:
        word = value.lower() if isinstance(value, str) else ""
        return isinstance(value, bool) or word in _YES + _NO, value if isinstance(value, bool) else word in _YES
    if isinstance(value, bool):
        return False, None
    if kind is int:
        return isinstance(value, int) and abs(value) <= _MAX_INT, value
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


def describe(value: object) -> str:
    """A short description of a plain value."""
    if value is None or isinstance(value, bool):
        return {None: "nothing (null)", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return f"settings below it ({', '.join(map(str, list(value)[:3])) or 'none'})"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, int) and abs(value) > _MAX_INT:
        return f"{reprlib.repr(value)}, which is too large"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value}, which is not finite"
    return reprlib.repr(value)


def expected(*kinds: Any) -> str:
    """A description of the types that a value may have."""
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
            word = tag(member)  # type: ignore[arg-type]
            parts.append(word or f"settings ({', '.join(fields(member))})")  # type: ignore[arg-type]
        else:
            parts.append(names[member])
    return " or ".join(parts)


def _plural(kind: Any) -> str:
    return {int: "whole numbers", float: "numbers", str: "texts", Path: "paths"}[kind]


def to_plain(value: Any) -> Any:
    """All settings as plain values, as in a YAML file."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value
