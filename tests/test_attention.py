from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bld.attention import attention


def heads(seed: int, length: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(2, 4, length, 16, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("length", [1, 18, 65])
def test_the_written_out_route_equals_the_exact_one_within_its_precision(dtype: torch.dtype, length: int):
    q, k, v = (heads(seed, length, dtype) for seed in range(3))
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    found = attention(q, k, v)
    assert found.dtype == dtype
    # Scores up to about 5, weights and values rounded to the dtype: a few of its epsilons.
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_precision_is_torch_s_own(dtype: torch.dtype):
    q, k, v = (heads(seed, 18, dtype) for seed in range(3))
    assert torch.equal(attention(q, k, v), F.scaled_dot_product_attention(q, k, v))


def test_gradients_of_the_written_out_route_are_those_of_the_exact_one():
    inputs = [heads(seed, 18, torch.bfloat16).requires_grad_() for seed in range(3)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    attention(*inputs).float().square().sum().backward()
    F.scaled_dot_product_attention(*exact).square().sum().backward()
    for x, y in zip(inputs, exact, strict=True):
        relative = (x.grad.double() - y.grad).norm() / y.grad.norm()
        assert relative < 3 * torch.finfo(torch.bfloat16).eps
