"""Options that several commands share: which data set, how its files are read, where results go."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from wsss.arguments import required, switch

if TYPE_CHECKING:  # what needs torch is imported by the commands that run
    from wsss.data.images import Dataset, Images

# the word for --tags that lets CLIP tag the pictures
TAGCLIP = "tagclip"


@dataclasses.dataclass(frozen=True)
class PictureOptions:
    """How the values in picture files are read."""

    value_range: str | tuple[float, ...] | None = None
    """values that become black and white: 0,4095; by default found in the pictures"""
    bands: str | tuple[int, ...] | None = None
    """bands, from 1, taken as red, green and blue: 4,3,2; or 1 as grey"""
    page: int | None = None
    """page, frame or slice to read, from 1"""


@dataclasses.dataclass(frozen=True)
class ReadingOptions(PictureOptions):
    """How a data set is read."""

    train: str | None = None
    """split to train on, instead of the usual one"""
    val: str | None = None
    """split to score the segmenter on, instead of the usual one"""
    tags: Path | None = None
    """CSV, TSV, JSONL or cls_labels.npy with tags; `tagclip` lets CLIP tag the pictures"""
    classes: str | None = None
    """text file with one class per line, or the names: 'cat, dog'"""
    tag_rule: str | None = None
    """how tags are derived from annotations: see docs/data.md"""
    mask_rule: str | None = None
    """how COCO's masks are drawn: clims or icam"""
    mask_values: str | None = None
    """what values of masks mean: '255=1', '0,128,0=dog; ...', or index"""
    negative: str | None = None
    """names that mean that no class is there, separated by commas: 'no_defect, normal'"""
    tag_column: str | None = None
    """column of the tags in metadata.csv or in an export of choices"""
    allow_outside: bool = switch()
    """read files outside the data set's folder too"""
    upright: bool | None = None
    """turn pictures as their EXIF orientation says"""
    skip_bad: bool = switch()
    """leave bad pictures out and name them in the report"""

    @property
    def by_tagclip(self) -> bool:
        """Whether CLIP tags the pictures."""
        return str(self.tags) == TAGCLIP

    def reading(self) -> dict[str, Any]:
        """Arguments of `open_dataset`."""
        names = [
            field.name for field in dataclasses.fields(ReadingOptions) if field.name not in ("skip_bad", "negative")
        ]
        return {name: getattr(self, name) for name in names} | {
            "tags": None if self.by_tagclip else self.tags,
            "untagged": self.by_tagclip,
            "negatives": [name.strip() for name in (self.negative or "").split(",") if name.strip()],
        }

    def opened(self, path: Path, *, split: str | None = None, remember: Path | None = None) -> "Dataset":
        """A data set, announced, each of its files decoded once; see `wsss.stages.check.open_checked`."""
        from wsss.stages.check import open_checked

        return open_checked(path, skip_bad=self.skip_bad, split=split, remember=remember, **self.reading())


@dataclasses.dataclass(frozen=True)
class DataOptions(ReadingOptions):
    """A data set, and how it is read."""

    data: Path = required()
    """VOC, COCO, or a folder of pictures; see `wsss data info`"""


@dataclasses.dataclass(frozen=True)
class OutOptions:
    """Where results go; the folder belongs to the command while it runs."""

    out: Path = required()
    """folder for results; a command that was stopped goes on there"""
    device: Literal["auto", "cpu"] = "auto"
    """auto takes a GPU where there is one"""


@dataclasses.dataclass(frozen=True)
class DemoOptions(OutOptions):
    """Pictures and runs that show what the package does."""

    quick: bool = switch()
    """few pictures and epochs: about a minute, to see that everything works"""


@dataclasses.dataclass(frozen=True)
class RunOptions(OutOptions, DataOptions):
    """A run on a data set."""

    def open(self) -> "Dataset":
        """The data set of a run, with pictures that can get masks."""
        data = self.opened(self.data, remember=self.out)
        data.split(data.train).check_maskable()
        return data


@dataclasses.dataclass(frozen=True)
class SplitOptions(OutOptions, DataOptions):
    """A single stage on one split of a data set."""

    split: str | None = None
    """split to work on; by default the one trained on, and for scores the one with true masks in it"""

    def images(self, *, scored: bool = False) -> "Images":
        """The pictures of the split; by default those trained on, or those that maps and masks are scored on."""
        data = self.opened(self.data, split=self.split)
        return data.split(self.split or (data.scored_split if scored else None) or data.train)


@dataclasses.dataclass(frozen=True)
class AllOptions(RunOptions):
    """Several runs."""

    methods: str | None = None
    """runs or methods to take, such as `cam, vwl`; by default all"""
    common: dict | None = None
    """settings for all methods; see docs/compare.md"""
    runs: dict | None = None
    """settings of single runs, by their names"""

    @property
    def chosen(self) -> list[str] | None:
        """The names in `methods`."""
        return None if self.methods is None else [name.strip() for name in self.methods.split(",")]


@dataclasses.dataclass(frozen=True)
class CompareOptions(ReadingOptions):
    """Runs, and what to write about them."""

    folders: list[Path] = required(positional=True)
    """folders of runs, or the one that `wsss run all` filled"""
    out: Path = Path("comparison")
    """folder for compare.html, compare.csv and compare.json"""
    data: Path | None = None
    """the data set of the runs, where it is no longer where they name it"""


@dataclasses.dataclass(frozen=True)
class LocalizeOptions(SplitOptions):
    """Pictures, and a trained network for them."""

    weights: Path = required()
    """folder of the trained network, or its file"""


@dataclasses.dataclass(frozen=True)
class RefineOptions(SplitOptions):
    """Maps to refine."""

    out: Path = required()
    """folder for results, with the masks in OUT/masks; a command that was stopped goes on there"""
    cams: Path = required()
    """folder of activation maps"""
    classifier: Path | None = None
    """folder of the network that gave the maps, for `init: classifier`"""
    instances: bool = switch()
    """find instances with IRNet, in OUT/instances: maps, and COCO's results"""


@dataclasses.dataclass(frozen=True)
class SegmentOptions(SplitOptions):
    """Pseudo masks to train on."""

    masks: Path = required()
    """folder of pseudo masks"""


@dataclasses.dataclass(frozen=True)
class PredictOptions(OutOptions, PictureOptions):
    """Pictures, and a segmenter for them."""

    weights: Path = required()
    """folder of a trained segmenter, or its file"""
    pictures: Path = required()
    """a picture, or a folder of pictures"""
    skip_bad: bool = switch()
    """leave bad pictures out and name them"""


@dataclasses.dataclass(frozen=True)
class EvaluateOptions(SplitOptions):
    """What is scored."""

    cams: Path | None = None
    """folder of activation maps"""
    masks: Path | None = None
    """folder of pseudo masks or predictions"""


@dataclasses.dataclass(frozen=True)
class ReportOptions(DataOptions):
    """A run, and where its page goes."""

    run: Path = required(positional=True)
    """folder of a run"""
    out: Path | None = None
    """folder for report.html, by default the run's own"""


@dataclasses.dataclass(frozen=True)
class InfoOptions(ReadingOptions):
    """A data set to look through."""

    data: Path = required(positional=True)
    """the data set"""
    split: str | None = None
    """look through this split alone"""


@dataclasses.dataclass(frozen=True)
class SBDOptions:
    """The two data sets that make train_aug."""

    sbd: Path = required(positional=True)
    """SBD's folder, with dataset/cls/*.mat"""
    voc: Path = required(positional=True)
    """VOC's folder, which gets SegmentationClassAug and the list"""


@dataclasses.dataclass(frozen=True)
class ShapesOptions:
    """A data set to generate."""

    out: Path = required(positional=True)
    """folder to make"""
    train: int = 400
    """pictures to train on"""
    val: int = 100
    """pictures to score on"""
    size: int = 128
    """longest side in pixels"""
    seed: int = 0
    """chooses all of it"""
