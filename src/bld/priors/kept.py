"""What was made of a network's weights and serves for as long as they stay as they are."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

_kept: WeakKeyDictionary[nn.Module, tuple[object, dict[Any, Any]]] = WeakKeyDictionary()


def kept(network: nn.Module) -> dict[Any, Any]:
    """A place for such things: empty again once a parameter has changed or moved, gone with the network."""
    state = [(p.data_ptr(), p._version) for p in network.parameters()]
    known = _kept.get(network)
    if known is None or known[0] != state:
        known = _kept[network] = (state, {})
    return known[1]
