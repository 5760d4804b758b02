"""What methods there are, their commands, and the sections of their settings, as their source declares them: no method is imported."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from wsss import declared
from wsss.arguments import Settings
from wsss.methods import METHODS
from wsss.settings import Field, kinds

# `weights` of a run that trains the classifier itself
NONE = "none"
VERBS = {
    "run": "from tags to a scored segmenter by METHOD",
    "train": "train the classifier of METHOD",
    "localize": "activation maps of METHOD",
}
# the stages that all methods share
SHARED = ("refiner", "segmenter", "test", "scores")
# tags for any run
TAGGER = "tagger"
_OTHERS = {
    TAGGER: ("wsss.methods.tagclip", "TagCLIPSettings", "tags for pictures without any, with `--tags tagclip`"),
    "questions": ("wsss.methods.questions", "QuestionSettings", "which model is asked about the pictures, and what"),
}


def declared_method(name: str) -> Any:
    """The `METHOD` of a method's module: settings are mirrors, functions are opaque.

    Raises:
        BadInput: the module declares it in a way that cannot be read.
    """
    return declared.read(f"wsss.methods.{name}", "METHOD")


def verbs(name: str) -> list[str]:
    """The commands of a method: `run`, `train`, `localize`."""
    method = declared_method(name)
    has = {"run": method.inference, "train": method.classifier, "localize": method.inference}
    return [verb for verb in VERBS if has[verb] is not None]


def sections(method: Any) -> dict[str, Field]:
    """The settings of a run by their names, in the order of the stages.

    Args:
        method: a `Method`, or the mirror of one (`declared_method`); the types and defaults are of the same sort.
    """
    types = {field.name: field.type for field in dataclasses.fields(type(method))}
    needs, extras = (
        {name: Field(type(part.settings), part.settings, help=part.about) for name, part in parts.items()}
        for parts in (method.needs, method.extras)
    )
    found = needs
    if method.classifier is not None:
        found["classifier"] = Field(type(method.classifier), method.classifier, help="training of the network")
        about = "a trained network in the place of all training: a folder or a published file; `none` trains one"
        found["weights"] = Field(str, NONE, path=True, help=about)
    found |= extras
    if method.inference is None:
        return found
    abouts = {
        "refiner": "pseudo masks from the maps",
        "segmenter": "the network that is trained on the pseudo masks",
        "test": "how the segmenter is tested",
        "scores": "how everything is scored",
        "both_splits": "score maps and pseudo masks of val too, made with its tags, and the segmenter on the pictures that maps are scored on",
    }
    found["inference"] = Field(type(method.inference), method.inference, help="activation maps")
    return found | {name: Field(types[name], getattr(method, name), help=about) for name, about in abouts.items()}


def of_run(name: str) -> Settings:
    """The settings of a whole run of a method."""
    return Settings({**sections(declared_method(name)), TAGGER: single(TAGGER)})


def of_stage(name: str, section: str) -> Settings:
    """The settings of a single stage of a method, at the top."""
    return Settings(top=sections(declared_method(name))[section].default, stage=section, others=all_sections)


def of_shared_stage(section: str) -> Settings:
    """The settings of a stage that is no method's own: a choice between dataclasses below its name, others at the top."""
    field = single(section)
    if len(kinds(field.kind)) > 1:
        return Settings({section: field}, stage=section, others=all_sections)
    return Settings(top=field.default, stage=section, others=all_sections)


def single(section: str) -> Field:
    """The settings of a stage that is no method's own, with their usual values."""
    if section in _OTHERS:
        module, name, about = _OTHERS[section]
        kind = declared.read(module, name)
        return Field(kind, kind(), help=about)
    (field,) = (one for one in dataclasses.fields(declared.read("wsss.recipe", "Method")) if one.name == section)
    return Field(field.type, field.default)


@functools.cache
def all_sections() -> Mapping[str, None]:
    """The names of all sections that the settings of any run have."""
    names = [name for method in METHODS for name in sections(declared_method(method))]
    return dict.fromkeys([*names, TAGGER])
