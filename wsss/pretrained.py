"""Foundation models by hub id, folder or file. Nothing here runs code of a file."""

import functools
import gzip
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from transformers import CLIPModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from wsss.errors import BadInput
from wsss.networks.clip import CLIP, Vocabulary, from_openai, is_openai
from wsss.networks.clip_resnet import ResNetCLIP, is_resnet, resnet_from_openai
from wsss.storage import read_json
from wsss.torchscript import is_torchscript, read_torchscript
from wsss.weights import SUFFIXES, read_checkpoint

Activation = Literal["quick_gelu", "gelu"]

_START, _END = "<|startoftext|>", "<|endoftext|>"
_EXPECTED = "a CLIP with a vision transformer: a hub id, a folder of Hugging Face transformers, or OpenAI's or open_clip's state dict"


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


def _load(source: str, activation: Activation, resnets: bool) -> CLIP | ResNetCLIP:
    path = Path(source)
    if path.is_dir():
        clip: CLIP | ResNetCLIP = _from_folder(path)
    elif path.is_file():
        clip = _from_file(path, activation, resnets)
    elif path.suffix in SUFFIXES or source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise BadInput(source, "no such file or folder", _EXPECTED, "Check the path.")
    else:
        clip = _from_transformers(source, None)
    for parameter in clip.parameters():
        # loaders leave some at odd addresses, by chance; sums over these run in another order
        parameter.data = parameter.data.clone()
    return clip.requires_grad_(False).eval()


def _from_file(path: Path, activation: Activation, resnets: bool) -> CLIP | ResNetCLIP:
    state = read_torchscript(path) if is_torchscript(path) else read_checkpoint(path)
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
    model = from_openai(state, str(path), activation)
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
    read: Any = CLIPModel.from_pretrained
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        model, loaded = read(name, output_loading_info=True)
        own = folder is None or any((folder / file).exists() for file in ("tokenizer.json", "vocab.json"))
        tokenizer = CLIPTokenizer.from_pretrained(name) if own else openai_tokenizer()
    except Exception as error:  # broken files and the network make its readers raise almost anything
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
        if folder is None:
            found = f"no such folder or file here, and none that can be fetched ({reason})"
            do = "Check the name, or fetch it where there is a network and give its folder."
        else:
            found, do = f"a folder that cannot be read as a CLIP ({reason})", "Save it again with save_pretrained."
        raise BadInput(where, found, _EXPECTED, do) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    absent = sorted(loaded["missing_keys"])
    if absent:
        found = f"{len(absent)} tensors missing ({', '.join(absent[:3])})"
        raise BadInput(where, found, _EXPECTED, "Save or fetch it again.")
    settings: Any = model.config.text_config
    if len(tokenizer) > settings.vocab_size or (not own and len(tokenizer) != settings.vocab_size):
        raise BadInput(
            where,
            f"a vocabulary of {len(tokenizer)} tokens{'' if own else ' (OpenAI, for want of another)'} for a network with {settings.vocab_size}",
            "the tokenizer that belongs to the network",
            "Put its tokenizer.json into the folder.",
        )
    return CLIP(model.float(), Vocabulary(tokenizer, int(settings.max_position_embeddings)))


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
