"""Public checkpoints as tensors by name, and what has to be told because it is not in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from bld.errors import CheckpointError, SettingError

PUBLIC_IMAGE_SIZE = 256
PUBLIC_HEADS = 12
PUBLIC_STEPS = 64
ENDS = (".weight", ".bias")  # of the parameters of a layer


State = dict[str, Tensor]


Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class OfficialOptions:
    """What the files cannot tell.

    Args:
        step: of the files to take; None is the newest average, or the newest file where there is no average
        autoencoder_step: the same for the autoencoder, where it has other steps than the prior
        image_size: pixels; None follows from the prior's positions, and is 256 for an autoencoder alone
        heads: attention heads of the prior
        steps: T; None is read from the noise schedule among the weights, and is 64 where there is none
        posterior: how the prior samples: plugin as the public code does (eq. 10), or exact (eq. 8)
        target: what the prior predicts: flip (--p_flip, as in all published commands) or z0
    """

    step: int | None = None
    autoencoder_step: int | None = None
    image_size: int | None = None
    heads: int = PUBLIC_HEADS
    steps: int | None = None
    posterior: Literal["plugin", "exact"] = "plugin"
    target: Literal["flip", "z0"] = "flip"

    def __post_init__(self) -> None:
        for name in ("image_size", "heads", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingError(f"{name} of a public checkpoint is at least 1, not {value}.")


def shape_of(state: State, name: str, ndim: int) -> tuple[int, ...]:
    """The shape of a tensor; `CheckpointError` unless it is there and has `ndim` dimensions."""
    if name not in state or state[name].ndim != ndim:
        raise CheckpointError(f"The public checkpoint lacks '{name}': is the file whole, and of the public code?")
    return tuple(state[name].shape)


class Keys:
    """A state dict from which tensors are taken one by one, so that missing and unknown ones are noticed.

    Args:
        state: the tensors by name.
        what: what they belong to, for error messages.
    """

    def __init__(self, state: State, what: str):
        self.left, self.what = dict(state), what

    def take(self, name: str) -> Tensor:
        """Take out a tensor, in float32 and contiguous; `CheckpointError` if it is not there."""
        if name not in self.left:
            raise CheckpointError(f"The public {self.what} lacks '{name}': is the file whole, and of the public code?")
        return self.left.pop(name).float().contiguous()

    def drop(self, *prefixes: str) -> None:
        """Leave out the tensors whose names begin with one of the prefixes."""
        self.left = {name: tensor for name, tensor in self.left.items() if not name.startswith(prefixes)}

    def refuse_rest(self) -> None:
        """Raise `CheckpointError` if any tensor is left, as it belongs to a network of another design."""
        for name in self.left:
            raise CheckpointError(
                f"The public {self.what} has the unknown entry '{name}': it belongs to a network of another design."
            )


def loaded(build: Callable[[], Network], state: State, what: str) -> Network:
    """The network with exactly these weights, in eval mode.

    Args:
        build: makes the network; called on the meta device, so that no weights are initialised.
        state: the weights by their names in the network.
        what: what they belong to, for error messages.

    Raises:
        CheckpointError: if a weight is missing or has another shape.
    """
    with torch.device("meta"):
        network = build()
    wanted = {name: tensor.shape for name, tensor in network.state_dict().items()}
    for name, shape in wanted.items():
        found = tuple(state[name].shape) if name in state else "nothing"
        if found != tuple(shape):
            raise CheckpointError(
                f"The public {what} does not fit together: what becomes '{name}' should be {tuple(shape)}, "
                f"and {found} was found."
            )
    network.load_state_dict(state, assign=True)
    return network.eval()
