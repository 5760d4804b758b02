"""CLIP is also an efficient segmenter: a text-driven approach for weakly supervised semantic segmentation (CLIP-ES; Lin et al., CVPR 2023).

Nothing is trained. f is the mean of the patch tokens after the last block, projected and normalised; T_k are the unit text vectors
of the classes that a picture has and of the backgrounds; p = softmax_k(s <T_k, f>). Grad-CAM of p_c at
the first LayerNorm of the last block gives an initial map M_c of each class. It is refined with the attention averaged over blocks,
made doubly stochastic (class-aware attention-based affinity, CAA).
"""

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import cv2
import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from wsss import launch
from wsss.arrays import Bool, Float, Int, UInt8
from wsss.data.augment import CLIP_MEAN, CLIP_STD, Colours, normalise, resize_bicubic
from wsss.data.coco import COCO_CATEGORIES
from wsss.data.grids import Grids
from wsss.data.images import Images
from wsss.data.words import check_templates, read_words
from wsss.errors import BadInput, check_range
from wsss.networks.clip import CLIP, ImageText, unit_text_features
from wsss.ops.boxes import box_mask
from wsss.precision import Precision, mixed
from wsss.pretrained import FromCLIP, load_image_text
from wsss.recipe import Method
from wsss.refiners.crf import CRFSettings
from wsss.run import maybe_file, unrecorded
from wsss.stages.evaluate import ScoreSettings
from wsss.stages.localize import Cams, SummedCams, number_together
from wsss.storage import cache_folder, digest, whole_file

# generate_cams_voc12.py and generate_cams_coco14.py
BOX_THRESHOLD, COCO_BOX_THRESHOLD = 0.4, 0.7
# iterations of Sinkhorn's normalisation
_PASSES = 3

Score = Literal["softmax", "sigmoid"]


@dataclasses.dataclass(frozen=True)
class CLIPESInference(FromCLIP):
    """How maps are computed with CLIP."""

    title: ClassVar[str] = "CLIP-ES"
    # maps are stored with the grids that they were enlarged from
    from_grids: ClassVar[bool] = True

    words: str = maybe_file("auto")
    """texts of the classes and backgrounds: a YAML file, or auto for the lists of CLIP-ES"""
    templates: tuple[str, ...] = ("a clean origami {}.",)
    """sentences that the texts are inserted into; their features are averaged"""
    score: Score | None = None
    """of a class: softmax over all texts (published), sigmoid, which is of each text alone, or null: sigmoid for a SigLIP, softmax for a CLIP"""
    competitors: Literal["present", "all"] = "present"
    """classes in the softmax: those of the picture (published), or all, for a CLIP that was not trained on backgrounds"""
    backgrounds: bool = True
    """include the background texts in the softmax"""
    box_threshold: float | None = None
    """threshold of the boxes that restrict the refinement; by default 0.4, and 0.7 for the classes of COCO"""
    attention_blocks: int = 8
    """number of last blocks whose attention is averaged"""
    last_attention: bool = True
    """include the very last block; TagCLIP's version for VOC does not"""
    refined: bool = True
    """refine the maps with the attention; otherwise the initial maps are written"""
    precision: Precision = "no"
    """precision of all blocks except the last, whose gradients would underflow; `no` is float32"""
    cache: bool = unrecorded(True)
    """cache text features on disk"""
    batch: int = unrecorded(0)
    """pictures of equal size that go through all blocks but the last together; 0: as many as make it faster, up to 8 on a GPU, and small ones
    on a CPU"""

    def __post_init__(self) -> None:
        check_range("inference.attention_blocks", self.attention_blocks, 1)
        check_range("inference.batch", self.batch, 0)
        if self.box_threshold is not None:
            check_range("inference.box_threshold", self.box_threshold, 0, 1)
        check_templates("inference.templates", self.templates)

    def check(self, images: Images) -> None:
        """Raise BadInput for words or a CLIP that cannot be used, before any stage runs."""
        read_words(self.words, images.class_names)
        score_of(self, load_image_text(self.clip, self.activation))

    def localizer(self, images: Images) -> "CLIPESLocalizer":
        """The localizer: CLIP on the device, with the text features of these classes."""
        words = read_words(self.words, images.class_names)
        device = launch.device()
        clip = load_image_text(self.clip, self.activation).to(device)
        check_names(clip, (*words.prompts, *words.background))
        background = words.background if self.backgrounds else ()
        classes, backgrounds = text_features(clip, words.prompts, background, self.templates, self.cache)
        coco = set(images.class_names) == set(COCO_CATEGORIES.values())
        threshold = self.box_threshold
        if threshold is None:
            threshold = COCO_BOX_THRESHOLD if coco else BOX_THRESHOLD
        return CLIPESLocalizer(clip, classes.to(device), backgrounds.to(device), self, threshold)


def score_of(settings: CLIPESInference, clip: ImageText) -> Score:
    """The score of a class; BadInput if competitors are set, but the score has none."""
    usual: Score = "softmax" if isinstance(clip, CLIP) else "sigmoid"
    score = settings.score or usual
    if score == "sigmoid" and settings.competitors == "all":
        do = "Set inference.score to softmax, or leave inference.competitors as it is."
        raise BadInput("inference.competitors", "all, with a sigmoid, where texts do not compete", "present", do)
    return score


def check_names(clip: ImageText, texts: Sequence[str]) -> None:
    """Raise BadInput for a text without any token of CLIP's vocabulary."""
    for text in texts:
        if not clip.vocabulary.words(text):
            raise BadInput(f"the class name {text!r}", "no token", "a name with letters", "Give another with --words.")


def text_features(
    clip: ImageText, classes: Sequence[str], backgrounds: Sequence[str], templates: Sequence[str], cache: bool
) -> tuple[Float[Tensor, "c d"], Float[Tensor, "b d"]]:
    """Unit vectors of the classes and of the backgrounds, on the CPU.

    Args:
        clip: on the device that encodes the texts.
        classes, backgrounds: texts.
        templates: sentences with `{}`; the features of a text are averaged over them.
        cache: keep the features on disk, named by a hash of all that they depend on.
    """
    names = (*classes, *backgrounds)

    def encoded() -> Tensor:
        return unit_text_features(clip, names, templates).cpu()

    if not cache:
        features = encoded()
    else:
        path = cache_folder() / "texts" / f"{_fingerprint(clip, names, templates)}.safetensors"
        if not path.exists():
            with whole_file(path) as temporary:
                temporary.write_bytes(safetensors.torch.save({"features": encoded().contiguous()}))
        features = safetensors.torch.load_file(path)["features"]
    return features[: len(classes)], features[len(classes) :]


def _fingerprint(clip: ImageText, names: Sequence[str], templates: Sequence[str]) -> str:
    """A hash of what text features depend on: weights and activation of the text encoder, and the tokens."""
    sha = hashlib.sha256(str(clip.text_activation).encode())
    for weights in clip.text_weights():
        sha.update(weights.detach().cpu().contiguous().numpy().data)
    tokens = clip.vocabulary([template.replace("{}", name) for name in names for template in templates])
    return digest([sha.hexdigest(), tokens.tolist(), len(templates)])


class CLIPESLocalizer:
    """Computes the maps of the classes that a picture has.

    Args:
        clip: with frozen weights, on the device.
        classes: unit text vectors of the classes.
        backgrounds: unit text vectors of the backgrounds.
        settings: of the method.
        box_threshold: threshold of the boxes that restrict the refinement.
    """

    def __init__(
        self,
        clip: ImageText,
        classes: Float[Tensor, "c d"],
        backgrounds: Float[Tensor, "b d"],
        settings: CLIPESInference,
        box_threshold: float,
    ) -> None:
        self.clip, self.classes, self.backgrounds = clip, classes, backgrounds
        self.settings, self.box_threshold = settings, box_threshold
        self.score: Score = score_of(settings, clip)
        last = clip.n_blocks
        self.averaged = range(max(0, last - settings.attention_blocks), last if settings.last_attention else last - 1)

    @property
    def facts(self) -> dict[str, str]:
        """For the record: the family of the network, and the score whose gradients were used."""
        return {"image_text": self.clip.FAMILY, "score": self.score}

    def prepare(self, image: UInt8[np.ndarray, "h w 3"]) -> Float[Tensor, "1 3 hp wp"]:
        """The picture, resized so that both sides are multiples of the patch, and normalised."""
        return torch.from_numpy(patched(image, self.clip.patch, self.clip.colours))[None]

    @torch.inference_mode()
    def describe(self, image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, " d"]:
        """CLIP's embedding of a picture, a unit vector; see `wsss.stages.localize.Describer`."""
        return self.clip.embedding(self.prepare(image).to(self.classes.device))[0].cpu().numpy()

    def bytes_for(self, size_hw: tuple[int, int], classes: int) -> int:
        """See `wsss.stages.localize.Bounded`."""
        pixels, patches = math.prod(size_hw), math.prod(size_hw) / self.clip.patch**2
        heads = self.clip.last_block().self_attn.num_heads
        # the attention of all heads of the last block, means over the heads, and their products; activations; view and maps
        return int(4 * patches**2 * (heads + 8) + pixels * (600 + 12 * classes))

    def together(self, size_hw: tuple[int, int]) -> int:
        """See `wsss.stages.localize.Together`."""
        return number_together(self.settings.batch, size_hw, self.classes.device)

    def cams(self, view: Float[Tensor, "1 3 hp wp"], size_hw: tuple[int, int], label: Bool[np.ndarray, " c"]) -> Cams:
        """Maps in [0, 1] of the classes in `label`: at the picture's size, and at a quarter of it."""
        return self.cams_of([view], size_hw, label[None])[0]

    def cams_of(
        self, prepared: Sequence[Float[Tensor, "1 3 hp wp"]], size_hw: tuple[int, int], labels: Bool[np.ndarray, "n c"]
    ) -> list[Cams]:
        """The maps of several pictures of equal size, which go through all blocks but the last together."""
        present = [np.flatnonzero(label) for label in labels]
        sizes = (size_hw, (-(-size_hw[0] // 4), -(-size_hw[1] // 4)))
        # the network computes nothing for pictures without tags
        views = [view for view, classes in zip(prepared, present, strict=True) if len(classes)]
        maps = iter(self.grid_maps(torch.cat(views), [one for one in present if len(one)]) if views else ())
        return [
            _enlarged(classes, next(maps), sizes)
            if len(classes)
            else Cams(classes, *(np.zeros((0, *size), np.float32) for size in sizes))
            for classes in present
        ]

    def grid_maps(
        self, views: Float[Tensor, "b 3 hp wp"], present: Sequence[np.ndarray]
    ) -> list[Float[np.ndarray, "k gh gw"]]:
        """Maps in [0, 1] of the classes that are present in each picture, one value per patch."""
        grid = views.shape[2] // self.clip.patch, views.shape[3] // self.clip.patch
        with torch.no_grad():
            x, attention = self.before_last(views.to(self.classes.device), grid)
        return [self._of_picture(*one, grid) for one in zip(x[:, None], attention, present, strict=True)]

    def _of_picture(
        self, x: Float[Tensor, "1 l d"], attention: Float[Tensor, "n n"], present: np.ndarray, grid: tuple[int, int]
    ) -> Float[np.ndarray, "k gh gw"]:
        """The maps of one picture, from its tokens before the last block and the sum of the attention until there."""
        chosen = torch.from_numpy(present).to(self.classes.device)
        order = self._competing(chosen)
        texts = torch.cat([self.classes[order], self.backgrounds])
        competing, with_attention = self.score == "softmax", self.settings.refined
        last, activations, weights = last_block(self.clip, x, texts, len(chosen), with_attention, competing=competing)
        initial = (weights @ activations.T).relu().reshape(len(chosen), *grid).cpu().numpy()
        initial = np.stack([normalised(normalised(m)) for m in initial])
        if not self.settings.refined:
            return initial
        if self.clip.n_blocks - 1 in self.averaged:
            assert last is not None
            attention = attention + last
        refined = refined_maps(initial, affinity(attention / len(self.averaged)), self.box_threshold)
        return np.stack([normalised(m) for m in refined])

    def _competing(self, chosen: Tensor) -> Tensor:
        if self.settings.competitors == "present":
            return chosen
        others = torch.ones(len(self.classes), dtype=torch.bool, device=chosen.device)
        others[chosen] = False
        return torch.cat([chosen, others.nonzero()[:, 0]])

    def before_last(
        self, views: Float[Tensor, "b 3 hp wp"], grid: tuple[int, int]
    ) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b n n"]]:
        """The tokens that enter the last block, and the attention between patches, summed over the averaged blocks before it."""
        total = torch.zeros(len(views), grid[0] * grid[1], grid[0] * grid[1], device=views.device)
        with mixed(self.settings.precision, views.device):
            x = self.clip.embed(views, self.clip.positions(grid))
            for index in range(self.clip.n_blocks - 1):
                averaged = self.settings.refined and index in self.averaged
                x, attention = self.clip.block(index, x, average=averaged)
                if attention is not None:
                    total = total + attention[:, self.clip.FIRST :, self.clip.FIRST :].float()
        return x.float(), total


def patched(
    image: UInt8[np.ndarray, "h w 3"], patch: int, colours: Colours = (CLIP_MEAN, CLIP_STD)
) -> Float[np.ndarray, "3 hp wp"]:
    """The picture, resized so that both sides are multiples of the patch, and normalised by `colours`.

    Raises:
        BadInput: the picture is smaller than a patch.
    """
    height, width = image.shape[:2]
    if min(height, width) < patch:
        raise BadInput(
            "the picture", f"{height}x{width} pixels", f"at least one patch ({patch}x{patch})", "Leave it out."
        )
    size_hw = (-(-height // patch) * patch, -(-width // patch) * patch)
    return normalise(resize_bicubic(image, size_hw), colours)


def last_block(
    clip: ImageText,
    x: Float[Tensor, "1 l width"],
    texts: Float[Tensor, "k d"],
    n_classes: int,
    with_attention: bool = True,
    sharpness: float = 1.0,
    competing: bool = True,
) -> tuple[Float[Tensor, "n n"] | None, Float[Tensor, "n width"], Float[Tensor, "c width"]]:
    """Attention between patches, activations Y, and the mean over the patches of d p_c / d Y for the first `n_classes` texts.

    Y is the output of the last block's first LayerNorm. Its gradient comes only through queries, keys and values, and
    only its mean over the patches is needed, so most of the attention's backward pass simplifies. With a the attention of a
    head, O = a v, G = dp_c/dO and c_i = <G_i, O_i>, over the patches i as queries:
        sum of dv = sum_i (1 - a_i0) G_i
        sum of dk = - e^-1/2 sum_i a_i0 (<G_i, v_0> - c_i) q_i
        sum of dq = e^-1/2 sum_j (<(a^T G)_j, v_j> - (a^T c)_j) k_j
    where 0 is the class token; a SigLIP has none.

    `sharpness` is a factor of the logit scale s. Without `competing`, s <T_c, f> takes the place of p_c: the gradients of the probability
    sigmoid(s <T_c, f> + b) and of its logarithm point in the same direction, and may be too small for float32.
    """
    layer = clip.last_block()
    block_attention = layer.self_attn
    with torch.no_grad():
        y = layer.layer_norm1(x)[0]
        q, k, v = (
            projection(y).unflatten(1, (block_attention.num_heads, -1)).transpose(0, 1)
            for projection in (block_attention.q_proj, block_attention.k_proj, block_attention.v_proj)
        )
        # the output of the class token is never used
        q = q[:, clip.FIRST :]
        a = q.new_empty(*q.shape[:2], k.shape[1])
        # head by head, while the logits are in the processor's cache
        for of_head, queries, keys in zip(a, q * block_attention.scale, k, strict=True):
            torch.softmax(torch.mm(queries, keys.T, out=of_head), -1, out=of_head)
        o = a @ v
    with torch.enable_grad():
        o = o.detach().requires_grad_()
        z = x[0, clip.FIRST :] + block_attention.out_proj(o.transpose(0, 1).flatten(1))
        z = z + layer.mlp(layer.layer_norm2(z))
        f = F.normalize(clip.of_patches(z[None])[0], dim=0)
        p = sharpness * clip.temperature * (F.normalize(texts, dim=1) @ f)
        p = p.softmax(0) if competing else p
        gradients = [torch.autograd.grad(p[c], o, retain_graph=c < n_classes - 1)[0] for c in range(n_classes)]
    with torch.no_grad():
        g = torch.stack(gradients, 2)  # (heads, patches, classes, channels)
        c = (g * o.unsqueeze(2)).sum(3)
        to_class = a[:, :, : clip.FIRST]
        dv = ((1 - to_class.sum(2, keepdim=True)).unsqueeze(3) * g).sum(1)
        s = to_class.sum(2, keepdim=True) * ((g * v[:, : clip.FIRST].sum(1, keepdim=True).unsqueeze(2)).sum(3) - c)
        dk = -block_attention.scale * (s.mT @ q)
        spread = (a.mT @ g.flatten(2)).unflatten(2, g.shape[2:])
        r = (spread * v.unsqueeze(2)).sum(3) - a.mT @ c
        dq = block_attention.scale * (r.mT @ k)
        projections = (block_attention.q_proj, block_attention.k_proj, block_attention.v_proj)
        weights = sum(
            part.transpose(0, 1).flatten(1) @ projection.weight
            for part, projection in zip((dq, dk, dv), projections, strict=True)
        )
        assert isinstance(weights, Tensor)
        attention = a[:, :, clip.FIRST :].mean(0) if with_attention else None
    return attention, y[clip.FIRST :], weights / len(z)


def normalised(scores: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """(m - min) / (1e-7 + max(m - min)), in float32."""
    shifted = scores - scores.min()
    return shifted / (np.float32(1e-7) + shifted.max())


def doubly_stochastic(attention: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Divide columns, then rows by their sums, three times."""
    for _ in range(_PASSES):
        attention = attention / attention.sum(0, keepdim=True)
        attention = attention / attention.sum(1, keepdim=True)
    return attention


def affinity(attention: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """The mean of the doubly stochastic attention and its transpose."""
    balanced = doubly_stochastic(attention)
    return (balanced + balanced.T) / 2


def refined_maps(
    maps: Float[np.ndarray, "k gh gw"], affinity: Float[Tensor, "n n"], box_threshold: float
) -> Float[np.ndarray, "k gh gw"]:
    """The maps, set to 0 outside their boxes and multiplied twice by the affinity; not normalised."""
    boxes = np.stack([box_mask(m, box_threshold) for m in maps])
    sources = torch.from_numpy((maps * boxes).reshape(len(maps), -1).T).to(affinity)
    return (affinity @ (affinity @ sources)).T.reshape(maps.shape).cpu().numpy()


def _enlarged(
    classes: Int[np.ndarray, " k"], maps: Float[np.ndarray, "k gh gw"], sizes: Sequence[tuple[int, int]]
) -> Cams:
    """The maps at the size (height, width) of the picture and at a quarter of it."""
    enlarged = (np.stack([cv2.resize(one, size_hw[::-1]) for one in maps]) for size_hw in sizes)
    return SummedCams.of(Cams(classes, *enlarged), Grids([maps], sizes[0]))


METHOD = Method(
    name="clip_es",
    paper="CLIP-ES (Lin et al., CVPR 2023), maps of a frozen CLIP",
    inference=CLIPESInference(),
    # pixels where the dense CRF is less confident than this are ignored in the masks
    refiner=CRFSettings(by="scores", crf="deeplab", confidence=0.95),
    scores=ScoreSettings(background="power", thresholds=(1.0, 2.0)),
)
