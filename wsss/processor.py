"""What this machine's processor computes natively, from the flags that the kernel lists. Imports no torch."""

import functools
import os
import sys
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
# instructions for products of matrices in half precision, any of which is enough
INSTRUCTIONS = {"bf16": ("avx512_bf16", "amx_bf16"), "fp16": ("avx512_fp16", "amx_fp16")}


def has_native(precision: str) -> bool:
    """Whether the processor has instructions for `bf16` or `fp16`. Without them, these are slower than float32.

    Only Linux lists the instructions of x86 processors; elsewhere the answer is no. It is also no where the environment tells torch not to use
    AVX-512, without which some of its operations fail on such processors.
    """
    if os.environ.get("ATEN_CPU_CAPABILITY", "").lower() in ("default", "avx2"):
        return False
    return not _flags(CPUINFO).isdisjoint(INSTRUCTIONS[precision])


@functools.cache
def _flags(cpuinfo: Path) -> frozenset[str]:
    if not sys.platform.startswith("linux"):
        return frozenset()
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return frozenset()
    listed = (line.partition(":")[2] for line in lines if line.split(":")[0].strip() == "flags")
    return frozenset(next(listed, "").split())
