"""Activation checkpointing: parts of a network are computed again in the backward pass, in place of being kept."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute_activations(network: nn.Module, parts: tuple[type[nn.Module], ...]) -> None:
    """Let every module of these types keep nothing but its input from now on; results and gradients stay the same."""
    for module in network.modules():
        if isinstance(module, parts):
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)
