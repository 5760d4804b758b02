"""Folders of tiny image-text networks with drawn weights, as transformers saves them: SigLIP, SigLIP 2 (NaFlex), MetaCLIP 2."""

import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import (
    MetaClip2Config,
    MetaClip2Model,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
)

from tests.parity import inputs

PATCH, GRID, WIDTH, LAYERS, CONTEXT = 4, 5, 32, 3, 40
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
LETTERS = [*SPECIAL, *string.ascii_letters, *string.digits, *string.punctuation, " "]


def tokenizer(template: str, **special: str) -> PreTrainedTokenizerFast:
    """A token for each letter, and the special tokens of a template."""
    letters = Tokenizer(WordLevel({letter: index for index, letter in enumerate(LETTERS)}, unk_token="<unk>"))
    letters.pre_tokenizer = Split(Regex("."), "isolated")
    letters.post_processor = TemplateProcessing(single=template, special_tokens=[("<s>", 0), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=letters, unk_token="<unk>", eos_token="</s>", **special)


def write(folder: Path, kind: str, vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None) -> Any:
    """The network that is saved in the folder: `siglip`, `siglip2` or `metaclip_2`."""
    tower = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
    size = {"num_patches": GRID**2} if kind == "siglip2" else {"image_size": PATCH * GRID}
    of_pictures = {**tower, **size, "patch_size": PATCH, **(vision or {})}
    words = {"vocab_size": len(LETTERS), "max_position_embeddings": CONTEXT, "bos_token_id": 0, "eos_token_id": 2}
    of_texts = {**tower, **words, **(text or {})}
    model: Any
    if kind == "metaclip_2":
        model = MetaClip2Model(MetaClip2Config(projection_dim=16, vision_config=of_pictures, text_config=of_texts))
    elif kind == "siglip2":
        model = Siglip2Model(Siglip2Config(vision_config=of_pictures, text_config=of_texts))
    else:
        model = SiglipModel(SiglipConfig(vision_config=of_pictures, text_config=of_texts))
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        gain = 2.0 if "_proj" in name else 1.0
        parameter.data = torch.from_numpy(np.asarray(inputs.tensor(name, shape, gain=gain))).reshape(shape)
    model.logit_scale.data.fill_(2.0)
    if kind != "metaclip_2":
        model.logit_bias.data.fill_(-1.5)
    model.eval().save_pretrained(folder)
    if kind == "metaclip_2":
        tokenizer("<s> $A </s>", bos_token="<s>", pad_token="<pad>").save_pretrained(folder)
    else:
        tokenizer("$A </s>", pad_token="</s>" if kind == "siglip" else "<pad>").save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = {"siglip": "SiglipTokenizer", "siglip2": "Siglip2Tokenizer"}.get(
        kind, "XLMRobertaTokenizer"
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return model
