"""Texts that people go on with: the last line of one says whether it is still as bld wrote it."""

from __future__ import annotations

import hashlib
import re

SIGN = re.compile(rb"<!-- written by bld; sha256 of all above: ([0-9a-f]{64}) -->\n\Z")


def signed(text: bytes) -> bytes:
    """The text, Markdown or HTML, and below it a comment that holds its hash."""
    text = text.rstrip(b"\n") + b"\n\n"
    return text + b"<!-- written by bld; sha256 of all above: " + hashlib.sha256(text).hexdigest().encode() + b" -->\n"


def is_as_signed(text: bytes) -> bool:
    """Whether `signed` gave this text, and nobody has changed it since."""
    found = SIGN.search(text)
    return found is not None and hashlib.sha256(text[: found.start()]).hexdigest().encode() == found[1]
