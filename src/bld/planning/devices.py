"""What devices can do at best, as their makers publish it; a training reaches a part of it."""

from __future__ import annotations

from dataclasses import dataclass

from bld.errors import SettingError, did_you_mean


@dataclass(frozen=True)
class Device:
    """What one kind of device can do at best.

    Attributes:
        half: TFLOP/s of dense matrix products in bfloat16 (float16 where there is none).
        single: TFLOP/s of dense matrix products in float32.
        memory_gb: its memory, in GB.
        link_gb: GB/s that it can send to another device of its machine.
        has_bf16: whether bfloat16 is native.
    """

    half: float
    single: float
    memory_gb: float
    link_gb: float
    has_bf16: bool = True

    def precision(self, setting: str) -> str:
        """What `mixed_precision` comes to on it: "float32", "bf16" or "fp16"."""
        return ("bf16" if self.has_bf16 else "float32") if setting == "auto" else setting

    def tflops(self, precision: str) -> float:
        """TFLOP/s of matrix products in that precision; bfloat16 that is not native runs as float32 does."""
        emulated = precision == "bf16" and not self.has_bf16
        return self.single if precision == "float32" or emulated else self.half


DEVICES = {
    "h200": Device(989, 67, 141, 450),
    "h100": Device(989, 67, 80, 450),
    "a100-80": Device(312, 19.5, 80, 300),
    "a100-40": Device(312, 19.5, 40, 300),
    "l40s": Device(362, 91.6, 48, 32),
    "rtx4090": Device(165, 82.6, 24, 32),
    "rtx3090": Device(71, 35.6, 24, 32),
    "t4": Device(65, 8.1, 16, 16, has_bf16=False),
    "cpu": Device(0.3, 0.3, 24, 5, has_bf16=False),  # two cores as rented, measured here, not published
}


def device_named(name: str) -> Device:
    """The device of that name; `SettingError` if there is none."""
    if name not in DEVICES:
        raise SettingError(f"Unknown device '{name}'.{did_you_mean(name, DEVICES)}")
    return DEVICES[name]
