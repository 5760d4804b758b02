"""The commands: each is a function of its options and settings.

Modules that import torch are imported inside the functions that run a command, so that help and errors appear quickly.
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from wsss import peers, presets, registry, settings
from wsss.arguments import DeclaredSettings, ParsedSettings, Parser
from wsss.data import commands as data_commands
from wsss.data.documents import Keys, dump
from wsss.errors import PICTURES, TRAINED, BadInput, Faults, NoSuchName, count_of, existing, nearest
from wsss.formats import FORMATS, format_named
from wsss.formats.options import ExportOptions, ImportOptions
from wsss.methods import METHODS, method
from wsss.options import (
    TAGCLIP,
    AllOptions,
    CompareOptions,
    DataOptions,
    DemoOptions,
    EvaluateOptions,
    InfoOptions,
    LocalizeOptions,
    MethodOptions,
    ModelOptions,
    PredictOptions,
    RefineOptions,
    ReportOptions,
    RunOptions,
    SBDOptions,
    SegmentOptions,
    ShapesOptions,
    SplitOptions,
    StageOptions,
)
from wsss.presets import RECORDED, MethodPresets
from wsss.review.options import ReviewOptions, TryOptions
from wsss.storage import read_only, write_text
from wsss.terminal import show

if TYPE_CHECKING:
    from wsss.data.images import Dataset
    from wsss.methods.tagclip import TagCLIPSettings
    from wsss.recipe import RunSettings

Options = TypeVar("Options")
WithData = TypeVar("WithData", bound=DataOptions)
# shown on the short help pages of commands that have them: options, and settings of runs and of single stages
_COMMON_OPTIONS = (
    "data", "tags", "classes", "split", "out", "preset", "device", "skip_bad", "cams", "competition", "weights", "masks", "pictures",
    "instances", "methods", "common", "runs", "clip", "corrected", "plots", "file", "format", "unsure", "per", "copy_pictures", "rename",
)  # fmt: skip
# settings of the stages that work on several pictures at a time, within `--memory`
_BOUNDED = ("inference", "refiner", "proposer", "test", "scores", "tagger", "questions")
_COMMON_SETTINGS = {
    "": (
        "classifier.variant", "classifier.backbone", "classifier.init", "classifier.training.epochs", "classifier.training.batch",
        "classifier.training.lr", "classifier.training.seed", "inference.scales", "refiner", "segmenter",
    ),
    "classifier": (
        "variant", "backbone", "init", "clip", "augment.crop", "training.epochs", "training.batch", "training.lr", "training.seed",
    ),
    "inference": ("clip", "dino", "regions", "scales"),
    "refiner": ("by", "regions", "threshold", "crf", "weights", "network.training.epochs", "network.training.batch"),
    "segmenter": ("network.backbone", "init", "training.steps", "training.batch", "corrected_weight"),
    "proposer": ("scales", "smallest", "ratio", "model", "points", "masks"),
    "tagger": ("clip", "words", "threshold"),
    "questions": ("blip", "words", "batch"),
    "test": ("size", "scales", "flip", "crf"),
    "scores": ("thresholds", "background", "convention", "contour"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Command(Generic[Options]):
    """A command.

    Attributes:
        help: what it does, as a phrase.
        options: dataclass of its options.
        run: function that runs it.
        settings: function that gives its settings.
        has_config: whether it accepts `--config` and `--print_config`.
        only_stages: whether it writes nothing but stages, and prints nothing that depends on other files than theirs and its inputs; so it
            has nothing to do once they are finished (`wsss.finished`).
    """

    help: str
    options: type[Options]
    run: Callable[[Options, ParsedSettings], None]
    settings: Callable[[], DeclaredSettings] = DeclaredSettings
    has_config: bool = True
    only_stages: bool = False

    def parser(self, name: str) -> Parser[Options]:
        """The parser of the command's arguments."""
        chosen = self.settings()
        often = _COMMON_SETTINGS[chosen.stage]
        if chosen.top is None and chosen.stage:
            often = (chosen.stage, *(f"{chosen.stage}.{name}" for name in often))
        about = f"{self.help[0].upper()}{self.help[1:]}."
        bounded = chosen.stage in _BOUNDED or issubclass(self.options, RunOptions | DemoOptions)
        options = (*_COMMON_OPTIONS, *(["memory"] if bounded else []))
        return Parser(name, about, self.options, chosen, (*options, *often), self.has_config)


def commands() -> dict[str, Command[Any]]:
    """All commands by name."""
    methods = {f"{verb} {name}": _method_command(verb, name) for verb in registry.VERBS for name in _methods_with(verb)}
    return methods | _COMMANDS | {name: make(()) for name, make in _OF_FORMATS.items()}


def command(words: Sequence[str]) -> tuple[str, Command[Any]]:
    """The command at the beginning of the arguments, and its name.

    Raises:
        BadInput: there is no such command.
    """
    two = " ".join(words[:2])
    if two in _OF_FORMATS:
        return two, _OF_FORMATS[two](words)
    for name in (two, words[0]):
        if name in _COMMANDS:
            return name, _COMMANDS[name]
    verb, _, name = two.partition(" ")
    if verb in registry.VERBS and name in METHODS and verb in registry.verbs(name):
        return two, _method_command(verb, name)
    names = list(commands())
    known = [other for other in names if other.startswith(f"{verb} ")]
    near = nearest(two, names) or nearest(verb, names) if " " in two or not known else ""
    do = (
        f"Did you mean {near}?"
        if near
        else f"Choose one of {', '.join(known)}."
        if known
        else "`wsss --help` lists them."
    )
    raise NoSuchName(two if known or " " in near else verb, "command", do)


def _methods_with(verb: str) -> list[str]:
    """The methods that have this command."""
    return [name for name in METHODS if verb in registry.verbs(name)]


def _method_command(verb: str, name: str) -> Command[Any]:
    about = registry.declared_method(name).paper
    if verb == "train":
        of_training = partial(registry.stage_settings, name, "classifier")
        return Command(
            f"train {about}", StageOptions, partial(_train, name), _with_presets(name, of_training), only_stages=True
        )
    if verb == "localize":
        options = LocalizeOptions if "train" in registry.verbs(name) else StageOptions
        of_maps = partial(registry.stage_settings, name, "inference")
        return Command(
            f"activation maps of {about}",
            options,
            partial(_localize, name),
            _with_presets(name, of_maps),
            only_stages=True,
        )
    of_run = partial(registry.run_settings, name)
    return Command(f"tags to a segmenter by {about}", MethodOptions, partial(_run, name), _with_presets(name, of_run))


def _with_presets(
    method: str | None, declare: Callable[[], DeclaredSettings], several: bool = False
) -> Callable[[], DeclaredSettings]:
    """The settings of a command, with the presets of a method."""
    return lambda: dataclasses.replace(declare(), presets=MethodPresets(method, several))


def _format_in(words: Sequence[str]) -> str | None:
    """The format that the arguments name."""
    for at, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag == "--format" and (equals or at + 1 < len(words)):
            return value if equals else words[at + 1]
    return None


def _export_masks_command(words: Sequence[str]) -> Command[Any]:
    name = _format_in(words)
    if name is None:
        about = f"masks in the format of another program: {', '.join(FORMATS)}; with --format NAME, --help lists its options"
        return Command(about, ExportOptions, _export_masks, has_config=False)
    chosen = format_named(name)
    return Command(chosen.about, chosen.export.options, _export_masks, has_config=False)


def _export_masks(options: ExportOptions, chosen: ParsedSettings) -> None:
    from wsss import launch
    from wsss.formats.export import export_masks

    exported = export_masks(format_named(options.format), options)
    if launch.is_first():
        show(exported.summary, stream=sys.stderr)
        show(exported.path)


def _import_masks_command(words: Sequence[str]) -> Command[Any]:
    name = _format_in(words)
    chosen = None if name is None else format_named(name)
    if chosen is None or chosen.imports is None:
        about = f"masks that were corrected in another program: {', '.join(FORMATS)}; with --format NAME, --help lists its options"
        return Command(about, ImportOptions, _import_masks, has_config=False)
    return Command(f"corrected masks from {chosen.about}", chosen.imports.options, _import_masks, has_config=False)


def _import_masks(options: ImportOptions, chosen: ParsedSettings) -> None:
    from wsss import launch
    from wsss.formats.importing import import_masks

    imported = import_masks(format_named(options.format), options)
    if launch.is_first():
        show(imported.summary, stream=sys.stderr)
        show(imported.path)


def _export_model(options: ModelOptions, chosen: ParsedSettings) -> None:
    from wsss.deploy.export import ModelExport, export_model, push
    from wsss.deploy.network import Views

    if options.push is not None and options.format != "hub":
        raise BadInput(
            "--push", f"--format {options.format}", "--format hub", "Only the folder for the hub is uploaded."
        )
    settings = ModelExport(Views(options.scales, options.flip), options.int8, options.max_loss, options.licence)
    show(export_model(options.weights, options.out, options.format, settings))
    if options.push is not None:
        show(push(options.out, options.push))


def _build_run_settings(name: str, mirrors: Mapping[str, Any], where: Callable[[Keys], str]) -> "RunSettings":
    from wsss.recipe import settings_of

    kind = settings_of(method(name))
    made: RunSettings = kind(
        **{
            field.name: settings.from_mirror(mirrors[field.name], (field.name,), where)
            for field in dataclasses.fields(kind)
        }
    )
    return made


def _run_method(
    name: str,
    chosen: "RunSettings",
    data: "Dataset",
    out: Path,
    tagger: "TagCLIPSettings | None",
    options: RunOptions,
    estimates: "Mapping[str, float | None] | None" = None,
) -> None:
    from wsss.methods import tagclip
    from wsss.recipe import run

    tagged = partial(tagclip.tagged, tagger, out=out / "tags") if tagger else None
    run(method(name), chosen, data, out, options.corrected, options.plots, tagged, estimates or {})


def _words_alone(options: WithData, settings: Any, name: str) -> WithData:
    """The options, for a method that may need no tags.

    Args:
        options: of the command.
        settings: of the method's maps.
        name: of the method.

    Raises:
        BadInput: the method needs tags, but there are none.
    """
    if getattr(settings, "words_only", False):
        return options.needing_no_tags()
    if options.without_tags:
        do = "Give tags, or --tags tagclip. `prompts` needs none, nor does `corrclip` with words_only."
        raise BadInput("--tags", "none", f"tags, from which {name} learns or makes its maps", do)
    return options


def _run(name: str, options: MethodOptions, chosen: ParsedSettings) -> None:
    options = _words_alone(options, chosen.mirrors.get("inference"), name)
    data = options.dataset()
    registry.check_enough(data, data.train, registry.needed(name, chosen.mirrors))
    if peers.rank() == 0:
        # the overview shows them too, but only after the checks of the settings
        show("".join(f"note: {note}\n" for note in data.notes), end="", stream=sys.stderr)
    if options.clip is not None:
        chosen = _with_clip(name, options.clip, chosen, by_tagclip=options.by_tagclip)
    registry.check_downloads(registry.needed(name, chosen.mirrors), by_tagclip=options.by_tagclip)
    from wsss import launch, recipe
    from wsss.health import notes

    tagger = chosen.build("tagger") if options.by_tagclip else None
    made = _build_run_settings(name, chosen.mirrors, chosen.where)
    recipe.check(method(name), made, data.split(data.train), scored=bool(data.scored_split))
    data = options.opened(data)
    if launch.is_first() and not read_only(options.out):
        recorded = presets.to_record(chosen.given, chosen.preset, name, chosen.mirrors)
        write_text(options.out / RECORDED, dump(recorded))
    estimates = _print_plan(name, options, chosen, made, data)
    began = time.monotonic()
    _run_method(name, made, data, options.out, tagger, options, estimates)
    _print_table(options.out)
    if launch.is_first():
        from wsss.plan import duration
        from wsss.stages.closing import next_commands

        show("".join(f"{note.rendered()}\n" for note in notes(options.out)), end="")
        show(f"finished after {duration(time.monotonic() - began)}; report: {options.out / 'report.html'}")
        show("\n".join(["next:", *(f"  {command}  # {about}" for command, about in next_commands(options.out))]))


def _with_clip(name: str, clip: str, chosen: ParsedSettings, *, by_tagclip: bool) -> ParsedSettings:
    """The settings with this CLIP in each section that has one and names no other.

    Raises:
        BadInput: no section has a CLIP.
    """
    declared = registry.run_settings(name).below
    sections = [one for one, field in declared.items() if getattr(field.default, "clip", None) is not None]
    sections = [one for one in sections if one != registry.TAGGER or by_tagclip]
    if not sections:
        do = "Leave it out, or let TagCLIP predict the tags with --tags tagclip."
        raise BadInput("--clip", f"{clip!r}", f"a method with a CLIP, unlike {name}", do)
    mirrors, given = dict(chosen.mirrors), dict(chosen.given)
    for one in sections:
        below = given.get(one, {})
        if "clip" not in below:
            given[one] = {**below, "clip": clip}
            mirrors[one] = dataclasses.replace(mirrors[one], clip=clip)
    return dataclasses.replace(chosen, mirrors=mirrors, given=given)


def _print_plan(
    name: str, options: MethodOptions, chosen: ParsedSettings, made: "RunSettings", data: "Dataset"
) -> "Mapping[str, float | None]":
    """Print what a run will do, unless it is finished; it does not begin if the disk is clearly too small.

    Returns:
        The estimated seconds of its stages, by folder.
    """
    from wsss import launch, recipe
    from wsss.plan import plan
    from wsss.stages.live import is_finished

    if is_finished(options.out):
        return {}
    stages = recipe.planned_stages(method(name), made, data, by_tagclip=options.by_tagclip)
    planned = launch.decided_by_first(lambda: plan(stages, made, data))
    if launch.is_first():
        where = launch.described_device()
        preset = (
            f"preset {chosen.preset} ({chosen.why})" if chosen.preset else "published defaults and the settings file"
        )
        splits = [
            f"{count_of(len(data.split(data.train)), 'picture')} to train on",
            count_of(len(data.class_names), "class", "classes"),
        ]
        if data.val:
            splits.append(f"{len(data.split(data.val))} to validate on")
        lines = [f"method {name}, {preset}", f"device {where}", f"data {data.root}: {', '.join(splits)}"]
        show("\n".join([*lines, *planned.lines(options.out)]), stream=sys.stderr)
    launch.decided_by_first(lambda: planned.check_disk(options.out))
    if planned.compiles and launch.is_first():
        from wsss.ops.crf import compile_ahead

        compile_ahead(gently=True)
    return {stage.folder: stage.seconds for stage in planned.stages}


def _all_settings() -> DeclaredSettings:
    clip = registry.sections(registry.declared_method("clip"))["classifier"]
    about = "train a CLIP for all methods, as `wsss train clip` does"
    optional = dataclasses.replace(clip, kind=clip.kind | None, default=None, help=about)
    return DeclaredSettings({"clip": optional, "tagger": registry.shared_section("tagger")})


def _run_all(options: AllOptions, chosen: ParsedSettings) -> None:
    data = options.dataset()
    from wsss import launch, protocol
    from wsss.stages.compare import Comparison, compare, table
    from wsss.stages.runs import open_runs
    from wsss.stages.train import train

    clip, tagger = chosen.build("clip"), chosen.build("tagger") if options.by_tagclip else None
    common = protocol.with_clip(options.common or {}, options.out, options.by_tagclip) if clip else options.common or {}
    tables = {name: registry.sections(registry.declared_method(name)) for name in _methods_with("run")}
    preset = partial(presets.settings, chosen.preset) if chosen.preset else None
    planned = protocol.plan(tables, common, options.runs or {}, options.chosen, chosen.where, preset)
    made = {one.name: _build_run_settings(one.method, one.settings(tables), one.where) for one in planned}
    for one in planned:
        _words_alone(options, made[one.name].inference, one.method)
    data = options.opened(data)

    def make(one: protocol.PlannedRun, run: Path) -> None:
        if clip and one.mentions(common["clip"]):
            train(clip, data.split(data.train), out=options.out / protocol.CLIP)
        _run_method(one.method, made[one.name], data, run, tagger, options)

    launch.decided_by_first(lambda: protocol.write_run_names(options.out, planned))
    failed = protocol.run_all(options.out, planned, make)
    finished = read_only(options.out)  # nothing can be written there any more
    comparison = Comparison(open_runs([options.out])) if finished else compare([options.out], options.out, data)
    if launch.is_first():
        show(table(comparison))
    if failed:
        show(f"wsss: {len(failed)} of {len(planned)} runs failed: {', '.join(failed)}", stream=sys.stderr)
        sys.exit(1)


def _compare(options: CompareOptions, chosen: ParsedSettings) -> None:
    from wsss import launch
    from wsss.stages.compare import compare, table

    data = options.open_path(options.data) if options.data else None
    comparison = compare(options.folders, options.out, data)
    if launch.is_first():
        show(table(comparison))
        show(options.out / "compare.html")


def _tag(options: SplitOptions, chosen: ParsedSettings) -> None:
    tagged = dataclasses.replace(options, tags=options.tags or Path(TAGCLIP))
    data = tagged.dataset()
    registry.check_downloads(chosen.mirrors)
    from wsss.methods import tagclip

    settings, images = chosen.build(), tagged.images(data)
    show(tagclip.tag(settings, images, out=options.out) / tagclip.TAGS)


def _ask(options: SplitOptions, chosen: ParsedSettings) -> None:
    options = _words_alone(options, None, "ask")
    from wsss.methods import questions

    settings, images = chosen.build(), options.images(options.dataset())
    show(questions.ask(settings, images, out=options.out) / questions.ANSWERS)


def _train(name: str, options: SplitOptions, chosen: ParsedSettings) -> None:
    data = _words_alone(options, None, name).dataset()
    registry.check_enough(data, options.split or data.train, chosen.mirrors)
    faults = Faults()
    with faults.collected():
        registry.check_baseline(name, chosen.mirrors[""])
    lacking = len(faults.found)
    with faults.collected():
        registry.check_downloads(chosen.mirrors)
    if len(faults.found) > lacking:
        faults.stop()
    from wsss.health import stages as health
    from wsss.stages.train import train

    settings = chosen.build()
    with faults.collected():
        settings.check(data.split(options.split or data.train))
    faults.stop()
    images = options.images(data)
    health.announce(health.tag_health(images))
    train(settings, images, out=options.out)


def _localize(name: str, options: SplitOptions, chosen: ParsedSettings) -> None:
    options = _words_alone(options, chosen.mirrors[""], name)
    data = options.dataset()
    registry.check_downloads(chosen.mirrors)
    from wsss.health import stages as health
    from wsss.recipe import Checked
    from wsss.stages.localize import localize

    settings = chosen.build()
    inputs = {"weights": options.weights} if isinstance(options, LocalizeOptions) else {}
    if hasattr(settings, "regions"):
        inputs["regions"] = _given_regions(settings.regions)
    if isinstance(settings, Checked):
        settings.check(data.split(options.split or data.train))
    images = options.images(data)
    cams = localize(settings, images, out=options.out, **inputs)
    health.announce(health.map_health(images, cams))


def _given_regions(folder: Path | None) -> Path:
    """The folder of the regions that maps are made within."""
    if folder is None:
        do = "Make them with `wsss regions --data DATA --out R` and give --regions R; a run of the method does both."
        raise BadInput("--regions", "none", "a folder of regions, within which maps are made", do)
    return folder


def _regions(options: SplitOptions, chosen: ParsedSettings) -> None:
    options = options.needing_no_tags()
    data = options.dataset()
    from wsss.stages.propose import propose

    settings = chosen.build(registry.PROPOSER)
    settings.check()
    show(propose(settings, options.images(data), out=options.out))


def _compile_crf() -> None:
    """Compile the dense CRF beside the import of torch and the check of all pictures, unless an earlier command has."""
    if peers.rank() == 0:
        from wsss.ops.crf import compile_ahead, is_compiled

        if not is_compiled():
            compile_ahead(gently=False)


def _refine(options: RefineOptions, chosen: ParsedSettings) -> None:
    options = options.needing_no_tags()
    data = options.dataset()
    if options.cams is not None and registry.uses_crf(chosen.mirrors["refiner"]):
        _compile_crf()
    from wsss.corrections import correct_cams
    from wsss.health import stages as health
    from wsss.refiners.task import RefinementTask

    refiner = chosen.build("refiner")
    if options.instances and refiner.kind != "irnet":
        raise BadInput("--instances", f"--refiner {refiner.kind}", "--refiner irnet", "Only IRNet separates instances.")
    cams = options.cams
    if (cams is None) == (options.masks is None):
        found = "neither" if cams is None else "both"
        raise BadInput("--cams and --masks", found, "one of them", "Give the folder to refine.")
    refiner.check(options.classifier)
    if cams is None:
        _correct_masks(options, refiner, data)
        return
    images = options.images(data)
    if options.corrected is not None:
        cams = correct_cams(images, cams=cams, corrected=options.corrected, out=options.out / "cams-corrected")
    task = RefinementTask(images, cams, options.out, options.classifier)
    if options.instances:
        show(refiner.instances_of(task))
        return
    masks = refiner.refined(task)
    health.announce(health.mask_health(task.images, masks))
    show(masks)


def _correct_masks(options: RefineOptions, refiner: Any, data: "Dataset") -> None:
    """Correct the masks in `--masks` with regions."""
    from wsss.health import stages as health

    if refiner.kind != "regions":
        raise BadInput("--masks", f"--refiner {refiner.kind}", "--refiner regions", "Only regions correct masks.")
    if options.corrected is not None:
        do = "Replace the masks of these pictures in the folder itself."
        raise BadInput("--corrected", "it together with --masks", "it with --cams", do)
    images = options.images(data)
    masks = refiner.corrected(images, options.masks, options.out)
    health.announce(health.mask_health(images, masks))
    show(masks)


def _segment(options: SegmentOptions, chosen: ParsedSettings) -> None:
    options = options.needing_no_tags()
    data = options.dataset()
    registry.check_enough(data, options.split or data.train, chosen.mirrors)
    registry.check_downloads(chosen.mirrors)
    from wsss.health import stages as health
    from wsss.stages.segment import segment

    segmenter = chosen.build("segmenter")
    segmenter.check()
    images = options.images(data)
    weights = segment(
        segmenter, images, masks=options.masks, out=options.out, classifier=None, **options.corrected_masks()
    )
    health.announce(health.trained_health(images, weights)[0])


def _predict(options: PredictOptions, chosen: ParsedSettings) -> None:
    # before torch is imported, which takes seconds
    existing(options.weights, TRAINED)
    existing(options.pictures, PICTURES)
    if chosen.mirrors[""].crf is not None:
        _compile_crf()

    from wsss.data.images import Dataset
    from wsss.data.info import bad_pictures, check_pictures
    from wsss.data.value_range import ReadingRequest
    from wsss.stages import predict
    from wsss.weights import find_trained

    weights = find_trained(options.weights, "segmenter")
    if weights != options.weights:
        show(f"weights: {weights}", stream=sys.stderr)
    request = ReadingRequest.of(options.value_range, options.bands, options.page)
    images, notes = predict.pictures(
        options.pictures, weights=weights, request=request, allow_outside=options.allow_outside
    )
    if options.pictures.is_dir():
        options.apart(Dataset("pictures", options.pictures, {"pictures": images}, "pictures"))
    print("".join(f"{note}\n" for note in notes), end="", file=sys.stderr)
    if options.skip_bad:
        bad = bad_pictures(images, check_pictures(images))
        images = images.without(bad)
        show("".join(f"left out: {message}\n" for message in bad.values()), end="", stream=sys.stderr)
    predict.predict(
        chosen.build(), images, weights=weights, out=options.out, also=options.also, regions=options.regions
    )


def _evaluate(options: EvaluateOptions, chosen: ParsedSettings) -> None:
    from wsss import launch
    from wsss.stages import evaluate, recall

    given = [folder for folder in (options.cams, options.masks, options.regions) if folder is not None]
    if len(given) != 1:
        found = "none" if not given else f"{len(given)} of them"
        raise BadInput("--cams, --masks and --regions", found, "exactly one", "Give the folder to score.")
    settings, images = chosen.build(), options.images(options.dataset(), scored=True)
    if options.regions is not None:
        scored = recall.evaluate_regions(images, regions=options.regions, out=options.out)
        if launch.is_first():
            show(recall.recall_table(scored))
        return
    if options.cams is not None:
        evaluate.evaluate_cams(settings, images, cams=options.cams, out=options.out)
    elif options.masks is not None:
        evaluate.evaluate_masks(settings, images, masks=options.masks, out=options.out)
    _print_table(options.out)


def _report(options: ReportOptions, chosen: ParsedSettings) -> None:
    from wsss.stages.report import report

    show(report(options.run, options.open_path(options.data), options.out))


def _review(options: ReviewOptions, chosen: ParsedSettings) -> None:
    from wsss.review import commands as pages

    pages.review(options)


def _try(options: TryOptions, chosen: ParsedSettings) -> None:
    from wsss.review import commands as pages

    pages.try_out(options)


def _demo(options: DemoOptions, chosen: ParsedSettings) -> None:
    from wsss import demo
    from wsss.cli import main

    for words in demo.commands(options.out, options.quick):
        show(f"$ wsss {' '.join(words)}")
        if status := main(words):
            sys.exit(status)


def _print_table(run: Path) -> None:
    from wsss import launch
    from wsss.stages.report import table

    if launch.is_first():
        show(table(run))


_REFINER, _SEGMENTER = (
    _with_presets(None, partial(registry.shared_stage_settings, section)) for section in ("refiner", "segmenter")
)
_PROPOSER, _TAGGER, _QUESTIONS, _TEST, _SCORES = (
    partial(registry.shared_stage_settings, section)
    for section in (registry.PROPOSER, "tagger", "questions", "test", "scores")
)
_ALL = _with_presets(None, _all_settings, several=True)
_COMMANDS: dict[str, Command[Any]] = {
    "demo": Command("generate pictures, run CAM, CLIP-ES and ReCAM on them, compare the scores", DemoOptions, _demo, has_config=False),
    "run all": Command("every method under one protocol, and their comparison", AllOptions, _run_all, _ALL),
    "compare": Command("compare runs: a table, a page, CSV and JSON", CompareOptions, _compare, registry.no_settings),
    "tag": Command("tag pictures with TagCLIP (Lin et al., AAAI 2024)", SplitOptions, _tag, _TAGGER, only_stages=True),
    "ask": Command("ask BLIP about pictures and their tags, for QA-CLIMS", SplitOptions, _ask, _QUESTIONS, only_stages=True),
    "regions": Command("propose class-agnostic regions of the pictures", SplitOptions, _regions, _PROPOSER, only_stages=True),
    "refine": Command("turn activation maps into pseudo masks", RefineOptions, _refine, _REFINER, only_stages=True),
    "segment": Command("make a segmenter from pseudo masks", SegmentOptions, _segment, _SEGMENTER, only_stages=True),
    "predict": Command("predict masks with a trained segmenter", PredictOptions, _predict, _TEST, only_stages=True),
    "evaluate": Command("score maps, masks or regions", EvaluateOptions, _evaluate, _SCORES),
    "review": Command("check tags and correct masks on a local page", ReviewOptions, _review, has_config=False),
    "try": Command("drop pictures on a local page and see their masks", TryOptions, _try, has_config=False),
    "export model": Command("a segmenter as ONNX, TorchScript, or for the hub", ModelOptions, _export_model, registry.no_settings),
    "report": Command("write the report of a run again", ReportOptions, _report, registry.no_settings),
    "data info": Command("describe a dataset and list its bad files", InfoOptions, data_commands.info, has_config=False),
    "data sbd": Command("make VOC's train_aug masks and list from SBD", SBDOptions, data_commands.sbd, has_config=False),
    "data shapes": Command("generate a small dataset with true masks", ShapesOptions, data_commands.shapes, has_config=False),
}  # fmt: skip
# Commands whose options depend on the arguments
_OF_FORMATS: dict[str, Callable[[Sequence[str]], Command[Any]]] = {
    "export masks": _export_masks_command,
    "import masks": _import_masks_command,
}
