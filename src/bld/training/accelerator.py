"""Accelerate as every stage uses it: precision, processes, and networks spread over them."""

from __future__ import annotations

import warnings

import torch
import torch._functorch.config as functorch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from torch import nn

from bld.errors import SettingError
from bld.runtime.distributed import PATIENCE, Processes
from bld.runtime.precision import allow_tf32
from bld.runtime.processor import is_faster_in_bf16


def autocast_dtype(setting: str, device: torch.device) -> str:
    """Accelerate's name of the precision.

    Args:
        setting: `mixed_precision` of the settings. "auto" is bf16 on GPUs that compute it natively and on CPUs that
            multiply matrices faster in it, else float32.
        device: what the training runs on.

    Returns:
        "bf16" or "fp16"; "no" for float32.
    """
    if setting != "auto":
        return "no" if setting == "float32" else setting
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    if device.type == "cpu":
        return "bf16" if is_faster_in_bf16() else "no"
    return "no"


def make_accelerator(mixed_precision: str) -> Accelerator:
    """Accelerate's view of the machine: device, processes, precision.

    From now on products that stay float32 beside half precision may be rounded to TF32; without half precision none is.

    Raises:
        SettingError: for fp16 without a GPU.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = autocast_dtype(mixed_precision, device)
    if precision == "fp16" and device.type == "cpu":
        raise SettingError("mixed_precision=fp16 needs a GPU: use bf16, float32 or auto here.")
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()  # Accelerate allows one precision per process; two runs may want two
    allow_tf32(device, precision != "no")
    patient = InitProcessGroupKwargs(timeout=PATIENCE)
    return Accelerator(mixed_precision=precision, cpu=device.type == "cpu", kwargs_handlers=[patient])


def precision_of(accelerator: Accelerator) -> str:
    """What its `mixed_precision` came to: float32, bf16 or fp16."""
    return "float32" if accelerator.mixed_precision == "no" else str(accelerator.mixed_precision)


def compile_network(network: nn.Module) -> None:
    """Run torch.compile's version of the network from now on; a transformer's blocks are alike, and compiled once."""
    functorch.donated_buffer = False  # the adaptive adversarial weight walks through a graph twice
    for part in getattr(network, "blocks", [network]):
        part.compile(dynamic=False)


def prepared(accelerator: Accelerator, network: nn.Module, parallel: str) -> nn.Module:
    """The network as several processes train it; with a single process the network itself.

    Args:
        accelerator: which knows the processes.
        network: to train.
        parallel: what each process holds: all of the network ("ddp"), or a piece of it ("fsdp").
    """
    if accelerator.num_processes == 1:
        return network
    if parallel == "fsdp" or accelerator.distributed_type == DistributedType.FSDP:
        from torch.distributed.fsdp import fully_shard

        for block in getattr(network, "blocks", ()):  # a transformer's are gathered one at a time
            fully_shard(block)
        fully_shard(network)
        return network
    # A 1×1 convolution's gradient may lie in memory in either of two orders, which costs nothing.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    return accelerator.prepare_model(network)


def processes_of(accelerator: Accelerator) -> Processes:
    """The processes that train together."""
    return Processes(accelerator.process_index, accelerator.num_processes, accelerator.wait_for_everyone)
