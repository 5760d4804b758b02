"""Half precision: where it is used, and where it is slow."""

import functools
import logging
from typing import Literal

import torch
from torch import Tensor

from wsss.processor import INSTRUCTIONS, has_native

Precision = Literal["no", "bf16", "fp16"]

log = logging.getLogger("wsss")

_TYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def mixed(precision: Precision, device: torch.device) -> torch.autocast:
    """A context in which networks compute most layers in half precision; with `no`, everything in the precision of the weights.

    If half precision is slower than float32 here, a warning says so, once.
    """
    if precision != "no":
        warn_if_slow(precision, device.type)
    return torch.autocast(device.type, _TYPES[precision], enabled=precision != "no")


@functools.cache
def warn_if_slow(precision: Precision, device: str) -> None:
    """Warn, once, if this precision is slower than float32 on devices of this type. The results are the same, so it is no error."""
    if precision != "no" and device == "cpu" and not has_native(precision):
        missing = " nor ".join(INSTRUCTIONS[precision])
        log.warning(
            "precision %s is slower than float32 (`no`) on this processor, which has neither %s", precision, missing
        )


def at_least_single(values: Tensor) -> Tensor:
    """Values in single precision if they were in half precision; others are unchanged."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
