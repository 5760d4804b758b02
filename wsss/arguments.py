"""The words of a command line, and the YAML files that they name, as settings; help pages; settings printed as YAML."""

import argparse
import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_origin

from wsss import settings
from wsss.data.documents import DEEPEST, Keys, dotted, dump, in_file, parse, read_document
from wsss.errors import BadInput, is_regular, suggestion
from wsss.settings import Field, Given

CONFIG, PRINT = "config", "print_config"
_DOCUMENT = "YAML with settings (`name: value`)"


@dataclasses.dataclass(frozen=True)
class Argument:
    """What a command line may hold, apart from settings.

    Attributes:
        flag: `--data`, or the name of a positional one.
        field: its type and default.
        help: one line.
        required: whether it must be given, here or in a file.
        switch: whether the flag stands alone and means true.
    """

    flag: str
    field: Field
    help: str
    required: bool
    switch: bool

    @property
    def is_positional(self) -> bool:
        """Whether no flag stands before it."""
        return not self.flag.startswith("-")


class Parser:
    """The arguments of a command.

    Flags are the dotted names of settings; a flag's value is YAML, and a text stands for itself. `--config FILE` takes them
    from a file; of several files the later ones count, and flags count over all files.
    """

    def __init__(self, command: str, about: str) -> None:
        self.command, self.about = command, about
        self.arguments: dict[str, Argument] = {}
        self.sections: dict[str, type] = {}
        # the settings whose fields are flags themselves
        self.top: type | None = None
        self.has_config = False

    def add_argument(
        self,
        flag: str,
        *,
        type: Any = str,
        default: Any = None,
        required: bool = False,
        switch: bool = False,
        help: str,
    ) -> None:
        """Declare a flag, or a positional argument, which is required, if it begins without dashes.

        Args:
            flag: `--name`; a dash within it is a low line in YAML files.
            type: of its value, as a setting's; null too where it is neither required nor has a default.
            default: where it is not given.
            required: whether it must be given.
            switch: whether it has no value, and means true.
            help: one line.
        """
        needed = required or not flag.startswith("-")
        if switch:
            type, default = bool, False
        kind = type if needed or default is not None else type | None
        self.arguments[_key(flag.lstrip("-"))] = Argument(flag, Field(kind, default, path=True), help, needed, switch)

    def add_config(self) -> None:
        """Let settings come from YAML files, and print them."""
        self.has_config = True

    def add_settings(self, kind: type, name: str | None = None) -> None:
        """Declare settings, below a name or else at the top."""
        if name is None:
            self.top = kind
        else:
            self.sections[name] = kind

    @functools.cached_property
    def table(self) -> dict[str, Field]:
        """All settings at the top by their keys, once they are declared."""
        return (
            {key: argument.field for key, argument in self.arguments.items()}
            | (dict(settings.fields(self.top)) if self.top else {})
            | {name: Field(kind, kind()) for name, kind in self.sections.items()}
        )

    def parse(self, words: Sequence[str]) -> SimpleNamespace:
        """The values of all arguments by their keys; `chosen` has the settings at the top, `where` names what is given.

        `--help` and `--print_config` print and exit.

        Raises:
            BadInput: an unknown or missing argument, or a value that does not fit.
        """
        if "-h" in words or "--help" in words:
            print(self.help(), end="")
            sys.exit(0)
        given, printed = self._given(words)
        table = self.table
        typed = settings.values(table, None, given.content, (), given.where)
        missing = [argument for key, argument in self.arguments.items() if argument.required and typed.get(key) is None]
        if missing and not printed:
            names = ", ".join(argument.flag for argument in missing)
            raise BadInput(names, "nothing", missing[0].help, "Give it.")
        everything = {key: field.default for key, field in table.items()} | typed
        chosen = None
        if self.top:
            own = {key: value for key, value in typed.items() if key in settings.fields(self.top)}
            chosen = settings.replaced(self.top(), own, (), given.where)
        if printed:
            absent = {_key(argument.flag.lstrip("-")) for argument in missing}
            print(dump(settings.shown({key: value for key, value in everything.items() if key not in absent})), end="")
            sys.exit(0)
        return SimpleNamespace(**everything, chosen=chosen, where=given.where)

    def _given(self, words: Sequence[str]) -> tuple[Given, bool]:
        """What files and flags hold, and whether it is to be printed only."""
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
                    raise BadInput(flag, "a value", "the flag alone", "Remove the value.")
                printed = True
                continue
            keys = self._keys(flag)
            if keys[0] != CONFIG and len(keys) == 1 and self._is_switch(keys[0]) and not equals:
                flags.append((keys, flag, None))
                continue
            if not equals:
                if not rest or rest[0].startswith("--"):
                    raise BadInput(flag, "no value", "one after it", "Give it, as in --name VALUE or --name=VALUE.")
                text = rest.pop(0)
            if keys == (CONFIG,):
                files.append(text)
            else:
                flags.append((keys, flag, text))
        given = Given()
        for file in files:
            place, content = _document(file)
            given.add((), content, partial(in_file, place))
        for keys, flag, value in flags:
            self._add_flag(given, keys, flag, value)
        self._add_positional(positional, given)
        return given, printed

    def _keys(self, flag: str) -> Keys:
        """The keys that a flag stands for.

        Raises:
            BadInput: there is no such flag.
        """
        first, *others = flag.removeprefix("--").split(".")
        known = [argument.flag for argument in self.arguments.values() if not argument.is_positional]
        known += [f"--{key}" for key in self.table if key not in self.arguments]
        known += [f"--{CONFIG}", f"--{PRINT}"] if self.has_config else []
        keys = (_key(first), *others)
        if len(keys) > DEEPEST:
            raise BadInput(f"--{first}", f"{len(keys)} names in one flag", f"at most {DEEPEST}", "Correct it.")
        if not flag.startswith("--"):
            raise BadInput(flag, "a word with a dash in front", "a flag (--name) or a value", _meant(flag, known))
        for n in range(1, len(keys)):
            settings.check_no_code(keys[n], flag)
        if keys == (CONFIG,) and self.has_config:
            return keys
        argument = self.arguments.get(keys[0])
        if keys[0] not in self.table or (argument is not None and argument.is_positional):
            settings.check_no_code(keys[0], flag)
            raise BadInput(flag, "no such flag", f"one of {', '.join(known) or 'none'}", _meant(f"--{first}", known))
        kind = self.table[keys[0]].kind
        for key in others:
            if dict in settings.members(kind):
                break
            section = settings.section_of(kind)
            table: Mapping[str, Field] = settings.fields(section) if section else {}
            settings.check_known(key, table, flag)
            kind = table[key].kind
        return keys

    def _is_switch(self, key: str) -> bool:
        return key in self.arguments and self.arguments[key].switch

    def _kind(self, keys: Keys) -> Any:
        """The type of a setting; object inside plain values."""
        kind = self.table[keys[0]].kind
        for key in keys[1:]:
            section = settings.section_of(kind)
            if section is None:
                return object
            kind = settings.fields(section)[key].kind
        return kind

    def _add_flag(self, given: Given, keys: Keys, flag: str, text: str | None) -> None:
        named = partial(_in_flag, flag, len(keys))
        kind = self._kind(keys)
        if text is None:
            given.add(keys, True, named)
        elif settings.is_verbatim(kind):
            given.add(keys, None if text == "null" and type(None) in settings.members(kind) else text, named)
        else:
            expected = settings.expected(*settings.members(kind))
            value = parse(text, expected, partial(_in_flag, flag, 0))
            # a part's settings may stand in a file of their own
            if settings.section_of(kind) and value == text and text not in settings.words(kind) and is_regular(text):
                value = read_document(Path(text), expected)
                named = partial(_in_part, text, len(keys))
            given.add(keys, value, named)

    def _add_positional(self, words: list[str], given: Given) -> None:
        for key, argument in self.arguments.items():
            if argument.is_positional and words:
                many = get_origin(argument.field.kind) is list
                taken = list(words) if many else words[0]
                del words[: None if many else 1]
                given.add((key,), taken, partial(_in_flag, argument.flag, 1))
        if words:
            raise BadInput(repr(words[0]), "a word too many", f"what `wsss {self.command} --help` shows", "Remove it.")

    def help(self) -> str:
        """The help page."""
        flags = [argument for argument in self.arguments.values() if not argument.is_positional]
        needed = [f"{argument.flag} {_metavar(argument.flag)}" for argument in flags if argument.required]
        positional = [
            f"{argument.flag.upper()}{' ...' if get_origin(argument.field.kind) is list else ''}"
            for argument in self.arguments.values()
            if argument.is_positional
        ]
        usage = " ".join(["wsss", self.command, *positional, *needed, "[--SETTING VALUE ...]"])
        page = argparse.ArgumentParser(usage=usage, description=_escaped(self.about), add_help=False)
        places = page.add_argument_group("arguments") if positional else page
        for argument in self.arguments.values():
            if argument.is_positional:
                places.add_argument(argument.flag, help=_escaped(argument.help))
        page.add_argument("-h", "--help", action="store_true", help="this page")
        if self.has_config:
            page.add_argument(f"--{CONFIG}", metavar="FILE", help="a YAML file with settings; flags count over it")
            page.add_argument(f"--{PRINT}", action="store_true", help="write all settings as YAML, and do nothing else")
        for argument in flags:
            if argument.switch:
                page.add_argument(argument.flag, action="store_true", help=_escaped(argument.help))
            elif argument.required:
                page.add_argument(
                    argument.flag, metavar=_metavar(argument.flag), help=_escaped(f"{argument.help} (required)")
                )
            else:
                _explain(page, argument.flag, argument.field, argument.help)
        if self.top:
            _explain_section(page.add_argument_group("settings", _title(self.top)), page, (), self.top, None)
        for name, kind in self.sections.items():
            _explain_section(page.add_argument_group(name, _title(kind)), page, (name,), kind, None)
        return page.format_help()


def _explain_section(group: Any, page: argparse.ArgumentParser, keys: Keys, kind: type, base: Any) -> None:
    helps, parts = settings.helps(kind), []
    for name, field in settings.fields(kind).items():
        default = getattr(base, name, field.default)
        section = settings.section_of(field.kind)
        if section is not None:
            parts.append((name, section, default))
        if section is None or len(settings.members(field.kind)) > 1:
            flag = f"--{dotted((*keys, name))}"
            _explain(group, flag, dataclasses.replace(field, default=default), helps.get(name, ""))
    for name, section, default in parts:
        inner = (*keys, name)
        below = page.add_argument_group(dotted(inner), _escaped(helps.get(name, "")))
        _explain_section(below, page, inner, section, default if isinstance(default, section) else None)


def _explain(group: Any, flag: str, field: Field, about: str) -> None:
    kinds = [kind for kind in settings.members(field.kind) if kind is not type(None) or field.default is not None]
    words = settings.words(kinds[0]) if len(kinds) == 1 else ()
    alone = words or (len(kinds) == 1 and kinds[0] in (Path, str))
    notes = [] if alone else [settings.expected(*kinds)]
    if field.default is not None or len(kinds) > 1:
        notes.append(f"default: {dump([settings.shown(field.default)])[2:].strip() if _is_short(field) else '...'}")
    metavar = "{" + ",".join(words) + "}" if words else _metavar(flag)
    group.add_argument(flag, metavar=metavar, help=_escaped(f"{about} ({'; '.join(notes)})" if notes else about))


def _is_short(field: Field) -> bool:
    return not dataclasses.is_dataclass(field.default) and len(repr(field.default)) < 200


def _title(kind: type) -> str:
    return _escaped((kind.__doc__ or "").splitlines()[0])


def _metavar(flag: str) -> str:
    return _key(flag.rpartition(".")[2].lstrip("-")).upper()


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def _key(name: str) -> str:
    return name.replace("-", "_")


def _meant(flag: str, known: Sequence[str]) -> str:
    return f"{suggestion(flag, known)}Correct or remove it."


def _in_flag(flag: str, depth: int, keys: Keys) -> str:
    return dotted((flag, *keys[depth:]))


def _in_part(path: str, depth: int, keys: Keys) -> str:
    return in_file(path, keys[depth:])


def _document(given: str) -> tuple[str, Mapping[str, Any]]:
    """A file's name and what it holds; a text with settings may stand in the place of a file."""
    inline = "\n" in given or ": " in given or given.startswith("{")
    place = f"--{CONFIG}" if inline or not given else given
    if inline:
        content = parse(given, _DOCUMENT, partial(in_file, place))
    else:
        content = read_document(Path(given), _DOCUMENT) if given else None
    if not isinstance(content, dict):
        found = "no settings" if content is None else settings.described(content)
        raise BadInput(place, found, _DOCUMENT, "Write the settings into it, or leave --config out.")
    return place, content
