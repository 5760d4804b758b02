"""Presets: settings that suit a computer, for every method.

A preset is a file in `wsss/configs/presets` with up to five sections: `common` has settings that apply wherever a method has a setting
of that name, as those of `wsss run all` do (`registry.places`); `bfloat16` has precisions, for processors that compute it natively;
`kinds` has settings of a refiner or segmenter, by its kind; `methods` has settings of single methods, and `variants` those of variants
of a method that are not its default. Settings files and flags override a preset. Nothing here imports torch, unless a GPU is found.
"""

import ctypes
import dataclasses
import functools
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from wsss import registry
from wsss.configs import CONFIGS
from wsss.data.documents import Keys, dotted, read_document
from wsss.errors import is_regular
from wsss.processor import has_native
from wsss.settings import KIND, Field, Layer, fields, kinds, section_of, tag

NAMES = ("quick", "small-cpu", "gpu", "paper")
FOLDER = CONFIGS / "presets"


# a kind of segmenter that goes on from a file (`init`), and what that file says about it
_WITH_FILE, _IN_FILE = "frozen", ("features", "network")
# of a run folder: the preset, and the settings given over it
RECORDED = "settings.yaml"


@dataclasses.dataclass(frozen=True)
class MethodPresets:
    """The presets of a command.

    Attributes:
        method: the method; None for a stage that all methods share.
        several: whether the command has runs of several methods, which apply the preset themselves.
    """

    method: str | None = None
    several: bool = False

    def choose(self, given: Mapping[str, Any], configured: bool) -> tuple[str | None, str]:
        """The preset and the reason: as asked for, none with a settings file, as in the run folder, or for this computer."""
        if given.get("preset") is not None:
            return str(given["preset"]), "as asked for"
        if configured:
            return None, "a settings file is given"
        if (before := recorded(given.get("out"))) is not None:
            return before, "the run began with it"
        device = str(given.get("device", "auto"))
        name = automatic(device)
        return (
            name,
            "a CUDA device" if name == "gpu" else "no CUDA device" if device == "auto" else f"--device {device}",
        )

    def settings(self, name: str, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `settings`."""
        return {} if self.several else settings(name, self.method, given)


def recorded(out: Path | None) -> str | None:
    """The preset that a run folder was begun with, if it says so."""
    name = (_recorded_settings(out) or {}).get("preset")
    return name if name in NAMES else None


def to_record(given: Mapping[str, Any], name: str | None, method: str, mirrors: Mapping[str, Any]) -> dict[str, Any]:
    """What a run folder remembers: the settings given over a preset, its name, and the precisions that it chose for this processor.

    Args:
        given: the settings given in files and flags.
        name: the preset, if there is one.
        method: the method.
        mirrors: mirrors of all settings by section.
    """
    recorded = Layer(_table(method))
    if name is not None:
        for keys, _ in _precisions(read(name), _table(method)):
            found = functools.reduce(lambda part, key: getattr(part, key, None), keys[1:], mirrors[keys[0]])
            if found is not None:  # this kind of segmenter has it
                recorded.add(keys, found, dotted)
    for key, value in given.items():
        if key in recorded.content:
            recorded.add((key,), value, dotted)
    return {**given, **recorded.content, "preset": name}


def _recorded_settings(out: Path | None) -> dict[str, Any] | None:
    file = None if out is None else out / RECORDED
    if file is None or not is_regular(file):
        return None
    content = read_document(file, "the settings of a run")
    return content if isinstance(content, dict) else None


def automatic(device: str = "auto") -> str:
    """The preset for this computer: `gpu` if CUDA is available and not excluded by `--device`, otherwise `small-cpu`."""
    return "gpu" if device in ("auto", "cuda") and _has_cuda() else "small-cpu"


def _has_cuda() -> bool:
    """Whether torch can use a CUDA device; torch is imported only if the driver finds one."""
    if sys.platform == "linux":
        try:
            driver, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(0)
            if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
                return False
        except (OSError, AttributeError):
            return False
    import torch

    return torch.cuda.is_available()


def settings(name: str, method: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a preset, nested like those of a run.

    Args:
        name: one of `NAMES`.
        method: the method, or None for the sections that all methods share.
        given: settings that override the preset. They decide which refiner and segmenter it is applied to.
    """
    table, content = _table(method), read(name)
    common, of_method = content.get("common", {}), content.get("methods", {}).get(method, {})
    chosen = {
        key: _kind(field, *(source.get(key) for source in (given, of_method, common))) for key, field in table.items()
    }
    found = Layer(table)
    for key, value in common.items():
        for keys in registry.places(key, table):
            _add(found, table[keys[0]], keys, value, chosen)
    for keys, value in _for_processor(content, table, given):
        _add(found, table[keys[0]], keys, value, chosen)
    for key, field in table.items():
        if (kind := chosen[key]) is not None:
            of_kind = content.get("kinds", {}).get(kind, {})
            if kind == _WITH_FILE and _inside(given.get(key), "init") is not None:
                of_kind = {name: value for name, value in of_kind.items() if name not in _IN_FILE}
            _add(found, field, (key,), of_kind, chosen)
    # a run has the variant in a section, a single training at the top
    variant = _inside(given.get("classifier", given), "variant")
    of_variant = content.get("variants", {}).get(method, {}).get(variant, {})
    for key, value in (*of_method.items(), *of_variant.items()):
        _add(found, table[key], (key,), value, chosen)
    return found.content


@functools.cache
def read(name: str) -> dict[str, Any]:
    """The content of a preset's file."""
    content = read_document(path(name), "a preset")
    assert isinstance(content, dict)
    return content


def path(name: str) -> Path:
    """The file of a preset."""
    return FOLDER / f"{name}.yaml"


def _precisions(content: Mapping[str, Any], table: Mapping[str, Field]) -> list[tuple[Keys, str]]:
    """The settings under `bfloat16` of a preset, at all places where a method has them."""
    return [
        ((*keys, *inner), value)
        for key, part in content.get("bfloat16", {}).items()
        for keys in registry.places(key, table)
        for inner, value in _leaves(part)
    ]


def _for_processor(
    content: Mapping[str, Any], table: Mapping[str, Field], given: Mapping[str, Any]
) -> list[tuple[Keys, str]]:
    """The precisions of a preset for this processor, or for the one that the run was begun on."""
    possible = _precisions(content, table)
    before = _recorded_settings(Path(given["out"])) if given.get("out") is not None else None
    if before is None:
        return possible if has_native("bf16") else []
    found: list[Any] = [functools.reduce(_inside, keys, before) for keys, _ in possible]
    return [(keys, value or "no") for (keys, _), value in zip(possible, found, strict=True)]


def _leaves(part: Mapping[str, Any]) -> Iterator[tuple[Keys, str]]:
    for key, value in part.items():
        if isinstance(value, Mapping):
            yield from (((key, *keys), leaf) for keys, leaf in _leaves(value))
        else:
            yield (key,), value


def _table(method: str | None) -> Mapping[str, Field]:
    if method is not None:
        return registry.sections(registry.declared_method(method))
    return {name: registry.shared_section(name) for name in registry.SHARED}


def _add(found: Layer, field: Field, keys: Keys, value: Any, chosen: Mapping[str, str | None]) -> None:
    """Add the part of a value that exists in the settings of a section, of which `field` is the declaration."""
    section = keys[0]
    for key in reversed(keys[1:]):
        value = {key: value}
    kind = chosen[section]
    if kind is None:
        fitted = _fitted(section_of(field.kind), value)
    else:
        fitted = {**_fitted(kinds(field.kind)[kind], value), KIND: kind}
    found.add((section,), fitted, dotted)


def _kind(field: Field, given: Any, *preset: Any) -> str | None:
    """The kind of a section, None if it is no choice.

    It is the one that is given; or the first one of the preset, or that of the default, which has all the settings that are given.
    """
    choices = kinds(field.kind)
    if len(choices) < 2:
        return None
    words = [value if isinstance(value, str) else _inside(value, KIND) for value in (given, *preset)]
    if words[0] in choices:
        return str(words[0])
    known = [word for word in (*words[1:], tag(type(field.default))) if word in choices]
    keys = given if isinstance(given, Mapping) else ()
    return next((word for word in known if all(key in fields(choices[word]) for key in keys)), known[0])


def _inside(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, Mapping) else None


def _fitted(section: type | None, value: Any) -> Any:
    """The settings in `value` that exist in a section, recursively; a value that is no section is unchanged."""
    if section is None or not isinstance(value, Mapping):
        return value
    table = fields(section)
    fitted = {key: _fitted(section_of(table[key].kind), inner) for key, inner in value.items() if key in table}
    return {key: inner for key, inner in fitted.items() if inner != {}}
