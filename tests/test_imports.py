"""Who may import whom: imports flow one way, and `import bld` costs nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import bld

SOURCE = Path(bld.__file__).parent

LEAVES = {
    "codes",
    "errors",
    "seeding",
    "attention",
    "precision",
    "process",
    "processes",
    "recompute",
    "hub",
    "model_card",
    "text_encoder",
    "_version",
}
HEART = LEAVES | {"images", "autoencoder", "diffusion", "priors"}
PRODUCT = HEART | {"checkpoint", "blocks", "code_cache", "official", "pipeline", "training", "evaluation"}

MAY_IMPORT: dict[str, set[str]] = {
    **dict.fromkeys(LEAVES, LEAVES),
    "images": LEAVES,
    "autoencoder": LEAVES,
    "diffusion": LEAVES,
    "priors": LEAVES,
    "checkpoint": HEART,
    "blocks": LEAVES | {"checkpoint"},
    "code_cache": LEAVES | {"checkpoint", "blocks"},
    "official": HEART | {"checkpoint"},
    "pipeline": HEART | {"checkpoint"},
    "training": HEART | {"checkpoint", "blocks", "code_cache"},
    "evaluation": PRODUCT,
    "experiments": PRODUCT,
    "studio": PRODUCT,
    "presets": set(),
    "cli": PRODUCT | {"experiments", "studio", "presets", "cli"},
    "__main__": {"cli"},
    "__init__": PRODUCT,
}

FILES = sorted(SOURCE.rglob("*.py"))


def room_of(file: Path) -> str:
    return file.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_modules(file: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name under `bld`) of every import, wherever in the file; "" is the package itself."""
    package = ["bld", *file.relative_to(SOURCE).parts[:-1]]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"bld.{alias.name}" for alias in node.names] if module == "bld" else [module]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "bld":
                yield node.lineno, name.removeprefix("bld").removeprefix(".")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_imports_flow_one_way(file: Path):
    room = room_of(file)
    assert room in MAY_IMPORT, f"{room} is new: say in MAY_IMPORT whom it may import"
    for line, module in imported_modules(file):
        other = module.split(".")[0]
        assert other == room or other in MAY_IMPORT[room], (
            f"{file.name}:{line}: {room} may not import {module or 'bld'}"
        )


def test_the_rule_is_not_empty():
    """The walk does see the imports: the checkpoint reads every model room, and the rooms have many files."""
    seen = {module.split(".")[0] for _, module in imported_modules(SOURCE / "checkpoint.py")}
    assert {"autoencoder", "diffusion", "priors", "errors"} <= seen
    assert len(FILES) > 40


def test_nothing_is_called_utils():
    names = {part.removesuffix(".py") for file in FILES for part in file.relative_to(SOURCE).parts}
    assert not {name for name in names if name in ("util", "utils", "helpers", "misc")}


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_bld_imports_neither_torch_nor_anything_heavy():
    heavy = ["torch", "numpy", "torchvision", "PIL", "matplotlib", "safetensors", "huggingface_hub"]
    assert run_python(f"import sys, bld; print([name for name in {heavy} if name in sys.modules])") == "[]"


def test_the_pipeline_pulls_in_no_optional_dependency():
    optional = [
        "sklearn",
        "lpips",
        "tensorboard",
        "matplotlib",
        "accelerate",
        "torchvision.models",
        "scipy",
        "diffusers",
        "transformers",
    ]
    optional += ["vector_quantize_pytorch", "torch_fidelity", "torchmetrics"]
    assert run_python(f"import sys, bld.pipeline; print([n for n in {optional} if n in sys.modules])") == "[]"


def test_every_room_can_be_imported_first():
    """No import works only because another came before it."""
    rooms = {room_of(file) for file in FILES} - {"__init__", "__main__"}
    run_python(f"""
import importlib, sys
for room in {sorted(rooms)}:
    for name in [name for name in sys.modules if name.split(".")[0] == "bld"]:
        del sys.modules[name]
    importlib.import_module("bld." + room)
""")
