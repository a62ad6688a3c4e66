"""What a program computes on: the name of its GPU, or its processor and what that multiplies matrices in."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

_CPUINFO = Path("/proc/cpuinfo")  # on Linux, where `platform` knows the architecture alone


def processor_name() -> str:
    """The model's name where the system tells it, else the architecture, such as arm64."""
    for line in _cpuinfo().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def is_faster_in_bf16() -> bool:
    """Whether matrix products run faster in bfloat16 than in float32: with AMX, or AVX-512 BF16 on AMD.

    Intel's AVX-512 BF16 without AMX halves their speed (170 against 300 GFLOP/s measured on two cores), AMD's makes
    them four times as fast.
    """
    if torch.cpu._is_amx_tile_supported():
        return True
    return "AuthenticAMD" in _cpuinfo() and torch.cpu._is_avx512_bf16_supported()


def instructions() -> str:
    """What products of matrices run in, which the name need not tell: "AVX2", "AVX512 and bf16", "DEFAULT"."""
    return torch.backends.cpu.get_cpu_capability() + " and bf16" * is_faster_in_bf16()


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's with instructions and threads in use: "AMD EPYC with AVX2, 2 threads"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    count = torch.get_num_threads()
    return f"{processor_name()} with {instructions()}, {count} thread{'s' * (count > 1)}"


def _cpuinfo() -> str:
    return _CPUINFO.read_text(encoding="utf-8", errors="replace") if _CPUINFO.is_file() else ""
