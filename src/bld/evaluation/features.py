"""What a metric sees of an image: features of a network, which is always named beside the metric it made.

Every distance between sets of images is a distance between features, and changes with the network, its weights and the
way images are resized for it.  So an extractor carries its name and the hash of its weights, and resizes by itself.
It computes in exact float32, whatever precision the judged images are made in.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bld.errors import CheckpointError, DataError, MissingPackageError, SettingError
from bld.io.files import folder_written_aside, read_json, read_tensors, write_json, written_aside
from bld.runtime.precision import in_float32

CONFIG, WEIGHTS = "config.json", "model.safetensors"
CLASSIFIER = "FeatureClassifier"
PRECISION = "float32"  # of all that judges, by `in_float32`


class Features(NamedTuple):
    """What an extractor sees of a batch.

    Attributes:
        features: (B, D) float32 on the CPU.
        logits: of the classes, (B, K) float32; None where there are no classes.
    """

    features: Tensor
    logits: Tensor | None


class FeatureExtractor(ABC):
    """Images uint8 (B, 3, H, W) → features.

    Attributes:
        name: what metrics are labelled with.
        sha256: 16 hexadecimal digits of the weights.
        dim: D, the number of features.
        classes: names of the classes that its logits stand for; empty without.
    """

    name: str
    sha256: str
    dim: int
    classes: Sequence[str]

    @abstractmethod
    def __call__(self, images: Tensor) -> Features:
        """uint8 (B, 3, H, W) of any size → features; the extractor resizes as it documents."""

    def distance_name(self) -> str:
        """What the Fréchet distance in these features is called: "FID" for the true Inception weights alone."""
        return f"FD ({self.name})"


def features_of(extractor: FeatureExtractor, images: Tensor) -> Features:
    """What the extractor sees of uint8 images (B, 3, H, W), checked.

    Raises:
        DataError: where it is not finite, for any metric of it would be no number, or a wrong one.
    """
    found = extractor(images)
    if not all(seen.isfinite().all() for seen in found if seen is not None):
        raise DataError(
            f"The judge {extractor.name} gives features that are not finite, which no metric can be made of: save it "
            "in float32 if it computes in half precision, or judge by other --features."
        )
    return found


def load_extractor(name_or_path: str | Path, device: torch.device | str = "cpu") -> FeatureExtractor:
    """The extractor of a name or path.

    Args:
        name_or_path: "inception" (torch-fidelity's), "dinov2" (torch hub's), a TorchScript file `.pt`, or a folder of
            `bld train-features`.
        device: where it computes.

    Raises:
        SettingError: for anything else, and for weights that cannot be loaded.
        MissingPackageError: for "inception" without torch-fidelity.
        CheckpointError: for a folder that holds no classifier, or a damaged one.
    """
    text = str(name_or_path)
    if text == "inception":
        return Inception(device)
    if text == "dinov2":
        return DinoV2(device)
    path = Path(text)
    if path.is_dir():
        return ClassifierFeatures.load(path, device)
    if path.suffix == ".pt" and path.is_file():
        return TorchScriptFeatures(path, device)
    raise SettingError(
        f"There are no features '{text}': give inception, dinov2, a TorchScript file.pt, or a folder made by "
        "bld train-features."
    )


def state_hash(state: dict[str, Tensor]) -> str:
    """16 hexadecimal digits over names and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def resized(images: Tensor, size: int) -> Tensor:
    """uint8 (B, 3, H, W) → float32 (B, 3, size, size) in [0, 1], bilinear and antialiased; as it is at that size."""
    unit = images.float() / 255
    if images.shape[-2:] == (size, size):
        return unit
    return F.interpolate(unit, (size, size), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)


class Inception(FeatureExtractor):
    """torch-fidelity's Inception-v3 with the weights of the original FID; 299×299 by TensorFlow's bilinear resize."""

    name = "inception-v3 (torch-fidelity)"
    dim = 2048
    classes: tuple[str, ...] = ()

    def __init__(self, device: torch.device | str = "cpu"):
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise MissingPackageError(
                "Inception features need torch-fidelity: pip install 'binary-latent-diffusion[metrics]'."
            ) from error
        try:
            network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"])
        except (OSError, RuntimeError, ValueError) as error:
            raise SettingError(
                "Inception's weights could not be loaded "
                f"({str(error).splitlines()[0] if str(error) else type(error).__name__}): connect to the network once, "
                "or name other --features, for example a folder of bld train-features."
            ) from error
        self.network = network.to(device).eval()
        self.device = device
        self.sha256 = state_hash(dict(network.state_dict()))

    @torch.no_grad()
    @in_float32()
    def __call__(self, images: Tensor) -> Features:
        """Features of the last pooling, logits without bias."""
        features, logits = self.network(images.to(self.device))
        return Features(features.float().cpu(), logits.float().cpu())

    def distance_name(self) -> str:
        """FID: these are the weights that the name stands for."""
        return "FID"


class DinoV2(FeatureExtractor):
    """DINOv2 ViT-B/14 from torch hub, its class token; images resized to 224×224."""

    name = "dinov2 ViT-B/14"
    dim = 768
    classes: tuple[str, ...] = ()

    def __init__(self, device: torch.device | str = "cpu"):
        try:
            network = torch.hub.load("facebookresearch/dinov2", "dinov2_vitb14", verbose=False)
        except Exception as error:  # the hub raises whatever its network does
            raise SettingError(
                f"DINOv2 could not be loaded ({type(error).__name__}): connect to the network once, or name other "
                "--features, for example a folder of bld train-features."
            ) from error
        self.network, self.device = network.to(device).eval(), device
        self.sha256 = state_hash(dict(network.state_dict()))

    @torch.no_grad()
    @in_float32()
    def __call__(self, images: Tensor) -> Features:
        """The class token."""
        mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        normal = (resized(images, 224) - mean.view(3, 1, 1)) / deviation.view(3, 1, 1)
        return Features(self.network(normal.to(self.device)).float().cpu(), None)


class TorchScriptFeatures(FeatureExtractor):
    """Any network as a TorchScript file: it takes uint8 (B, 3, H, W) and gives (B, D), or (B, D) and logits (B, K)."""

    classes: tuple[str, ...] = ()

    def __init__(self, path: Path, device: torch.device | str = "cpu"):
        try:
            self.network = torch.jit.load(str(path), map_location=device).eval()
        except (RuntimeError, ValueError, OSError) as error:
            raise SettingError(f"{path} is not a TorchScript file that can be loaded: save it by torch.jit.") from error
        self.device = device
        self.name = path.name
        self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        self.dim = self(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).features.shape[1]

    @torch.no_grad()
    @in_float32()
    def __call__(self, images: Tensor) -> Features:
        """What the file's network gives."""
        try:
            out = self.network(images.to(self.device))
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise SettingError(
                f"{self.name} failed on images uint8 {tuple(images.shape)} "
                f"({lines[-1] if lines else 'no reason given'}): "
                "it must take (B, 3, H, W), uint8, of any size."
            ) from error
        features, logits = out if isinstance(out, tuple) else (out, None)
        return Features(features.flatten(1).float().cpu(), None if logits is None else logits.float().cpu())


# -- a classifier of the data's own labels ----------------------------------------------------------------


class SmallResNet(nn.Module):
    """Residual network for small images: halves them until 4 to 8 pixels are left, then averages.

    Images (B, 3, size, size) in [-1, 1] → (features (B, D), logits (B, classes)). D is the number of channels after the
    last halving, but at least 128.

    Args:
        size: height and width of the images, in pixels.
        classes: number of logits.
        width: channels of the first layer; each halving doubles them, up to 4·width.
    """

    def __init__(self, size: int, classes: int, width: int = 32):
        super().__init__()
        halvings = 0
        while size >> (halvings + 1) >= 4:
            halvings += 1
        widths = [width * min(2**i, 4) for i in range(halvings + 1)]
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        blocks, now = [], width
        for i, wide in enumerate([*widths, max(128, widths[-1])]):
            blocks.append(_Residual(now, wide, 2 if 0 < i <= halvings else 1))
            now = wide
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(now, classes)
        self.dim = now

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """→ pooled features and logits."""
        features = self.blocks(self.stem(images)).mean((2, 3))
        return features, self.head(features)


class _Residual(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
            nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        same = channels_in == channels_out and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.skip(x))


class ClassifierFeatures(FeatureExtractor):
    """A classifier of a data set's own labels (`train_classifier`); images resized to the size it was trained at."""

    def __init__(self, network: SmallResNet, fields: dict[str, Any], device: torch.device | str = "cpu"):
        self.network, self.fields, self.device = network.to(device).eval(), fields, device
        self.name = f"classifier {fields['data']}"
        self.classes = list(fields["classes"])
        self.dim, self.image_size = network.dim, int(fields["image_size"])
        self.sha256 = state_hash(dict(network.state_dict()))

    @torch.no_grad()
    @in_float32()
    def __call__(self, images: Tensor) -> Features:
        """Pooled features before the last layer, and its logits."""
        features, logits = self.network(resized(images, self.image_size).mul(2).sub(1).to(self.device))
        return Features(features.float().cpu(), logits.float().cpu())

    @property
    def accuracy(self) -> float:
        """0 … 1, on held-out images, when it was trained."""
        return float(self.fields["held_out_accuracy"])

    def save(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors` into the folder."""
        from safetensors.torch import save_file

        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.network.state_dict().items()}
        with folder_written_aside(folder) as aside:
            with written_aside(aside / WEIGHTS) as weights:
                save_file(tensors, weights)
            write_json(aside / CONFIG, {"_class_name": CLASSIFIER, **self.fields})

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> ClassifierFeatures:
        """Read what `save` wrote; `CheckpointError` for anything else."""
        fields = read_json(folder / CONFIG)
        if not isinstance(fields, dict) or fields.pop("_class_name", None) != CLASSIFIER:
            raise CheckpointError(f"{folder} holds no classifier: make one with bld train-features.")
        try:
            network = SmallResNet(fields["image_size"], len(fields["classes"]), fields["width"])
            network.load_state_dict(read_tensors(folder / WEIGHTS))
        except (KeyError, TypeError, RuntimeError) as error:
            raise CheckpointError(f"{folder} holds a damaged classifier: train it anew.") from error
        return cls(network, fields, device)
