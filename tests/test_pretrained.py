"""The same CLIP by every door: OpenAI's archive, state dicts, folders of transformers; and one clear error by each."""

import json
import os
import shutil
import socket
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from transformers import BertConfig, CLIPConfig, CLIPModel

from tests.foreign.test_torchscript import saved, tree
from tests.parity import inputs
from wsss.errors import BadInput
from wsss.networks.clip import CLIP, from_openai
from wsss.pretrained import load_clip, openai_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")

WIDTH, JOINT, LAYERS, WORDS = 64, 32, 2, 49408
TEXTS = ("a clean origami tvmonitor screen.", "dog", "")


def drawn() -> dict[str, torch.Tensor]:
    """Weights under OpenAI's names, at a small size, half of them float16 as in their archives."""
    shapes: dict[str, tuple[int, ...]] = {
        "visual.class_embedding": (WIDTH,),
        "visual.conv1.weight": (WIDTH, 3, 4, 4),
        "visual.positional_embedding": (10, WIDTH),
        "visual.proj": (WIDTH, JOINT),
        "token_embedding.weight": (WORDS, WIDTH),
        "positional_embedding": (77, WIDTH),
        "text_projection": (WIDTH, JOINT),
    }
    for name in ("visual.ln_pre", "visual.ln_post", "ln_final"):
        shapes |= {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}
    for tower in ("visual.", ""):
        for i in range(LAYERS):
            block = f"{tower}transformer.resblocks.{i}."
            for layer, rows, columns in (
                ("attn.out_proj", WIDTH, WIDTH),
                ("mlp.c_fc", 4 * WIDTH, WIDTH),
                ("mlp.c_proj", WIDTH, 4 * WIDTH),
            ):
                shapes |= {f"{block}{layer}.weight": (rows, columns), f"{block}{layer}.bias": (rows,)}
            shapes |= {f"{block}attn.in_proj_weight": (3 * WIDTH, WIDTH), f"{block}attn.in_proj_bias": (3 * WIDTH,)}
            for layer in ("ln_1", "ln_2"):
                shapes |= {f"{block}{layer}.weight": (WIDTH,), f"{block}{layer}.bias": (WIDTH,)}
    state = {name: torch.from_numpy(inputs.tensor(name, shape)) for name, shape in shapes.items()}
    half = {
        name: v.half() if any(k in name for k in ("attn", "mlp", "proj", "conv1")) else v for name, v in state.items()
    }
    return half | {"logit_scale": torch.tensor(3.0)}


STATE = drawn()
PICTURE = torch.from_numpy(inputs.image(12, 12).astype(np.float32) / 255 - 0.5).permute(2, 0, 1)[None]


@torch.inference_mode()
def features(clip: CLIP) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a picture at its native size, the class token's as transformers has it, and of texts."""
    grid = clip.native_grid
    x = clip.embed(PICTURE, clip.positions((grid, grid), rounded=False))
    for index in range(clip.n_blocks):
        x, _ = clip.block(index, x)
    return clip.project(x[:, 0]), clip.encode_text(clip.vocabulary(TEXTS))


@torch.inference_mode()
def theirs(model: CLIPModel) -> tuple[torch.Tensor, torch.Tensor]:
    """The same from the network's own forward pass."""
    rows = openai_tokenizer()(list(TEXTS), padding=True, return_tensors="pt")
    image, text = model.get_image_features(pixel_values=PICTURE), model.get_text_features(**rows)
    return tuple(out if isinstance(out, torch.Tensor) else out.pooler_output for out in (image, text))


def close(ours: tuple[torch.Tensor, torch.Tensor], others: tuple[torch.Tensor, torch.Tensor]) -> None:
    for a, b in zip(ours, others, strict=True):
        assert a.abs().max() > 0.1
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> tuple[torch.Tensor, torch.Tensor]:
    path = tmp_path_factory.mktemp("clip") / "plain.pt"
    torch.save(STATE, path)
    return features(load_clip(str(path)))


def written(path: Path, state: object) -> Path:
    torch.save(state, path)
    return path


@pytest.mark.parametrize("how", ["script", "trace"])
def test_openais_archive(tmp_path, reference, how):
    scalars = {
        name: torch.tensor(n) for name, n in (("input_resolution", 12), ("context_length", 77), ("vocab_size", WORDS))
    }
    saved(tmp_path / "ViT-B-16.pt", tree(STATE | scalars), how)
    clip = load_clip(str(tmp_path / "ViT-B-16.pt"))
    assert (clip.patch, clip.n_blocks, clip.native_grid) == (4, LAYERS, 3)
    assert clip.vocabulary.context == 77
    assert {(p.dtype, p.requires_grad) for p in clip.parameters()} == {(torch.float32, False)}
    assert not clip.training
    assert float(clip.temperature) == pytest.approx(np.exp(3.0))
    close(features(clip), reference)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 3},
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: state | {"attn_mask": torch.zeros(77, 77), "input_resolution": torch.tensor(12)},
        lambda state: {name: value.float() for name, value in state.items()},
        lambda state: dict(reversed(state.items())),
    ],
    ids=["wrapped", "parallel", "more", "float32", "another order"],
)
def test_state_dicts(tmp_path, reference, wrap):
    close(features(load_clip(str(written(tmp_path / "a.bin", wrap(STATE))))), reference)


def test_the_network_shares_no_memory_with_its_state_dict():
    state = {name: value.float() for name, value in STATE.items()}
    model = from_openai(state, "here").requires_grad_(False)
    for parameter in model.parameters():
        parameter.zero_()
    assert all(torch.equal(value, STATE[name].float()) for name, value in state.items())
    assert model.vision_model.embeddings.position_ids.tolist() == [list(range(10))]
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"cpu"}


def folder(path: Path, activation: str = "quick_gelu", tokenizer: bool = True, **text: int) -> CLIPModel:
    tower = {
        "hidden_size": WIDTH,
        "intermediate_size": 128,
        "num_hidden_layers": LAYERS,
        # not 64 channels a head, as a folder may say
        "num_attention_heads": 4,
        "hidden_act": activation,
    }
    config = CLIPConfig(
        projection_dim=JOINT,
        vision_config={**tower, "image_size": 12, "patch_size": 4},
        text_config={**tower, "vocab_size": WORDS, "bos_token_id": WORDS - 2, "eos_token_id": WORDS - 1, **text},
    )
    torch.manual_seed(0)
    model = CLIPModel(config).eval()
    # the small deviations of new networks would hide differences
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.data = torch.from_numpy(inputs.tensor(name, tuple(parameter.shape)))
    model.save_pretrained(path)
    if tokenizer:
        openai_tokenizer().save_pretrained(path)
    return model


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_folders_of_transformers(tmp_path, activation):
    model = folder(tmp_path, activation)
    # a folder says its activation
    for asked in ("quick_gelu", "gelu"):
        close(features(load_clip(str(tmp_path), asked)), theirs(model))


def test_folders_in_half_precision_and_old_formats(tmp_path):
    model = folder(tmp_path, tokenizer=False).half()
    model.save_pretrained(tmp_path)
    half = theirs(model.float())
    close(features(load_clip(str(tmp_path))), half)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    close(features(load_clip(str(tmp_path))), half)


def test_a_folder_without_a_tokenizer_takes_openais(tmp_path):
    model = folder(tmp_path, tokenizer=False)
    assert not list(tmp_path.glob("*token*"))
    close(features(load_clip(str(tmp_path))), theirs(model))


def test_converted_weights_equal_those_of_transformers(tmp_path, reference):
    # OpenAI's file as transformers would have it, through its own forward pass
    clip = load_clip(str(written(tmp_path / "a.pt", STATE)))
    close(reference, theirs(clip.model))


def test_the_activation_of_open_clip(tmp_path, reference):
    path = str(written(tmp_path / "open_clip.pt", {name: value.float() for name, value in STATE.items()}))
    gelu = load_clip(path, "gelu")
    assert gelu.model.config.vision_config.hidden_act == gelu.model.config.text_config.hidden_act == "gelu"
    ours = features(gelu)
    close(ours, theirs(gelu.model))
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(ours, reference, strict=True))


def refused(source: Path | str, found: str, activation: str = "quick_gelu") -> BadInput:
    with pytest.raises(BadInput, match=rf"(?s): found .*{found}.*; expected ") as caught:
        load_clip(str(source), activation)
    assert Path(source).name in caught.value.where
    assert caught.value.do
    assert len(str(caught.value)) < 800
    return caught.value


def without(*names: str) -> dict[str, torch.Tensor]:
    return {name: value for name, value in STATE.items() if name not in names}


def test_a_resnet(tmp_path):
    state = {n: v for n, v in STATE.items() if not n.startswith("visual.")}
    state |= {"visual.conv1.weight": torch.zeros(4, 3, 3, 3), "visual.layer1.0.conv1.weight": torch.zeros(4, 4, 1, 1)}
    error = refused(written(tmp_path / "RN50.pt", state), "a CLIP with a ResNet")
    assert "vision transformer" in error.expected
    assert "ViT" in error.do


BLOCK = "transformer.resblocks.1."


@pytest.mark.parametrize(
    ("state", "found"),
    [
        (without("ln_final.bias"), r"1 tensors missing \(ln_final\.bias\)"),
        (without("visual.proj"), r"1 tensors missing \(visual\.proj\)"),
        (without("visual.positional_embedding", "text_projection"), "2 tensors missing"),
        (
            without(f"visual.{BLOCK}attn.in_proj_bias"),
            r"1 tensors missing \(visual\.transformer\.resblocks\.1\.attn\.in_proj_bias",
        ),
        (STATE | {"logit_bias": torch.zeros(1)}, r"1 tensors that a CLIP does not have \(logit_bias\)"),
        (STATE | {f"{BLOCK}ls_1.gamma": torch.zeros(1)}, r"does not have \(transformer\.resblocks\.1\.ls_1\.gamma\)"),
        (STATE | {"visual.transformer.resblocks.99999999.ln_1.bias": torch.zeros(WIDTH)}, "resblocks.99999999"),
        (
            STATE | {"text_projection": torch.zeros(WIDTH, JOINT + 1)},
            r"inconsistent shapes \(visual\.proj of \(64, 32\)\)",
        ),
        (STATE | {"ln_final.weight": torch.zeros(WIDTH + 1)}, r"ln_final\.weight of \(65,\)"),
        (STATE | {f"{BLOCK}attn.in_proj_weight": torch.zeros(8, 8)}, r"in_proj_weight of \(8, 8\)"),
        (STATE | {"visual.positional_embedding": torch.zeros(9, WIDTH)}, r"visual\.positional_embedding of \(9, 64\)"),
        (STATE | {"visual.positional_embedding": torch.tensor(1.0)}, "inconsistent shapes"),
        (STATE | {"visual.conv1.weight": torch.zeros(WIDTH, 48)}, "inconsistent shapes"),
        (STATE | {"visual.conv1.weight": torch.zeros(10**6, 3, 1, 0)}, "inconsistent shapes"),
        (STATE | {"visual.proj": torch.tensor(1.0)}, "inconsistent shapes"),
        (STATE | {f"{BLOCK}attn.in_proj_bias": torch.tensor(1.0)}, "inconsistent shapes"),
        (STATE | {"token_embedding.weight": torch.zeros(10**9, 0)}, "inconsistent shapes"),
        (STATE | {"token_embedding.weight": torch.zeros(600, WIDTH)}, "a vocabulary of 600 tokens"),
        ({"text_model.embeddings.token_embedding.weight": torch.zeros(3)}, "other names than OpenAI's"),
    ],
)
def test_other_state_dicts(tmp_path, state, found):
    refused(written(tmp_path / "a.pt", state), found)


def test_narrow_and_large_towers(tmp_path):
    def scaled(width: int) -> dict[str, torch.Tensor]:
        """The vision tower alone in another width."""
        shapes = {
            n: [s * width // WIDTH if s in (WIDTH, 3 * WIDTH, 4 * WIDTH) else s for s in v.shape]
            for n, v in STATE.items()
        }
        return {
            n: torch.zeros(shapes[n], dtype=torch.float16) if n.startswith("visual.") else v for n, v in STATE.items()
        }

    # head widths of open_clip's ViT-H, while OpenAI's have 64
    for width, heads in ((128, 2), (1280, 16)):
        clip = load_clip(str(written(tmp_path / "a.pt", scaled(width))))
        assert clip.model.config.vision_config.num_attention_heads == heads
    refused(written(tmp_path / "a.pt", scaled(32)), "inconsistent shapes")


def test_damaged_and_absent_files(tmp_path):
    plain, script = written(tmp_path / "plain.pt", STATE), tmp_path / "script.pt"
    saved(script, tree(STATE))
    for whole in (plain, script):
        content = whole.read_bytes()
        for share in (0.3, 0.999):
            cut = tmp_path / f"cut-{whole.name}"
            cut.write_bytes(content[: int(share * len(content))])
            refused(cut, "(cut off|damaged|cannot be read|a pickle that would run code)")
    changed = bytearray(script.read_bytes())
    changed[len(changed) // 2] ^= 1
    (tmp_path / "changed.pt").write_bytes(changed)
    refused(tmp_path / "changed.pt", "CRC")
    for name in (tmp_path / "none.pt", tmp_path / "none", "./none", "some/deeper/none", "none.safetensors"):
        refused(name, "no such file or folder")


def edit(file: Path, change: dict) -> None:
    content = json.loads(file.read_text())
    for key, value in change.items():
        content[key] = content[key] | value if isinstance(value, dict) else value
    file.write_text(json.dumps(content))


class RunsCode:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("HIT",)


def hostile(path: Path) -> None:
    (path / "model.safetensors").unlink()
    torch.save({"logit_scale": RunsCode()}, path / "pytorch_model.bin")


def halve(name: str):
    def cut(path: Path) -> None:
        content = (path / name).read_bytes()
        (path / name).write_bytes(content[: len(content) // 2])

    return cut


FAULTS = {
    "other model": (lambda path: BertConfig().save_pretrained(path), "a model of type 'bert'"),
    "no config": (lambda path: (path / "config.json").unlink(), "no such file"),
    "config of a list": (lambda path: (path / "config.json").write_text("[1]"), "a model of type None"),
    "cut config": (halve("config.json"), "JSON"),
    "fewer tensors": (
        lambda path: edit(path / "config.json", {"vision_config": {"num_hidden_layers": 3}}),
        r"16 tensors missing \(vision_model\.encoder\.layers\.2",
    ),
    "other shapes": (
        lambda path: edit(path / "config.json", {"vision_config": {"hidden_size": 128}}),
        "(content that cannot be read|broken JSON|no JSON object)",
    ),
    "heads": (
        lambda path: edit(path / "config.json", {"vision_config": {"num_attention_heads": 7}}),
        "(content that cannot be read|broken JSON|no JSON object)",
    ),
    "activation": (
        lambda path: edit(path / "config.json", {"text_config": {"hidden_act": "nonsense"}}),
        "no 'nonsense'",
    ),
    "no weights": (lambda path: (path / "model.safetensors").unlink(), "no file named model.safetensors"),
    "cut weights": (halve("model.safetensors"), "not fully covered"),
    "hostile weights": (hostile, "Weights only load failed"),
    "cut tokenizer": (halve("tokenizer.json"), "(content that cannot be read|broken JSON|no JSON object)"),
    "another file": (
        lambda path: (path / "tokenizer.json").write_text("[1, 2]"),
        "(content that cannot be read|broken JSON|no JSON object)",
    ),
    "no start token": (
        lambda path: edit(path / "tokenizer_config.json", {"bos_token": None}),
        "(content that cannot be read|broken JSON|no JSON object)",
    ),
}


@pytest.fixture(scope="module")
def good_folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("hf")
    folder(path)
    return path


@pytest.mark.parametrize("fault", FAULTS)
def test_folders_with_a_fault(tmp_path, monkeypatch, good_folder, fault):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "clip"
    shutil.copytree(good_folder, path)
    change, found = FAULTS[fault]
    change(path)
    with pytest.raises(BadInput, match=rf"(?s): found .*{found}.*; expected ") as caught:
        load_clip(str(path))
    assert caught.value.where.startswith(str(path))
    assert [entry.name for entry in tmp_path.iterdir()] == ["clip"]


@pytest.mark.parametrize(("words", "tokenizer"), [(600, True), (600, False), (WORDS + 5, False)])
def test_a_vocabulary_of_another_size(tmp_path, words, tokenizer):
    folder(tmp_path, tokenizer=tokenizer, vocab_size=words, bos_token_id=0, eos_token_id=1)
    error = refused(tmp_path, rf"a vocabulary of {WORDS} tokens.* for a network with {words}")
    assert "tokenizer.json" in error.do


def test_the_weights_of_a_folder_stand_for_the_folder(good_folder, tmp_path):
    one, other = load_clip(str(good_folder)), load_clip(str(good_folder / "model.safetensors"))
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    shutil.copy(good_folder / "model.safetensors", tmp_path / "model.safetensors")
    error = refused(tmp_path / "model.safetensors", "other names than OpenAI's")
    assert "folder" in error.do


@pytest.mark.parametrize("name", ["openai/no-such-clip", "no-such-clip", "not a name!!"])
def test_a_hub_id_without_a_network(monkeypatch, tmp_path, name):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # read from the environment once
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("asks the network"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="There is no such folder or file, and it cannot be downloaded") as caught:
        load_clip(name)
    assert caught.value.where == f"CLIP {name}"
