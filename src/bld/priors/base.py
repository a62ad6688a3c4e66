"""What a kind of prior is: its network, and how its codes are noised and drawn.

A kind is a file here that ends with `register(PriorKind(…))`; no other file has to be changed for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self

from bld.codes import CodeShape
from bld.diffusion import BernoulliDiffusion, NoiseSchedule
from bld.diffusion.process import Process
from bld.priors.config import DenoiserConfig
from bld.priors.transformer import Transformer


@dataclass(frozen=True)
class DiffusionSettings:
    """The Bernoulli diffusion; schedule and steps are the Gaussian one's too.

    Args:
        schedule: linear (the paper's), cosine, sigmoid, or table
        steps: T; with a table it follows from the table; latent diffusion is trained with 1000
        table: T + 1 retentions from 1 down to 0, for the schedule 'table'
        target: what the network predicts; flip is the paper's best
        prediction: what the Gaussian one's network predicts; v is safe at any number of steps, epsilon is as in LDM
    """

    schedule: str = "linear"
    steps: int = 64
    table: list[float] | None = None
    target: Literal["flip", "z0", "previous"] = "flip"
    prediction: Literal["v", "epsilon"] = "v"

    def __post_init__(self) -> None:
        self.build()

    def build(self) -> BernoulliDiffusion:
        """The Bernoulli diffusion these settings describe."""
        return BernoulliDiffusion(NoiseSchedule(self.schedule, self.steps, self.table), self.target)


def steps_of_settings(diffusion: DiffusionSettings, shape: CodeShape) -> int:
    """T as `diffusion.steps`, or a table of retentions, says."""
    return diffusion.build().steps


class PositionByPosition:
    """The process of a prior that makes whole positions, as many steps as there are.

    Args:
        positions: N, which is also the number of steps T.
    """

    has_likelihood = True

    def __init__(self, positions: int):
        self.positions = positions

    @property
    def steps(self) -> int:
        """T = N."""
        return self.positions

    @classmethod
    def from_settings(cls, **settings: Any) -> Self:
        """From what `settings` gives."""
        return cls(**settings)

    def settings(self) -> dict[str, Any]:
        """All that it is made of, for JSON."""
        return {"positions": self.positions}


@dataclass(frozen=True)
class PriorKind:
    """One kind of prior.

    Args:
        name: its `prior.kind`
        network: the transformer, whose `of` makes an untrained one for a process
        process: the mathematics, made again from its `settings()` by its `from_settings`
        of: (section `diffusion`, shape of the codes, standard deviation of real-valued ones) → process
        is_real: whether it models real numbers, else bits
        steps: (section `diffusion`, shape of the codes) → T; `diffusion.steps` unless the kind has a T of its own
        one_pass: whether a sample costs as much as one pass over all positions
        has_evidence: whether `prior.evidence` means something to it
        takes_entries: whether a position may be one entry of a codebook (`DenoiserConfig.entries`)
        options: names of what a pipeline's calls take for it and refuse for kinds that do not name them
        check: in place of `of`, raises `SettingError` for a section `diffusion` that has no process of this kind, where
            making one would import much
    """

    name: str
    network: type[Transformer]
    process: type[Process]
    of: Callable[[DiffusionSettings, CodeShape, float], Process]
    is_real: bool = False
    steps: Callable[[DiffusionSettings, CodeShape], int] = steps_of_settings
    one_pass: bool = False
    has_evidence: bool = False
    takes_entries: bool = False
    options: tuple[str, ...] = ()
    check: Callable[[DiffusionSettings], Any] | None = None

    def build(self, config: DenoiserConfig, process: Process) -> Transformer:
        """The untrained network of a process."""
        return self.network.of(config, process)

    def refuse_impossible(self, diffusion: DiffusionSettings, shape: CodeShape) -> None:
        """Raise `SettingError` where these settings have no process of this kind."""
        if self.check is None:
            self.of(diffusion, shape, 1.0)
        else:
            self.check(diffusion)

    @property
    def has_own_steps(self) -> bool:
        """Whether its T is not `diffusion.steps`."""
        return self.steps is not steps_of_settings


KINDS: dict[str, PriorKind] = {}
"""Every kind by its name."""


def register(kind: PriorKind) -> None:
    """Make a kind known."""
    KINDS[kind.name] = kind


def kind_of(network: Transformer) -> PriorKind:
    """The kind that a network belongs to."""
    return next(kind for kind in KINDS.values() if kind.network is type(network))
