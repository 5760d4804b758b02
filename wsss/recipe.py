"""The pipeline of all methods: tags -> classifier -> maps -> pseudo masks -> segmenter -> predictions -> scores -> report."""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, cast, runtime_checkable

from wsss import presets, registry
from wsss.corrections import corrected_pictures
from wsss.data.documents import dotted
from wsss.data.images import Dataset, Images
from wsss.errors import BadInput, Faults
from wsss.foundations import CLASSIFIER
from wsss.health import stages as health
from wsss.loading import AUTO
from wsss.networks.body import Backbone
from wsss.plan import numbered
from wsss.refiners import RefinerSettings
from wsss.refiners.crf import CRFSettings
from wsss.refiners.regions import RegionsSettings
from wsss.refiners.task import RefinementTask
from wsss.regions import ProposerSettings
from wsss.run import maybe_file
from wsss.segmenters import SegmenterSettings
from wsss.segmenters.deeplab import DeepLabSettings
from wsss.segmenters.frozen import FrozenSettings
from wsss.segmenters.retrieval import RetrievalSettings
from wsss.segmenters.weclip import WeCLIPSegmenterSettings
from wsss.settings import Layer, build
from wsss.stages.evaluate import ScoreSettings, evaluate_cams, evaluate_masks
from wsss.stages.examples import Examples
from wsss.stages.live import reporting
from wsss.stages.localize import LocalizerSettings, localize
from wsss.stages.nearest import explain
from wsss.stages.predict import PredictSettings, predict
from wsss.stages.propose import propose
from wsss.stages.report import report
from wsss.stages.segment import segment
from wsss.stages.train import TrainableSettings, train


class ClassifierSettings(TrainableSettings, Protocol):
    """Settings of a method's training."""

    def check(self, images: Images) -> Path | Backbone | None:
        """Raise BadInput for settings or files that cannot be used, before any stage runs.

        A field that a `Need` will fill still holds its placeholder.

        Returns:
            What a network with `init: classifier` will be initialised from: the backbone that will be trained, on the meta device, or
            weights with the same backbone. None if a `Need` makes it, or if no network can be initialised from this classifier.
        """


@runtime_checkable
class Checked(Protocol):
    """Settings that can be checked before any stage runs."""

    def check(self, images: Images) -> Any:
        """Raise BadInput for settings or files that cannot be used for these pictures."""


@dataclasses.dataclass(frozen=True)
class Need:
    """A prerequisite that a run makes before it trains the classifier.

    Attributes:
        settings: default values of its section.
        make: makes it in a folder, and returns the path to store in the classifier's settings.
        field: the field of the classifier's settings that holds that path.
        placeholder: the value of the field that asks for this prerequisite, and is replaced by the path.
        about: one line for the help page.
    """

    settings: Any
    make: Callable[[Any, Images, Path], Path]
    field: str
    placeholder: str
    about: str


@dataclasses.dataclass(frozen=True)
class Extra:
    """An additional output that a run makes with the trained classifier.

    Attributes:
        settings: default values of its section.
        make: makes it in a folder, from pictures and the trained network; does nothing if the settings turn it off.
        about: one line for the help page.
        scored: whether it needs true masks, and is made from the pictures that have them, not from all training pictures.
    """

    settings: Any
    make: Callable[[Any, Images, Path, Path], None]
    about: str
    scored: bool = False


@dataclasses.dataclass(frozen=True)
class Method:
    """A published method: its own settings, and its default settings of the stages that all methods share.

    Attributes:
        name: the name of its module and its commands.
        paper: one line for overviews.
        classifier: settings of its training; None for a method without training.
        inference: settings of its maps; None for a method that only trains a network.
        proposer: what proposes the regions that maps are made within; None for maps without regions. Then `inference` has `regions`, a folder of
            existing ones.
        needs: what is made before the training, by the name of its section and folder.
        extras: what is made with the trained classifier, by the name of its section and folder.
        refiner, segmenter, test, scores, both_splits: default settings of the shared stages.
    """

    name: str
    paper: str
    classifier: ClassifierSettings | None = None
    inference: LocalizerSettings | None = None
    proposer: ProposerSettings | None = None
    needs: Mapping[str, Need] = dataclasses.field(default_factory=dict)
    extras: Mapping[str, Extra] = dataclasses.field(default_factory=dict)
    refiner: RefinerSettings = CRFSettings()
    segmenter: SegmenterSettings = DeepLabSettings()
    test: PredictSettings = PredictSettings()
    scores: ScoreSettings = ScoreSettings()
    both_splits: bool = False


class RunSettings(Protocol):
    """Settings of a run, as defined by `settings_of`; each need and extra adds a section with its own name."""

    weights: str
    inference: LocalizerSettings
    refiner: RefinerSettings
    segmenter: SegmenterSettings
    test: PredictSettings
    scores: ScoreSettings
    both_splits: bool


def settings_of(method: Method) -> type:
    """The settings class of a method's run: a frozen dataclass with one field for each of its `registry.sections`."""
    fields = [
        (name, field.kind, maybe_file(field.default) if field.path else field.default)
        for name, field in registry.sections(method).items()
    ]
    made = dataclasses.make_dataclass(f"{method.name}Run", fields, frozen=True)
    made.__doc__ = f"{method.paper}."
    return made


def preset_settings(method: Method, preset: str, given: Mapping[str, Any] | None = None) -> RunSettings:
    """The settings of a preset for a run.

    Args:
        method: the method.
        preset: `quick`, `small-cpu`, `gpu` or `paper`.
        given: other settings, nested like those of a settings file: `{"classifier": {"init": "none"}}`.

    Raises:
        BadInput: there is no such preset or setting.
    """
    if preset not in presets.NAMES:
        raise BadInput("preset", repr(preset), f"one of {', '.join(presets.NAMES)}", "Correct it.")
    table = registry.sections(method)
    below, above = Layer(table), Layer(table)
    below.add((), presets.settings(preset, method.name, given or {}), dotted)
    above.add((), given or {}, dotted)
    return cast(RunSettings, build(settings_of(method), above.over(below).content))


def run(
    method: Method,
    settings: RunSettings,
    data: Dataset,
    out: Path,
    corrected: Path | None = None,
    plots: bool = False,
    tagger: Callable[[Dataset], Dataset] | None = None,
    estimates: Mapping[str, float | None] = MappingProxyType({}),
) -> None:
    """Run a method, with a folder in `out` for each stage.

    Args:
        method: the method.
        settings: an instance of `settings_of(method)`.
        data: the dataset; it needs a training split.
        out: folder of the run.
        corrected: folder of corrected masks of some training pictures, which the segmenter is trained on in place of the pseudo masks.
        plots: draw what the classifier and the segmenter make of a few pictures while they are trained, in the report.
        tagger: gives the dataset with predicted tags, in the folder `tags` of the run.
        estimates: seconds that the stages may take, by folder, for the report.

    Raises:
        BadInput: settings or data that cannot be used; most are found before the first stage.
    """
    images = data.split(data.train)
    check(method, settings, images, scored=bool(data.scored_split), corrected=corrected is not None)
    if corrected is not None:
        corrected_pictures(images, corrected)
    planned = planned_stages(method, settings, data, by_tagclip=tagger is not None)
    inference = settings.inference if method.inference is not None else None
    title = _title(method, settings)
    with numbered(out, planned), reporting(out, data, title, planned, estimates=estimates) as growing:
        if tagger is not None:
            growing.data = data = tagger(data)
        if plots:
            growing.examples = Examples(out, data.split(data.train), inference)
        _run_stages(method, settings, data, out, {} if corrected is None else {"corrected": corrected})
        report(out, data)


def planned_stages(method: Method, settings: RunSettings, data: Dataset, *, by_tagclip: bool = False) -> dict[str, str]:
    """Folders of the stages of a run, in order, and what they do; methods and refiners may add some of their own."""
    trains = method.classifier is not None and settings.weights == registry.NONE
    pending = registry.pending(method.needs, _classifier_settings(settings)) if trains else {}
    val = data.split(data.val) if data.val else None
    scored, scored_val = bool(data.scored_split), val is not None and val.has_masks
    again = settings.both_splits
    both, looks_up = again and _is_judged(val), isinstance(settings.segmenter, RetrievalSettings)
    stages = [
        ("tags", "predicts the tags with TagCLIP", by_tagclip),
        *((name, need.about, True) for name, need in pending.items()),
        ("classifier", "trains the classifier on the tags", trains),
        *((name, f"makes {extra.about}", scored) for name, extra in method.extras.items() if extra.scored),
        ("regions", "proposes the regions that maps are made within", _proposer(method, settings) is not None),
        ("classifier-health", "looks for tags that the pictures contradict", True),
        ("cams", "makes the activation maps", True),
        ("cams-scores", "scores the maps", scored),
        ("masks", "turns the maps into pseudo masks", True),
        ("masks-scores", "scores the pseudo masks", scored),
        ("tokens", "caches the features of the frozen network", _caches_tokens(settings.segmenter)),
        ("segmenter", _about_segmenter(settings.segmenter), True),
        ("predictions", "predicts masks for the validation pictures", val is not None),
        ("predictions-nearest", "finds the training regions that they were made from", val is not None and looks_up),
        ("predictions-scores", "scores the predictions", scored_val),
        ("predictions-train", "predicts masks for the training pictures", again and scored),
        ("predictions-train-scores", "scores these predictions", again and scored),
        ("cams-val", "makes the maps of the validation pictures", both),
        ("cams-val-scores", "scores these maps", both),
        ("masks-val", "turns them into masks", both),
        ("masks-val-scores", "scores these masks", both),
    ]
    return {name: about for name, about, planned in stages if planned}


def _caches_tokens(settings: SegmenterSettings) -> bool:
    return isinstance(settings, FrozenSettings) and settings.tokens is None


def _about_segmenter(settings: SegmenterSettings) -> str:
    if isinstance(settings, WeCLIPSegmenterSettings):
        return "takes over the trained decoder"
    return "makes the segmenter from the pseudo masks"


def _title(method: Method, settings: RunSettings) -> str:
    return settings.inference.title if method.inference is not None else _classifier_settings(settings).title


def _run_stages(method: Method, settings: RunSettings, data: Dataset, out: Path, corrected: Mapping[str, Path]) -> None:
    images = data.split(data.train)
    health.check_data(images, out=out / "data-health")
    trained = _train_classifier(method, settings, images, out)
    for name, extra in method.extras.items():
        split = data.scored_split if extra.scored else data.train
        if trained is not None and split is not None:
            extra.make(getattr(settings, name), data.split(split), trained, out / name)
    inputs = {} if trained is None else {"weights": trained}
    inputs |= _regions(method, settings, images, out / "regions")
    checked = health.check_tags(settings.inference, images, out=out / "classifier-health", **inputs)
    health.offer_review(out, checked, data, out / "tags")
    cams = localize(settings.inference, images, out=out / "cams", **inputs)
    health.check_maps(images, cams=cams, out=out / "cams-health")
    task = _refine(settings, data, cams, out, inputs)
    health.check_masks(images, masks=out / "masks", out=out / "masks-health")
    segmenter = segment(
        settings.segmenter,
        images,
        masks=out / "masks",
        out=out / "segmenter",
        classifier=trained,
        tokens=out / "tokens",
        **corrected,
    )
    doubted = health.check_segmenter(images, weights=segmenter, out=out / "segmenter-health")
    health.offer_review(out, doubted, data, out / "tags", earlier=checked)
    if data.val:
        val = data.split(data.val)
        predictions = predict(settings.test, val, weights=segmenter, out=out / "predictions")
        if isinstance(settings.segmenter, RetrievalSettings):
            explain(val, weights=segmenter, out=out / "predictions-nearest")
        if val.has_masks:
            evaluate_masks(settings.scores, val, masks=predictions, out=out / "predictions-scores")
    if settings.both_splits:
        _score_both_splits(method, settings, data, task, inputs)


def check(method: Method, settings: RunSettings, images: Images, scored: bool, corrected: bool = False) -> None:
    """Raise BadInput for all settings and files that cannot work, before the first stages take hours.

    Args:
        method: the method.
        settings: an instance of `settings_of(method)`.
        images: the training pictures, of which only the names and classes are used.
        scored: whether the maps will be scored on true masks.
        corrected: whether the segmenter is to be trained on corrected masks too.
    """
    refiner, faults = settings.refiner, Faults()
    if isinstance(settings.inference, Checked):
        with faults.collected():
            settings.inference.check(images)
    with faults.collected():
        _check_regions(method, settings, refiner, scored_again=settings.both_splits)
    initial = _check_classifier(method, settings, images, faults)
    if isinstance(settings.segmenter, WeCLIPSegmenterSettings):
        with faults.collected():
            settings.segmenter.check_run(method.name, corrected)
    failed = bool(faults.found)
    background = settings.scores.background if scored else None
    checks = ((refiner, partial(refiner.check, scored=background)), (settings.segmenter, settings.segmenter.check))
    for part, check_part in checks:
        # what starts from a classifier that cannot be made is checked once it can
        if not (failed and _starts_from_classifier(part)):
            with faults.collected():
                check_part(initial)
    faults.stop()


def _starts_from_classifier(settings: RefinerSettings | SegmenterSettings) -> bool:
    if isinstance(settings, RetrievalSettings | FrozenSettings):
        return settings.features.source == CLASSIFIER
    return getattr(getattr(settings, "network", None), "init", getattr(settings, "init", None)) in (AUTO, "classifier")


def _check_classifier(method: Method, settings: RunSettings, images: Images, faults: Faults) -> Path | Backbone | None:
    """Check the classifier's settings, and those of what it needs; see `ClassifierSettings.check` for what is returned."""
    if method.classifier is None:
        return None
    if settings.weights != registry.NONE:
        return Path(settings.weights)
    classifier, initial = _classifier_settings(settings), None
    with faults.collected():
        initial = classifier.check(images)
    for name, need in method.needs.items():
        section = getattr(settings, name)
        if getattr(classifier, need.field) != need.placeholder or not isinstance(section, Checked):
            continue
        with faults.collected(), _named_after(name):
            made = section.check(images)
            initial = made if need.field == "init" else initial
    return initial


@contextlib.contextmanager
def _named_after(section: str) -> Iterator[None]:
    """Errors about `classifier` become errors about another section, whose settings are those of a classifier too."""
    try:
        yield
    except BadInput as error:
        texts = (error.where, error.found, error.expected, error.do)
        raise BadInput(*(re.sub(r"\bclassifier\.(?=\w)", f"{section}.", text) for text in texts)) from error


def _classifier_settings(settings: RunSettings) -> ClassifierSettings:
    return cast(ClassifierSettings, getattr(settings, "classifier"))  # noqa: B009


def _train_classifier(method: Method, settings: RunSettings, images: Images, out: Path) -> Path | None:
    """The trained classifier: `weights` if set, otherwise trained here; None for a method without a classifier."""
    if method.classifier is None:
        return None
    if settings.weights != registry.NONE:
        return Path(settings.weights)
    classifier = _classifier_settings(settings)
    pending = registry.pending(method.needs, classifier)
    for n, (name, need) in enumerate(pending.items(), start=1):
        path = need.make(getattr(settings, name), images, out / name)
        classifier = dataclasses.replace(cast(Any, classifier), **{need.field: str(path)})
        if n < len(pending):  # the training itself comes right after the last one, and checks again
            classifier.check(images)
    return train(classifier, images, out=out / "classifier")


def _proposer(method: Method, settings: RunSettings) -> ProposerSettings | None:
    """What proposes the regions that maps are made within; None if they are given, or maps are made without."""
    if method.proposer is None or getattr(settings.inference, "regions") is not None:  # noqa: B009
        return None
    return cast(ProposerSettings, getattr(settings, registry.PROPOSER))


def _regions(method: Method, settings: RunSettings, images: Images, out: Path) -> dict[str, Path]:
    """The regions that maps are made within, as an input of their stages; empty for a method that uses none."""
    if method.proposer is None:
        return {}
    proposer = _proposer(method, settings)
    given = getattr(settings.inference, "regions")  # noqa: B009
    return {"regions": given if proposer is None else propose(proposer, images, out=out)}


def _check_regions(method: Method, settings: RunSettings, refiner: RefinerSettings, *, scored_again: bool) -> None:
    """Raise BadInput for regions of maps that cannot be made, or that the refiner or another split would have others than."""
    if method.proposer is None:
        return
    proposer = _proposer(method, settings)
    if proposer is not None:
        proposer.check()
    elif scored_again:
        do = "Set both_splits to false, or leave inference.regions out."
        raise BadInput("both_splits", "true with inference.regions, which are those of one split", "false", do)
    if not isinstance(refiner, RegionsSettings) or refiner.regions is not None:
        return
    if refiner.proposer not in (RegionsSettings().proposer, proposer):
        found = f"{refiner.proposer.title}, but the refiner takes the regions that maps are made within"
        do = f"Set {registry.PROPOSER}, or give other regions with refiner.regions."
        raise BadInput("refiner.proposer", found, f"the same as {registry.PROPOSER}", do)


def _refine(settings: RunSettings, data: Dataset, cams: Path, out: Path, inputs: Mapping[str, Path]) -> RefinementTask:
    """Make the pseudo masks; score the maps and the masks if the dataset has true masks."""
    task = RefinementTask(
        data.split(data.train), cams, out, inputs.get("weights"), scores=settings.scores, regions=inputs.get("regions")
    )
    if data.scored_split:
        scored = data.split(data.scored_split)
        scores = evaluate_cams(settings.scores, scored, cams=cams, out=out / "cams-scores")
        task = dataclasses.replace(task, scored=scored, cams_scores=scores)
    masks = settings.refiner.refined(task)
    if task.scored is not None:
        evaluate_masks(settings.scores, task.scored, masks=masks, out=out / "masks-scores")
    return task


def _score_both_splits(
    method: Method, settings: RunSettings, data: Dataset, task: RefinementTask, inputs: Mapping[str, Path]
) -> None:
    """Score the segmenter on the split that maps are scored on, and the maps and pseudo masks on val, if val has true masks and tags.

    The maps of val use its tags. These scores therefore measure the maps, not the accuracy on pictures without tags.
    """
    out = task.out
    if task.scored is not None:
        predictions = predict(settings.test, task.scored, weights=out / "segmenter", out=out / "predictions-train")
        evaluate_masks(settings.scores, task.scored, masks=predictions, out=out / "predictions-train-scores")
    val = data.split(data.val) if data.val else None
    if val is None or not _is_judged(val):
        return
    inputs = {**inputs, **_regions(method, settings, val, out / "regions-val")}
    cams = localize(settings.inference, val, out=out / "cams-val", **inputs)
    evaluate_cams(settings.scores, val, cams=cams, out=out / "cams-val-scores")
    again = dataclasses.replace(
        task, images=val, cams=cams, scored=None, trained=out, suffix="-val", regions=inputs.get("regions")
    )
    evaluate_masks(settings.scores, val, masks=settings.refiner.refined(again), out=out / "masks-val-scores")


def _is_judged(val: Images | None) -> bool:
    """Whether maps of these pictures can be made and scored."""
    return val is not None and val.has_masks and bool(val.labels.any())
