"""Parsing of command lines and YAML files into options and settings; help pages; printing settings as YAML.

A command has options, such as `--data`, which are a dataclass of the command, and settings, which are dataclasses of the library.
Nothing here imports the modules that declare settings: declarations are read from the source (`wsss.declared`).
"""

import dataclasses
import functools
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, get_origin

from wsss import declared, settings
from wsss.configs import CONFIGS
from wsss.data.documents import DEEPEST, Keys, dotted, dump, in_file, parse, read_document
from wsss.errors import BadInput, NoSuchName, is_regular, nearest
from wsss.settings import KIND, Field, Layer

CONFIG, PRINT = "config", "print_config"
_DOCUMENT = "YAML with settings (`name: value`)"
# limits of the width of a help page, which follows the terminal
_NARROWEST, _WIDEST = 60, 120
Options = TypeVar("Options")


def required(*, positional: bool = False) -> Any:
    """A required option, given by a flag or as a positional argument."""
    return dataclasses.field(default=None, metadata={"required": True, "positional": positional})


def switch() -> Any:
    """An option whose flag takes no value and means true."""
    return dataclasses.field(default=False, metadata={"switch": True})


@dataclasses.dataclass(frozen=True)
class Argument:
    """One option of a command.

    Attributes:
        flag: `--data` for example, or the name of a positional argument.
        field: its type, default and help.
        required: whether it must be given, on the command line or in a file.
        switch: whether the flag takes no value and means true.
        positional: whether it is given without a flag.
    """

    flag: str
    field: Field
    required: bool = False
    switch: bool = False
    positional: bool = False

    @property
    def name(self) -> str:
        """The name in usage lines and errors: `--data`, or `DATA` if it is given without a flag."""
        return self.flag.upper() if self.positional else self.flag


class Presets(Protocol):
    """The presets of a command; see `wsss.presets`."""

    def choose(self, given: Mapping[str, Any], configured: bool) -> tuple[str | None, str]:
        """The preset that a command line asks for or that suits this computer, and why; None if there is none.

        Args:
            given: the options and settings given.
            configured: whether a settings file is given.
        """

    def settings(self, name: str, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The settings of a preset, nested like those of a run; `given` are those that override them."""


@dataclasses.dataclass(frozen=True)
class DeclaredSettings:
    """The settings of a command, as mirrors of the real dataclasses (see `wsss.declared`).

    Attributes:
        below: sections of settings, by the name with which their flags begin.
        top: settings whose fields are flags without a prefix; None if there are none.
        stage: the section of a run's YAML that applies to this command; empty for a command with several stages.
        others: function that gives the names of all sections in such files.
        unused: function that gives the names of a run's options, which such files may hold; those that the command lacks are left out.
        presets: the presets of the command, if it has any.
    """

    below: Mapping[str, Field] = dataclasses.field(default_factory=dict)
    top: Any = None
    stage: str = ""
    others: Callable[[], Collection[str]] = tuple
    unused: Callable[[], Collection[str]] = tuple
    presets: Presets | None = None


@dataclasses.dataclass(frozen=True)
class ParsedSettings:
    """The settings given on a command line and in its files.

    Attributes:
        mirrors: mirrors of the settings by section; `""` for settings without a section.
        where: maps the keys of a setting to the name under which it was given.
        preset: the preset that they are put over, None if there is none.
        why: why this preset was chosen.
        given: the settings given in files and flags, without the options of the command.
    """

    mirrors: Mapping[str, Any]
    where: Callable[[Keys], str] = dotted
    preset: str | None = None
    why: str = ""
    given: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def build(self, name: str = "") -> Any:
        """The real settings of a section; imports their module, and their checks run.

        Raises:
            BadInput: a value fails their checks.
        """
        return settings.from_mirror(self.mirrors[name], (name,) if name else (), self.where)


class _Given(NamedTuple):
    """The values given in files and flags, whether they are only to be printed, and whether there are files."""

    layer: Layer
    printed: bool
    configured: bool


class Parser(Generic[Options]):
    """The parser of a command's arguments.

    Flags are the dotted names of settings; the value of a flag is YAML, and plain text needs no quotes. `--config FILE` reads
    settings from a file; later files override earlier ones, and flags override all files.

    Args:
        command: name of the command.
        about: one sentence for the help page.
        options: dataclass of the options; the string below each field is its help text.
        chosen: the settings.
        often: options and dotted settings that the short help page lists.
        has_config: whether `--config` and `--print_config` exist.
    """

    def __init__(
        self,
        command: str,
        about: str,
        options: type[Options],
        chosen: DeclaredSettings | None = None,
        often: Sequence[str] = (),
        has_config: bool = True,
    ) -> None:
        self.command, self.about, self.options, self.often = command, about, options, often
        self.settings, self.has_config = chosen or DeclaredSettings(), has_config
        self.arguments: dict[str, Argument] = {}
        known = settings.fields(declared.read(options.__module__, options.__qualname__))
        for field in dataclasses.fields(options):  # type: ignore[arg-type]
            positional = field.metadata.get("positional", False)
            flag = field.name if positional else f"--{field.name.replace('_', '-')}"
            self.arguments[field.name] = Argument(
                flag,
                dataclasses.replace(known[field.name], path=True),
                field.metadata.get("required", False),
                field.metadata.get("switch", False),
                positional,
            )

    @functools.cached_property
    def table(self) -> dict[str, Field]:
        """All options, settings without a section, and sections, by key."""
        top = self.settings.top
        unprefixed = {
            key: dataclasses.replace(field, default=getattr(top, key))
            for key, field in (settings.fields(type(top)).items() if top is not None else ())
        }
        return (
            {key: argument.field for key, argument in self.arguments.items()} | unprefixed | dict(self.settings.below)
        )

    def parse(self, words: Sequence[str]) -> tuple[Options, ParsedSettings]:
        """The options and the settings of a command line.

        `--help`, `--help-all` and `--print_config` print and exit.

        Raises:
            BadInput: an unknown or missing argument, or a value of the wrong type.
        """
        if "-h" in words or "--help" in words:
            print(self.help(), end="")
            sys.exit(0)
        if "--help-all" in words:
            print(self.help_all(self._given(words[: words.index("--help-all")]).layer.content), end="")
            sys.exit(0)
        given, printed, configured = self._given(words)
        typed = settings.values(self.table, None, given.content, (), given.where)
        missing = [argument for key, argument in self.arguments.items() if argument.required and typed.get(key) is None]
        if missing and not printed:
            names = ", ".join(argument.name for argument in missing)
            do = "Give it." if len(missing) == 1 else "Give them."
            raise BadInput(f"wsss {self.command}", f"no {names}", missing[0].field.help, do)
        preset, why = None, ""
        if self.settings.presets is not None:
            preset, why = self.settings.presets.choose(typed, configured)
        if self.settings.presets is not None and preset is not None:
            below = Layer(self.table)
            self._add_document(below, f"preset {preset}", self.settings.presets.settings(preset, given.content))
            both = given.over(below)
            typed = settings.values(self.table, None, both.content, (), both.where) | {"preset": preset}
        everything = {key: field.default for key, field in self.table.items()} | typed
        if printed:
            absent = {_key(argument.flag) for argument in missing}
            print(
                dump(settings.to_plain({key: value for key, value in everything.items() if key not in absent})), end=""
            )
            sys.exit(0)
        mirrors = {name: everything[name] for name in self.settings.below}
        if self.settings.top is not None:
            top = {key: everything[key] for key in settings.fields(type(self.settings.top))}
            mirrors[""] = dataclasses.replace(self.settings.top, **top)
        options = self.options(**{key: everything[key] for key in self.arguments})
        own = {key: value for key, value in given.content.items() if key not in self.arguments}
        return options, ParsedSettings(mirrors, given.where, preset, why, own)

    def _given(self, words: Sequence[str]) -> "_Given":
        flags: list[tuple[Keys, str, str | None]] = []
        positional: list[str] = []
        files: list[str] = []
        printed = False
        rest = list(words)
        while rest:
            word = rest.pop(0)
            if word == "--":
                positional += rest
                break
            if not word.startswith("-") or word == "-":
                positional.append(word)
                continue
            flag, equals, text = word.partition("=")
            if self.has_config and flag == f"--{PRINT}":
                if equals:
                    raise BadInput(flag, "a value", "no value", "Remove the value.")
                printed = True
                continue
            keys = self._keys(flag)
            if keys[0] != CONFIG and len(keys) == 1 and self._is_switch(keys[0]) and not equals:
                flags.append((keys, flag, None))
                continue
            if not equals:
                if not rest or rest[0].startswith("--"):
                    raise BadInput(
                        flag, "no value", "a value after it", "Give one, as in --name VALUE or --name=VALUE."
                    )
                text = rest.pop(0)
            if keys == (CONFIG,):
                files.append(text)
            else:
                flags.append((keys, flag, text))
        given = Layer(self.table)
        for file in files:
            given = self._in_document(file).over(given)
        last = Layer(self.table)
        for keys, flag, value in flags:
            self._add_flag(last, keys, flag, value)
        self._add_positional(positional, last)
        return _Given(last.over(given), printed, bool(files))

    def _in_document(self, file: str) -> Layer:
        place, content = _read_config(file)
        given = Layer(self.table)
        self._add_document(given, place, content)
        return given

    def _add_document(self, given: Layer, place: str, content: Mapping[str, Any]) -> None:
        """Add the values in a file; from the file of a whole run, only the section of this stage and the options of this command."""
        stage = self.settings.stage
        section = content.get(stage, {})
        others = self.settings.others()
        if stage not in content and not any(key in others and key not in self.table for key in content):
            given.add((), content, partial(in_file, place))
            return
        unused = {*self.settings.unused()} - {*self.table}
        rest = {key: value for key, value in content.items() if key not in others and key not in unused}
        given.add((), rest, partial(in_file, place))
        if stage in self.table:
            given.add((stage,), section, partial(in_file, place))
        elif isinstance(section, Mapping):
            given.add((), section, lambda keys: in_file(place, (stage, *keys)))
        else:
            raise BadInput(in_file(place, (stage,)), settings.describe(section), "settings", "Correct it.")

    def _keys(self, flag: str) -> Keys:
        """The keys that a flag stands for.

        Raises:
            BadInput: there is no such flag.
        """
        first, *others = flag.removeprefix("--").split(".")
        keys = (_key(first), *others)
        if len(keys) > DEEPEST:
            raise BadInput(f"--{first}", f"{len(keys)} names in one flag", f"at most {DEEPEST}", "Correct it.")
        for key in keys:
            settings.check_no_code(key, flag)
        if keys == (CONFIG,) and self.has_config:
            return keys
        stage = self.settings.stage
        if keys[0] not in self.table and any(keys[0] in settings.fields(one) for one in self._sections(stage)):
            keys = (stage, *keys)  # the settings of a command with a single section
        argument = self.arguments.get(keys[0])
        if not flag.startswith("--") or keys[0] not in self.table or (argument is not None and argument.positional):
            raise NoSuchName(flag, "flag", self._suggestion(keys))
        for n, key in enumerate(keys[1:], start=1):
            kinds = self._kinds(keys[:n])
            if dict in kinds:
                break
            known = [name for section in settings.sections_among(kinds) for name in settings.fields(section)]
            settings.check_known(key, known, f"--{dotted(keys[: n + 1])}")
        return keys

    def _sections(self, stage: str) -> tuple[type, ...]:
        return settings.sections(self.table[stage].kind) if stage in self.table else ()

    def _suggestion(self, keys: Keys) -> str:
        flags = [argument.flag for argument in self.arguments.values() if not argument.positional]
        flags += [f"--{name}" for name in self.table if name not in self.arguments]
        flags += [f"--{CONFIG}", f"--{PRINT}"] if self.has_config else []
        flags += ["--help", "--help-all"]
        # compared without dashes, which all flags have in common
        bare = nearest(keys[0], [flag.removeprefix("--") for flag in flags])
        near = f"--{bare}" if bare else ""
        leaves = [leaf for leaf, _ in self._leaves({})]
        if near and len(keys) > 1:
            near = nearest(f"{near}.{dotted(keys[1:])}", [f"--{dotted(leaf)}" for leaf in leaves], 0.8) or near
        if not near:  # the last name of a setting
            near = next((f"--{dotted(leaf)}" for leaf in leaves if leaf[-1] == keys[0]), "")
        return f"{f'Did you mean {near}? ' if near else ''}`wsss {self.command} --help` lists them."

    def _is_switch(self, key: str) -> bool:
        return key in self.arguments and self.arguments[key].switch

    def _kinds(self, keys: Keys) -> tuple[Any, ...]:
        """The types that a setting may have; `object` inside plain values."""
        kinds = settings.members(self.table[keys[0]].kind)
        for key in keys[1:]:
            known = settings.sections_among(kinds)
            if not known:
                return (object,)
            tables = [settings.fields(section) for section in known]
            found = [kind for table in tables if key in table for kind in settings.members(table[key].kind)]
            kinds = tuple(dict.fromkeys(found))
        return kinds

    def _add_flag(self, given: Layer, keys: Keys, flag: str, text: str | None) -> None:
        named = partial(_in_flag, flag, len(keys))
        kinds = self._kinds(keys)
        if text is None:
            given.add(keys, True, named)
        elif settings.is_verbatim(kinds):
            given.add(keys, None if text == "null" and type(None) in kinds else text, named)
        else:
            expected = settings.expected(*kinds)
            value = parse(text, expected, partial(_in_flag, flag, 0))
            if settings.is_list(kinds) and isinstance(value, str | int | float):  # `0.5,1` without brackets
                value = parse(f"[{text}]", expected, partial(_in_flag, flag, 0))
            # the settings of a section may be given as a file
            is_word = text in settings.words_among(kinds)
            if settings.sections_among(kinds) and value == text and not is_word and is_regular(text):
                value = read_document(Path(text), expected)
                named = partial(_in_part, text, len(keys))
            given.add(keys, value, named)

    def _add_positional(self, words: list[str], given: Layer) -> None:
        for key, argument in self.arguments.items():
            if argument.positional and words:
                many = get_origin(argument.field.kind) is list
                taken = list(words) if many else words[0]
                del words[: None if many else 1]
                given.add((key,), taken, partial(_in_flag, argument.flag, 1))
        if words:
            raise BadInput(
                repr(words[0]), "an extra argument", f"the arguments in `wsss {self.command} --help`", "Remove it."
            )

    def _leaves(self, content: Mapping[str, Any]) -> Iterator[tuple[Keys, Field]]:
        """All single settings, for the chosen kinds, with the keys that lead to them."""
        chosen = settings.values(self.table, None, _only_kinds(content), (), dotted)
        for key, field in self.table.items():
            if key not in self.arguments:
                yield from _expand((key,), dataclasses.replace(field, default=chosen.get(key, field.default)))

    def help(self) -> str:
        """The short help page: the options, and the most common settings."""
        leaves = {dotted(keys): field for keys, field in self._leaves({})}
        shown = [argument for key, argument in self.arguments.items() if argument.required or key in self.often]
        common = [(name, leaves[name]) for name in self.often if name in leaves]
        page = self._head(shown)
        if common:
            page += ["", "common settings:"]
            brief = [(name, dataclasses.replace(field, help=field.help.partition(";")[0])) for name, field in common]
            page += [line for name, field in brief for line in _help_entry(f"--{name}", field)]
        if rest := len(leaves) - len(common) + len(self.arguments) - len(shown):
            choices = [name for name, field in self.settings.below.items() if len(settings.kinds(field.kind)) > 1]
            after = f"; with --{choices[0]} KIND, those of that kind" if choices else ""
            page += ["", *_wrap(f"`wsss {self.command} --help-all` lists {rest} more{after}.")]
        return "\n".join(page) + "\n"

    def help_all(self, content: Mapping[str, Any]) -> str:
        """The long help page.

        Args:
            content: values given so far; the settings of the kinds that they choose are listed.
        """
        page, before = self._head(list(self.arguments.values())), None
        for keys, field in self._leaves(content):
            if keys[:-1] != before:
                before = keys[:-1]
                page += ["", f"{dotted(before) or 'settings'}:"]
            page += _help_entry(f"--{dotted(keys)}", field)
        return "\n".join(page) + "\n"

    def _head(self, arguments: Sequence[Argument]) -> list[str]:
        """The usage line, and the options."""
        needed = []
        for argument in self.arguments.values():
            if argument.positional:
                name = f"{argument.name}{' ...' if get_origin(argument.field.kind) is list else ''}"
                needed.append(name if argument.required else f"[{name}]")
            elif argument.required:
                needed.append(f"{argument.flag} {_metavar(argument.flag)}")
        usage = " ".join(
            ["usage: wsss", self.command, *needed, *(["[--SETTING VALUE ...]"] if self.has_config else [])]
        )
        page = [*_wrap(usage, after="    "), "", *_wrap(self.about), ""]
        for argument in sorted(arguments, key=lambda one: (not one.positional, not one.required)):
            if argument.positional or argument.switch:
                page += _entry(argument.flag, argument.field.help)
            else:
                page += _help_entry(argument.flag, argument.field, argument.required)
        if self.has_config:
            page += _entry(f"--{CONFIG} FILE", "a YAML file with settings; flags override it")
            page += _entry(f"--{PRINT}", "print all settings as YAML and exit")
        return page


def _expand(keys: Keys, field: Field) -> Iterator[tuple[Keys, Field]]:
    default = field.default
    known = settings.sections(field.kind)
    choices = settings.kinds(field.kind)
    if not known or (len(settings.members(field.kind)) > 1 and not choices):
        yield keys, field
    elif len(choices) > 1:
        yield keys, dataclasses.replace(field, default=settings.tag(type(default)))
    section = type(default) if isinstance(default, known) else next(iter(known), None)
    if section is not None:
        start = default if isinstance(default, section) else section()
        parts = []
        for name, inner in settings.fields(section).items():
            if name == KIND and len(choices) > 1:
                continue
            one = (*keys, name), dataclasses.replace(inner, default=getattr(start, name))
            if settings.sections(inner.kind):
                parts.append(one)
            else:
                yield one
        for part in parts:
            yield from _expand(*part)


def _only_kinds(content: Any) -> Any:
    """Nested values, reduced to the kinds that they choose."""
    if not isinstance(content, Mapping):
        return content
    found = {key: _only_kinds(value) for key, value in content.items() if isinstance(value, Mapping) or key == KIND}
    return {key: value for key, value in found.items() if value}


def _help_entry(flag: str, field: Field, required: bool = False) -> list[str]:
    """The help of a flag with a value: its meaning, type and default."""
    kinds = [kind for kind in settings.members(field.kind) if kind is not type(None) or field.default is not None]
    words = settings.words_among(kinds) if len(settings.words_among(kinds)) >= len(kinds) else ()
    notes = ["required"] if required else []
    # a default that is not null shows the type already
    if not words and (len(kinds) > 1 or (kinds[0] not in (Path, str) and (required or field.default is None))):
        notes.append(settings.expected(*kinds))
    if not required and (field.default is not None or len(kinds) > 1):
        notes.append(f"default: {_written(settings.to_plain(field.default)) if _is_short(field) else '...'}")
    metavar = "{" + ",".join(words) + "}" if words else _metavar(flag)
    return _entry(f"{flag} {metavar}", f"{field.help} ({'; '.join(notes)})" if notes else field.help)


def _entry(flag: str, about: str, column: int = 20) -> list[str]:
    """A flag and its help, on one line if there is room for both."""
    lines = _wrap(about, " " * column, " " * column)
    if len(flag) + 4 > column or not lines:
        return [f"  {flag}", *lines]
    return [f"  {flag:<{column - 2}}{lines[0].lstrip()}", *lines[1:]]


def _wrap(text: str, first: str = "", after: str = "") -> list[str]:
    width = min(_WIDEST, max(_NARROWEST, shutil.get_terminal_size().columns))
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=after, break_long_words=False, break_on_hyphens=False
    )


def _is_short(field: Field) -> bool:
    return not dataclasses.is_dataclass(field.default) and len(repr(field.default)) < 200


def _written(value: object) -> str:
    """A plain value as one line of YAML."""
    return f"[{', '.join(map(_written, value))}]" if isinstance(value, list) else dump([value])[2:].strip()


def _metavar(flag: str) -> str:
    return _key(flag.rpartition(".")[2]).upper()


def _key(name: str) -> str:
    return name.lstrip("-").replace("-", "_")


def _in_flag(flag: str, depth: int, keys: Keys) -> str:
    return dotted((flag, *keys[depth:]))


def _in_part(path: str, depth: int, keys: Keys) -> str:
    return in_file(path, keys[depth:])


def _read_config(given: str) -> tuple[str, Mapping[str, Any]]:
    """The name and content of a config file; YAML text, or the name of a file in the package, may be given in place of a file."""
    inline = "\n" in given or ": " in given or given.startswith("{")
    place = f"--{CONFIG}" if inline or not given else given
    if inline:
        content = parse(given, _DOCUMENT, partial(in_file, place))
    else:
        content = read_document(_config_file(given), _DOCUMENT) if given else None
    if not isinstance(content, dict):
        found = "no settings" if content is None else settings.describe(content)
        raise BadInput(place, found, _DOCUMENT, "Write settings into it, or omit --config.")
    return place, content


def _config_file(given: str) -> Path:
    """A config file, from its path or from the name of a file that comes with the package.

    Raises:
        BadInput: there is no such file.
    """
    packaged = {path.stem: path for path in sorted(CONFIGS.glob("*.yaml"))}
    name = given.removesuffix(".yaml")
    if os.path.lexists(given) or "/" in given:
        return Path(given)
    if name in packaged:
        return packaged[name]
    near = nearest(name, packaged)
    do = f"Did you mean {near}?" if near else f"Check the path, or choose one of {', '.join(packaged)}."
    raise BadInput(given, "no such file", _DOCUMENT, do)
