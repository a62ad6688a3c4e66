from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bld.codes import CodeShape, bit_entropy, bit_statistics, pack, to_grid, to_tokens, unpack, unpack_on_device
from bld.errors import DataError, SettingError

SIDES = st.integers(1, 9)


def random_bits(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 2, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@settings(derandomize=True, deadline=None)
@given(count=st.integers(0, 5), h=SIDES, w=SIDES, c=st.integers(1, 37), seed=st.integers(0, 99))
def test_packing_and_unpacking_gives_the_bits_back(count: int, h: int, w: int, c: int, seed: int):
    shape = CodeShape(h, w, c)
    tokens = random_bits(count, h * w, c, seed=seed)
    packed = pack(tokens)
    assert packed.dtype == np.uint8 and packed.shape == (count, shape.packed_bytes)
    assert torch.equal(unpack(packed, shape), tokens) and torch.equal(unpack(torch.from_numpy(packed), shape), tokens)
    assert torch.equal(unpack_on_device(torch.from_numpy(packed), shape.bits).view(tokens.shape), tokens)
    assert np.array_equal(pack(to_grid(tokens, shape)), packed)  # grid and tokens pack alike
    assert np.array_equal(pack(tokens.numpy()), packed)


def test_the_papers_code_is_one_kibibyte():
    shape = CodeShape(16, 16, 32)
    assert shape.packed_bytes == 1024 and shape.bits == 8192 and shape.positions == 256
    assert pack(random_bits(3, 256, 32)).shape == (3, 1024)
    assert str(shape) == "16×16×32"


def test_bit_i_is_bit_i_mod_8_of_byte_i_div_8():
    for i in range(20):
        code = torch.zeros(1, 5, 4, dtype=torch.uint8)
        code.view(-1)[i] = 1
        expected = np.zeros(3, np.uint8)
        expected[i // 8] = 1 << (i % 8)
        assert np.array_equal(pack(code)[0], expected)


def test_positions_are_in_row_major_order():
    grid = torch.arange(2 * 3 * 4).view(1, 2, 3, 4)
    tokens = to_tokens(grid)
    assert torch.equal(tokens[0, 1 * 3 + 2], grid[0, 1, 2])
    assert torch.equal(to_grid(tokens, CodeShape(2, 3, 4)), grid)
    assert tokens.data_ptr() == grid.data_ptr()


@pytest.mark.parametrize("value", [2, -1, 0.5, float("nan")])
def test_only_bits_are_packed(value: float):
    with pytest.raises(DataError, match=r"\b0 or 1\b.* to (1\.0|1|2\.0|2|nan)\."):
        pack(torch.tensor([[0, 1, value]]))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_bits_of_any_dtype_are_packed(dtype: torch.dtype):
    bits = random_bits(2, 3, 5)
    assert np.array_equal(pack(bits.to(dtype)), pack(bits))


def test_other_shapes_are_refused_with_both_shapes():
    shape = CodeShape(2, 3, 4)
    with pytest.raises(SettingError, match=r"4 dimensions.*\(2, 6, 4\)"):
        to_tokens(torch.zeros(2, 6, 4))
    with pytest.raises(SettingError, match=r"\(2, 5, 4\).* 2×3×4\b"):
        to_grid(torch.zeros(2, 5, 4), shape)
    with pytest.raises(SettingError, match=r"\(6, 4\)"):
        to_grid(torch.zeros(6, 4), shape)
    with pytest.raises(DataError, match=r"2×3×4 .*\b3 bytes .*\(2, 4\)"):
        unpack(np.zeros((2, 4), np.uint8), shape)


def test_bit_statistics_agree_with_numpy():
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(6, 5, generator=generator)
    tokens = (torch.rand(400, 6, 5, generator=generator) < p).to(torch.uint8)
    tokens[:, :, 1] = tokens[:, :, 0] ^ (torch.rand(400, 6, generator=generator) < 0.1)  # strongly correlated
    statistics = bit_statistics(tokens)
    array = tokens.numpy().astype(float)
    fraction = array.mean(0)
    entropy = -(fraction * np.log2(fraction) + (1 - fraction) * np.log2(1 - fraction)).mean(0)
    correlation = np.corrcoef(array.reshape(-1, 5).T)
    np.testing.assert_allclose(statistics.usage, array.mean((0, 1)), rtol=1e-12)
    np.testing.assert_allclose(statistics.entropy, entropy, rtol=1e-9)
    np.testing.assert_allclose(statistics.correlation, correlation, atol=1e-12)
    assert statistics.mean_entropy == pytest.approx(entropy.mean())
    assert statistics.strongest_correlation == pytest.approx(np.abs(correlation - np.eye(5)).max())
    assert statistics.strongest_correlation > 0.7
    assert (statistics.constant, statistics.count) == (0, 400)


def test_constant_bits_are_counted_and_correlate_with_nothing():
    tokens = random_bits(50, 4, 3)
    tokens[:, :, 1] = 1
    tokens[:, 0, 2] = 0  # constant at one position only
    statistics = bit_statistics(tokens)
    assert statistics.constant == 1
    assert statistics.entropy[1] == 0 and statistics.usage[1] == 1
    assert (statistics.correlation[1] == 0).all()
    assert np.isfinite(statistics.correlation).all()


def test_a_bit_that_only_tells_positions_apart_holds_no_information():
    tokens = torch.zeros(10, 4, 1, dtype=torch.uint8)
    tokens[:, :2] = 1
    statistics = bit_statistics(tokens)
    assert statistics.usage[0] == 0.5 and statistics.entropy[0] == 0 and statistics.constant == 1
    assert statistics.strongest_correlation == 0


def test_the_entropy_of_a_bit_is_one_at_a_half_and_zero_at_the_ends():
    assert bit_entropy(np.array([0.0, 0.25, 0.5, 1.0])) == pytest.approx([0, 0.811278, 1, 0], abs=1e-6)
