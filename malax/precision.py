"""Which precisions this machine computes in, rather than imitates."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, cast

import torch

from malax.errors import InputError, MissingPeerError

Precision = Literal["float32", "bfloat16"]

_CPU_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}
"""Names in /proc/cpuinfo (AMD and Intel, Intel, Arm) of products of bfloat16 numbers."""


def as_precision(name: str) -> Precision:
    """A precision by its name; InputError for one that there is not."""
    if name not in ("float32", "bfloat16"):
        raise InputError(f"unknown precision {name!r}: 'float32' or 'bfloat16' is needed")
    return cast(Precision, name)


def check_bfloat16(device: torch.device) -> None:
    """MissingPeerError if the device only imitates bfloat16, which is slower than single precision."""
    if device.type == "cuda":
        there = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        there = bool(_CPU_BFLOAT16 & set(cpu_flags()))
    if not there:
        raise MissingPeerError(
            f"precision: bfloat16 needs a processor with {' or '.join(sorted(_CPU_BFLOAT16))}, or a GPU of "
            f"2020 or later, which {device} here is not; choose float32"
        )


def cpu_flags() -> list[str]:
    """What Linux says that this processor can do; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return next(found, "").split()
