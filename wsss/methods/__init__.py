"""The methods: one paper a module, each with its `METHOD`; a line here registers it."""

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
    "clip",
)  # fmt: skip


def method(name: str) -> "Method":
    """The method of that name."""
    return cast("Method", importlib.import_module(f"wsss.methods.{name}").METHOD)
