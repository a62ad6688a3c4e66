from __future__ import annotations

import pytest
import torch

from bld.tokenizer import PatchDiscriminator
from bld.tokenizer.discriminator import discriminator_hinge, generator_hinge


@pytest.mark.parametrize("layers, side", [(1, 16), (2, 8), (3, 4)])
def test_it_scores_overlapping_patches(layers: int, side: int):
    torch.manual_seed(0)
    scores = PatchDiscriminator(8, layers)(torch.rand(2, 3, 32, 32))
    assert scores.shape == (2, 1, side - 2, side - 2) and scores.dtype == torch.float32


def test_three_layers_see_patches_of_70_pixels():
    torch.manual_seed(0)
    image = torch.zeros(1, 3, 256, 256, requires_grad=True)
    model = PatchDiscriminator(8, 3)
    for module in model.modules():  # GroupNorm looks at the whole image: without it, what is left is the patch
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda x: x
    scores = model(image)
    gradient = torch.autograd.grad(scores[0, 0, scores.shape[2] // 2, scores.shape[3] // 2], image)[0]
    rows = gradient.abs().sum((0, 1, 3)).nonzero().flatten()
    assert rows.max() - rows.min() + 1 == 70


def test_a_score_does_not_depend_on_the_other_images_of_the_batch():
    torch.manual_seed(0)
    model = PatchDiscriminator(8, 2)
    images = torch.rand(5, 3, 32, 32)
    together = model(images)
    torch.testing.assert_close(together, torch.cat([model(image[None]) for image in images]), rtol=0, atol=1e-5)
    model.eval()
    assert torch.equal(model(images), together)


def test_the_hinge_is_zero_for_a_discriminator_that_is_sure_and_right():
    assert discriminator_hinge(torch.tensor([1.0, 3.0]), torch.tensor([-1.0, -2.0])) == 0
    assert discriminator_hinge(torch.tensor([0.0]), torch.tensor([0.0])) == 1
    assert discriminator_hinge(torch.tensor([-1.0]), torch.tensor([2.0])) == 0.5 * (2 + 3)
    assert generator_hinge(torch.tensor([1.0, 3.0])) == -2
