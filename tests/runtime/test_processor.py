"""What a page says that it was measured on."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from bld.runtime import processor
from bld.runtime.processor import device_name, instructions, is_faster_in_bf16, processor_name


@pytest.fixture
def cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(processor, "_CPUINFO", path)
    return path


@pytest.mark.parametrize(
    ("vendor", "amx", "avx512_bf16", "faster"),
    [
        ("GenuineIntel", True, True, True),
        ("GenuineIntel", False, True, False),  # it would halve the speed
        ("AuthenticAMD", False, True, True),
        ("AuthenticAMD", False, False, False),
    ],
)
def test_bf16_is_taken_where_it_is_faster_and_told(
    cpuinfo: Path, monkeypatch: pytest.MonkeyPatch, vendor: str, amx: bool, avx512_bf16: bool, faster: bool
):
    cpuinfo.write_text(f"vendor_id\t: {vendor}\nmodel name\t: Some Processor 9\n")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    assert is_faster_in_bf16() is faster
    assert ("and bf16" in instructions()) is faster


def test_a_processor_is_called_by_its_model_with_instructions_and_threads(cpuinfo: Path):
    cpuinfo.write_text("vendor_id\t: AuthenticAMD\nmodel name\t: Some Processor 9\nmodel name\t: Some Processor 9\n")
    count = torch.get_num_threads()
    said = f"Some Processor 9 with {instructions()}, {count} thread" + "s" * (count > 1)
    assert device_name(torch.device("cpu")) == said


@pytest.mark.parametrize("text", [None, "Processor\t: 0\n"])
def test_where_the_system_tells_no_model_the_architecture_stands_for_it(cpuinfo: Path, text: str | None):
    if text is not None:
        cpuinfo.write_text(text)
    assert processor_name() == (platform.processor() or platform.machine())
