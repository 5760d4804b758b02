"""The methods: one module per paper, each with a `METHOD` object. A method is registered by adding its module to `METHODS`."""

import importlib
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from wsss.recipe import Method

METHODS = (
    "cam",
    "recam",
    "vwl",
    "clip_es",
    "clims",
    "icam",
    "qa_clims",
    "weclip",
    "corrclip",
    "prompts",
    "clip",
)  # fmt: skip


def method(name: str) -> "Method":
    """The method with this name."""
    return cast("Method", importlib.import_module(f"wsss.methods.{name}").METHOD)
