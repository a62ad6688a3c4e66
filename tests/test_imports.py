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

# From the ground up: each room may import itself and those above it in this list.
ROOMS = [
    {"_version", "errors"},
    {"codes", "numbers", "seeding"},
    {"runtime"},
    {"io"},
    {"nn"},
    {"data", "tokenizer", "diffusion"},  # three that do not know each other
    {"priors"},
    {"serialization"},
    {"pipeline"},
    {"training"},
    {"planning", "evaluation"},
    {"report"},
    {"experiments"},
    {"studio", "presets"},
    {"cli"},
    {"__main__"},
]
MAY_IMPORT: dict[str, set[str]] = {room: set().union(*ROOMS[:i]) for i, level in enumerate(ROOMS) for room in level}
MAY_IMPORT["__init__"] = {"_version", "errors", "codes", "tokenizer", "diffusion", "priors", "pipeline"}
MAY_IMPORT["priors"] -= {"data", "tokenizer"}  # a prior never touches a pixel
MAY_IMPORT["studio"] = MAY_IMPORT["training"]  # it shows a model, whoever trained it

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
    """The walk does see the imports: saved models are of every room of networks, and the rooms have many files."""
    seen = {module.split(".")[0] for _, module in imported_modules(SOURCE / "serialization" / "models.py")}
    assert {"tokenizer", "diffusion", "priors", "errors"} <= seen
    assert len(FILES) > 40


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Groups of names that reach each other (Tarjan's strongly connected components, of two and more)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    open_names: list[str] = []
    found = []

    def visit(name: str) -> None:
        number[name] = lowest[name] = len(number)
        open_names.append(name)
        for other in imports[name]:
            if other not in number:
                visit(other)
                lowest[name] = min(lowest[name], lowest[other])
            elif other in open_names:
                lowest[name] = min(lowest[name], number[other])
        if lowest[name] == number[name]:
            group = open_names[open_names.index(name) :]
            del open_names[-len(group) :]
            if len(group) > 1:
                found.append(sorted(group))

    for name in imports:
        if name not in number:
            visit(name)
    return found


def files_imported(files: dict[str, Path]) -> dict[str, set[str]]:
    """File → files, by dotted names; `from room import name` is of the file `room.name` where there is one."""
    found: dict[str, set[str]] = {}
    for name, file in files.items():
        found[name] = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{file}: imports are absolute"
                parts = [f"{node.module}.{alias.name}" for alias in node.names]
                found[name] |= {part if part in files else str(node.module) for part in parts}
        found[name] = (found[name] & files.keys()) - {name}
    return found


def test_files_form_no_circle():
    """Wherever in a file the import stands, imports for types included."""
    dotted = {".".join(["bld", *file.relative_to(SOURCE).with_suffix("").parts]): file for file in FILES}
    assert not circles(files_imported({name.removesuffix(".__init__"): file for name, file in dotted.items()}))


def test_a_circle_would_be_found(tmp_path: Path):
    written = {
        "bld.a": "import bld.b",
        "bld.b": "def f():\n    from bld import c",
        "bld.c": "if TYPE_CHECKING:\n    from bld.a import x",
    }
    files = {}
    for name, text in [*written.items(), ("bld.d", "import bld.a")]:
        files[name] = tmp_path / f"{name}.py"
        files[name].write_text(text)
    assert circles(files_imported(files)) == [["bld.a", "bld.b", "bld.c"]]
    files["bld.c"].write_text("import os")
    assert circles(files_imported(files)) == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_files_and_functions_can_be_read_at_once(file: Path):
    text = file.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            words = len((ast.get_docstring(node) or "").splitlines())
            assert (node.end_lineno or 0) - node.lineno - words < 60, f"{file.name}: {node.name}"


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
