"""What a prior's transformer looks like."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from bld.codes import CodeShape
from bld.errors import SettingError, did_you_mean

# Far beyond use, so that a damaged or hostile config is refused before anything is allocated.
MOST = {
    "code_height": 4096,
    "code_width": 4096,
    "code_bits": 65_536,
    "steps": 1_000_000,
    "dim": 65_536,
    "depth": 1000,
    "heads": 1024,
}
MOST_BITS_OF_AN_ENTRY = 16


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """Size and variants of the transformer, also settings of the section `prior`; the defaults are the paper's.

    Args:
        dim: D, the width
        depth: number of transformer blocks
        heads: attention heads per block
        mlp_ratio: width of a block's MLP over D
        patch_size: a token stands for patch_size × patch_size latent positions; 2 makes a quarter of the tokens, and a
            pass so much cheaper.  Of priors that see all positions at once (bernoulli, gaussian)
        step_embedding: a table with one trained row per step, or sinusoids through a small MLP
        layer_scale: initial value of a trained scale on each residual branch; 0 leaves the scales out
        null_condition: what stands for "no condition": a learned token, or no token at all (absent), as in the paper's
            public code
    """

    dim: int = 512
    depth: int = 24
    heads: int = 8
    mlp_ratio: float = 4.0
    patch_size: int = 1
    step_embedding: Literal["table", "sinusoidal"] = "table"
    layer_scale: float = 0.0
    null_condition: Literal["learned", "absent"] = "learned"

    def network(self) -> dict[str, Any]:
        """These choices by name, for a `DenoiserConfig`."""
        return {field.name: getattr(self, field.name) for field in fields(NetworkSettings)}


@dataclass(frozen=True)
class DenoiserConfig(NetworkSettings):
    """A prior's transformer: the choices of `NetworkSettings`, and what follows from codes, data and process.

    Args:
        code_height: h, latent positions in a column
        code_width: w, latent positions in a row
        code_bits: c, bits per position
        steps: T, the steps of the process it is trained for
        num_classes: classes to condition on; 0 is none
        entries: whether a position is one of 2^c entries of a codebook, rather than c bits that are independent given
            what the network sees.  Of priors that make whole positions (autoregressive, absorbing)
        condition_dim: V, width of a real vector (a text's, say) to condition on; 0 is none.  With neither, the prior is
            unconditional
        evidence: whether the forward adds the known part of the logits, `BernoulliDiffusion.evidence_logits`: "none"
            (the paper's), "flip" for the target "flip", or "value" for the targets "z0" and "previous"

    Raises:
        SettingError: for a value that is not possible
    """

    code_height: int = 16
    code_width: int = 16
    code_bits: int = 32
    steps: int = 64
    num_classes: int = 0
    evidence: Literal["none", "flip", "value"] = "none"
    condition_dim: int = 0
    entries: bool = False

    def __post_init__(self) -> None:
        for name, most in MOST.items():
            if not 1 <= getattr(self, name) <= most:
                raise SettingError(f"prior.{name} is {getattr(self, name)}, but must be 1 to {most}.")
        if self.num_classes < 0:
            raise SettingError(f"prior.num_classes is 0 (unconditional) or more, not {self.num_classes}.")
        if not 0 <= self.condition_dim <= MOST["dim"]:
            raise SettingError(f"prior.condition_dim is {self.condition_dim}, but must be 0 (none) to {MOST['dim']}.")
        if self.num_classes and self.condition_dim:
            raise SettingError(
                f"A prior is conditioned on classes or on vectors, not on {self.num_classes} classes and vectors of "
                f"width {self.condition_dim}: set one of num_classes and condition_dim to 0."
            )
        if not self.mlp_ratio > 0:
            raise SettingError(f"prior.mlp_ratio is {self.mlp_ratio}, but must be above 0; 4 is usual.")
        if not self.layer_scale >= 0:
            raise SettingError(f"prior.layer_scale is {self.layer_scale}, but must be at least 0, which is off.")
        known = {
            "step_embedding": ["table", "sinusoidal"],
            "evidence": ["none", "flip", "value"],
            "null_condition": ["learned", "absent"],
        }
        for name, names in known.items():
            value = getattr(self, name)
            if value not in names:
                raise SettingError(f"Unknown prior.{name} '{value}'.{did_you_mean(value, names)}")
        if self.dim % self.heads:
            raise SettingError(f"prior.dim ({self.dim}) must be divisible by prior.heads ({self.heads}).")
        if self.patch_size < 1 or self.code_height % self.patch_size or self.code_width % self.patch_size:
            raise SettingError(
                f"prior.patch_size is {self.patch_size}, but must divide the code's {self.code_height}×"
                f"{self.code_width} positions."
            )
        if self.entries and self.code_bits > MOST_BITS_OF_AN_ENTRY:
            raise SettingError(
                f"A prior over the entries of a codebook has an output for each of 2^{self.code_bits}: set "
                f"prior.categorical=false, or tokenizer.code_bits to {MOST_BITS_OF_AN_ENTRY} at most."
            )
        if self.dim % 4:
            raise SettingError(f"prior.dim ({self.dim}) must be divisible by 4, for the 2-D sine embedding.")

    @property
    def code_shape(self) -> CodeShape:
        """(h, w, c)."""
        return CodeShape(self.code_height, self.code_width, self.code_bits)

    @property
    def is_conditional(self) -> bool:
        """Whether there is something to condition on."""
        return self.num_classes > 0 or self.condition_dim > 0
