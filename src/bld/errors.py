"""Errors that users can fix: each message is one sentence that names the value and what to do about it.

The command line prints these as they are and exits with status 2; anything else is a defect and shows its
traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something that users can fix: the message is one clear sentence that names the value and what to do."""


class SettingError(UserError):
    """A setting or argument is unknown, out of range, of the wrong shape or type, or in conflict with another."""


class DataError(UserError):
    """The images (or other input data) cannot be used: missing, empty, unreadable, too few, with invalid values."""


class CheckpointError(UserError):
    """A saved model, checkpoint or run folder is missing, damaged, or of another shape."""


class MissingPackageError(UserError):
    """An optional package is needed and not installed; the message names the extra that brings it."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the nearest of the known names; when none is near, a list of them if at most 24."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f" Did you mean '{near[0]}'?"
    return f" Known: {', '.join(known)}." if len(known) <= 24 else ""
