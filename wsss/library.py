"""The functions of `import wsss` for single pictures: arrays in, arrays out, with the same code as the stages.

A picture is a path, a Pillow image, a uint8 array (h, w, 3) RGB, (h, w, 4) RGBA or (h, w) grey, or a channels-first uint8
tensor; see `wsss.data.pictures.as_rgb`. Maps are float arrays or tensors (k, h, w) in [0, 1], one for each class.
"""

import dataclasses
import functools
import os
import types
import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor, nn

from wsss import launch, lock
from wsss.arrays import Float32, UInt8
from wsss.classifier import CAMLocalizer, MultiScale, at_scales
from wsss.data.augment import IMAGENET_MEAN, IMAGENET_STD
from wsss.data.images import IGNORE, MOST_CLASSES
from wsss.data.pictures import AnyPicture, as_rgb
from wsss.data.words import read_words
from wsss.errors import BadInput, check_range, suggestion
from wsss.formats import format_named
from wsss.formats.export import export_masks
from wsss.formats.importing import import_masks as read_masks
from wsss.formats.options import ExportOptions, ImportOptions
from wsss.methods.clip_es import CLIPESInference, CLIPESLocalizer, check_names, text_features
from wsss.networks.clip import ImageText
from wsss.networks.linear_head import LinearHead
from wsss.ops.affinity import directions
from wsss.ops.crf import PRESETS, DenseCRF, Preset, unary_from_labels, unary_from_scores
from wsss.ops.crf import dense_crf as mean_field
from wsss.ops.random_walk import random_walk as walk
from wsss.ops.thresholds import BINS, highest_values, otsu, thresholds
from wsss.pretrained import load_image_text
from wsss.refiners import crf
from wsss.refiners.crf import MaskSettings
from wsss.refiners.irnet import IRNetWalk, walked

_Made = TypeVar("_Made", bound=ExportOptions | ImportOptions)
# Encoded text features of each CLIP, by classes, backgrounds and templates
_texts: weakref.WeakKeyDictionary[ImageText, dict[Any, tuple[Tensor, Tensor]]] = weakref.WeakKeyDictionary()


def cams(
    network: nn.Module,
    image: AnyPicture,
    classes: Sequence[int],
    *,
    scales: Sequence[float] = (1.0, 0.5, 1.5, 2.0),
    flip: bool = True,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: str | torch.device | None = None,
) -> Float32[np.ndarray, "k h w"]:
    """Class activation maps of a classifier with a linear head after global average pooling (Zhou et al., CVPR 2016).

    The last linear layer w and the feature map f before the pooling are found by running the network once; the maps of one view
    are M_c = ReLU(w_c · f). As in IRNet (Ahn et al., CVPR 2019), the maps of all scales and mirrored views are summed, and each
    class is divided by its maximum. ResNets of torchvision, most convolutional networks of timm, Swin transformers and the
    networks that `wsss train cam` trains have such a head.

    Args:
        network: maps pictures (b, 3, h, w) to logits (b, c). It runs in evaluation mode; its training mode is restored afterwards.
        image: the picture; see `wsss.data.pictures.as_rgb`.
        classes: 0-based classes of the maps to compute.
        scales: scales of the picture over which the maps are summed.
        flip: also add the maps of the mirrored picture.
        mean, std: normalisation of RGB values in [0, 1] with which the network was trained; by default that in the configuration of
            a timm model, and that of ImageNet for others.
        device: device to which the network is moved; by default it stays where it is.

    Returns:
        Maps in [0, 1] at the size of the picture, in the order of `classes`.

    Raises:
        BadInput: the network has no linear head, has no feature map before it (a vision transformer has tokens instead), or does not
            accept the picture at some scale; a class does not exist; the picture has another type.

    Example:
        >>> import timm, numpy as np
        >>> import wsss
        >>> classifier = timm.create_model("test_resnet", num_classes=20)
        >>> picture = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
        >>> maps = wsss.cams(classifier, picture, [7, 2])
        >>> maps.shape, bool(maps.min() >= 0), bool(maps.max() <= 1)
        ((2, 60, 80), True, True)
    """
    rgb = as_rgb(image)
    if not isinstance(network, nn.Module):
        raise BadInput("network", type(network).__name__, "a torch.nn.Module", "Load your classifier first.")
    known: Any = getattr(network, "pretrained_cfg", {})
    means = known.get("mean", IMAGENET_MEAN) if mean is None else mean
    stds = known.get("std", IMAGENET_STD) if std is None else std
    for name, values in (("mean", means), ("std", stds)):
        if len(values) != 3:
            raise BadInput(name, f"{values}", "three numbers, for red, green and blue", "Give one for each channel.")
    check_range("std", stds, 1e-6)
    # the localizer normalises with ImageNet's values
    factor = torch.tensor(IMAGENET_STD).div(torch.tensor(stds))[:, None, None]
    shift = torch.tensor(IMAGENET_MEAN).sub(torch.tensor(means)).div(torch.tensor(stds))[:, None, None]
    modes = {module: module.training for module in network.modules()}
    settings = MultiScale(tuple(scales), flip)
    if device is not None:
        network.to(device)
    network.eval()
    try:
        views = [view * factor + shift for view in at_scales(rgb, settings.scales)]
        largest = max(views, key=lambda view: view.numel())
        network_device = next(network.parameters(), largest).device
        head = LinearHead(network, largest.to(network_device))
        label = _class_mask(classes, head.n_classes)
        found = CAMLocalizer(head, settings).cams(views, rgb.shape[:2], label)
    finally:
        for module, training in modes.items():
            module.training = training
    return found.maps[np.searchsorted(found.classes, classes)]


def clip_es(
    image: AnyPicture,
    classes: Sequence[str],
    *,
    clip: str | Path | ImageText = "openai/clip-vit-base-patch16",
    backgrounds: Sequence[str] | None = None,
    templates: Sequence[str] = ("a clean origami {}.",),
    refined: bool = True,
    box_threshold: float = 0.4,
    attention_blocks: int = 8,
    device: str | torch.device | None = None,
) -> Float32[np.ndarray, "k h w"]:
    """Class activation maps of a frozen CLIP, without any training (CLIP-ES; Lin et al., CVPR 2023).

    Grad-CAM of a softmax over the texts of the classes and backgrounds, refined with the attention between patches. Texts are
    encoded once per CLIP, and the last CLIP that was loaded from a path stays in memory.

    Args:
        image: the picture; see `wsss.data.pictures.as_rgb`.
        classes: names of the classes in the picture, as texts for CLIP.
        clip: a hub id, a folder of Hugging Face transformers, a file of OpenAI or open_clip, or the result of
            `wsss.pretrained.load_image_text`.
        backgrounds: texts of other things that pictures may show, other classes included; by default the list of CLIP-ES without `classes`.
        templates: sentences that contain `{}`, over which text features are averaged.
        refined: refine the maps with attention; otherwise return the Grad-CAM maps.
        box_threshold: threshold in [0, 1] of the boxes that limit the refinement; the published values are 0.4 on VOC and 0.7 on COCO.
        attention_blocks: number of last blocks whose attention is averaged.
        device: device to which CLIP is moved; by default a GPU if there is one, while a given network stays where it is.

    Returns:
        Maps in [0, 1] at the size of the picture, in the order of `classes`.

    Raises:
        BadInput: no class, or two with the same text; a picture of another type, or smaller than a patch; a CLIP that cannot be
            loaded, or has no vision transformer; settings out of range.

    Example:
        >>> import numpy as np
        >>> import wsss
        >>> from pathlib import Path
        >>> small = Path(wsss.__file__).parent / "configs" / "demo_clip"
        >>> picture = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
        >>> maps = wsss.clip_es(picture, ["star", "ring"], clip=small, backgrounds=["clouds", "water"])
        >>> maps.shape, bool(maps.min() >= 0), bool(maps.max() <= 1)
        ((2, 64, 96), True, True)
    """
    rgb, names = as_rgb(image), _as_texts("classes", classes)
    words = read_words("auto", names)
    others = words.background if backgrounds is None else _as_texts("backgrounds", backgrounds)
    if clashes := set(names) & set(others) or ({name for name in others if others.count(name) > 1}):
        do = "Remove them, since CLIP cannot distinguish equal texts."
        raise BadInput("backgrounds", f"{', '.join(sorted(clashes))} twice", "distinct texts that are not classes", do)
    network = clip if isinstance(clip, ImageText) else _load_clip(str(clip))
    if device is not None or not isinstance(clip, ImageText):
        network.to(launch.device() if device is None else torch.device(device))
    check_names(network, (*names, *others))
    settings = CLIPESInference(
        templates=tuple(templates), refined=refined, box_threshold=box_threshold, attention_blocks=attention_blocks
    )
    known, key = _texts.setdefault(network, {}), (names, others, settings.templates)
    if key not in known:
        known[key] = text_features(network, names, others, settings.templates, cache=False)
    of_classes, of_backgrounds = (features.to(next(network.parameters()).device) for features in known[key])
    localizer = CLIPESLocalizer(network, of_classes, of_backgrounds, settings, box_threshold)
    return localizer.cams(localizer.prepare(rgb), rgb.shape[:2], np.ones(len(names), bool)).maps


@functools.lru_cache(maxsize=1)
def _load_clip(source: str) -> ImageText:
    return load_image_text(source)


def dense_crf(
    picture: AnyPicture,
    scores: np.ndarray | Tensor,
    *,
    preset: Preset | DenseCRF = "irn",
    n_labels: int | None = None,
    certainty: float = 0.7,
) -> Any:
    """Label probabilities after a dense CRF (Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs", NeurIPS 2011).

    Args:
        picture: RGB; see `wsss.data.pictures.as_rgb`.
        scores: probabilities, floats (l, h, w) in [0, 1] that need not sum to 1; or labels, integers (h, w), 255 for unknown.
            A tensor of probabilities is processed by torch on its device, all else by compiled code on the CPU.
        preset: kernels and iterations: the name of a published preset (`wsss.ops.crf.PRESETS`), or a `DenseCRF`.
        n_labels: number of labels, background included; by default the largest label in `scores`, plus 1.
        certainty: the probability in (0, 1) that a given label is right.

    Returns:
        float32 (l, h, w), summing to 1 over the labels; an array, or a tensor if `scores` is a tensor of probabilities.

    Raises:
        BadInput: different sizes; wrong type or shape; values out of range or NaN; fewer than two labels; an unknown preset.

    Example:
        >>> import numpy as np
        >>> import wsss
        >>> picture = np.zeros((20, 30, 3), np.uint8)
        >>> picture[:, 15:] = 200
        >>> labels = np.zeros((20, 30), np.uint8)
        >>> labels[:, 12:] = 1  # three columns too many
        >>> int(wsss.dense_crf(picture, labels).argmax(0)[10].argmax())
        15
    """
    rgb, settings = as_rgb(picture), _preset(preset)
    if isinstance(scores, Tensor) and not scores.is_floating_point():
        scores = scores.cpu().numpy()
    if not isinstance(scores, np.ndarray | Tensor) or tuple(scores.shape[-2:]) != rgb.shape[:2]:
        found = f"{type(scores).__name__} {tuple(getattr(scores, 'shape', ()))}"
        expected = f"probabilities (labels, {rgb.shape[0]}, {rgb.shape[1]}) or labels ({rgb.shape[0]}, {rgb.shape[1]})"
        raise BadInput("scores", found, expected, "Resize the scores to the picture.")
    if isinstance(scores, np.ndarray) and scores.dtype.kind in "iu":
        return mean_field(rgb, _unary_from_labels(scores, n_labels, certainty), settings)
    _check_maps(scores, "scores", least=2)
    if n_labels not in (None, len(scores)):
        raise BadInput("n_labels", f"{n_labels} for {len(scores)} maps", f"{len(scores)}", "Leave it out.")
    if isinstance(scores, Tensor):
        return mean_field(rgb, -scores.float().clamp(1e-5, 1).log(), settings)
    return mean_field(rgb, unary_from_scores(scores), settings)


def _unary_from_labels(labels: np.ndarray, n_labels: int | None, certainty: float) -> np.ndarray:
    known = labels[labels != IGNORE]
    if labels.ndim != 2 or (known.size and known.min() < 0):
        raise BadInput("scores", f"{labels.dtype} {labels.shape}", "labels (h, w) from 0 on", "Check the labels.")
    count = int(known.max(initial=0)) + 1 if n_labels is None else n_labels
    # 0 stands for unknown
    return unary_from_labels(
        np.where(labels == IGNORE, 0, labels.astype(np.int64) + 1), count, certainty, zero_unsure=True
    )


def _preset(preset: Preset | DenseCRF) -> DenseCRF:
    if isinstance(preset, DenseCRF):
        return preset
    if preset not in PRESETS:
        raise BadInput("preset", repr(preset), f"one of {', '.join(PRESETS)}, or a DenseCRF", "Choose one of them.")
    return PRESETS[preset]


def pseudo_mask(
    maps: np.ndarray | Tensor,
    classes: Sequence[int],
    *,
    threshold: float | Literal["otsu"] = "otsu",
    lower: float | Literal["otsu"] | None = None,
    picture: AnyPicture | None = None,
    preset: Preset | DenseCRF = "irn",
    certainty: float = 0.7,
) -> UInt8[np.ndarray, "h w"]:
    """The pseudo mask of a picture's activation maps (`cam_to_ir_label` of IRNet; Ahn et al., CVPR 2019).

    A pixel gets the class of its highest map if that is above `threshold`. If a picture is given, a dense CRF aligns the
    borders with its edges.

    Args:
        maps: floats (k, h, w) in [0, 1].
        classes: the 0-based class of each map; class `c` has the label `c + 1`.
        threshold: background score in [0, 1]. `otsu` is Otsu's threshold of the highest map values of this picture alone; for
            several pictures, `background_threshold` gives a common one, as `wsss refine` uses.
        lower: a second, lower background score: pixels that are foreground at `lower` but not at `threshold` become 255. `otsu`
            is Otsu's threshold of the values below Otsu's threshold.
        picture: RGB, with the size of the maps.
        preset: kernels and iterations of the CRF.
        certainty: the probability of the thresholded label in the unary term of the CRF.

    Returns:
        Labels: 0 for background, class + 1, 255 for uncertain.

    Raises:
        BadInput: maps of another type, shape or range; a different number of classes, a class that occurs twice or is not in
            0..253; a picture of another size; settings out of range.

    Example:
        >>> import numpy as np
        >>> import wsss
        >>> maps = np.zeros((2, 4, 4), np.float32)
        >>> maps[0, :2], maps[1, 2, 2], maps[1, 3, 3] = 0.9, 0.2, 0.05
        >>> wsss.pseudo_mask(maps, [4, 0], threshold=0.3, lower=0.1)
        array([[  5,   5,   5,   5],
               [  5,   5,   5,   5],
               [  0,   0, 255,   0],
               [  0,   0,   0,   0]], dtype=uint8)
    """
    found = maps.detach().cpu().numpy() if isinstance(maps, Tensor) else maps
    _check_maps(found, "maps")
    _check_classes(classes, MOST_CLASSES)
    if len(classes) != len(found):
        raise BadInput("classes", f"{len(classes)} for {len(found)} maps", f"{len(found)}", "Give one for each map.")
    settings = MaskSettings(
        by="threshold" if picture is None else "crf",
        threshold=threshold,
        lower=lower,
        certainty=certainty,
        crf=_preset(preset),
    )
    if settings.rule is not None:  # without maps, all is background at any threshold
        settings = settings.of(thresholds(highest_values(found))) if len(found) else MaskSettings(threshold=1.0)
    size_hw = found.shape[1:]
    rgb = np.zeros((*size_hw, 3), np.uint8) if picture is None else as_rgb(picture)
    if rgb.shape[:2] != size_hw:
        expected = f"one of {size_hw[0]}x{size_hw[1]}, like the maps"
        raise BadInput(
            "picture", f"a picture of {rgb.shape[0]}x{rgb.shape[1]}", expected, "Resize the maps to the picture."
        )
    return crf.pseudo_mask(rgb, np.asarray(classes, np.int16).reshape(len(found)), found, settings)


def background_threshold(maps: Iterable[np.ndarray | Tensor]) -> float:
    """The background threshold for the activation maps of many pictures, found without true masks.

    It is Otsu's threshold (IEEE Trans. SMC 1979) of the highest map value of each pixel of all pictures; docs/thresholds.md says how
    close it is to the best one. The more pictures, the better.

    Args:
        maps: floats (k, h, w) in [0, 1] for each picture; a generator is accepted, and pictures without maps do not count.

    Returns:
        The threshold, in (0, 1).

    Raises:
        BadInput: no maps, or maps of another type, shape or range.

    Example:
        >>> import numpy as np
        >>> import wsss
        >>> values = np.array([0.1, 0.2, 0.15, 0.7, 0.8, 0.75], np.float32)
        >>> wsss.background_threshold([values.reshape(1, 2, 3)])
        0.203125
    """
    counts = np.zeros(BINS, np.int64)
    for one in maps:
        found = one.detach().cpu().numpy() if isinstance(one, Tensor) else one
        _check_maps(found, "maps")
        counts += highest_values(found)
    return otsu(counts)


def random_walk(
    maps: np.ndarray | Tensor,
    edges: np.ndarray | Tensor | None = None,
    *,
    affinities: np.ndarray | Tensor | None = None,
    radius: int = 5,
    beta: float | None = None,
    doublings: int = 8,
) -> Any:
    """Maps after a random walk of 2^doublings steps between neighbouring cells (AffinityNet; Ahn and Kwak, CVPR 2018).

    The probability of a step from one cell to another is proportional to affinity^beta. With `edges`, this is the walk of IRNet
    (Ahn et al., CVPR 2019): the affinity of two cells is 1 - the highest edge on the line between them, and the maps exclude
    the edges themselves. With `affinities`, it is the walk of AffinityNet with these affinities.

    Args:
        maps: floats (k, h, w), usually at a quarter of the size of the picture.
        edges: edge probability of each cell, (h, w) in [0, 1].
        affinities: (d, h, w) in [0, 1]: affinity of each cell and its neighbour in each direction (dy, dx) of
            `wsss.ops.affinity.directions(radius)`, 0 if there is no neighbour.
        radius: steps are shorter than this; at least 2.
        beta: exponent of the affinities; by default 10 with edges, and 8 with affinities, as published.
        doublings: the number of steps is 2^doublings.

    Returns:
        Maps in the form of `maps`, an array or a tensor; neither clipped nor divided by their maximum.

    Raises:
        BadInput: neither edges nor affinities, or both; wrong shapes or types; values out of range or NaN.

    Example:
        >>> import numpy as np
        >>> import wsss
        >>> maps, edges = np.zeros((1, 8, 9), np.float32), np.zeros((8, 9), np.float32)
        >>> maps[0, 4, 1], edges[:, 4] = 1, 1
        >>> after = wsss.random_walk(maps, edges)
        >>> bool(after[0, :, :4].min() > 0.01), float(after[0, :, 5:].max())
        (True, 0.0)
    """
    scores = _tensor(maps, "maps", 3)
    if (edges is None) == (affinities is None):
        found = "neither edges nor affinities" if edges is None else "both edges and affinities"
        raise BadInput("random_walk", found, "one of the two", "Give one of them.")
    exponent = beta if beta is not None else 10.0 if affinities is None else 8.0
    settings = IRNetWalk(radius, exponent, doublings)
    if edges is not None:
        edge = _tensor(edges, "edges", 2).to(scores)
        if edge.shape != scores.shape[1:] or not bool(((edge >= 0) & (edge <= 1)).all()):
            found = f"shape {tuple(edge.shape)} and values from {float(edge.min()):g} to {float(edge.max()):g}"
            expected = f"shape {tuple(scores.shape[1:])}, like the maps, and values in [0, 1]"
            raise BadInput("edges", found, expected, "Resize them to the maps, or take their sigmoid.")
        after = walked(scores, edge, settings)
    else:
        assert affinities is not None
        planes = _tensor(affinities, "affinities", 3).to(scores)
        after = walk(scores, planes, directions(radius), beta=exponent, steps=2**settings.doublings)
    return after if isinstance(maps, Tensor) else after.numpy()


def export(format: str, masks: str | os.PathLike[str], out: str | os.PathLike[str], **options: Any) -> Path:
    """Write masks in the format of another program, like `wsss export masks`.

    Args:
        format: name of a format in `wsss.formats.FORMATS`.
        masks: folder of masks: a stage of a run, or any folder with `NAME.png`.
        out: output folder.
        options: further options, as listed by `wsss export masks --format FORMAT --help`; paths may be strings.

    Returns:
        The file or folder for the other program.

    Raises:
        BadInput: an unknown format or option, a missing option, or masks that the format does not support. Then nothing is written.

    Example:
        >>> import wsss
        >>> file = wsss.export("voc-server", masks, "server", data=voc)  # predictions of VOC's test split
        >>> file.name
        'results.tar.gz'
    """
    chosen = format_named(format)
    given = {"masks": masks, "out": out, "format": format, **options}
    made = _made_options(chosen.export.options, f"options of {format}", given)
    with lock.locked(made.out):
        return export_masks(chosen, made).path


def import_masks(format: str, file: str | os.PathLike[str], out: str | os.PathLike[str], **options: Any) -> Path:
    """Read masks that were corrected in another program, like `wsss import masks`.

    Args:
        format: name of a format in `wsss.formats.FORMATS`.
        file: file or folder that the other program wrote.
        out: output folder for the corrected masks, `NAME.png`.
        options: further options, as listed by `wsss import masks --format FORMAT --help`; paths may be strings.

    Returns:
        The output folder.

    Raises:
        BadInput: an unknown format or option, a missing option, or a file that does not belong to these pictures and classes.
            Then nothing is written.

    Example:
        >>> import wsss
        >>> import numpy as np
        >>> from PIL import Image
        >>> from pathlib import Path
        >>> _ = Path("shots").mkdir(), Path("drawn").mkdir()
        >>> Image.new("RGB", (8, 6)).save("shots/a.png")
        >>> Image.fromarray(np.eye(6, 8, dtype=np.uint8)).save("drawn/a.png")  # the pixels of the first class are 1
        >>> file = wsss.export("coco", "drawn", "for_coco", pictures="shots", classes="cat, dog")
        >>> folder = wsss.import_masks("coco", file, "corrected", pictures="shots", classes="cat, dog")
        >>> int((np.array(Image.open(folder / "a.png")) == 1).sum())
        6
    """
    chosen = format_named(format)
    kind = ImportOptions if chosen.imports is None else chosen.imports.options
    made = _made_options(kind, f"options of {format}", {"file": file, "out": out, "format": format, **options})
    with lock.locked(made.out):
        return read_masks(chosen, made).path


def _made_options(kind: type[_Made], where: str, given: Mapping[str, Any]) -> _Made:
    """Options of a command from keywords; texts become paths where the option is one."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := sorted(set(given) - set(fields)):
        do = suggestion(unknown[0], fields) + "Correct or remove it."
        raise BadInput(where, unknown[0], f"some of {', '.join(fields)}", do)
    if lacking := sorted(
        name for name, field in fields.items() if field.metadata.get("required") and name not in given
    ):
        raise BadInput(where, f"no {lacking[0]}", f"{', '.join(lacking)}", "Give it.")
    kinds = get_type_hints(kind)
    values: dict[str, Any] = {}
    for name, value in given.items():
        members = get_args(kinds[name]) if isinstance(kinds[name], types.UnionType) else (kinds[name],)
        choices = [choice for member in members if get_origin(member) is Literal for choice in get_args(member)]
        if choices and value not in choices and value is not None:
            raise BadInput(
                f"{name} in the {where}", f"{value!r:.60}", f"one of {', '.join(choices)}", "Choose one of them."
            )
        values[name] = Path(value) if Path in members and value is not None else value
    return kind(**values)


def _as_texts(name: str, values: Sequence[str]) -> tuple[str, ...]:
    """Texts as a tuple; a single one stands for itself, not for its letters."""
    texts = (values,) if isinstance(values, str) else tuple(values)
    if not all(isinstance(text, str) for text in texts):
        raise BadInput(name, f"{values!r:.60}", "a list of texts", "Correct it.")
    return texts


def _tensor(values: np.ndarray | Tensor, name: str, ndim: int) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(values)) if isinstance(values, np.ndarray) else values
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.ndim != ndim or not tensor.numel():
        found = f"{getattr(values, 'dtype', type(values).__name__)} of shape {tuple(getattr(values, 'shape', ()))}"
        raise BadInput(name, found, f"floats with {ndim} axes", "Convert them.")
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _check_maps(maps: Any, name: str, least: int = 0) -> None:
    floating = (
        maps.is_floating_point() if isinstance(maps, Tensor) else getattr(maps, "dtype", np.dtype(bool)).kind == "f"
    )
    if not floating or maps.ndim != 3 or len(maps) < least or 0 in maps.shape[1:]:
        found = f"{getattr(maps, 'dtype', type(maps).__name__)} of shape {tuple(getattr(maps, 'shape', ()))}"
        raise BadInput(name, found, f"floats (k, h, w){', k at least 2' if least else ''}", "Convert them.")
    # also false for NaN
    if not bool(((maps >= 0) & (maps <= 1)).all()):
        found = f"values from {float(maps.min()):g} to {float(maps.max()):g}"
        raise BadInput(name, found, "values in [0, 1]", "Take their softmax, or divide them by their maximum.")


def _check_classes(classes: Sequence[int], n_classes: int) -> None:
    valid = all(isinstance(c, int | np.integer) and not isinstance(c, bool) and 0 <= c < n_classes for c in classes)
    if not valid or len(set(classes)) < len(classes):
        expected = f"distinct whole numbers in 0..{n_classes - 1}"
        raise BadInput("classes", f"{list(classes)}", expected, "Count classes from 0, without background.")


def _class_mask(classes: Sequence[int], n_classes: int) -> np.ndarray:
    _check_classes(classes, n_classes)
    label = np.zeros(n_classes, bool)
    label[list(classes)] = True
    return label
