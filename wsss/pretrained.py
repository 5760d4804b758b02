"""Load foundation models by hub id, folder or file. Code in a file is never run."""

import contextlib
import dataclasses
import functools
import gzip
import importlib.util
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from torch import Tensor

from wsss import hub
from wsss.arrays import Float
from wsss.checkpoints import read_checkpoint
from wsss.data.augment import Colours
from wsss.errors import BadInput, is_regular, reading
from wsss.foreign.torchscript import is_torchscript, read_torchscript
from wsss.networks import blip
from wsss.networks.clip import CLIP, ImageText, Vocabulary, from_openai, is_openai
from wsss.networks.clip_resnet import ResNetCLIP, is_resnet, resnet_from_openai
from wsss.networks.siglip import PaddedVocabulary, SigLIP
from wsss.run import pretrained
from wsss.storage import read_json
from wsss.supervision import PAIRS
from wsss.weights import SUFFIXES, finite

if TYPE_CHECKING:  # slow to import
    import transformers

Activation = Literal["quick_gelu", "gelu"]
AnyCLIP = TypeVar("AnyCLIP", CLIP, ResNetCLIP, ImageText | ResNetCLIP)

_START, _END = "<|startoftext|>", "<|endoftext|>"
_EXPECTED = "a CLIP with a vision transformer: a Hugging Face hub id, a folder saved by transformers, or a state dict of OpenAI or open_clip"

# by `model_type` in config.json; MetaCLIP is a `clip`, SigLIP 2 of a fixed size a `siglip`, that of any aspect ratio (NaFlex) a `siglip2`
_LAYERS: Mapping[str, str] = {
    "clip": "CLIPModel",
    "metaclip_2": "MetaClip2Model",
    "siglip": "SiglipModel",
    "siglip2": "Siglip2Model",
}
_EXPECTED_BLIP = (
    "a BLIP for question answering: a hub id, a folder saved by transformers, or model_base_vqa_capfilt_large.pth"
)
# file names of the weights that `save_pretrained` writes
_SAVED = ("model.safetensors", "pytorch_model.bin")
_EXPECTED_PROMPTED = "a CLIP with visual.mask_embedding, such as the one under clip_adapter.clip_model in ovseg_swinbase_vitL14_ft_mpt.pth"


@dataclasses.dataclass(frozen=True)
class FromCLIP:
    """Settings of what a frozen CLIP computes."""

    clip: str = pretrained("openai/clip-vit-base-patch16", PAIRS)
    """a Hugging Face hub id, a folder saved by transformers, or a checkpoint of OpenAI (ViT-B-16.pt) or open_clip"""
    activation: Activation = "quick_gelu"
    """activation of an open_clip state dict, which does not record it: gelu for most of them"""


def load_clip(source: str, activation: Activation = "quick_gelu", lacks: str = "no class token") -> CLIP:
    """A CLIP with its vocabulary, on the CPU, in float32, with frozen weights.

    Args:
        source: a hub id (`openai/clip-vit-base-patch16`), a folder saved by Hugging Face transformers (also of a MetaCLIP), OpenAI's
            `ViT-B-16.pt` (the TorchScript archive, or its state dict), or a state dict of open_clip.
        activation: activation of a state dict, which does not record it: `gelu` for most networks of open_clip. Ignored for folders
            and hub ids, which record it.
        lacks: what a SigLIP has not, or has instead, so that it cannot be used.

    Raises:
        BadInput: the source does not exist, cannot be downloaded, or has another architecture.
    """
    clip = load_image_text(source, activation)
    if not isinstance(clip, CLIP):
        do = "Give a CLIP. CLIP-ES, CLIMS and QA-CLIMS also take a SigLIP."
        raise BadInput(source, f"a SigLIP, which has {lacks}", _EXPECTED, do)
    return clip


def load_image_text(source: str, activation: Activation = "quick_gelu") -> ImageText:
    """As `load_clip`; it may also be a SigLIP or SigLIP 2 (`google/siglip2-base-patch16-224`), for methods that need no class token."""
    clip = _load(source, activation, resnets=False)
    assert isinstance(clip, ImageText)
    return clip


def load_any_clip(source: str, activation: Activation = "quick_gelu") -> ImageText | ResNetCLIP:
    """As `load_image_text`; OpenAI's file may also be a ResNet (`RN50x4.pt`), for methods that do not use attention between patches."""
    return _load(source, activation, resnets=True)


def load_prompted_clip(
    source: str, activation: Activation = "quick_gelu"
) -> tuple[CLIP, Float[Tensor, "depth n width"]]:
    """A CLIP with mask prompts (OVSeg; Liang et al., CVPR 2023), loaded as by `load_clip`, and the prompts that replace masked patches.

    Args:
        source: OVSeg's full checkpoint, of which only the CLIP is used, or a state dict with OpenAI's names and `visual.mask_embedding`.
        activation: activation of the network, which the file does not record.

    Raises:
        BadInput: the file does not exist, has no mask prompts, or they do not match the network.
    """
    path = Path(source)
    if not is_regular(path):
        do = "Download OVSeg's checkpoint and give its path, or set mask_prompts to false and give a plain CLIP."
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
    shape = (clip.native_grid**2, clip.model.config.vision_config.hidden_size)
    if prompts.ndim != 3 or tuple(prompts.shape[1:]) != shape:
        raise BadInput(
            path, f"mask prompts of {tuple(prompts.shape)}", f"(depth, {shape[0]}, {shape[1]})", "Download it again."
        )
    return _ready(clip, source), prompts.float()


def load_blip(source: str, vocabulary: str, size: int) -> blip.BLIP:
    """A BLIP for question answering, on the CPU, in float32, with frozen weights.

    Args:
        source: a hub id (`Salesforce/blip-vqa-capfilt-large`), a folder saved by Hugging Face transformers, or the file of BLIP's authors.
        vocabulary: BERT's vocabulary, if the source has none: a hub id, a folder, or vocab.txt.
        size: side of the pictures in pixels; positional embeddings of another grid are resized.

    Raises:
        BadInput: the source does not exist, cannot be downloaded, or has another architecture.
    """
    source = saved_folder(source)
    path, has_vocabulary = Path(source), False
    if is_regular(path):
        state = read_checkpoint(path)
        if not blip.is_published(state):
            found = f"other names than BLIP's (first tensors: {', '.join(list(state)[:3])})"
            do = "If transformers wrote the file, give the folder with its config.json."
            raise BadInput(path, found, _EXPECTED_BLIP, do)
        model = blip.from_published(state, str(path))
    else:
        check_exists(source, _EXPECTED_BLIP)
        folder = path if os.path.isdir(path) else None
        has_vocabulary = folder is None or any((folder / file).exists() for file in ("tokenizer.json", "vocab.txt"))
        model = _blip_from_transformers(source, folder)
    tokenizer_source = source if has_vocabulary else vocabulary
    tokenizer = _bert_tokenizer(tokenizer_source)
    words = model.config.text_config.vocab_size  # type: ignore[union-attr]
    if len(tokenizer) not in (words - 2, words):
        found = f"a vocabulary of {len(tokenizer)} words for a network with {words}"
        expected = f"{words - 2}, since two mark the start of questions and of answers"
        raise BadInput(tokenizer_source, found, expected, "Give the vocabulary that belongs to the network.")
    finite(model.state_dict(), source)
    answering = blip.BLIP(blip.resized(model.float(), size), tokenizer)
    return answering.requires_grad_(False).eval()


def _blip_from_transformers(name: str, folder: Path | None) -> "transformers.BlipForQuestionAnswering":
    import transformers

    where = f"BLIP {name}" if folder is None else name
    with loading_model(where, folder, "a BLIP", _EXPECTED_BLIP):
        config: Any = transformers.BlipConfig.from_pretrained(name)
        config.vision_config.layer_norm_eps = blip.VISION_EPSILON
        read: Any = transformers.BlipForQuestionAnswering.from_pretrained
        model, loaded = read(name, config=config, output_loading_info=True)
    check_complete(where, loaded, _EXPECTED_BLIP)
    return model


def _bert_tokenizer(source: str) -> "transformers.BertTokenizer":
    import transformers

    path = Path(source)
    expected = "BERT's vocabulary (bert-base-uncased): a hub id, a folder, or vocab.txt"
    check_exists(source, expected)
    with loading_model(source, path if os.path.exists(path) else None, "a vocabulary of BERT", expected):
        return (
            transformers.BertTokenizer(str(path))
            if is_regular(path)
            else transformers.BertTokenizer.from_pretrained(source)
        )


def saved_folder(source: str) -> str:
    """The folder, if the source is a weights file in a folder saved by transformers; otherwise the source."""
    path = Path(source)
    return str(path.parent) if path.name in _SAVED and (path.parent / "config.json").is_file() else source


def _load(source: str, activation: Activation, resnets: bool) -> ImageText | ResNetCLIP:
    source = saved_folder(source)
    path = Path(source)
    if os.path.isdir(path):
        config = path / "config.json"
        clip: ImageText | ResNetCLIP = _from_transformers(str(path), path, config)
    elif is_regular(path):
        clip = _from_file(path, activation, resnets)
    else:
        check_exists(source, _EXPECTED)
        with loading_model(f"CLIP {source}", None, "a CLIP", _EXPECTED):
            from transformers.utils import cached_file

            config = Path(str(cached_file(source, "config.json")))
        clip = _from_transformers(source, None, config)
    return _ready(clip, source)


def check_exists(source: str, expected: str) -> None:
    """Raise BadInput for a source that can only be a path, but does not exist."""
    path = Path(source)
    like_a_path = path.suffix in (*SUFFIXES, ".txt") or source.startswith((".", "/", "~")) or source.count("/") > 1
    if (like_a_path and not os.path.exists(path)) or (
        os.path.exists(path) and not path.is_dir() and not is_regular(path)
    ):
        raise BadInput(source, "no such file or folder", expected, "Check the path.")


def _ready(clip: AnyCLIP, source: str) -> AnyCLIP:
    finite(clip.state_dict(), source)
    for parameter in clip.parameters():
        # some loaders return unaligned memory, where sums may run in another order
        parameter.data = parameter.data.clone()
    return clip.requires_grad_(False).eval()


def _from_file(path: Path, activation: Activation, resnets: bool) -> CLIP | ResNetCLIP:
    state = finite(read_torchscript(path), path) if is_torchscript(path) else read_checkpoint(path)
    if not is_openai(state):
        raise BadInput(
            path,
            f"other names than OpenAI's (first tensors: {', '.join(list(state)[:3])})",
            _EXPECTED,
            "If transformers wrote the file, give the folder with its config.json.",
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
            "Give a folder saved by transformers, which includes the vocabulary.",
        )


def _from_transformers(name: str, folder: Path | None, config: Path) -> ImageText:
    content = read_json(config, "the settings of a CLIP (config.json)")
    kind = content.get("model_type") if isinstance(content, dict) else None
    if not isinstance(kind, str) or kind not in _LAYERS:
        raise BadInput(config, f"a model of type {kind!r}", _EXPECTED, "Give the folder of a CLIP.")
    import transformers
    from transformers.utils import cached_file

    where = f"CLIP {name}" if folder is None else name
    with loading_model(where, folder, f"a {_LAYERS[kind]}", _EXPECTED):
        read: Any = getattr(transformers, _LAYERS[kind]).from_pretrained
        model, loaded = read(name, output_loading_info=True)
        preprocessing = cached_file(name, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
    check_complete(where, loaded, _EXPECTED)
    colours = picture_colours(preprocessing)
    known = {} if colours is None else {"colours": colours}
    if kind == "clip":
        return CLIP(model.float(), _clip_vocabulary(name, folder, where, model.config.text_config), **known)
    tokenizer, of_class = _own_tokenizer(name, folder, where)
    _check_tokenizer(where, tokenizer, model.config.text_config, "")
    if kind == "metaclip_2":
        return CLIP(model.float(), _multilingual(tokenizer, where, model.config.text_config), **known)
    _check_siglip(where, model.config)
    if tokenizer.pad_token_id is None:
        raise BadInput(where, "a tokenizer without a padding token", "SigLIP's", "Save the tokenizer again.")
    # tokenizers of the first SigLIP remove punctuation, those of SigLIP 2 do not
    context = int(model.config.text_config.max_position_embeddings)
    return SigLIP(model.float(), PaddedVocabulary(tokenizer, context, of_class != "SiglipTokenizer"), **known)


def _clip_vocabulary(name: str, folder: Path | None, where: str, settings: Any) -> Vocabulary:
    import transformers

    has_tokenizer = folder is None or any((folder / file).exists() for file in ("tokenizer.json", "vocab.json"))
    with loading_model(where, folder, "a CLIP", _EXPECTED):
        tokenizer = transformers.CLIPTokenizer.from_pretrained(name) if has_tokenizer else openai_tokenizer()
    default = "" if has_tokenizer else " (OpenAI's, since the folder has none)"
    if not has_tokenizer and len(tokenizer) != settings.vocab_size:
        raise _other_vocabulary(where, len(tokenizer), settings, default)
    _check_tokenizer(where, tokenizer, settings, default)
    return Vocabulary(tokenizer, int(settings.max_position_embeddings))


def _own_tokenizer(name: str, folder: Path | None, where: str) -> "tuple[transformers.PreTrainedTokenizerBase, str]":
    """The tokenizer in `tokenizer.json`, as it is, and the class that transformers has for it."""
    if folder is not None and not (folder / "tokenizer.json").is_file():
        do = "Download tokenizer.json and tokenizer_config.json of the model too."
        raise BadInput(where, "no tokenizer.json", "the tokenizer that belongs to the network", do)
    import transformers
    from transformers.utils import cached_file

    with loading_model(where, folder, "a tokenizer", _EXPECTED):
        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(name)
        settings = cached_file(name, "tokenizer_config.json", _raise_exceptions_for_missing_entries=False)
    content = read_json(Path(settings), "the settings of a tokenizer") if settings is not None else {}
    return tokenizer, str(content.get("tokenizer_class") if isinstance(content, dict) else None)


def _check_tokenizer(
    where: str, tokenizer: "transformers.PreTrainedTokenizerBase", settings: Any, default: str
) -> None:
    """Raise BadInput if a tokenizer has tokens that the network does not know."""
    if len(tokenizer) > settings.vocab_size:
        raise _other_vocabulary(where, len(tokenizer), settings, default)


def _other_vocabulary(where: str, found: int, settings: Any, default: str) -> BadInput:
    return BadInput(
        where,
        f"a vocabulary of {found} tokens{default} for a network with {settings.vocab_size}",
        "the tokenizer that belongs to the network",
        "Put its tokenizer.json into the folder.",
    )


def _multilingual(tokenizer: "transformers.PreTrainedTokenizerBase", where: str, settings: Any) -> Vocabulary:
    """The vocabulary of MetaCLIP 2, which has seen capital letters."""
    if tokenizer.bos_token_id is None or tokenizer.eos_token_id != settings.eos_token_id:
        found = f"a tokenizer with start {tokenizer.bos_token_id} and end {tokenizer.eos_token_id}"
        expected = f"MetaCLIP 2's, with a start, and the end {settings.eos_token_id}"
        raise BadInput(where, found, expected, "Put its tokenizer.json and tokenizer_config.json into the folder.")
    return Vocabulary(tokenizer, int(settings.max_position_embeddings), lower=False)


def _check_siglip(where: str, config: Any) -> None:
    """Raise BadInput for a SigLIP without attention pooling, or with other patches than squares in a square."""
    vision, joint = config.vision_config, config.text_config.projection_size
    side, patches = vision.patch_size, getattr(vision, "num_patches", None)
    if not isinstance(side, int) or (patches is not None and math.isqrt(patches) ** 2 != patches):
        found, expected = f"patches of {side}, {patches} of them", "square patches in a square"
    elif not vision.vision_use_head:
        found, expected = "no attention pooling (vision_use_head)", "a SigLIP with it"
    elif joint != vision.hidden_size:
        found, expected = f"text features of {joint} numbers", f"{vision.hidden_size}, as those of pictures"
    else:
        return
    raise BadInput(where, found, expected, "Give another SigLIP.")


def picture_colours(preprocessing: str | None) -> Colours | None:
    """The normalisation in a file preprocessor_config.json; None if there is no file, or it says nothing."""
    if preprocessing is None:
        return None
    path = Path(preprocessing)
    content = read_json(path, "how a model wants its pictures (preprocessor_config.json)")
    return mean_and_deviation(content, "image_mean", "image_std", path)


def mean_and_deviation(content: Any, mean: str, deviation: str, where: Path) -> Colours | None:
    """The normalisation in these entries of a model's settings; None if there are none.

    Raises:
        BadInput: they are not three numbers each.
    """
    found = [content.get(key) if isinstance(content, dict) else None for key in (mean, deviation)]
    if found == [None, None]:
        return None
    triples = [tuple(one) for one in found if isinstance(one, list | tuple) and len(one) == 3]
    numbers = [value for one in triples for value in one if isinstance(value, int | float)]
    if len(numbers) != 6 or not all(value > 0 for value in triples[1]):
        expected = f"`{mean}` and `{deviation}`, three numbers each"
        raise BadInput(where, f"{found!r:.60}", expected, "Download the network again.")
    return (triples[0], triples[1])


@contextlib.contextmanager
def loading_model(where: str, folder: Path | None, what: str, expected: str) -> Iterator[None]:
    """Run loaders of transformers without their log messages, and turn their errors into BadInput."""
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if folder is None:
        do = "There is no such folder or file, and it cannot be downloaded: check the name, or download it where there is a network."
    else:
        do = f"It cannot be read as {what}: {'download it again.' if folder.is_file() else 'save it again with save_pretrained.'}"
    try:
        with reading(where, expected, do):
            if folder and folder.is_dir():
                _check_folder(folder, expected)
            with contextlib.nullcontext() if folder else hub.cache_if_offline():
                yield
    finally:
        transformers_logging.set_verbosity(verbosity)


# files that transformers reads in a folder
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
    """Raise BadInput if a file that transformers may open is not a regular file, or a settings file is not a JSON object."""
    for path in sorted(folder.iterdir()):
        if path.exists() and not path.is_dir() and not is_regular(path):
            raise BadInput(path, "no regular file", expected, "Remove it.")
        # transformers does not open other JSON files, such as those of the training
        if path.name in _SETTINGS and not isinstance(read_json(path, "settings of a model"), dict):
            raise BadInput(path, "no JSON object", expected, "Save the model again with save_pretrained.")


def check_complete(where: str, loaded: dict[str, Any], expected: str) -> None:
    """Raise BadInput if the loader of a model reports tensors that are missing."""
    missing = sorted(loaded["missing_keys"])
    if missing:
        found = f"{len(missing)} tensors missing ({', '.join(missing[:3])})"
        raise BadInput(where, found, expected, "Save or download it again.")


@functools.cache
def openai_tokenizer() -> "transformers.CLIPTokenizer":
    """OpenAI's byte-pair encoding with 49408 tokens, from the list in the open_clip package."""
    package = importlib.util.find_spec("open_clip")
    assert package is not None
    assert package.submodule_search_locations
    path = Path(package.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(path.read_bytes()).decode().split("\n")
    return _tokenizer([(first, second) for first, second in (line.split() for line in lines[1:48895])])


def _tokenizer(merges: list[tuple[str, str]]) -> "transformers.CLIPTokenizer":
    import transformers

    symbols = byte_symbols()
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *map("".join, merges), _START, _END]
    return transformers.CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=merges)  # type: ignore[arg-type]


def byte_symbols() -> list[str]:
    """A printable character for each byte, in the order of OpenAI's vocabulary: printable bytes first."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]


def new_tokenizer(texts: Sequence[str], size: int) -> "transformers.CLIPTokenizer":
    """A byte-pair encoding like OpenAI's, with merges only for the words of these texts; other words are split into letters.

    Words are merged starting at their first letter, in alphabetical order, so that equal texts give the same encoding.

    Args:
        texts: texts to be encoded with few tokens.
        size: maximum number of entries; 514 of them are letters and the start and end tokens.
    """
    splitter = openai_tokenizer().backend_tokenizer.pre_tokenizer
    words = sorted({word for text in texts for word, _ in splitter.pre_tokenize_str(text.lower())})
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        letters = [*word[:-1], f"{word[-1]}</w>"]
        for end in range(1, len(letters)):
            merges["".join(letters[:end]), letters[end]] = None
    return _tokenizer(list(merges)[: max(0, size - 514)])
