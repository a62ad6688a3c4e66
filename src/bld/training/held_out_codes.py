"""Codes of held-out images as a prior meets them: drawn from the encoder's probabilities, several times each.

A prior learns drawn codes (Algorithm 1), so its code length is that of drawn codes.  The most probable ones,
thresholded at ½, cost less: without the encoder's coin flips they can lie below what any prior needs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bld.codes import CodeEntropy, code_entropy, to_tokens
from bld.data import ImageSet
from bld.seeding import keyed_draws
from bld.tokenizer import BinaryAutoencoder

CODE_DRAWS = 4  # of each held-out image, for a code length
AT_A_TIME = 32  # images at 256×256


def draws_of(tokenizer: BinaryAutoencoder, training_draws: int, wanted: int = CODE_DRAWS) -> int:
    """How often to draw the code of each held-out image for a prior.

    Args:
        tokenizer: whose codes the prior is trained on.
        training_draws: codes.draws, the draws of each training image.
        wanted: draws of each held-out image, wherever codes are drawn.

    Returns:
        Draws of each image; 0, the most probable code alone, where nothing is drawn (vq, or codes.draws=0).
    """
    return wanted if tokenizer.bottleneck.is_random and training_draws > 0 else 0


@torch.no_grad()
def held_out_entropy(
    tokenizer: BinaryAutoencoder, images: ImageSet, rows: Tensor, *, batch_size: int = AT_A_TIME
) -> CodeEntropy | None:
    """What the bits of drawn codes hold, measured on the encoder's probabilities.

    Args:
        tokenizer: which draws the codes.
        images: held-out ones.
        rows: (n,), which of them.
        batch_size: images at a time at 256×256; changes nothing else.

    Returns:
        The entropies of the codes; None where codes are not drawn bits.
    """
    if not (tokenizer.is_binary and tokenizer.bottleneck.is_random):
        return None
    parts = rows.split(tokenizer.config.images_at_a_time(batch_size))
    batches = (images.centre(part).to(tokenizer.device) for part in parts)
    return code_entropy(torch.cat([to_tokens(tokenizer.encode_probs(batch)).float().cpu() for batch in batches]))


@torch.no_grad()
def held_out_codes(
    tokenizer: BinaryAutoencoder, images: ImageSet, rows: Tensor, *, draws: int, seed: int, batch_size: int = AT_A_TIME
) -> Tensor:
    """Codes of some images. Draw d of image i depends on (seed, d, i) alone.

    Args:
        tokenizer: which draws the codes.
        images: held-out ones.
        rows: (n,), which of them.
        draws: of each image; 0 gives its most probable code.
        seed: of the draws.
        batch_size: images at a time at 256×256; changes nothing else.

    Returns:
        Tokens (n, max(1, draws), N, c), on the CPU.
    """
    parts = []
    for part in rows.split(tokenizer.config.images_at_a_time(batch_size)):
        features, views = tokenizer.features(images.centre(part).to(tokenizer.device)), []
        for draw in range(max(1, draws)):
            generators = keyed_draws(seed, f"held-out-codes-{draw}", part.tolist())
            noise = tokenizer.draw_noise(len(part), generators) if draws else None
            views.append(to_tokens(tokenizer.bottleneck.codes(features, noise)).cpu())
        parts.append(torch.stack(views, 1))
    return torch.cat(parts)
