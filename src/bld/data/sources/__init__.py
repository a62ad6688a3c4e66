"""Where images come from: a file each, found by itself, with an opener (`base.opens`) for what a user names."""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
