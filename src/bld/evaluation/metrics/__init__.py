"""Metrics of reconstructions and samples; each file here is found, and with it the metrics that it makes known."""

from importlib import import_module
from pkgutil import iter_modules

from bld.evaluation.metrics.base import RECONSTRUCTION_METRICS, SAMPLE_METRICS

__all__ = ["RECONSTRUCTION_METRICS", "SAMPLE_METRICS"]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
