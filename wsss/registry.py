"""The methods, their commands and the sections of their settings, read from source: no method is imported."""

import dataclasses
import functools
import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from wsss import declared
from wsss.arguments import DeclaredSettings
from wsss.data.documents import Keys
from wsss.errors import BadInput, Faults, count_of
from wsss.methods import METHODS
from wsss.options import MethodOptions
from wsss.settings import Field, fields, kinds, section_of

if TYPE_CHECKING:
    from wsss.data.images import Dataset

# value of `weights` for a run that trains the classifier
NONE = "none"
# values of `init`: published weights; those of the classifier if they fit, otherwise published ones
IMAGENET, AUTO = "imagenet", "auto"
# sections of networks that are not trained if a trained network is given
_CLASSIFIERS = ("baseline", "classifier")
VERBS = {
    "run": "from tags to a scored segmenter with METHOD",
    "train": "train the classifier of METHOD",
    "localize": "activation maps of METHOD",
}
# sections that all methods share
SHARED = ("refiner", "segmenter", "test", "scores")
# section for predicting tags, which any run accepts
TAGGER = "tagger"
# section of `wsss regions`
PROPOSER = "proposer"
_SHARED_SECTIONS = {
    TAGGER: ("wsss.methods.tagclip", "TagCLIPSettings", "prediction of tags, with `--tags tagclip`"),
    "questions": (
        "wsss.methods.questions",
        "QuestionSettings",
        "the model that is asked about the pictures, and the questions",
    ),
}


def declared_method(name: str) -> Any:
    """The `METHOD` of a method's module: settings are mirrors, functions are opaque.

    Raises:
        BadInput: its declaration cannot be read.
    """
    return declared.read(f"wsss.methods.{name}", "METHOD")


def verbs(name: str) -> list[str]:
    """The commands of a method: `run`, `train`, `localize`."""
    method = declared_method(name)
    has = {"run": method.inference, "train": method.classifier, "localize": method.inference}
    return [verb for verb in VERBS if has[verb] is not None]


def sections(method: Any) -> dict[str, Field]:
    """The sections of a run's settings by name, in the order of the stages.

    Args:
        method: a `Method`, or its mirror (`declared_method`); then types and defaults are mirrors too.
    """
    types = {field.name: field.type for field in dataclasses.fields(type(method))}
    needs, extras = (
        {name: Field(type(part.settings), part.settings, help=part.about) for name, part in parts.items()}
        for parts in (method.needs, method.extras)
    )
    found = needs
    if method.classifier is not None:
        found["classifier"] = Field(type(method.classifier), method.classifier, help="training of the network")
        about = "a trained network to use instead of training one: a folder or a published file; `none` trains one"
        found["weights"] = Field(str, NONE, path=True, help=about)
    found |= extras
    if method.inference is None:
        return found
    abouts = {
        "refiner": "how maps become pseudo masks",
        "segmenter": "the network trained on the pseudo masks",
        "test": "how the segmenter predicts",
        "scores": "how maps, masks and predictions are scored",
        "both_splits": "also score maps and pseudo masks of the validation split, made with its tags, and the segmenter on the split of the maps",
    }
    if method.proposer is not None:
        about = "what proposes the regions that maps are made within, unless inference.regions is given"
        # without the None of methods that make no regions
        choice = functools.reduce(operator.or_, kinds(types[PROPOSER]).values())
        found[PROPOSER] = Field(choice, method.proposer, help=about)
    found["inference"] = Field(type(method.inference), method.inference, help="activation maps")
    return found | {name: Field(types[name], getattr(method, name), help=about) for name, about in abouts.items()}


def method_sections(table: Mapping[str, Field]) -> dict[str, Mapping[str, Field]]:
    """The settings in the sections that are not shared by all methods."""
    return {
        name: fields(section)
        for name, field in table.items()
        if name not in SHARED and (section := section_of(field.kind)) is not None
    }


def places(key: str, table: Mapping[str, Field]) -> list[Keys]:
    """The places in a method's settings to which a setting applies that is given for all methods.

    Args:
        key: name of a section, or of a setting in sections that are not shared by all methods.
        table: the sections of the method.
    """
    if key in table:
        return [(key,)]
    # a network that is fine-tuned from another network of the method has an `init` too
    return [
        (name, key)
        for name, part in method_sections(table).items()
        if key in part and (key != "init" or "backbone" in part)
    ]


def run_settings(name: str) -> DeclaredSettings:
    """The settings of `wsss run METHOD`."""
    return DeclaredSettings({**sections(declared_method(name)), TAGGER: shared_section(TAGGER)})


def stage_settings(name: str, section: str) -> DeclaredSettings:
    """The settings of a single stage of a method, without a prefix."""
    return DeclaredSettings(
        top=sections(declared_method(name))[section].default, stage=section, others=all_sections, unused=run_options
    )


def no_settings() -> DeclaredSettings:
    """The settings of a command that has options alone, and takes them from the file of a run too."""
    return DeclaredSettings(others=all_sections, unused=run_options)


def shared_stage_settings(section: str) -> DeclaredSettings:
    """The settings of a stage that methods share: below its name if they are a choice of kinds, otherwise without a prefix."""
    field = shared_section(section)
    if kinds(field.kind):
        return DeclaredSettings({section: field}, stage=section, others=all_sections, unused=run_options)
    return DeclaredSettings(top=field.default, stage=section, others=all_sections, unused=run_options)


def shared_section(section: str) -> Field:
    """The settings of a stage that methods share, with their defaults."""
    if section in _SHARED_SECTIONS:
        module, name, about = _SHARED_SECTIONS[section]
        kind = declared.read(module, name)
        return Field(kind, kind(), help=about)
    if section == PROPOSER:
        choice, default = (declared.read("wsss.regions", name) for name in ("ProposerSettings", "DEFAULT"))
        return Field(choice, default, help="what proposes the regions")
    (field,) = (one for one in dataclasses.fields(declared.read("wsss.recipe", "Method")) if one.name == section)
    return Field(field.type, field.default)


@functools.cache
def all_sections() -> Mapping[str, None]:
    """The names of all sections in the settings of any run."""
    names = [name for method in METHODS for name in sections(declared_method(method))]
    return dict.fromkeys([*names, TAGGER])


@functools.cache
def run_options() -> frozenset[str]:
    """The names of the options of a run, which are in the files that `--print_config` prints."""
    return frozenset(field.name for field in dataclasses.fields(MethodOptions))


def uses_crf(refiner: Any) -> bool:
    """Whether a refiner makes masks by the dense CRF.

    Args:
        refiner: its settings, or their mirror.
    """
    if refiner.kind == "regions":
        return refiner.by != "sams" and refiner.masks.by in ("crf", "scores")
    return refiner.kind != "crf" or refiner.by in ("crf", "scores")


def check_enough(data: "Dataset", split: str, mirrors: Mapping[str, Any]) -> None:
    """Raise BadInput if a training that these settings ask for needs more pictures than there are.

    Args:
        data: the dataset.
        split: the split to train on.
        mirrors: mirrors of the settings by section; `""` for settings without a section.
    """
    batches = {
        name: training.batch
        for name, section in mirrors.items()
        if name != TAGGER and (training := getattr(section, "training", None)) is not None
    }
    section, batch = max(batches.items(), key=lambda item: item[1], default=("", 0))
    images = data.split(split)
    if len(images) < batch:
        flag = ".".join(part for part in (f"--{section}" if section else "", "training.batch") if part)
        raise BadInput(
            data.root,
            f"{count_of(len(images), 'picture')} to train on",
            f"at least {batch}, one batch ({flag.removeprefix('--')}); for useful maps, dozens of pictures of each class",
            f"Add pictures, or set a smaller {flag if flag.startswith('--') else f'--{flag}'}.",
        )


class Prerequisite(Protocol):
    """What is made before a training, unless a field of the training's settings names one that exists: `recipe.Need`, or its declaration."""

    @property
    def field(self) -> str: ...

    @property
    def placeholder(self) -> str: ...


P = TypeVar("P", bound=Prerequisite)


def pending(needs: Mapping[str, P], classifier: Any) -> dict[str, P]:
    """Those that are to be made, by section; `classifier` has the settings of the training, or their mirror."""
    return {name: need for name, need in needs.items() if getattr(classifier, need.field) == need.placeholder}


def needed(name: str, mirrors: Mapping[str, Any]) -> Mapping[str, Any]:
    """The sections of a run's settings that it uses: all but those of what is made before the training, and given here.

    Args:
        name: the method.
        mirrors: mirrors of the settings by section.
    """
    needs: Mapping[str, Prerequisite] = declared_method(name).needs
    given = needs.keys() - pending(needs, mirrors.get("classifier")).keys()
    return {section: mirror for section, mirror in mirrors.items() if section not in given}


def check_downloads(mirrors: Mapping[str, Any], *, by_tagclip: bool = False) -> None:
    """Raise BadInput if pretrained weights are missing that these settings clearly need, before torch is imported.

    Args:
        mirrors: mirrors of the settings by section; `""` for settings without a section.
        by_tagclip: whether TagCLIP predicts the tags.
    """
    from wsss import hub

    faults = Faults()
    trained = mirrors.get("weights", NONE) != NONE
    for name, section in mirrors.items():
        if (trained and name in _CLASSIFIERS) or (name == TAGGER and not by_tagclip):
            continue
        place, owner = (f"{name}." if name else ""), section
        if not hasattr(section, "init") and hasattr(section, "network"):
            place, owner = f"{place}network.", section.network
        init, backbone = (getattr(one, key, None) for one, key in ((owner, "init"), (section, "backbone")))
        backbone = backbone or getattr(getattr(section, "network", None), "backbone", None)
        # with a classifier, the others start from it where they can
        if init == IMAGENET or (init == AUTO and "classifier" not in mirrors):
            with faults.collected():
                hub.check_imagenet(str(backbone), f"{place}init")
        if isinstance(clip := getattr(section, "clip", None), str):
            with faults.collected():
                hub.check_clip(clip, f"{name}.clip" if name else "clip")
    faults.stop()


def check_baseline(name: str, mirror: Any) -> None:
    """Raise BadInput if a method's training would start from a baseline that only `wsss run` trains.

    Args:
        name: the method.
        mirror: the settings of its training, or their mirror.
    """
    for need in declared_method(name).needs.values():
        if need.field == "init" and getattr(mirror, "init", None) == need.placeholder:
            raise no_baseline(name, need.placeholder)


def no_baseline(method: str, placeholder: str) -> BadInput:
    """An error about the training of a method that names the baseline instead of a trained classifier."""
    do = f"Train one with `wsss train cam` and give its folder, or use `wsss run {method}`, which does both."
    return BadInput("init", f"`{placeholder}`, which only `wsss run` trains", "a trained classifier", do)
