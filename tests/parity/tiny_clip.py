"""The CLIP of the fixtures: OpenAI's names, drawn weights, rounded through float16 as CLIP-ES rounds them."""

import functools

import numpy as np
import torch

from tests.parity import fixtures, inputs
from wsss.networks.clip import CLIP, Vocabulary, from_openai
from wsss.pretrained import openai_tokenizer


@functools.cache
def state_dict(manifest: str = "clip-es/manifest-tiny-clip.json") -> dict[str, torch.Tensor]:
    """Every tensor of the manifest."""
    state = {}
    for name, shape in fixtures.table(manifest).items():
        gain = 2.0 if name.endswith("attn.in_proj_weight") else 1.0
        value = np.float32(3.0) if name == "logit_scale" else inputs.tensor(name, tuple(shape), 0, gain)
        state[name] = torch.from_numpy(np.asarray(value).astype(np.float16).astype(np.float32))
    return state


@functools.cache
def tiny_clip() -> CLIP:
    """The network of the fixtures, in float32."""
    return CLIP(from_openai(state_dict(), "fixture"), Vocabulary(openai_tokenizer(), 77)).requires_grad_(False).eval()
