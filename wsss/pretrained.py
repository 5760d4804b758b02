"""Foundation models by hub id, folder or file. Nothing here runs code of a file."""

import contextlib
import functools
import gzip
import importlib.util
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from jaxtyping import Float
from torch import Tensor
from transformers import BertTokenizer, BlipConfig, BlipForQuestionAnswering, CLIPModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from wsss.checkpoints import read_checkpoint
from wsss.errors import BadInput, is_regular, reading
from wsss.foreign.torchscript import is_torchscript, read_torchscript
from wsss.networks import blip
from wsss.networks.clip import CLIP, Vocabulary, from_openai, is_openai
from wsss.networks.clip_resnet import ResNetCLIP, is_resnet, resnet_from_openai
from wsss.storage import read_json
from wsss.weights import SUFFIXES, finite

Activation = Literal["quick_gelu", "gelu"]
AnyCLIP = TypeVar("AnyCLIP", CLIP, ResNetCLIP, CLIP | ResNetCLIP)

_START, _END = "<|startoftext|>", "<|endoftext|>"
_EXPECTED = "a CLIP with a vision transformer: a hub id, a folder of Hugging Face transformers, or OpenAI's or open_clip's state dict"

_EXPECTED_BLIP = "a BLIP that answers questions: a hub id, a folder of Hugging Face transformers, or model_base_vqa_capfilt_large.pth"
# what `save_pretrained` calls the weights
_SAVED = ("model.safetensors", "pytorch_model.bin")
_EXPECTED_PROMPTED = (
    "a CLIP with visual.mask_embedding, as ovseg_swinbase_vitL14_ft_mpt.pth has below clip_adapter.clip_model"
)


def load_clip(source: str, activation: Activation = "quick_gelu") -> CLIP:
    """A CLIP with its vocabulary, on the CPU, in float32, with frozen weights.

    Args:
        source: a hub id (`openai/clip-vit-base-patch16`), a folder in the layout of Hugging Face transformers, OpenAI's
            `ViT-B-16.pt` (the TorchScript archive, or its state dict), or a state dict of open_clip.
        activation: of a state dict, which does not say it: `gelu` for most of open_clip's own. Folders and hub ids say it.

    Raises:
        BadInput: there is no such thing, it cannot be fetched, or it is another architecture.
    """
    clip = _load(source, activation, resnets=False)
    assert isinstance(clip, CLIP)
    return clip


def load_any_clip(source: str, activation: Activation = "quick_gelu") -> CLIP | ResNetCLIP:
    """As `load_clip`; OpenAI's file may be of a ResNet too (`RN50x4.pt`), for methods that need no attention between patches."""
    return _load(source, activation, resnets=True)


def load_prompted_clip(
    source: str, activation: Activation = "quick_gelu"
) -> tuple[CLIP, Float[Tensor, "depth n width"]]:
    """A CLIP with mask prompts (OVSeg; Liang et al., CVPR 2023), as `load_clip`, and what takes the place of hidden patches.

    Args:
        source: OVSeg's whole checkpoint, of which the CLIP alone is read, or a state dict of OpenAI's names with `visual.mask_embedding`.
        activation: of the network, which the file does not say.

    Raises:
        BadInput: there is no such file, it has no mask prompts, or they do not fit the network.
    """
    path = Path(source)
    if not is_regular(path):
        do = "Fetch OVSeg's checkpoint and give its path, or set mask_prompts to false and give a plain CLIP."
        raise BadInput(source, "no such file", _EXPECTED_PROMPTED, do)
    state, prefix = read_checkpoint(path), "clip_adapter.clip_model."
    if any(name.startswith(prefix) for name in state):
        # the rest is OVSeg's segmenter
        state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    prompts = state.pop("visual.mask_embedding", None)
    if prompts is None:
        found = f"no visual.mask_embedding (first tensors: {', '.join(list(state)[:3])})"
        raise BadInput(path, found, _EXPECTED_PROMPTED, "Give such a file, or set mask_prompts to false.")
    clip = _vision_transformer(path, state, activation)
    wanted = (clip.native_grid**2, clip.model.config.vision_config.hidden_size)  # type: ignore[union-attr]
    if prompts.ndim != 3 or tuple(prompts.shape[1:]) != wanted:
        raise BadInput(
            path, f"mask prompts of {tuple(prompts.shape)}", f"(depth, {wanted[0]}, {wanted[1]})", "Fetch it again."
        )
    return _ready(clip, source), prompts.float()


def load_blip(source: str, vocabulary: str, size: int) -> blip.BLIP:
    """A BLIP that answers questions, on the CPU, in float32, with frozen weights.

    Args:
        source: a hub id (`Salesforce/blip-vqa-capfilt-large`), a folder of Hugging Face transformers, or BLIP's own file.
        vocabulary: BERT's, where the source brings none: a hub id, a folder, or vocab.txt.
        size: side of the pictures in pixels; positional embeddings of another grid are resized.

    Raises:
        BadInput: there is no such thing, it cannot be fetched, or it is another architecture.
    """
    source = _saved(source)
    path, own = Path(source), False
    if is_regular(path):
        state = read_checkpoint(path)
        if not blip.is_published(state):
            found = f"other names than BLIP's (first tensors: {', '.join(list(state)[:3])})"
            do = "Give the folder that holds config.json, where the file is one of transformers."
            raise BadInput(path, found, _EXPECTED_BLIP, do)
        model = blip.from_published(state, str(path))
    else:
        _check_exists(source, _EXPECTED_BLIP)
        folder = path if os.path.isdir(path) else None
        own = folder is None or any((folder / file).exists() for file in ("tokenizer.json", "vocab.txt"))
        model = _blip_from_transformers(source, folder)
    tokenizer = _bert_tokenizer(source if own else vocabulary)
    words = model.config.text_config.vocab_size  # type: ignore[union-attr]
    if len(tokenizer) not in (words - 2, words):
        found = f"a vocabulary of {len(tokenizer)} words for a network with {words}"
        expected = f"{words - 2}, since two mark the start of questions and of answers"
        raise BadInput(
            source if own else vocabulary, found, expected, "Give the vocabulary that belongs to the network."
        )
    finite(model.state_dict(), source)
    answering = blip.BLIP(blip.resized(model.float(), size), tokenizer)
    return answering.requires_grad_(False).eval()


def _blip_from_transformers(name: str, folder: Path | None) -> BlipForQuestionAnswering:
    where = f"BLIP {name}" if folder is None else name
    with _reading(where, folder, "a BLIP", _EXPECTED_BLIP):
        config: Any = BlipConfig.from_pretrained(name)
        config.vision_config.layer_norm_eps = blip.VISION_EPSILON
        read: Any = BlipForQuestionAnswering.from_pretrained
        model, loaded = read(name, config=config, output_loading_info=True)
    _check_whole(where, loaded, _EXPECTED_BLIP)
    return model


def _bert_tokenizer(source: str) -> BertTokenizer:
    path = Path(source)
    expected = "BERT's vocabulary (bert-base-uncased): a hub id, a folder, or vocab.txt"
    _check_exists(source, expected)
    with _reading(source, path if os.path.exists(path) else None, "a vocabulary of BERT", expected):
        return BertTokenizer(str(path)) if is_regular(path) else BertTokenizer.from_pretrained(source)


def _saved(source: str) -> str:
    """The folder of transformers where the source is the file of the weights in it; otherwise the source."""
    path = Path(source)
    return str(path.parent) if path.name in _SAVED and (path.parent / "config.json").is_file() else source


def _load(source: str, activation: Activation, resnets: bool) -> CLIP | ResNetCLIP:
    source = _saved(source)
    path = Path(source)
    if os.path.isdir(path):
        clip: CLIP | ResNetCLIP = _from_folder(path)
    elif is_regular(path):
        clip = _from_file(path, activation, resnets)
    else:
        _check_exists(source, _EXPECTED)
        clip = _from_transformers(source, None)
    return _ready(clip, source)


def _check_exists(source: str, expected: str) -> None:
    """Raise BadInput for what can only be a path, where nothing is."""
    path = Path(source)
    like_a_path = path.suffix in (*SUFFIXES, ".txt") or source.startswith((".", "/", "~")) or source.count("/") > 1
    if (like_a_path and not os.path.exists(path)) or (
        os.path.exists(path) and not path.is_dir() and not is_regular(path)
    ):
        raise BadInput(source, "no such file or folder", expected, "Check the path.")


def _ready(clip: AnyCLIP, source: str) -> AnyCLIP:
    finite(clip.state_dict(), source)
    for parameter in clip.parameters():
        # loaders leave some at odd addresses, by chance; sums over these run in another order
        parameter.data = parameter.data.clone()
    return clip.requires_grad_(False).eval()


def _from_file(path: Path, activation: Activation, resnets: bool) -> CLIP | ResNetCLIP:
    state = finite(read_torchscript(path), path) if is_torchscript(path) else read_checkpoint(path)
    if not is_openai(state):
        raise BadInput(
            path,
            f"other names than OpenAI's (first tensors: {', '.join(list(state)[:3])})",
            _EXPECTED,
            "Give the folder that holds config.json, where the file is one of transformers.",
        )
    tokenizer = openai_tokenizer()
    if resnets and is_resnet(state):
        resnet = resnet_from_openai(state, str(path), activation)
        _check_vocabulary(path, len(state["token_embedding.weight"]), len(tokenizer))
        return ResNetCLIP(resnet, Vocabulary(tokenizer, len(state["positional_embedding"])))
    return _vision_transformer(path, state, activation)


def _vision_transformer(path: Path, state: dict[str, Tensor], activation: Activation) -> CLIP:
    model, tokenizer = from_openai(state, str(path), activation), openai_tokenizer()
    settings: Any = model.config.text_config
    _check_vocabulary(path, settings.vocab_size, len(tokenizer))
    return CLIP(model, Vocabulary(tokenizer, int(settings.max_position_embeddings)))


def _check_vocabulary(path: Path, found: int, expected: int) -> None:
    if found != expected:
        raise BadInput(
            path,
            f"a vocabulary of {found} tokens",
            f"OpenAI's with {expected}",
            "Give a folder of transformers, which brings its own vocabulary.",
        )


def _from_folder(path: Path) -> CLIP:
    config = path / "config.json"
    content = read_json(config, "the settings of a CLIP (config.json)")
    kind = content.get("model_type") if isinstance(content, dict) else None
    if kind != "clip":
        raise BadInput(config, f"a model of type {kind!r}", _EXPECTED, "Give the folder of a CLIP.")
    return _from_transformers(str(path), path)


def _from_transformers(name: str, folder: Path | None) -> CLIP:
    where = f"CLIP {name}" if folder is None else name
    with _reading(where, folder, "a CLIP", _EXPECTED):
        read: Any = CLIPModel.from_pretrained
        model, loaded = read(name, output_loading_info=True)
        own = folder is None or any((folder / file).exists() for file in ("tokenizer.json", "vocab.json"))
        tokenizer = CLIPTokenizer.from_pretrained(name) if own else openai_tokenizer()
    _check_whole(where, loaded, _EXPECTED)
    settings: Any = model.config.text_config
    if len(tokenizer) > settings.vocab_size or (not own and len(tokenizer) != settings.vocab_size):
        raise BadInput(
            where,
            f"a vocabulary of {len(tokenizer)} tokens{'' if own else ' (OpenAI, for want of another)'} for a network with {settings.vocab_size}",
            "the tokenizer that belongs to the network",
            "Put its tokenizer.json into the folder.",
        )
    return CLIP(model.float(), Vocabulary(tokenizer, int(settings.max_position_embeddings)))


@contextlib.contextmanager
def _reading(where: str, folder: Path | None, what: str, expected: str) -> Iterator[None]:
    """Run readers of transformers in silence, and turn their errors into one."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if folder is None:
        do = "There is no such folder or file here, and none that can be fetched: check the name, or fetch it where there is a network."
    else:
        do = f"It cannot be read as {what}: {'fetch it again.' if folder.is_file() else 'save it again with save_pretrained.'}"
    try:
        with reading(where, expected, do):
            if folder and folder.is_dir():
                _check_folder(folder, expected)
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)


# What transformers reads of a folder
_SETTINGS = frozenset(
    [
        "added_tokens.json",
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "preprocessor_config.json",
        "processor_config.json",
        "pytorch_model.bin.index.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    ]
)


def _check_folder(folder: Path, expected: str) -> None:
    """Raise BadInput if a file that transformers may open would never end, or a setting is no JSON object."""
    for path in sorted(folder.iterdir()):
        if path.exists() and not path.is_dir() and not is_regular(path):
            raise BadInput(path, "no regular file", expected, "Remove it.")
        # other JSON files are of the training, which transformers does not open
        if path.name in _SETTINGS and not isinstance(read_json(path, "settings of a model"), dict):
            raise BadInput(path, "no JSON object", expected, "Save the model again with save_pretrained.")


def _check_whole(where: str, loaded: dict[str, Any], expected: str) -> None:
    absent = sorted(loaded["missing_keys"])
    if absent:
        found = f"{len(absent)} tensors missing ({', '.join(absent[:3])})"
        raise BadInput(where, found, expected, "Save or fetch it again.")


@functools.cache
def openai_tokenizer() -> CLIPTokenizer:
    """OpenAI's byte-pair encoding with 49408 tokens, of the list that open_clip's package brings along."""
    package = importlib.util.find_spec("open_clip")
    assert package is not None
    assert package.submodule_search_locations
    path = Path(package.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(path.read_bytes()).decode().split("\n")
    return _tokenizer([(first, second) for first, second in (line.split() for line in lines[1:48895])])


def _tokenizer(merges: list[tuple[str, str]]) -> CLIPTokenizer:
    symbols = byte_symbols()
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *map("".join, merges), _START, _END]
    return CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=merges)  # type: ignore[arg-type]


def byte_symbols() -> list[str]:
    """A visible letter for each byte, in the order of OpenAI's vocabulary: printable ones first."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]


def new_tokenizer(texts: Sequence[str], size: int) -> CLIPTokenizer:
    """A byte-pair encoding like OpenAI's that knows the words of these texts alone; others fall into letters.

    Words are merged from their first letter on, in the order of the alphabet, so that equal texts give an equal encoding.

    Args:
        texts: what is to become few tokens.
        size: most entries; 514 are letters and the start and end tokens.
    """
    splitter = openai_tokenizer().backend_tokenizer.pre_tokenizer
    words = sorted({word for text in texts for word, _ in splitter.pre_tokenize_str(text.lower())})
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        letters = [*word[:-1], f"{word[-1]}</w>"]
        for end in range(1, len(letters)):
            merges["".join(letters[:end]), letters[end]] = None
    return _tokenizer(list(merges)[: max(0, size - 514)])
