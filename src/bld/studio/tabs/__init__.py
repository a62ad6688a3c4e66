"""The tabs of the page: a file each, with what it makes, its controls, and the `Tab` that the page finds."""

from importlib import import_module
from pkgutil import iter_modules

from bld.studio.tabs.base import Tab

__all__ = ["Tab", "tabs"]


def tabs() -> list[Tab]:
    """Those of all files here, from left to right."""
    modules = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
    return sorted((module.TAB for module in modules if hasattr(module, "TAB")), key=lambda tab: tab.place)
