"""What devices can do at best, by their makers' published figures; a training reaches a part of it."""

from __future__ import annotations

from dataclasses import dataclass

from bld.errors import SettingError, did_you_mean


@dataclass(frozen=True)
class Device:
    """tflops: of dense bfloat16 matrix products (float16 for the t4).  memory_gb.  link_gb: GB/s that it can send to
    another device of its machine.
    """

    tflops: float
    memory_gb: float
    link_gb: float


DEVICES = {
    "h200": Device(989, 141, 450),
    "h100": Device(989, 80, 450),
    "a100-80": Device(312, 80, 300),
    "a100-40": Device(312, 40, 300),
    "l40s": Device(362, 48, 32),
    "rtx4090": Device(165, 24, 32),
    "rtx3090": Device(71, 24, 32),
    "t4": Device(65, 16, 16),
    "cpu": Device(0.3, 24, 5),  # two cores as rented, measured here, not published
}


def device_named(name: str) -> Device:
    """The device of that name; SettingError for another."""
    if name not in DEVICES:
        raise SettingError(f"Unknown device '{name}'.{did_you_mean(name, DEVICES)}")
    return DEVICES[name]
