"""Real processes that begin at once: a server imports what `bld` trains with, one time, and forks each from itself.

A fresh interpreter takes seconds to import torch and its compiler's parts, which a training of four steps does not.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch._dynamo", "torch.distributed.fsdp", "torch.utils.tensorboard", "bld.cli.train"])


@dataclass
class Forked:
    """A process that was begun, and the file that it writes what it says to."""

    process: BaseProcess
    file: Path

    def ended(self, timeout: float) -> int:
        """Its exit status (minus the signal that ended it), waited for so many seconds at most."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"still running after {timeout} s:\n{self.said()}")
        return self.process.exitcode

    def said(self) -> str:
        return self.file.read_text(errors="replace")


def fork(code: str, words: Sequence[object], environment: Mapping[str, str], file: Path) -> Forked:
    """Run code as a script of its own, with these arguments and additions to the environment."""
    process = CONTEXT.Process(target=_script, args=(code, [*map(str, words)], dict(environment), str(file)))
    process.start()
    return Forked(process, file)


def _script(code: str, words: list[str], environment: dict[str, str], file: str) -> None:
    said = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.environ.update(environment)
    sys.argv = ["script", *words]
    exec(compile(code, "script", "exec"), {"__name__": "__main__"})
