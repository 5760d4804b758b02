"""What the networks behind a result were trained on. A method that uses only tags may still owe its masks to a network that was trained on masks.

Each part says which of its settings name networks: the field is declared with `wsss.run.pretrained`, and what such networks are trained on, if the
name does not tell. Records of stages hold the networks of their settings and of everything that they were made from, so the last stage of a run
knows all of them. Pixel labels of the dataset itself are followed by `wsss.stages.thresholds.pixel_labels`.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from wsss.outputs import DONE
from wsss.storage import read_json
from wsss.weights import read_metadata, weights_in

# What networks are trained on, in the order of tables; masks are the strongest supervision
MASKS, BOXES, PAIRS, ANSWERS, LABELS, SELF, UNKNOWN = LEARNED = (
    "masks", "boxes", "image-text pairs", "questions and answers", "image labels", "pictures alone", "not known",
)  # fmt: skip
# In records
SUPERVISION = "supervision"
# Metadata of fields that name networks
NETWORK = "network"

Networks = dict[str, list[str]]
"""What each network was trained on, by the name that its user gave it."""


@runtime_checkable
class ChoosesNetworks(Protocol):
    """Settings that may name networks which they do not use."""

    @property
    def unused_networks(self) -> tuple[str, ...]:
        """The fields whose networks are not used with these settings."""


# Families of networks, by words in names of the hub, of timm, of files, and in `model_type`; the first that fits counts. RADIO distils CLIP, DINOv2
# and SAM. OVSeg's CLIP was adapted to masked pictures, with the proposals of a MaskFormer. deeplabv1_resnet101-coco.pth was trained on masks of COCO
_FAMILIES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("grounding", (BOXES, PAIRS)),
    (
        r"\bsam(vit_|[23]?(\.\d)?([-_.]|$))|segment.?anything|mask2former|maskformer|oneformer|eomt|entity|segformer",
        (MASKS,),
    ),
    ("ovseg", (MASKS, PAIRS)),
    ("radio", (MASKS, PAIRS, SELF)),
    ("blip", (PAIRS, ANSWERS)),
    (r"clip|siglip|^vit-[bl]-\d\d\.pt$|^rn\d+(x\d+)?\.pt$", (PAIRS,)),
    (r"dino|[-_.]mae\b|ijepa", (SELF,)),
    (r"imagenet|ilsvrc|res38", (LABELS,)),
    ("deeplab", (MASKS,)),
)
# settings of networks that are new, or of this run
_WORDS = ("none", "auto", "baseline", "classifier")
# input of stages that use a trained network
_WEIGHTS = "weights"
# weights of timm that were trained, or fine-tuned, on ImageNet's labels
_IMAGENET_TAG = re.compile(r"in(1|12|21|22)k")


def networks_behind(inputs: Mapping[str, Any], read_record: Callable[[Path], Mapping[str, Any]]) -> Networks:
    """The networks of a stage's settings, and of all stages that it is made from.

    Args:
        inputs: of the stage: settings, paths, and others.
        read_record: reads the record of a finished stage.
    """
    found: Networks = {}
    for name, value in inputs.items():
        if isinstance(value, Path):
            found |= _of_stage(value, read_record)
            if name == _WEIGHTS and value.exists() and _stage_of(value) is None:
                # a published file, or one from elsewhere
                found |= dict(_named(str(value), "", UNKNOWN))
        elif isinstance(value, Mapping):
            found |= networks_behind(value, read_record)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            found |= _of_settings(value, read_record)
    return dict(sorted(found.items()))


def of_record(record: Mapping[str, Any]) -> Networks:
    """The networks in the record of a stage."""
    known = record.get(SUPERVISION)
    return {f"before {record['title']}": [UNKNOWN]} if known is None else known


def trained_on(networks: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """The names of the networks, by what they were trained on; without what no network was trained on."""
    by_kind = {kind: sorted(name for name, kinds in networks.items() if kind in kinds) for kind in LEARNED}
    return {kind: names for kind, names in by_kind.items() if names}


def _of_settings(settings: Any, read_record: Callable[[Path], Mapping[str, Any]]) -> Networks:
    found: Networks = {}
    unused = settings.unused_networks if isinstance(settings, ChoosesNetworks) else ()
    for field in dataclasses.fields(settings):
        if field.name in unused:
            continue
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            found |= _of_settings(value, read_record)
        elif not isinstance(value, str):
            continue
        elif field.metadata.get("maybe_file") and (made := _stage_of(Path(value))) is not None:
            found |= of_record(read_record(made))
        elif NETWORK in field.metadata:
            found |= dict(_named(value, _backbone(settings), field.metadata[NETWORK]))
    return found


def _backbone(settings: Any) -> str:
    """The backbone that `imagenet` stands for; some settings resolve `auto` as `body`."""
    for holder, name in ((settings, "body"), (settings, "backbone"), (getattr(settings, "network", None), "backbone")):
        if (found := getattr(holder, name, None)) is not None:
            return str(found)
    return "a backbone"


def _of_stage(path: Path, read_record: Callable[[Path], Mapping[str, Any]]) -> Networks:
    made = _stage_of(path)
    return {} if made is None else of_record(read_record(made))


def _stage_of(path: Path) -> Path | None:
    """The folder of the stage that made a folder or file; None if no stage did."""
    for folder in (path, path.parent) if path.exists() else ():
        if folder.is_dir() and (folder / DONE).exists():
            return folder
    return None


def _named(source: str, backbone: str, usual: str) -> Iterator[tuple[str, list[str]]]:
    """A network by its name or file, and what it was trained on."""
    if source == "imagenet":
        found = _of_timm(backbone)
        # backbones of torchvision and of this library have no other published weights than ImageNet's
        yield f"{backbone} (ImageNet)", list(found if found != (UNKNOWN,) else (LABELS,))
        return
    if source in _WORDS:
        return
    path = Path(source)
    words = described_by(source)
    known = next((kinds for word in words if (kinds := _family(word))), ())
    name = path.name if path.exists() else source
    if not known and path.exists() and (own := _own(path)) is not None:
        yield f"{name} ({own})", [UNKNOWN]
        return
    if not known and not path.exists() and "/" not in source:
        known = _of_timm(source)
    yield name, list(known if known not in ((), (UNKNOWN,)) else (usual,))


def described_by(source: str) -> list[str]:
    """The words that say which kind of network a name, file or folder stands for."""
    path = Path(source)
    return [_in_folder(path)] if path.is_dir() else [path.name, source]


def _in_folder(folder: Path) -> str:
    """What config.json in a folder of transformers or timm says about its architecture."""
    config = folder / "config.json"
    content = read_json(config, "the settings of a model (config.json)") if config.is_file() else {}
    known = content if isinstance(content, dict) else {}
    return str(known.get("model_type") or known.get("architecture") or folder.name)


def _own(path: Path) -> str | None:
    """What weights that were trained with this library say of themselves; None for other files."""
    file = weights_in(path)
    if file.suffix != ".safetensors" or not file.is_file():
        return None
    metadata = read_metadata(file)
    return str(metadata.get("kind") or "classifier") if metadata else None


def _family(word: str) -> tuple[str, ...] | None:
    return next((kinds for pattern, kinds in _FAMILIES if re.search(pattern, word.lower())), None)


def _of_timm(name: str) -> tuple[str, ...]:
    """What the weights were trained on that timm or torchvision have under a name."""
    import timm

    known = name.removeprefix("timm/")
    if not timm.is_model(known):
        return (UNKNOWN,)
    tag = getattr(timm.get_pretrained_cfg(known), "tag", None) or ""
    return tuple(dict.fromkeys([*(_family(known) or ()), *((LABELS,) if _IMAGENET_TAG.search(tag) else ())])) or (
        UNKNOWN,
    )
