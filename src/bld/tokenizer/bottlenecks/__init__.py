"""What stands between encoder and decoder: a file each, found by itself."""

from importlib import import_module
from pkgutil import iter_modules

from bld.tokenizer.bottlenecks.base import Bottleneck, Bottlenecked, Generators

__all__ = ["Bottleneck", "Bottlenecked", "Generators", "kinds"]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")


def kinds() -> dict[str, type[Bottleneck]]:
    """Every bottleneck by its `tokenizer.bottleneck`, the paper's first."""
    found, known = [Bottleneck], []
    while found:
        subclasses = found.pop().__subclasses__()
        known += subclasses
        found += subclasses
    known.sort(key=lambda bottleneck: (bottleneck.kind != "bernoulli", bottleneck.kind))
    return {bottleneck.kind: bottleneck for bottleneck in known if "kind" in vars(bottleneck)}
