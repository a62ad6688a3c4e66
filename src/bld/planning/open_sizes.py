"""Which sizes of a run are open to a time budget: those that nobody has chosen, of stages that have not begun.

RUN/progress.json, "sizes"    "open": the sizes that nobody has chosen, as the preset or a budget left them
                              "seconds": the time of each stage that a budget has chosen them for
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bld.io.files import read_json
from bld.planning import budget
from bld.planning.budget import BATCH, Pace, Plan, with_sizes
from bld.training.config import is_file, said_by_files, values_of
from bld.training.run_folder import RunFolder
from bld.training.settings import Settings, leaves, settings_tree
from bld.training.time_budget import split

SIZES = {"tokenizer": ("tokenizer.base_channels", BATCH), "prior": ("prior.dim", "prior.depth", "prior.heads")}
NOTE = "sizes"


class OpenSizes:
    """The sizes of a run that nobody has chosen.

    Args:
        run: which begins or goes on; its folder is as it was before the command.
        settings: of the run, with what the command says.
        given: dotted names that the command says.
    """

    def __init__(self, run: RunFolder, settings: Settings, given: Sequence[str]):
        goes_on = run.has_settings() and run.settings().preset == settings.preset
        said, progress = _said(run if goes_on else None, settings.preset), run.progress()
        self.run, self.settings, self._as_the_preset = run, settings, values_of(said)
        self._noted: dict[str, Any] = progress.get(NOTE, {}) if goes_on else {}
        left, has = self._noted.get("open", self._as_the_preset), _values(settings)
        brought = [stage for stage in SIZES if {"init_from", "given"} & progress.get(stage, {}).keys()]
        self._open = {
            key
            for stage, keys in SIZES.items()
            for key in keys
            if stage not in brought and key not in said and key not in given and left.get(key) == has[key]
        }
        self._seconds: dict[str, float] = dict(self._noted.get("seconds", {}))

    def for_time(self, seconds: float, stages: Sequence[str], processes: int, pace: Pace | None = None) -> Plan | None:
        """A plan of this time, on this machine, that chooses the open sizes of the stages that have not begun.

        Args:
            seconds: the time.
            stages: those that are trained in it.
            processes: that train together.
            pace: of this machine, where it has been measured.

        Returns:
            The plan; None where the settings leave no sizes to the budget, all stages have begun, or their sizes are
            those for this time already.
        """
        times = split(seconds, stages, self.settings.tokenizer_share)
        new = [stage for stage in stages if not self.run.has_begun(stage) and self._seconds.get(stage) != times[stage]]
        if not new or not self.settings.sizes_by_budget:
            return None
        open_now = self._open & {key for stage in new for key in SIZES[stage]}
        fixed = [key for keys in SIZES.values() for key in keys if key not in open_now]
        usual = self._as_the_preset[BATCH]  # which another budget may have made smaller
        anew = {BATCH: usual} if BATCH in open_now and usual != self.settings.tokenizer_training.batch_size else {}
        settings = with_sizes(self.settings, anew)
        pace = pace or budget.measure(settings, processes)
        bought = budget.plan(settings, seconds, pace, fixed, stages, processes)
        self._seconds |= {stage: times[stage] for stage in new}
        return bought._replace(sizes={**anew, **bought.sizes})

    def note(self, settings: Settings) -> None:
        """Note in the run what is open, of the settings that it has got."""
        note = {"open": {key: _values(settings)[key] for key in sorted(self._open)}, "seconds": self._seconds}
        if settings.sizes_by_budget and note != self._noted:
            self.run.record(NOTE, **note)


def _said(run: RunFolder | None, preset: str) -> dict[str, Any]:
    """What a preset says by dotted key, as far as it is a file of the user's, as it was when the run had it last."""
    if not is_file(preset):
        return {"base": preset}
    if run is not None and run.preset.is_file():
        return dict(read_json(run.preset))
    return said_by_files(preset) if Path(preset).is_file() else {}


def _values(settings: Settings) -> dict[str, Any]:
    return dict(leaves(settings_tree(settings)))
