"""What an exported model says of itself: the configuration for programs, and the model card for people."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import ModelCardData

from wsss import __version__
from wsss.data.augment import ColourRule
from wsss.data.labels import voc_palette
from wsss.data.samples import DEFAULT_READING
from wsss.deploy.network import Views
from wsss.stages.check import read_notes
from wsss.stages.predict import Segmenter
from wsss.stages.records import PREDICTIONS, Score, read_scores, read_stages
from wsss.stages.supervised import WORDS_ALONE, tags_behind

# what an exported model does with the values of pictures
_NORMALISATION: Mapping[ColourRule, str] = {
    "imagenet": "ImageNet's mean and deviation",
    "clip": "the mean and deviation of CLIP",
    "caffe": "BGR, minus the mean of Caffe's ImageNet",
    "raw": "the mean and deviation of its frozen network",
}
_TEMPLATE = Path(__file__).with_name("card.md.jinja")


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a run folder says about its model.

    Attributes:
        data: name of the dataset folder and number of training pictures; None if it is unknown.
        tags: where the tags of the training pictures come from.
        words_alone: whether there were no tags, only the names of the classes.
        method: title of the method that made the maps.
        scores: the scores of the predictions.
    """

    data: str | None
    tags: str
    words_alone: bool
    method: str | None
    scores: tuple[Score, ...]

    @classmethod
    def of(cls, run: Path) -> "Origin":
        """Read a run folder; the folder of a segmenter alone has no scores."""
        overview = read_notes(run).get("overview", {})
        stages = read_stages(run)
        method = next((stage.title for stage in reversed(stages) if stage.kind == "localize"), None)
        data = None
        if overview:
            count = overview["splits"][overview["train"]]["images"]
            data = f"{Path(overview['root']).name} ({count} training pictures)"
        tags = tags_behind(run, stages) if overview else "unknown"
        found = tuple(score for score in read_scores(stages) if score.kind == PREDICTIONS)
        return cls(data, tags, tags == WORDS_ALONE, method, found)


def configuration(
    segmenter: Segmenter, views: Views, reading: Mapping[str, Any] | None, checks: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of `config.json`, plain values only.

    Args:
        segmenter: the segmenter.
        views: the views over which it averages.
        reading: how its training pictures were read, None for 8-bit pictures.
        checks: what was measured of the exported file.
    """
    labels = ["background", *segmenter.classes]
    return {
        "format": 1,
        "wsss": __version__,
        "kind": segmenter.kind,
        "classes": list(segmenter.classes),
        "labels": dict(enumerate(labels)),
        "palette": voc_palette()[: len(labels)].tolist(),
        "input": {"picture": "uint8 (batch, height, width, 3), RGB, 0 to 255; any size"},
        "outputs": {
            "labels": "uint8 (batch, height, width): 0 for background, otherwise the position in `classes` plus 1",
            "confidence": "float32 (batch, height, width): the probability of that label",
            "probabilities": "float32 (batch, labels, height, width): they sum to 1",
        },
        "normalisation": f"{_NORMALISATION[segmenter.trained.colours]}, part of the model: give values from 0 to 255",
        "scales": list(views.scales),
        "flip": views.flip,
        "long_sides": segmenter.long_sides,
        "reading": reading,
        "checks": dict(checks),
    }


def card(config: Mapping[str, Any], origin: Origin, licence: str, files: Sequence[str], notes: Sequence[str]) -> str:
    """The model card, Markdown with YAML metadata as Hugging Face's hub reads it.

    Args:
        config: content of `config.json`.
        origin: what the run says.
        licence: licence of the model, as the person who exports it states it.
        files: names of the other files in the folder.
        notes: doubts about the run, in plain text.
    """
    metadata = ModelCardData(
        license=licence,
        library_name="wsss",
        pipeline_tag="image-segmentation",
        tags=["weakly-supervised", config["kind"]],
    )
    template = jinja2.Template(
        _TEMPLATE.read_text(encoding="utf-8"), undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return template.render(
        metadata=metadata.to_yaml(), config=config, origin=origin, licence=licence, files=files, notes=notes,
        eight_bit=config["reading"] in (None, dataclasses.asdict(DEFAULT_READING)),
    )  # fmt: skip
