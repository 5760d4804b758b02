"""A CLIP with a ResNet: OpenAI's file becomes the layers that open_clip makes of it; parts and strangers are refused."""

import pytest
import torch

from tests.methods.test_clims import new_resnet_clip
from wsss.errors import BadInput
from wsss.networks.clip import CLIP
from wsss.networks.clip_resnet import ResNetCLIP, is_resnet
from wsss.pretrained import load_any_clip, load_clip

pytestmark = pytest.mark.usefixtures("one_torch_thread")

TEXTS = ("a photo of a dog.", "tv")


@pytest.fixture(scope="module")
def reference():
    torch.manual_seed(0)
    return new_resnet_clip()


@pytest.fixture
def written(tmp_path):
    def write(state) -> str:
        torch.save(state, tmp_path / "RN.pt")
        return str(tmp_path / "RN.pt")

    return write


def test_it_is_the_same_network(reference, written):
    state = reference.model.state_dict()
    # as OpenAI's archives have it
    extra = {"input_resolution": torch.tensor(64), "context_length": torch.tensor(77)}
    assert is_resnet(state)
    clip = load_any_clip(written({**state, **extra}))
    assert isinstance(clip, ResNetCLIP)
    assert clip.input_size == 64
    assert not any(parameter.requires_grad for parameter in clip.parameters())
    pictures = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    tokens = clip.vocabulary(TEXTS)
    with torch.no_grad():
        torch.testing.assert_close(clip.encode_image(pictures), reference.encode_image(pictures), rtol=0, atol=1e-5)
        torch.testing.assert_close(clip.encode_text(tokens), reference.encode_text(tokens), rtol=0, atol=1e-5)
        # what stands behind the end token changes nothing
        alone = clip.encode_text(clip.vocabulary(TEXTS[1:]))
        torch.testing.assert_close(clip.encode_text(tokens)[1:], alone, rtol=0, atol=1e-5)


def test_float16_weights_become_float32(reference, written):
    half = {name: v.half() if v.is_floating_point() else v for name, v in reference.model.state_dict().items()}
    clip = load_any_clip(written(half))
    assert {value.dtype for value in clip.parameters()} == {torch.float32}


def test_methods_that_need_a_transformer_refuse_it(reference, written):
    with pytest.raises(BadInput, match="a CLIP with a ResNet"):
        load_clip(written(reference.model.state_dict()))


def test_transformers_come_through_the_same_door(tmp_path, squares):
    from tests.methods.taught import write_clip

    assert isinstance(load_any_clip(str(write_clip(tmp_path / "clip", squares))), CLIP)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda state: {name: v for name, v in state.items() if "layer3" not in name}, "Missing key"),
        (lambda state: state | {"more": torch.zeros(2)}, "Unexpected key"),
        (lambda state: state | {"text_projection": torch.zeros(64, 9)}, "size mismatch"),
        (lambda state: {name: v for name, v in state.items() if name != "ln_final.weight"}, "ln_final.weight"),
        (lambda state: state | {"visual.attnpool.positional_embedding": torch.zeros(0, 256)}, "no complete CLIP"),
    ],
)
def test_parts_and_strangers_are_refused(reference, written, change, found):
    with pytest.raises(BadInput, match=found):
        load_any_clip(written(change(reference.model.state_dict())))


def test_a_foreign_vocabulary_is_refused(reference, written):
    state = reference.model.state_dict()
    with pytest.raises(BadInput, match="a vocabulary of 100 tokens"):
        load_any_clip(written(state | {"token_embedding.weight": torch.zeros(100, 64)}))
