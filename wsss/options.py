"""The options of the commands: the dataset, how its files are read, where results are written."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from wsss.arguments import required, switch

if TYPE_CHECKING:  # what needs torch is imported by the commands that run
    from wsss.data.images import Dataset, Images
    from wsss.stages.predict import Output

# the value of --tags that lets TagCLIP predict the tags
TAGCLIP = "tagclip"
# the value of --tags that says that pictures have no tags
NO_TAGS = "none"


@dataclasses.dataclass(frozen=True)
class PictureOptions:
    """How the values in picture files are read."""

    value_range: str | tuple[float, ...] | None = None
    """pixel values that become black and white, such as 0,4095; by default found from the pictures"""
    bands: str | tuple[int, ...] | None = None
    """bands, counted from 1, used as red, green and blue, such as 4,3,2; a single band is grey"""
    page: int | None = None
    """page, frame or slice to read, counted from 1"""


@dataclasses.dataclass(frozen=True)
class ReadingOptions(PictureOptions):
    """How a dataset is read."""

    train: str | None = None
    """training split, instead of the default one"""
    val: str | None = None
    """validation split for the segmenter, instead of the default one"""
    tags: Path | None = None
    """CSV, TSV, JSONL or cls_labels.npy; `tagclip`: TagCLIP predicts them; `none`: no tags"""
    classes: str | None = None
    """class names: a text file with one per line, or a list such as 'cat, dog'"""
    tag_rule: str | None = None
    """how tags are derived from annotations: see docs/data.md"""
    mask_rule: str | None = None
    """how masks are drawn from COCO's polygons: clims or icam"""
    mask_values: str | None = None
    """meaning of the values in masks: '255=1', '0,128,0=dog; ...', or index"""
    negative: str | None = None
    """names that mean that a picture has no class, separated by commas: 'no_defect, normal'"""
    tag_column: str | None = None
    """column with the tags in metadata.csv or in an export of choices"""
    allow_outside: bool = switch()
    """also read files outside the dataset's folder"""
    upright: bool | None = None
    """rotate pictures by their EXIF orientation"""
    skip_bad: bool = switch()
    """leave bad pictures out and list them in the report"""

    @property
    def by_tagclip(self) -> bool:
        """Whether TagCLIP predicts the tags."""
        return str(self.tags) == TAGCLIP

    @property
    def without_tags(self) -> bool:
        """Whether pictures in a folder have no tags."""
        return str(self.tags) == NO_TAGS

    def reading(self) -> dict[str, Any]:
        """Arguments of `open_dataset`."""
        names = [
            field.name for field in dataclasses.fields(ReadingOptions) if field.name not in ("skip_bad", "negative")
        ]
        return {name: getattr(self, name) for name in names} | {
            "tags": None if self.by_tagclip or self.without_tags else self.tags,
            "untagged": self.by_tagclip or self.without_tags,
            "negatives": [name.strip() for name in (self.negative or "").split(",") if name.strip()],
        }

    def read(self, path: Path) -> "Dataset":
        """The dataset, whose files are not decoded yet; imports no torch, so that mistakes in it are reported at once."""
        from wsss.data.open import open_dataset

        return open_dataset(path, skip_missing=self.skip_bad, **self.reading())

    def checked(
        self, path: Path, data: "Dataset", *, split: str | None = None, remember: Path | None = None
    ) -> "Dataset":
        """The dataset `data` after all its files were checked; see `wsss.stages.check.checked`."""
        from wsss.stages.check import checked

        return checked(path, data, skip_bad=self.skip_bad, split=split, remember=remember, **self.reading())

    def open_path(self, path: Path) -> "Dataset":
        """The dataset, whose files were checked."""
        return self.checked(path, self.read(path))


@dataclasses.dataclass(frozen=True)
class DataOptions(ReadingOptions):
    """A dataset, and how it is read."""

    data: Path = required()
    """dataset: VOC, COCO, or a folder of pictures; see `wsss data info`"""

    def needing_no_tags(self) -> Self:
        """The options for a command that needs no tags: pictures in a plain folder have none if `classes` names the classes."""
        from wsss.data.open import is_plain

        if self.tags is not None or self.classes is None or not is_plain(self.data):
            return self
        return dataclasses.replace(self, tags=Path(NO_TAGS))


@dataclasses.dataclass(frozen=True)
class OutOptions:
    """Where results are written; the folder is locked while the command runs."""

    out: Path = required()
    """output folder; a stopped command continues there"""
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """where networks run"""
    memory: str | None = None
    """memory for pictures, such as 8GB (half of what is free)"""

    def apart(self, data: "Dataset") -> "Dataset":
        """The dataset `data`, of which the output folder is no part."""
        from wsss.data.file_checks import check_apart

        check_apart(data, self.out)
        return data


@dataclasses.dataclass(frozen=True)
class DemoOptions(OutOptions):
    """The demo: generated pictures, three runs and their comparison."""

    quick: bool = switch()
    """few pictures and epochs, to check in about a minute that everything works"""


@dataclasses.dataclass(frozen=True)
class CorrectedOptions:
    """Masks that a person corrected."""

    corrected: Path | None = None
    """folder of corrected masks NAME.png; docs/corrections.md"""

    def corrected_masks(self) -> dict[str, Path]:
        """The input of the segmenter's training, if there is one."""
        return {} if self.corrected is None else {"corrected": self.corrected}


@dataclasses.dataclass(frozen=True)
class PresetOptions:
    """Which settings are used where none are given."""

    preset: Literal["quick", "small-cpu", "gpu", "paper"] | None = None
    """settings for a kind of computer; docs/presets.md"""


@dataclasses.dataclass(frozen=True)
class RunOptions(CorrectedOptions, PresetOptions, OutOptions, DataOptions):
    """A run on a dataset."""

    plots: bool = switch()
    """draw example maps in the report during training"""

    def dataset(self) -> "Dataset":
        """The dataset of a run, whose pictures can get masks; its files are not checked yet."""
        from wsss.data.class_names import likely_typos

        data = self.apart(self.read(self.data))
        data.split(data.train).check_maskable()
        if typos := likely_typos(data, self.classes):
            raise typos
        return data

    def opened(self, data: "Dataset") -> "Dataset":
        """The dataset `data` after its files were checked; the run folder remembers what was found."""
        return self.checked(self.data, data, remember=self.out)


@dataclasses.dataclass(frozen=True)
class MethodOptions(RunOptions):
    """Options of `wsss run METHOD`."""

    clip: str | None = None
    """CLIP of tagger and method: file, folder or name on the hub"""


@dataclasses.dataclass(frozen=True)
class SplitOptions(OutOptions, DataOptions):
    """A single stage on one split of a dataset."""

    split: str | None = None
    """split to process; by default the training split, and for scores the one with true masks"""

    def dataset(self) -> "Dataset":
        """The dataset; its files are not checked yet."""
        data = self.apart(self.read(self.data))
        data.split(self.split or data.train)
        return data

    def images(self, data: "Dataset", *, scored: bool = False) -> "Images":
        """The pictures of the split, whose files were checked; by default the training split, or the one that is scored."""
        data = self.checked(self.data, data, split=self.split)
        return data.split(self.split or (data.scored_split if scored else None) or data.train)


@dataclasses.dataclass(frozen=True)
class StageOptions(PresetOptions, SplitOptions):
    """A single stage on one split of a dataset, with presets."""


@dataclasses.dataclass(frozen=True)
class AllOptions(RunOptions):
    """Options of `wsss run all`."""

    methods: str | None = None
    """runs or methods to include, such as `cam, vwl`; by default all"""
    common: dict | None = None
    """settings for all methods; see docs/compare.md"""
    runs: dict | None = None
    """settings of single runs, by name"""

    @property
    def chosen(self) -> list[str] | None:
        """The names in `methods`."""
        return None if self.methods is None else [name.strip() for name in self.methods.split(",")]


@dataclasses.dataclass(frozen=True)
class CompareOptions(ReadingOptions):
    """Options of `wsss compare`."""

    folders: list[Path] = required(positional=True)
    """run folders, or the output folder of `wsss run all`"""
    out: Path = Path("comparison")
    """output folder for compare.html, compare.csv and compare.json"""
    data: Path | None = None
    """the dataset of the runs, if it has been moved"""


@dataclasses.dataclass(frozen=True)
class LocalizeOptions(StageOptions):
    """Options of `wsss localize`, for methods with a trained network."""

    weights: Path = required()
    """folder of the trained network, or its weights file"""


@dataclasses.dataclass(frozen=True)
class RefineOptions(StageOptions):
    """Options of `wsss refine`."""

    out: Path = required()
    """output folder, with the masks in OUT/masks; a stopped command continues there"""
    cams: Path | None = None
    """folder of activation maps"""
    masks: Path | None = None
    """folder of masks to correct with regions, in place of maps"""
    corrected: Path | None = None
    """folder of corrected maps (NAME.npz, NAME.npy) or masks (NAME.png) of some pictures; see docs/corrections.md"""
    classifier: Path | None = None
    """folder of the network that made the maps, for `init: classifier`"""
    instances: bool = switch()
    """separate instances with IRNet, and write maps and COCO results to OUT/instances"""


@dataclasses.dataclass(frozen=True)
class SegmentOptions(CorrectedOptions, StageOptions):
    """Options of `wsss segment`."""

    masks: Path = required()
    """folder of pseudo masks"""


@dataclasses.dataclass(frozen=True)
class PredictOptions(OutOptions, PictureOptions):
    """Options of `wsss predict`."""

    weights: Path = required()
    """run folder, folder of a trained segmenter, or its weights file"""
    pictures: Path = required()
    """a picture, or a folder of pictures"""
    overlay: bool = switch()
    """also draw pictures with their masks and a legend, in OUT/overlays"""
    json: bool = switch()
    """also list classes, areas, confidences and boxes in JSON, in OUT/json"""
    probabilities: bool = switch()
    """also write the probability of each class, in OUT/probabilities"""
    regions: Path | None = None
    """folder of the pictures' regions made by `wsss regions`, for a segmenter of kind `retrieval`; by default it proposes them"""
    allow_outside: bool = switch()
    """also read files outside the folder of pictures, to which links in it lead"""
    skip_bad: bool = switch()
    """leave bad pictures out and list them"""

    @property
    def also(self) -> "list[Output]":
        """What to write besides masks."""
        wanted: dict[Output, bool] = {
            "overlays": self.overlay,
            "json": self.json,
            "probabilities": self.probabilities,
        }
        return [name for name, one in wanted.items() if one]


@dataclasses.dataclass(frozen=True)
class ModelOptions(OutOptions):
    """Options of `wsss export model`."""

    weights: Path = required(positional=True)
    """run folder, folder of a segmenter, or its weights file"""
    format: Literal["onnx", "torchscript", "hub"] = "onnx"
    """onnx: model.onnx and a small program that uses it; torchscript: model.pt; hub: a folder for Hugging Face's hub, which wsss.load reads"""
    scales: tuple[float, ...] = (1.0,)
    """scales of the picture over which scores are averaged, part of the model; not for hub"""
    flip: bool = switch()
    """also average over the mirrored picture; not for hub"""
    int8: bool = switch()
    """8-bit integers in the convolutions of an ONNX model, calibrated on the training pictures"""
    max_loss: float = 2.0
    """the mIoU, in points, that 8-bit integers may cost; more is an error"""
    licence: str = "unknown"
    """licence of the model in its card, such as mit or cc-by-4.0; the licence of the pictures and of initial weights may restrict it"""
    push: str | None = None
    """USER/NAME on the hub, to which the folder is uploaded"""


@dataclasses.dataclass(frozen=True)
class EvaluateOptions(SplitOptions):
    """Options of `wsss evaluate`."""

    cams: Path | None = None
    """folder of activation maps"""
    masks: Path | None = None
    """folder of pseudo masks or predictions"""
    regions: Path | None = None
    """folder of regions made by `wsss regions`"""


@dataclasses.dataclass(frozen=True)
class ReportOptions(DataOptions):
    """Options of `wsss report`."""

    run: Path = required(positional=True)
    """run folder"""
    out: Path | None = None
    """folder for report.html; by default the run folder"""


@dataclasses.dataclass(frozen=True)
class InfoOptions(ReadingOptions):
    """Options of `wsss data info`."""

    data: Path = required(positional=True)
    """the dataset"""
    split: str | None = None
    """check only this split"""


@dataclasses.dataclass(frozen=True)
class SBDOptions:
    """Options of `wsss data sbd`: the two datasets that make up train_aug."""

    sbd: Path = required(positional=True)
    """SBD folder, with dataset/cls/*.mat"""
    voc: Path = required(positional=True)
    """VOC folder, to which SegmentationClassAug and the list are added"""


@dataclasses.dataclass(frozen=True)
class ShapesOptions:
    """Options of `wsss data shapes`."""

    out: Path = required(positional=True)
    """output folder"""
    train: int = 400
    """number of training pictures"""
    val: int = 100
    """number of validation pictures"""
    size: int = 128
    """longest side of the pictures, in pixels"""
    classes: tuple[str, ...] = ("ball", "boat", "cross", "ring", "star")
    """some of these classes"""
    radii: tuple[float, float] = (0.2, 0.38)
    """smallest and largest radius of the objects, as shares of the shorter side of the picture"""
    seed: int = 0
    """random seed"""
