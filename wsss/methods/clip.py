"""Train or fine-tune a CLIP (Radford et al., ICML 2021) on your own pictures and tags, for the methods that use a CLIP.

Captions are made from tags with templates. s_ij is the scaled cosine of picture i and caption j. Caption j is false for picture i
if it names a tag that the picture does not have. The loss of a picture is -ln(e^s_ii / (e^s_ii + sum over false j of
e^s_ij)), and that of a caption is the same over the pictures that it is false for. The paper counts all other captions of a
batch as negatives; here those that also describe the picture are left out.
"""

import copy
import dataclasses
import math
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel
from transformers.utils import logging as transformers_logging

from wsss import launch
from wsss.arrays import Bool, Float
from wsss.data.augment import ClassifierAugment
from wsss.data.images import Images
from wsss.data.words import check_templates, read_words
from wsss.errors import BadInput, check_range
from wsss.networks.body import ParamGroup
from wsss.networks.clip import CLIP, Vocabulary
from wsss.pretrained import Activation, load_clip, new_tokenizer
from wsss.recipe import Method
from wsss.run import maybe_file, pretrained
from wsss.stages.train import Training
from wsss.storage import TEMPORARY_SUFFIX
from wsss.supervision import PAIRS

# upper limit of the log temperature, as in the paper
_HIGHEST = math.log(100)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Sizes of a new CLIP."""

    patch: int = 16
    """side of a patch in pixels"""
    width: int = 192
    """width of the vision encoder"""
    blocks: int = 6
    """transformer blocks of the vision encoder"""
    heads: int = 3
    """attention heads of the vision encoder"""
    text_width: int = 64
    """width of the text encoder"""
    text_blocks: int = 2
    """transformer blocks of the text encoder"""
    text_heads: int = 1
    """attention heads of the text encoder"""
    joint: int = 64
    """dimensions of the joint embedding space"""
    tokens: int = 1024
    """maximum size of the vocabulary, which is built from the captions"""
    context: int = 32
    """maximum number of tokens of a text"""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_range(f"architecture.{field.name}", getattr(self, field.name), 1)
        for width, heads in ((self.width, self.heads), (self.text_width, self.text_heads)):
            if width % heads:
                raise BadInput(
                    "architecture", f"a width of {width} for {heads} heads", "a multiple of the heads", "Change one."
                )


@dataclasses.dataclass(frozen=True)
class CLIPSettings:
    """A CLIP and its training."""

    title: ClassVar[str] = "CLIP"

    init: str = pretrained("openai/clip-vit-base-patch16", PAIRS)
    """initial weights: a Hugging Face hub id, a folder, a file, or `none` for a new network"""
    activation: Activation = "quick_gelu"
    """activation of an open_clip state dict, which does not record it"""
    architecture: Architecture = Architecture()
    """sizes of a new network"""
    words: str = maybe_file("auto")
    """texts of the classes: a YAML file, or auto"""
    templates: tuple[str, ...] = (
        "a clean origami {}.",
        "a photo of a {}.",
        "itap of a {}.",
        "there is a {} in the scene.",
    )
    """caption templates; include those of the method that will use the network"""
    caption_tags: Literal["some", "one"] = "some"
    """tags in a caption: one of the picture's tags, or a random number of them"""
    augment: ClassifierAugment = ClassifierAugment(long_side=(224, 288), crop=224)
    """augmentation of training pictures; the crop must be a multiple of the patch"""
    half: bool = False
    """write the weights as float16, which halves the file size"""
    # for fine-tuning; a new network needs 1e-3 and more epochs
    training: Training = Training(
        batch=32, epochs=10, optimizer="adamw", lr=1e-5, weight_decay=0.1, warmup=100, clip=1.0
    )
    """how the network is trained"""

    def __post_init__(self) -> None:
        check_templates("templates", self.templates)

    def check(self, images: Images) -> None:
        """Raise BadInput for words that cannot be used, before any stage runs."""
        read_words(self.words, images.class_names)

    def trainable(self, images: Images) -> "CLIPObjective":
        """The network with new or given weights, and its loss."""
        prompts = read_words(self.words, images.class_names).prompts
        captions = [template.replace("{}", prompt) for template in self.templates for prompt in prompts]
        clip = self._new(captions) if self.init == "none" else load_clip(self.init, self.activation, "another loss")
        if self.augment.crop % clip.patch:
            raise BadInput("augment.crop", str(self.augment.crop), f"a multiple of {clip.patch}", "Change it.")
        if not images.labels.any(1).all():
            untagged = images.names[int(np.flatnonzero(~images.labels.any(1))[0])]
            raise BadInput(
                images.title, f"{untagged} without tags", "a tag for each picture", "Tag it, or leave it out."
            )
        return CLIPObjective(self, clip.requires_grad_(True), images, prompts)

    def _new(self, captions: Sequence[str]) -> CLIP:
        sizes = self.architecture
        tokenizer = new_tokenizer(captions, sizes.tokens)
        config = CLIPConfig(
            projection_dim=sizes.joint,
            vision_config={
                "hidden_size": sizes.width,
                "intermediate_size": 4 * sizes.width,
                "num_hidden_layers": sizes.blocks,
                "num_attention_heads": sizes.heads,
                "image_size": self.augment.crop,
                "patch_size": sizes.patch,
                "projection_dim": sizes.joint,
            },
            text_config={
                "vocab_size": len(tokenizer),
                "hidden_size": sizes.text_width,
                "intermediate_size": 4 * sizes.text_width,
                "num_hidden_layers": sizes.text_blocks,
                "num_attention_heads": sizes.text_heads,
                "max_position_embeddings": sizes.context,
                "projection_dim": sizes.joint,
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
            },
        )
        return CLIP(CLIPModel(config), Vocabulary(tokenizer, sizes.context))


class CLIPObjective(nn.Module):
    """Contrastive loss of pictures and captions, over the pictures of all processes."""

    def __init__(self, settings: CLIPSettings, network: CLIP, images: Images, prompts: Sequence[str]) -> None:
        super().__init__()
        self.network, self.settings = network, settings
        self.metadata: dict[str, Any] = {}
        self.stop_epochs: int | None = None
        self.repeats: Sequence[int] | None = None
        side = settings.augment.crop // network.patch
        self.grid = (side, side)
        self.examples = partial(_example, images, settings, network.vocabulary, tuple(prompts))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Float[Tensor, ""]]:
        clip = self.network
        with torch.no_grad():
            clip.model.logit_scale.clamp_(max=_HIGHEST)
        x = clip.embed(batch["image"], clip.positions(self.grid, rounded=False))
        for index in range(clip.n_blocks):
            x, _ = clip.block(index, x)
        pictures = launch.joined(F.normalize(clip.project(x[:, 0]).float(), dim=1))
        texts = launch.joined(F.normalize(clip.encode_text(batch["tokens"]).float(), dim=1))
        tags, named = launch.joined(batch["tags"]).bool(), launch.joined(batch["named"]).bool()
        false = (named[None] & ~tags[:, None]).any(2)
        return {"contrast": contrast(pictures @ texts.T * clip.temperature.float(), false)}

    def param_groups(self, training: Training) -> list[ParamGroup]:
        """Weight decay only for matrices, as in the paper."""
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        return [
            {
                "params": [p for p in parameters if p.ndim >= 2],
                "lr": training.lr,
                "weight_decay": training.weight_decay,
            },
            {"params": [p for p in parameters if p.ndim < 2], "lr": training.lr, "weight_decay": 0.0},
        ]

    def write(self, out: Path) -> None:
        """Write the network in the format of transformers: `config.json`, `model.safetensors`, and the tokenizer's files."""
        with tempfile.TemporaryDirectory(dir=out, prefix=".", suffix=TEMPORARY_SUFFIX) as folder:
            transformers_logging.disable_progress_bar()
            model = copy.deepcopy(self.network.model).half() if self.settings.half else self.network.model
            model.config.update(self.metadata)
            model.save_pretrained(folder)
            self.network.vocabulary.tokenizer.save_pretrained(folder)
            for file in sorted(Path(folder).iterdir()):
                file.chmod(0o644)  # transformers makes weights readable only by their owner
                file.replace(out / file.name)


def contrast(scores: Float[Tensor, "n n"], false: Bool[Tensor, "n n"]) -> Float[Tensor, ""]:
    """Mean of the losses of both directions; `false[i, j]` is True if caption j is false for picture i."""
    matching = scores.diagonal()
    others = scores.masked_fill(~false, -torch.inf)
    total = torch.zeros((), device=scores.device)
    for view in (others, others.T):
        total = total + (torch.logsumexp(torch.cat([matching[:, None], view], 1), 1) - matching).mean() / 2
    return total


def _example(
    images: Images,
    settings: CLIPSettings,
    vocabulary: Vocabulary,
    prompts: tuple[str, ...],
    index: int,
    rng: np.random.Generator,
) -> dict[str, Tensor]:
    view = settings.augment(images.read(index), rng, "clip")
    tags = np.flatnonzero(images.labels[index])
    count = 1 if settings.caption_tags == "one" else int(rng.integers(1, len(tags) + 1))
    chosen = np.sort(rng.choice(tags, count, replace=False))
    template = settings.templates[int(rng.integers(len(settings.templates)))]
    caption = template.replace("{}", " and a ".join(prompts[i] for i in chosen))
    tokens = torch.zeros(vocabulary.context, dtype=torch.long)
    ids = vocabulary([caption], truncate=True)[0]
    tokens[: len(ids)] = ids
    named = np.zeros(len(prompts), np.float32)
    named[chosen] = 1
    return {
        "image": torch.from_numpy(view),
        "tokens": tokens,
        "tags": torch.from_numpy(images.labels[index].astype(np.float32)),
        "named": torch.from_numpy(named),
    }


METHOD = Method(
    name="clip",
    paper="CLIP (Radford et al., ICML 2021) on your own pictures and tags",
    classifier=CLIPSettings(),
)
