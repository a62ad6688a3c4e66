"""What a task of the studio makes: pictures, and all that decided them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Picture:
    """One image with its words.

    Attributes:
        image: the picture itself.
        name: of its file, without the ending.
        caption: below it.
        alt: in place of it, where it cannot be seen.
    """

    image: Image.Image
    name: str
    caption: str
    alt: str


@dataclass(frozen=True)
class Made:
    """What came out.

    Attributes:
        groups: (heading, pictures); a heading may be empty.
        settings: all that decides the pictures, ready for JSON.
        facts: (name, value) worth saying.
        history: how the first picture came about.
        files: further ones to keep, by name.
        in_a_row: whether the pictures are a strip.
    """

    groups: list[tuple[str, list[Picture]]]
    settings: dict[str, Any]
    facts: list[tuple[str, str]] = field(default_factory=list)
    history: list[Image.Image] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    in_a_row: bool = False

    @property
    def pictures(self) -> list[Picture]:
        """Those of all groups, in order."""
        return [picture for _, pictures in self.groups for picture in pictures]
