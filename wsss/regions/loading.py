"""Networks of transformers that propose regions, by hub id or folder."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wsss.errors import BadInput
from wsss.pretrained import check_complete, check_exists, loading_model, saved_folder
from wsss.weights import finite


def check_proposer(source: str, kinds: Mapping[str, str], what: str) -> str:
    """The class in transformers of a network; no weights are read.

    Args:
        source: a hub id, or a folder saved by transformers.
        kinds: the class in transformers of each supported `model_type` in config.json.
        what: name of these networks, for errors.

    Raises:
        BadInput: the source does not exist, cannot be downloaded, or has another architecture.
    """
    import transformers  # slow to import

    source, expected = saved_folder(source), f"{what}: a hub id, or a folder saved by transformers"
    check_exists(source, expected)
    where, folder = place_of(source, what)
    with loading_model(where, folder, what, expected):
        content, _ = transformers.PreTrainedConfig.get_config_dict(source)
    kind = str(content.get("model_type"))
    if kind not in kinds:
        found = f"a model of type {kind!r}" if content else "no config.json"
        raise BadInput(where, found, f"{', '.join(kinds)} ({expected})", "Give another model.")
    return kinds[kind]


def load_proposer(source: str, kinds: Mapping[str, str], what: str) -> tuple[Any, Any]:
    """A network and its image processor, on the CPU, in float32, with frozen weights; see `check_proposer`."""
    import transformers

    kind, source = check_proposer(source, kinds, what), saved_folder(source)
    where, folder = place_of(source, what)
    expected = f"{what}, with its weights and preprocessor_config.json"
    with loading_model(where, folder, what, expected):
        model, loaded = getattr(transformers, kind).from_pretrained(source, output_loading_info=True)
        processor = transformers.AutoImageProcessor.from_pretrained(source)
    check_complete(where, loaded, expected)
    finite(model.state_dict(), source)
    return model.float().requires_grad_(False).eval(), processor


def place_of(source: str, what: str) -> tuple[str, Path | None]:
    """The name of a source for errors, and its folder; None if it is on the hub."""
    return (source, Path(source)) if os.path.exists(source) else (f"{what} {source}", None)
