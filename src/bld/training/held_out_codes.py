"""Codes of held-out images as a prior meets them: drawn from the encoder's probabilities, several times each.

A prior learns drawn codes (Algorithm 1), so its code length is that of drawn codes.  The most probable ones,
thresholded at ½, cost less: without the encoder's coin flips they can lie below what any prior needs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bld.codes import CodeEntropy, code_entropy, to_tokens
from bld.data import ImageSet
from bld.seeding import keyed_generators
from bld.tokenizer import BinaryAutoencoder

CODE_DRAWS = 4  # of each held-out image, for a code length
AT_A_TIME = 32  # images at 256×256


def draws_of(tokenizer: BinaryAutoencoder, training_draws: int, wanted: int = CODE_DRAWS) -> int:
    """How often to draw each held-out image for a prior that was trained on so many draws of each training image.

    0, the most probable codes alone, where nothing is drawn: of a vq tokenizer, or with codes.draws=0.
    """
    return wanted if tokenizer.bottleneck.is_random and training_draws > 0 else 0


@torch.no_grad()
def held_out_entropy(
    tokenizer: BinaryAutoencoder, images: ImageSet, rows: Tensor, *, batch_size: int = AT_A_TIME
) -> CodeEntropy | None:
    """What the drawn codes of the images `rows` (n,) hold; None where codes are not drawn bits."""
    if not (tokenizer.is_binary and tokenizer.bottleneck.is_random):
        return None
    parts = rows.split(tokenizer.config.images_at_a_time(batch_size))
    batches = (images.centre(part).to(tokenizer.device) for part in parts)
    return code_entropy(torch.cat([to_tokens(tokenizer.encode_probs(batch)).float().cpu() for batch in batches]))


@torch.no_grad()
def held_out_codes(
    tokenizer: BinaryAutoencoder, images: ImageSet, rows: Tensor, *, draws: int, seed: int, batch_size: int = AT_A_TIME
) -> Tensor:
    """Codes of the images `rows` (n,) as tokens (n, max(1, draws), N, c), on the CPU.

    Draw d of image i depends on (seed, d, i) alone.  draws: 0 gives each image's most probable code.
    batch_size: images at a time at 256×256; changes nothing.
    """
    parts = []
    for part in rows.split(tokenizer.config.images_at_a_time(batch_size)):
        features, views = tokenizer.features(images.centre(part).to(tokenizer.device)), []
        for draw in range(max(1, draws)):
            generators = keyed_generators(seed, f"held-out-codes-{draw}", part.tolist())
            noise = tokenizer.draw_noise(len(part), generators) if draws else None
            views.append(to_tokens(tokenizer.bottleneck.codes(features, noise)).cpu())
        parts.append(torch.stack(views, 1))
    return torch.cat(parts)
