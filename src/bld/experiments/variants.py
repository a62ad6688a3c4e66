"""What is compared, as settings: kinds of prior, and formats of the code."""

from __future__ import annotations

Overrides = tuple[str, ...]

TWO_SIDES: Overrides = ("tokenizer.channel_multipliers=[1,2]",)
HALF_SIDE: Overrides = ("tokenizer.channel_multipliers=[1,2,2]",)
BITS_PER_POSITION = (8, 10, 11, 16, 32, 64)
FORMAT_TRAINING: Overrides = (
    "tokenizer.bit_noise=1",
    "objective.bit_flips=0",
    "tokenizer.base_channels=32",
    "tokenizer_training.steps=5000",
)
GAUSSIAN: Overrides = (
    "prior.kind=gaussian",
    "codes.draws=0",
    "codes.fresh=false",
    "diffusion.steps=1000",
    "prior.step_embedding=sinusoidal",
)
QUARTER = "bernoulli-quarter"

PRIORS: dict[str, Overrides] = {
    "bernoulli": (),
    "autoregressive": ("prior.kind=autoregressive",),
    "absorbing": ("prior.kind=absorbing",),
    "gaussian": GAUSSIAN,
    "lambda-0": ("prior.vlb_weight=0",),
    "lambda-0.01": ("prior.vlb_weight=0.01",),
    "lambda-1": ("prior.vlb_weight=1",),
    "target-z0": ("diffusion.target=z0",),
    "target-previous": ("diffusion.target=previous", "sampling.steps=0"),
    "schedule-cosine": ("diffusion.schedule=cosine",),
    "schedule-sigmoid": ("diffusion.schedule=sigmoid",),
    "conditional": ("prior.class_conditional=true",),
    "bernoulli-small": (),
    QUARTER: (),  # of the steps: about the operations of half the side, which has a quarter of the positions
    "draws-1": ("codes.draws=1", "codes.fresh=false"),
    "draws-4": ("codes.draws=4", "codes.fresh=false"),
    "draws-fresh": ("codes.draws=1", "codes.fresh=true"),
    **{f"steps-{T}": (f"diffusion.steps={T}", "sampling.steps=0") for T in (4, 8, 16, 64)},
    **{f"gaussian-{T}": (*GAUSSIAN, f"diffusion.steps={T}", "sampling.steps=0") for T in (16, 100)},
    "gaussian-16-noise": (*GAUSSIAN, "diffusion.steps=16", "sampling.steps=0", "diffusion.prediction=epsilon"),
    "evidence-off": ("prior.evidence=false",),
}
"""Settings of each prior on top of the scale's; the first is the paper's own: flip, λ = 0.1, linear."""


def six_formats(bits: int, small: Overrides, small_bits: int) -> dict[str, Overrides]:
    """The six of Table 4: real numbers are half as many as bits, as in the paper."""

    def real(channels: int) -> Overrides:
        return ("tokenizer.bottleneck=gaussian", f"tokenizer.code_bits={channels}", *GAUSSIAN)

    def vq(code_bits: int) -> Overrides:
        return ("tokenizer.bottleneck=vq", f"tokenizer.code_bits={code_bits}")

    return {
        "binary": (f"tokenizer.code_bits={bits}",),
        "vq": vq(10),
        "real": real(bits // 2),
        "binary-small": (*small, f"tokenizer.code_bits={small_bits}"),
        "vq-small": (*small, *vq(11)),
        "real-small": (*small, *real(small_bits // 2)),
    }


def real_numbers(channels: int) -> Overrides:
    """The tokenizer of the Gaussian priors."""
    return ("tokenizer.bottleneck=gaussian", f"tokenizer.code_bits={channels}", "objective.bit_flips=0", *GAUSSIAN)


SIXTEEN_BITS: dict[str, Overrides] = {
    "binary16": (),
    "binary32-small": (*HALF_SIDE, "tokenizer.code_bits=32"),
    "real8": real_numbers(8),
}
"""Tokenizers of priors over 16 bits a position: itself, half the side, and the real numbers beside it."""


def rates_of_bits() -> dict[str, Overrides]:
    """Table 4 as rate and distortion: the paper's six formats first, then other numbers of bits, KIND-BITS[-small]."""
    found = six_formats(32, HALF_SIDE, small_bits=128)
    for small, side in (("", ()), ("-small", HALF_SIDE)):
        for bits in BITS_PER_POSITION:
            if f"tokenizer.code_bits={bits}" not in found[f"binary{small}"]:
                found[f"binary-{bits}{small}"] = (*side, f"tokenizer.code_bits={bits}")
        entries = 10 if small else 11
        found[f"vq-{entries}{small}"] = (*side, "tokenizer.bottleneck=vq", f"tokenizer.code_bits={entries}")
    return found
