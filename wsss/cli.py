"""The command line: one subcommand a stage and a recipe; flags and YAML keys are the fields of the settings."""

import contextlib
import dataclasses
import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

from wsss import __version__, peers
from wsss.errors import BadInput
from wsss.terminal import Formatter, show

# Everything that needs torch is imported by the commands that use it, so that help comes at once
if TYPE_CHECKING:
    from wsss.arguments import Parser
    from wsss.data.images import Dataset, Images


@dataclasses.dataclass(frozen=True)
class Method:
    """A module of `wsss/methods`: what it is, and which commands it has."""

    about: str
    run: bool = False
    train: bool = False
    localize: bool = False


METHODS = {
    "cam": Method(
        "class activation maps (Zhou et al., CVPR 2016), IRNet's and CLIMS' baseline",
        run=True,
        train=True,
        localize=True,
    ),
    "vwl": Method(
        "VWE and VWL (Ru et al., IJCAI 2021 and IJCV 2022), visual words and hybrid pooling",
        run=True,
        train=True,
        localize=True,
    ),
    "clip_es": Method("CLIP-ES (Lin et al., CVPR 2023), maps of a frozen CLIP", run=True, localize=True),
    "clims": Method(
        "CLIMS (Xie et al., CVPR 2022), a classifier that a frozen CLIP teaches", run=True, train=True, localize=True
    ),
    "icam": Method(
        "ICAM (Jonnarth et al., ICASSP 2022), its binomial follow-up (WACV 2024) and SEAM (Wang et al., CVPR 2020)",
        run=True,
        train=True,
        localize=True,
    ),
    "qa_clims": Method(
        "QA-CLIMS (Deng et al., ACM MM 2023), CLIMS with answers about each picture",
        run=True,
        train=True,
        localize=True,
    ),
    "clip": Method("CLIP (Radford et al., ICML 2021) on own pictures and tags", train=True),
}
Refiner = Literal["crf", "irnet", "affinitynet"]
TAGCLIP = "tagclip"
CONFIGS = Path(__file__).parent / "configs"

HELP = """\
usage: wsss COMMAND [--help] ...

Weakly supervised semantic segmentation: from image-level tags to masks and a trained segmenter.

{commands}

`wsss COMMAND --help` lists the settings of a command. They can stand in a YAML file too (--config FILE), and
--print_config writes one. Several processes: torchrun --nproc-per-node N -m wsss COMMAND ...
"""


@dataclasses.dataclass(frozen=True)
class Command:
    """A subcommand: what it does, its arguments, and the doing."""

    help: str
    declare: Callable[["Parser"], None]
    run: Callable[[SimpleNamespace], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; gives the exit status: 0, 2 for bad input, 130 for Ctrl-C, 143 for SIGTERM."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    commands = _commands()
    if not words or words[0] in ("-h", "--help", "help"):
        print(
            HELP.format(commands="\n".join(f"  {name:<17} {command.help}" for name, command in commands.items())),
            end="",
        )
        return 0
    if words[0] == "--version":
        print(f"wsss {__version__}")
        return 0
    name = next((key for n in (2, 1) if (key := " ".join(words[:n])) in commands), None)
    if name is None and any(word in ("-h", "--help") for word in words[1:2]):
        verbs = [
            f"wsss {key:<17} {command.help}" for key, command in commands.items() if key.startswith(f"{words[0]} ")
        ]
        if verbs:
            print("\n".join(verbs))
            return 0
    if name is None:
        known = [key for key in commands if key.startswith(f"{words[0]} ")] or commands
        show(f"wsss: error: no command `{' '.join(words[:2])}`; there are: {', '.join(known)}", stream=sys.stderr)
        return 2
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter("%(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("wsss").setLevel(logging.INFO)
    return peers.guarded(lambda: _run_command(name, commands[name], words[len(name.split()) :]))


def _run_command(name: str, command: Command, words: Sequence[str]) -> None:
    settings = _parsed(name, command, words)
    if any(int(os.environ.get(several, "1")) > 1 for several in ("WORLD_SIZE", "SLURM_NTASKS")):
        from wsss import launch

        launch.join()
    with _held(settings):
        command.run(settings)


def _held(settings: SimpleNamespace) -> contextlib.AbstractContextManager[None]:
    """The folder that a command fills is its own while it runs; those that only write a page need none for themselves."""
    if not hasattr(settings, "device"):
        return contextlib.nullcontext()
    from wsss import lock

    return lock.held(settings.out)


def _parsed(name: str, command: Command, words: Sequence[str]) -> SimpleNamespace:
    from wsss.arguments import Parser

    parser = Parser(name, f"{command.help[0].upper()}{command.help[1:]}.")
    command.declare(parser)
    parsed = parser.parse(words)
    if getattr(parsed, "device", None) == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    return parsed


def _commands() -> dict[str, Command]:
    commands = {
        "demo": Command("generate pictures, run CAM and CLIP-ES on them, print what came out", _declare_demo, _demo)
    }
    for verb, help, declare, run in (
        ("run", "from tags to a scored segmenter: ", _declare_run, _run),
        ("train", "train ", _declare_train, _train),
        ("localize", "activation maps of ", _declare_localize, _localize),
    ):
        for name, method in METHODS.items():
            if getattr(method, verb):
                about = f"{help}{method.about}"
                commands[f"{verb} {name}"] = Command(about, partial(declare, name), partial(run, name))
    return commands | {
        "run all": Command("every method under one protocol, and their comparison", _declare_run_all, _run_all),
        "compare": Command("put runs side by side: a table, a page, CSV and JSON", _declare_compare, _compare),
        "tag": Command("tags for pictures without any, by TagCLIP (Lin et al., AAAI 2024)", _declare_tag, _tag),
        "ask": Command("answers about pictures and their tags by BLIP, for QA-CLIMS", _declare_ask, _ask),
        "refine": Command("activation maps to pseudo masks", _declare_refine, _refine),
        "segment": Command("train a segmenter on pseudo masks", _declare_segment, _segment),
        "predict": Command("masks of any pictures by a trained segmenter", _declare_predict, _predict),
        "evaluate": Command("score maps or masks against true masks", _declare_evaluate, _evaluate),
        "report": Command("write the page of a run anew", _declare_report, _report),
        "data info": Command("say what a path holds and which files are bad", _declare_info, _info),
        "data sbd": Command("make VOC's train_aug masks and list from SBD", _declare_sbd, _sbd),
        "data shapes": Command("generate a small data set with true masks", _declare_shapes, _shapes),
    }


def _declare_data(parser: "Parser", required: bool = True) -> None:
    parser.add_config()
    parser.add_argument(
        "--data",
        type=Path,
        required=required,
        help="VOC, COCO, or a folder of pictures; see `wsss data info`",
    )
    _declare_reading(parser)


def _declare_reading(parser: "Parser") -> None:
    """How a data set is read: the same for a run and for `wsss data info`."""
    parser.add_argument("--train", type=str, help="split to train on, where the usual one is not wanted")
    parser.add_argument("--val", type=str, help="split to score the segmenter on, likewise")
    parser.add_argument(
        "--tags",
        type=Path,
        help="CSV, TSV, JSONL or cls_labels.npy with tags; `tagclip` lets CLIP tag the pictures",
    )
    parser.add_argument("--classes", type=str, help="text file with one class a line, or the names: 'cat, dog'")
    parser.add_argument("--tag-rule", type=str, help="how tags come out of annotations: see docs/data.md")
    parser.add_argument("--mask-rule", type=str, help="how COCO's masks are drawn: clims or icam")
    parser.add_argument(
        "--mask-values", type=str, help="what values of masks mean: '255=1', '0,128,0=dog; ...', or index"
    )
    parser.add_argument(
        "--negative", type=str, help="names that mean that no class is there, separated by commas: 'no_defect, normal'"
    )
    parser.add_argument("--tag-column", type=str, help="column of the tags in metadata.csv or in an export of choices")
    parser.add_argument("--allow-outside", switch=True, help="read files that lie outside of the data set too")
    _declare_values(parser)
    parser.add_argument("--upright", type=bool, help="turn pictures as their EXIF orientation says")
    parser.add_argument("--skip-bad", switch=True, help="leave bad pictures out and name them in the report")


def _declare_values(parser: "Parser") -> None:
    """How the values in picture files are read: the same for a data set and for `wsss predict`."""
    parser.add_argument(
        "--value-range",
        type=str | tuple[float, ...],
        help="values that become black and white: 0,4095; by default found in the pictures",
    )
    parser.add_argument(
        "--bands", type=str | tuple[int, ...], help="bands, from 1, taken as red, green and blue: 4,3,2; or 1 as grey"
    )
    parser.add_argument("--page", type=int, help="page, frame or slice to read, from 1")


def _declare_split(parser: "Parser") -> None:
    _declare_data(parser)
    parser.add_argument(
        "--split",
        type=str,
        help="split to work on; by default the one trained on, and for scores the one with true masks in it",
    )
    _declare_out(parser)


def _declare_out(parser: "Parser") -> None:
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for what is made; a killed command goes on there"
    )
    parser.add_argument(
        "--device", type=Literal["auto", "cpu"], default="auto", help="auto takes a GPU where there is one"
    )


def _open(settings: SimpleNamespace, remember: Path | None = None) -> "Dataset":
    """The data set, announced, each of its files decoded once."""
    from wsss.stages.check import open_checked

    split = getattr(settings, "split", None)
    return open_checked(settings.data, skip_bad=settings.skip_bad, split=split, remember=remember, **_reading(settings))


def _reading(settings: SimpleNamespace) -> dict[str, Any]:
    """Options of `open_dataset`."""
    tagclip = str(settings.tags) == TAGCLIP
    names = (
        "train",
        "val",
        "classes",
        "tag_rule",
        "mask_rule",
        "mask_values",
        "tag_column",
        "allow_outside",
        "upright",
        "value_range",
        "bands",
        "page",
    )
    return {
        "tags": None if tagclip else settings.tags,
        "untagged": tagclip,
        "negatives": [name.strip() for name in (settings.negative or "").split(",") if name.strip()],
        **{name: getattr(settings, name) for name in names},
    }


def _split(settings: SimpleNamespace, scored: bool = False) -> "Images":
    """The split that a single stage works on: the one trained on, or the one that maps and masks are scored on."""
    data = _open(settings)
    return data.split(settings.split or (data.scored_split if scored else None) or data.train)


def _module(name: str) -> Any:
    return importlib.import_module(f"wsss.methods.{name}")


def _declare_run(name: str, parser: "Parser") -> None:
    from wsss.methods import tagclip

    _declare_data(parser)
    _declare_out(parser)
    parser.add_argument("--refine", type=Refiner, help="short for --tail.refiner")
    parser.add_settings(_module(name).Recipe)
    parser.add_settings(tagclip.TagCLIPSettings, "tagger")


def _run(name: str, settings: SimpleNamespace) -> None:
    from wsss.methods import tagclip

    method, data = _module(name), _open(settings, settings.out)
    data.split(data.train).check_maskable()
    if str(settings.tags) == TAGCLIP:
        data = tagclip.tagged(settings.tagger, data, out=settings.out / "tags")
    recipe = settings.chosen
    if settings.refine:
        recipe = dataclasses.replace(recipe, tail=dataclasses.replace(recipe.tail, refiner=settings.refine))
    method.recipe(settings.out, data, recipe)
    _print_table(settings.out)


def _declare_run_all(parser: "Parser") -> None:
    from wsss.methods import clip, tagclip

    _declare_data(parser)
    _declare_out(parser)
    parser.add_argument("--methods", type=str, help="runs or methods to take, such as `cam, vwl`; by default all")
    parser.add_argument("--common", type=dict, default={}, help="settings for all methods; see docs/compare.md")
    parser.add_argument("--runs", type=dict, default={}, help="settings of single runs, by their names")
    parser.add_argument(
        "--clip", type=clip.CLIPSettings, help="train a CLIP for all methods, as `wsss train clip` does"
    )
    parser.add_settings(tagclip.TagCLIPSettings, "tagger")


def _run_all(settings: SimpleNamespace) -> None:
    from wsss import launch, protocol
    from wsss.methods import tagclip
    from wsss.settings import build
    from wsss.stages.compare import Comparison, compare, open_runs, table
    from wsss.stages.train import train
    from wsss.storage import read_only

    methods = {name: _module(name) for name, method in METHODS.items() if method.run}
    common, own_clip = dict(settings.common), settings.clip
    if own_clip is not None:
        # pictures and tags as they are: TagCLIP's would come from the CLIP that is to be trained
        if "clip" in common or str(settings.tags) == TAGCLIP:
            other = "common.clip" if "clip" in common else "--tags tagclip"
            raise BadInput("clip", f"it together with {other}", "one of them", "Remove one.")
        common["clip"] = str(settings.out / protocol.CLIP)
    chosen = None if settings.methods is None else [name.strip() for name in settings.methods.split(",")]
    recipes = {name: module.Recipe for name, module in methods.items()}
    planned = protocol.plan(recipes, common, settings.runs, chosen, settings.where)
    made = {one.name: build(recipes[one.method], one.content, one.where) for one in planned}
    data = _open(settings, settings.out)
    data.split(data.train).check_maskable()

    def make(one: protocol.Planned, run: Path) -> None:
        images = data
        if own_clip and one.mentions(common["clip"]):
            train(own_clip, data.split(data.train), out=settings.out / protocol.CLIP)
        if str(settings.tags) == TAGCLIP:
            images = tagclip.tagged(settings.tagger, data, out=run / "tags")
        methods[one.method].recipe(run, images, made[one.name])

    launch.decided_by_first(lambda: protocol.remember(settings.out, planned))
    failed = protocol.run_all(settings.out, planned, make)
    whole = read_only(settings.out)  # nothing is left to be written there
    comparison = Comparison(open_runs([settings.out])) if whole else compare([settings.out], settings.out, data)
    if launch.is_first():
        show(table(comparison))
    if failed:
        show(f"wsss: {len(failed)} of {len(planned)} runs failed: {', '.join(failed)}", stream=sys.stderr)
        sys.exit(1)


def _declare_compare(parser: "Parser") -> None:
    parser.add_argument("folders", type=list[Path], help="folders of runs, or the one that `wsss run all` filled")
    parser.add_argument(
        "--out", type=Path, default=Path("comparison"), help="folder for compare.html, compare.csv and compare.json"
    )
    _declare_data(parser, required=False)


def _compare(settings: SimpleNamespace) -> None:
    from wsss import launch
    from wsss.stages.compare import compare, table

    comparison = compare(settings.folders, settings.out, _open(settings) if settings.data else None)
    if launch.is_first():
        show(table(comparison))
        show(settings.out / "compare.html")


def _declare_tag(parser: "Parser") -> None:
    from wsss.methods import tagclip

    _declare_split(parser)
    parser.add_settings(tagclip.TagCLIPSettings)


def _tag(settings: SimpleNamespace) -> None:
    from wsss.methods import tagclip

    chosen = settings.chosen
    settings.tags = settings.tags or Path(TAGCLIP)
    show(tagclip.tag(chosen, _split(settings), out=settings.out) / tagclip.TAGS)


def _declare_ask(parser: "Parser") -> None:
    from wsss.methods import questions

    _declare_split(parser)
    parser.add_settings(questions.QuestionSettings)


def _ask(settings: SimpleNamespace) -> None:
    from wsss.methods import questions

    chosen = settings.chosen
    show(questions.ask(chosen, _split(settings), out=settings.out) / questions.ANSWERS)


def _declare_train(name: str, parser: "Parser") -> None:
    _declare_split(parser)
    parser.add_settings(_module(name).Settings)


def _train(name: str, settings: SimpleNamespace) -> None:
    from wsss.stages.train import train

    train(settings.chosen, _split(settings), out=settings.out)


def _declare_localize(name: str, parser: "Parser") -> None:
    _declare_split(parser)
    if METHODS[name].train:
        parser.add_argument("--weights", type=Path, required=True, help="folder of the trained network, or its file")
    parser.add_settings(_module(name).Inference)


def _localize(name: str, settings: SimpleNamespace) -> None:
    from wsss.stages.localize import localize

    inputs = {"weights": settings.weights} if METHODS[name].train else {}
    localize(settings.chosen, _split(settings), out=settings.out, **inputs)


def _declare_refine(parser: "Parser") -> None:
    from wsss.refiners import affinitynet, irnet
    from wsss.stages import refine

    _declare_split(parser)
    parser.add_argument("--cams", type=Path, required=True, help="folder of activation maps")
    parser.add_argument(
        "--with",
        type=Refiner,
        default="crf",
        help="a learned affinity instead of the settings at the top; its masks are then in OUT/masks",
    )
    parser.add_argument(
        "--classifier", type=Path, help="folder of the network that gave the maps, for `init: classifier`"
    )
    parser.add_argument(
        "--instances", switch=True, help="find instances with IRNet, in OUT/instances: maps, and COCO's results"
    )
    parser.add_settings(refine.CRFSettings)
    parser.add_settings(irnet.IRNetSettings, "irnet")
    parser.add_settings(affinitynet.AffinityNetSettings, "affinitynet")


def _refine(settings: SimpleNamespace) -> None:
    from wsss.stages import refine

    refiner: Refiner = getattr(settings, "with")
    if settings.instances and refiner != "irnet":
        raise BadInput("--instances", f"--with {refiner}", "--with irnet", "IRNet alone tells instances apart.")
    if refiner == "crf":
        refine.refine(settings.chosen, _split(settings), cams=settings.cams, out=settings.out)
        return
    learned = settings.irnet if refiner == "irnet" else settings.affinitynet
    learned.check()
    images = _split(settings)
    make = learned.instances_of if settings.instances else learned.refined
    show(make(images, cams=settings.cams, out=settings.out, classifier=settings.classifier))


def _declare_segment(parser: "Parser") -> None:
    from wsss.stages import segment

    _declare_split(parser)
    parser.add_argument("--masks", type=Path, required=True, help="folder of pseudo masks")
    parser.add_settings(segment.DeepLabSettings)


def _segment(settings: SimpleNamespace) -> None:
    from wsss.stages.train import train

    chosen = settings.chosen
    chosen.check()
    train(chosen.starting_from(None), _split(settings), masks=settings.masks, out=settings.out)


def _declare_predict(parser: "Parser") -> None:
    from wsss.stages import predict

    parser.add_config()
    parser.add_argument("--weights", type=Path, required=True, help="folder of a trained segmenter, or its file")
    parser.add_argument("--pictures", type=Path, required=True, help="a picture, or a folder of pictures")
    _declare_values(parser)
    parser.add_argument("--skip-bad", switch=True, help="leave bad pictures out and name them")
    _declare_out(parser)
    parser.add_settings(predict.PredictSettings)


def _predict(settings: SimpleNamespace) -> None:
    from wsss.data.info import bad_among, look_through
    from wsss.data.value_range import Asked
    from wsss.stages import predict

    asked = Asked.of(settings.value_range, settings.bands, settings.page)
    images, notes = predict.pictures(settings.pictures, weights=settings.weights, asked=asked)
    print("".join(f"{note}\n" for note in notes), end="", file=sys.stderr)
    if settings.skip_bad:
        bad = bad_among(images, look_through(images))
        images = images.without(bad)
        show("".join(f"left out: {message}\n" for message in bad.values()), end="", stream=sys.stderr)
    predict.predict(settings.chosen, images, weights=settings.weights, out=settings.out)


def _declare_evaluate(parser: "Parser") -> None:
    from wsss.stages import evaluate

    _declare_split(parser)
    parser.add_argument("--cams", type=Path, help="folder of activation maps")
    parser.add_argument("--masks", type=Path, help="folder of pseudo masks or predictions")
    parser.add_settings(evaluate.ScoreSettings)


def _evaluate(settings: SimpleNamespace) -> None:
    from wsss.stages import evaluate

    chosen = settings.chosen
    if (settings.cams is None) == (settings.masks is None):
        raise BadInput("--cams and --masks", "both or none", "one of them", "Say what is to be scored.")
    if settings.cams is not None:
        evaluate.evaluate_cams(chosen, _split(settings, scored=True), cams=settings.cams, out=settings.out)
    else:
        evaluate.evaluate_masks(chosen, _split(settings, scored=True), masks=settings.masks, out=settings.out)
    _print_table(settings.out)


def _declare_report(parser: "Parser") -> None:
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--out", type=Path, default=None, help="folder for report.html, by default the run's own")
    _declare_data(parser)


def _report(settings: SimpleNamespace) -> None:
    from wsss.stages.report import report

    show(report(settings.run, _open(settings), settings.out))


def _declare_info(parser: "Parser") -> None:
    parser.add_argument("data", type=Path, help="the data set")
    _declare_reading(parser)
    parser.add_argument("--split", type=str, help="look through this split alone")


def _info(settings: SimpleNamespace) -> None:
    from wsss.data.info import overview, render
    from wsss.data.open import open_dataset
    from wsss.progress import Progress

    stop = None
    try:
        data = open_dataset(settings.data, skip_missing=settings.skip_bad, **_reading(settings))
    except BadInput as error:  # what a run stops at may be missing pictures alone
        stop, data = error, open_dataset(settings.data, skip_missing=True, **_reading(settings))
    if settings.split:
        one = {settings.split: data.split(settings.split)}
        data = dataclasses.replace(data, splits=one, train=settings.split, scored_split=None, val=None)
    with Progress(f"look through {data.root.name}", sum(map(len, data.splits.values()))) as progress:
        found = overview(data, decode=True, classes=settings.classes, progress=lambda done, total: progress.advance())
    if stop is not None:
        found["stops"].append(str(stop))
    if settings.skip_bad:
        bad = sum(len(split["bad"]) for split in found["splits"].values())
        found["notes"].append(f"a run with --skip-bad leaves out {bad} bad pictures")
    show(render(found), end="")


def _declare_sbd(parser: "Parser") -> None:
    parser.add_argument("sbd", type=Path, help="SBD's folder, with dataset/cls/*.mat")
    parser.add_argument("voc", type=Path, help="VOC's folder, which gets SegmentationClassAug and the list")


def _sbd(settings: SimpleNamespace) -> None:
    from wsss.data.voc import make_segmentation_class_aug

    show(make_segmentation_class_aug(settings.sbd, settings.voc))


def _declare_shapes(parser: "Parser") -> None:
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--train", type=int, default=400, help="pictures to train on")
    parser.add_argument("--val", type=int, default=100, help="pictures to score on")
    parser.add_argument("--size", type=int, default=128, help="longest side in pixels")
    parser.add_argument("--seed", type=int, default=0, help="chooses all of it")


def _shapes(settings: SimpleNamespace) -> None:
    from wsss.data.shapes import make_shapes

    make_shapes(settings.out, train=settings.train, val=settings.val, size=settings.size, seed=settings.seed)
    show(f"{settings.train} pictures to train on and {settings.val} to score on in {settings.out}")


def _declare_demo(parser: "Parser") -> None:
    _declare_out(parser)


def _demo(settings: SimpleNamespace) -> None:
    data, clip = str(settings.out / "shapes"), CONFIGS / "demo_clip"
    commands = [["data", "shapes", data, "--train", "600", "--val", "100", "--size", "112"]]
    for method in ("cam", "clip_es"):
        config, out = str(CONFIGS / f"demo_{method}.yaml"), str(settings.out / method)
        commands.append(["run", method, "--data", data, "--config", config, "--out", out])
    commands[-1] += ["--inference.clip", str(clip), "--inference.words", str(clip / "words.yaml")]
    for words in commands:
        show(f"$ wsss {' '.join(words)}")
        if status := main(words):
            sys.exit(status)


def _print_table(run: Path) -> None:
    from wsss import launch
    from wsss.stages.report import table

    if launch.is_first():
        show(table(run))
