"""PSNR against its closed form."""

import pytest
import torch

from bld.data import psnr
from bld.errors import SettingError


def test_psnr_of_a_constant_error_is_its_closed_form():
    images = torch.zeros(3, 3, 8, 8)
    error = torch.tensor([2.0, 0.2, 0.02]).view(3, 1, 1, 1)  # of a peak of 2
    assert psnr(images, images + error).tolist() == pytest.approx([0.0, 20.0, 40.0], abs=1e-4)


def test_psnr_of_equal_images_is_finite():
    images = torch.rand(2, 3, 8, 8)
    assert psnr(images, images).tolist() == pytest.approx([100.0, 100.0])


def test_psnr_refuses_unequal_shapes():
    with pytest.raises(SettingError, match="same shape"):
        psnr(torch.zeros(2, 3, 8, 8), torch.zeros(1, 3, 8, 8))
