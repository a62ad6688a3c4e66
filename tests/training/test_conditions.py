"""Captions and vectors as conditions, end to end: from files beside the images to pictures that follow a prompt."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import bld
from bld.cli import main
from bld.errors import CheckpointError, DataError, SettingError
from bld.images import open_images
from bld.processes import Processes
from bld.text_encoder import TextEncoder
from bld.training.conditions import ImageVectors, VectorCache, condition_vectors
from bld.training.recipe import Recipe
from bld.training.run_folder import RunFolder
from bld.training.settings import load_settings

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 40), "blue": (30, 40, 220), "yellow": (230, 220, 40)}
WIDTH = 16
WORDS = [
    "tokenizer.code_bits=8", "tokenizer.base_channels=8", "tokenizer.embed_dim=8",
    "tokenizer_training.steps=150", "tokenizer_training.batch_size=16", "tokenizer_training.previews=1",
    "tokenizer_training.learning_rate=5e-3", "tokenizer_training.warmup_steps=10",
    "prior.dim=32", "prior.depth=2", "prior.heads=2", "codes.draws=1", "mixed_precision=float32",
    "prior_training.steps=200", "prior_training.batch_size=32", "prior_training.previews=1",
    "prior_training.learning_rate=3e-3", "prior_training.warmup_steps=10", "diffusion.steps=16", "sampling.steps=8",
]  # fmt: skip


def tiny_clip(folder: Path, seed: int = 0) -> Path:
    """An untrained CLIP text model of width 16 with a vocabulary of words, as transformers saves them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

    words = ["<pad>", "<start>", "<unknown>", "a", "square", *COLOURS, "<end>"]
    table = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(table, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", table["<start>"]), ("<end>", table["<end>"])]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<start>", eos_token="<end>", unk_token="<unknown>",
        model_max_length=8,
    )  # fmt: skip
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=8, projection_dim=WIDTH, pad_token_id=0, bos_token_id=1, eos_token_id=table["<end>"],
    )  # fmt: skip
    model = CLIPTextModel(config)
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=1.0)
    TextEncoder(model, fast).save(folder)
    return folder


def squares(folder: Path, count: int = 60) -> list[str]:
    """Squares of one colour each, with a little noise; returns the colour of each file in sorted order."""
    folder.mkdir(parents=True)
    rng, names = np.random.default_rng(0), []
    for i in range(count):
        names.append(list(COLOURS)[i % len(COLOURS)])
        pixels = np.array(COLOURS[names[-1]]) + rng.integers(-15, 16, (8, 8, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i:03d}.png")
    return names


def captioned(folder: Path, count: int = 60) -> Path:
    """The same, with a caption of each in a table beside them."""
    lines = [{"file_name": f"{i:03d}.png", "text": f"a {c} square"} for i, c in enumerate(squares(folder, count))]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def colour_of(image: Image.Image) -> str:
    """The nearest of the colours."""
    mean = np.asarray(image, dtype=float).mean((0, 1))
    return min(COLOURS, key=lambda name: float(np.square(mean - COLOURS[name]).sum()))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip") / "tiny")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Path:
    """A run trained on captioned squares; do not write into it."""
    place = tmp_path_factory.mktemp("texts")
    data = captioned(place / "data")
    run = RunFolder(place / "run")
    said: list[str] = []
    Recipe(run.adopt("digits", [*WORDS, f"prior.text_encoder={clip}"], str(data)), run, said.append).train()
    return run.path


def test_pictures_follow_the_prompt(texts: Path):
    """Seeds are fixed, so this is deterministic on one machine; by chance 32 of 32 right is 4⁻³²."""
    pipe = bld.BinaryLatentDiffusionPipeline.from_pretrained(texts)
    prompts = [f"a {name} square" for name in COLOURS]
    images = pipe(prompt=prompts, num_images_per_prompt=8, generator=0, guidance_scale=2.0).images
    assert [colour_of(image) for image in images] == [name for name in COLOURS for _ in range(8)]
