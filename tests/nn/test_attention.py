from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bld.nn.attention import attention


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("queries", [1, 3, 7])
def test_causal_queries_are_the_last_tokens_and_see_no_later_one(dtype, queries):
    """With M queries of L tokens, query i sees tokens up to L - M + i: against the softmax written out."""
    torch.manual_seed(0)
    L, d = 7, 16
    q, k, v = (torch.randn(2, 2, n, d).to(dtype) for n in (queries, L, L))
    scores = (q.double() @ k.double().transpose(-1, -2)) / d**0.5
    for i in range(queries):
        scores[..., i, L - queries + i + 1 :] = -torch.inf
    expected = scores.softmax(-1) @ v.double()
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    assert torch.allclose(attention(q, k, v, causal=True).double(), expected, atol=tolerance)
