"""What an evaluation is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from bld.errors import SettingError, did_you_mean
from bld.evaluation.metrics import RECONSTRUCTION_METRICS, SAMPLE_METRICS
from bld.training.held_out_codes import CODE_DRAWS

RECONSTRUCTION = (*RECONSTRUCTION_METRICS, "rfd")
CAS_NETWORKS = ("resnet50", "small")
ALL_METRICS = (*SAMPLE_METRICS, "cas", *RECONSTRUCTION, "bits")


@dataclass(frozen=True)
class Request:
    """What is judged, and how.

    Attributes:
        metrics: names from ALL_METRICS.
        num: samples.
        seed: of the samples.
        steps: denoising steps of the samples; None is the run's own.
        temperature: τ of the samples; None is the run's own.
        guidance_scale: 1 + ω of the samples; None is the run's own.
        classes: of the samples, names between commas, as `asked_for` takes them; "" draws what the data has.
        batch_size: images at a time, which changes nothing.
        reconstructed: real images for reconstruction, at most.
        codes: images for the likelihood.
        code_draws: codes of each of those images; 0 takes the most probable codes.
        cas_epochs: how often the classifier of cas sees each sample.
        cas_network: the classifier of cas, "resnet50" or "small".

    Raises:
        SettingError: for an unknown metric or network, or none, and for numbers that are too small.
    """

    metrics: tuple[str, ...] = ("fd", "kid", "precision", "recall")
    num: int = 10_000
    seed: int = 0
    steps: int | None = None
    temperature: float | None = None
    guidance_scale: float | None = None
    classes: str = ""
    batch_size: int = 64
    reconstructed: int = 10_000
    codes: int = 512
    code_draws: int = CODE_DRAWS
    cas_epochs: int = 30
    cas_network: str = "resnet50"

    def __post_init__(self) -> None:
        for name in self.metrics:
            if name not in ALL_METRICS:
                raise SettingError(f"Unknown metric '{name}'.{did_you_mean(name, ALL_METRICS)}")
        if not self.metrics:
            raise SettingError(f"No metric was named: choose from {', '.join(ALL_METRICS)}.")
        for field in ("num", "batch_size", "reconstructed", "codes", "cas_epochs"):
            if getattr(self, field) < 1:
                raise SettingError(f"{field} is at least 1, not {getattr(self, field)}.")
        if self.cas_network not in CAS_NETWORKS:
            raise SettingError(f"Unknown network '{self.cas_network}' for cas: {' or '.join(CAS_NETWORKS)}.")
        if self.steps is not None and self.steps < 1:
            raise SettingError(f"steps is at least 1, not {self.steps}; leave it out for the run's own.")
        if self.code_draws < 0:
            raise SettingError(f"code_draws is 0 (the most probable code) or more, not {self.code_draws}.")

    @property
    def of_samples(self) -> list[str]:
        """Those of the metrics that look at samples' features."""
        return [name for name in self.metrics if name in SAMPLE_METRICS]
