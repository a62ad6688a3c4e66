"""What MkDocs cannot do by itself: formulas as MathML, pages made from the code, and links that leave docs/.

The Markdown stays as a code host shows it: `$…$` for formulas, `../` for files beside docs/.
"""

from __future__ import annotations

import argparse
import dataclasses
import html
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints
from unittest import mock

import yaml
from griffe import Docstring, DocstringSectionKind
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
BESIDE_DOCS = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "README.md": "index.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie beside docs/."""
    for name, page in BESIDE_DOCS.items():
        if page != "index.md":
            files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Complete the pages that are made from the code, and lead links out of docs/ to pages of the site."""
    name = page.file.src_uri
    if name in MADE:
        markdown += "\n" + MADE[name]()
    up = "../" * name.count("/")

    def inside(match: re.Match[str]) -> str:
        path, anchor = match[1], match[2] or ""
        if path in BESIDE_DOCS:
            return f"]({up}{BESIDE_DOCS[path]}{anchor})"
        if path.startswith("examples/"):
            return f"]({up}examples.md#{anchor_of(Path(path).stem)})"
        raise PluginError(f"{name} links to {path} beside docs/, which is no page of the site.")

    return re.sub(rf"\]\({re.escape(up)}\.\./([^)#]+)(#[^)]*)?\)", inside, markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Replace what arithmatex has marked by MathML."""
    content = re.sub(r'<span class="arithmatex">\\\((.*?)\\\)</span>', _inline, content, flags=re.DOTALL)
    return re.sub(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', _display, content, flags=re.DOTALL)


def _inline(match: re.Match[str]) -> str:
    return convert(html.unescape(match[1]))


def _display(match: re.Match[str]) -> str:
    r"""A formula on a line of its own; its number, `\tag{1}`, stands at the right."""
    formula, *number = re.split(r"\\tag\{(.*?)\}", html.unescape(match[1]).strip())
    beside = f'<span class="number">({number[0]})</span>' if number else ""
    return f'<div class="formula">{convert(formula, display="block")}{beside}</div>'


# -- examples ---------------------------------------------------------------------------------------------


def examples() -> str:
    """Each script of examples/, headed by the first line of its docstring."""
    pages = []
    for path in sorted((ROOT / "examples").glob("*.py")):
        source = path.read_text(encoding="utf-8")
        title = source.removeprefix('"""').split("\n", 1)[0].rstrip('."')
        pages.append(f"## {title} {{ #{anchor_of(path.stem)} }}\n\n`examples/{path.name}`\n\n```python\n{source}```\n")
    return "\n".join(pages)


def anchor_of(name: str) -> str:
    """The anchor of an example."""
    return name.replace("_", "-")


# -- the command line -------------------------------------------------------------------------------------


def command_line() -> str:
    """`--help` of every command."""
    from bld.cli import COMMANDS, build_parser

    with mock.patch.dict(os.environ, COLUMNS="96", NO_COLOR="1"):
        parser = build_parser()
        commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction)).choices
        text = [_fenced(parser.format_help())]
        for name in COMMANDS:
            text += [f"## bld {name}\n", _fenced(commands[name].format_help())]
    return "\n".join(text)


def _fenced(text: str) -> str:
    return f"```text\n{text.strip()}\n```\n"


# -- settings ---------------------------------------------------------------------------------------------


def settings() -> str:
    """Every key of the settings with its default and meaning, from the typed settings and their docstrings."""
    from bld.training.config import preset_names
    from bld.training.settings import Settings

    text = ["## Presets\n", "| preset | what it is for |\n| --- | --- |"]
    for name in preset_names():
        text.append(f"| `{name}` | {_said_of_preset(name)} |")
    text.append("")
    for prefix, owner in _groups(Settings):
        first = (owner.__doc__ or "").split("\n\n", 1)[0].replace("\n", " ")
        text += [f"## {prefix.rstrip('.') or 'A run as a whole'}\n", f"{' '.join(first.split())}\n"]
        text += ["| key | default | meaning |\n| --- | --- | --- |", *_rows(owner, prefix), ""]
    return "\n".join(text)


def _groups(owner: type, prefix: str = "") -> Iterator[tuple[str, type]]:
    """(prefix, dataclass) of the tree, each before its own parts."""
    yield prefix, owner
    for name, kind in get_type_hints(owner).items():
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            yield from _groups(kind, f"{prefix}{name}.")


def _rows(owner: Any, prefix: str) -> Iterator[str]:
    told = [kind.__doc__ or "" for kind in owner.__mro__ if dataclasses.is_dataclass(kind)]
    sections = [section for doc in told for section in Docstring(doc).parse("google", warnings=False)]
    said = {
        argument.name: " ".join(argument.description.split())
        for section in sections
        if section.kind is DocstringSectionKind.parameters
        for argument in section.value
    }
    hints, default = get_type_hints(owner), owner()
    for field in dataclasses.fields(owner):
        if dataclasses.is_dataclass(hints[field.name]):
            continue
        if field.name not in said:
            raise PluginError(f"The docstring of {owner.__name__} does not say what {field.name} means.")
        value = yaml.safe_dump(_plain(getattr(default, field.name)), default_flow_style=True).split("\n")[0]
        words = [word for word in get_args(hints[field.name]) if isinstance(word, str)]
        choice = f" (one of {', '.join(f'`{word}`' for word in words)})" if words else ""
        yield f"| `{prefix}{field.name}` | `{value}` | {said[field.name]}{choice} |".replace(" `''` ", " – ")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _said_of_preset(name: str) -> str:
    """The comment at the head of the preset's file, on one line."""
    lines = (ROOT / "src" / "bld" / "presets" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    head = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    return " ".join(line.lstrip("# ") for line in head).replace("|", "\\|")


MADE = {"examples.md": examples, "reference/command-line.md": command_line, "reference/settings.md": settings}
