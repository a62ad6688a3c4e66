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
from bld.data import open_images
from bld.errors import CheckpointError, DataError, SettingError
from bld.io.resumable_rows import write_blocks
from bld.nn.text_encoder import TextEncoder, text_width
from bld.runtime.distributed import Processes
from bld.training.condition_cache import ImageVectors, VectorCache, VectorKey, condition_vectors
from bld.training.config import load_settings
from bld.training.recipe import Recipe
from bld.training.run_folder import RunFolder, with_absolute_paths

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 40), "blue": (30, 40, 220), "yellow": (230, 220, 40)}
WIDTH = 16
OVERRIDES = [
    "tokenizer.code_bits=8", "tokenizer.base_channels=8", "tokenizer.embed_dim=8",
    "tokenizer_training.steps=150", "tokenizer_training.batch_size=16", "tokenizer_training.previews=1",
    "tokenizer_training.learning_rate=5e-3", "tokenizer_training.warmup_steps=10",
    "prior.dim=32", "prior.depth=2", "prior.heads=2", "codes.draws=1", "mixed_precision=float32",
    "prior_training.steps=400", "prior_training.batch_size=32", "prior_training.previews=1",
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
    Recipe(run.adopt("digits", [*OVERRIDES, f"prior.text_encoder={clip}"], str(data)), run, said.append).train()
    return run.path


def test_pictures_follow_the_prompt(texts: Path):
    """Seeds are fixed, so this is deterministic on one machine; by chance 32 of 32 right is 4⁻³²."""
    pipe = bld.BinaryLatentDiffusionPipeline.from_pretrained(texts)
    prompts = [f"a {name} square" for name in COLOURS]
    images = pipe(prompt=prompts, num_images_per_prompt=8, generator=0, guidance_scale=2.0).images
    assert [colour_of(image) for image in images] == [name for name in COLOURS for _ in range(8)]


def test_a_guided_sample_is_two_forwards(texts: Path):
    """Logits u + g·(v - u): one forward of twice the batch gives what two give."""
    pipe = bld.BinaryLatentDiffusionPipeline.from_pretrained(texts)
    vectors = pipe.encode_prompt(["a red square", "a blue square"])
    z, t = torch.zeros(2, 16, 8, dtype=torch.uint8), torch.full((2,), 9)
    z[:, ::2] = 1
    from bld.diffusion import with_guidance

    with torch.no_grad():
        rows = pipe._conditioning.rows(None, None, condition=vectors)
        found = with_guidance(pipe.prior, rows, pipe.prior.no_condition(2), 3.0)(z, t)
        u, v = pipe.prior(z, t), pipe.prior(z, t, vectors)
    torch.testing.assert_close(found, u + 3 * (v - u), rtol=0, atol=1e-4)
    assert (v - u).abs().max() > 0.1


def test_a_prompt_is_its_vector_and_counts_as_asked(texts: Path):
    pipe = bld.BinaryLatentDiffusionPipeline.from_pretrained(texts)
    vector = pipe.encode_prompt("a  green\nsquare")[0]
    assert torch.equal(vector, pipe.encode_prompt(["a green square"])[0])
    by_prompt = pipe(3, prompt="a green square", generator=1).codes
    assert torch.equal(by_prompt, pipe(3, condition=vector.numpy(), generator=1).codes)
    assert torch.equal(by_prompt, pipe(prompt=["a green square"] * 3, generator=1, batch_size=2).codes)
    assert len(pipe(prompt="a green square", generator=1).codes) == 1
    assert len(pipe(generator=1).codes) == 4  # of no prompt at all
    assert torch.equal(pipe(2, prompt=" ", generator=1).codes, pipe(2, generator=1).codes)
    filled = pipe.inpaint(
        torch.zeros(3, 8, 8), np.eye(8, dtype=bool)[::-1], 2, prompt="a red square", generator=0, output_type="pt"
    )
    assert filled.images.shape == (2, 3, 8, 8)


def test_the_right_caption_needs_fewer_bits(texts: Path):
    """Of red squares' codes, their own caption is the most probable of four, by a clear margin."""
    pipe = bld.BinaryLatentDiffusionPipeline.from_pretrained(texts)
    codes = pipe(16, prompt="a red square", generator=2, output_type="latent").codes
    bits = {name: float(pipe.likelihood_bits(codes, prompt=f"a {name} square", generator=0).mean()) for name in COLOURS}
    assert min(bits, key=bits.__getitem__) == "red"
    assert sorted(bits.values())[1] > bits["red"] + 2


def test_evaluate_counts_held_out_codes_under_their_own_captions(texts: Path, tmp_path: Path):
    """A caption tells the colour, which is all that differs: fewer bits by a clear margin than without."""
    found = {}
    for name, run in (("captions", texts), ("without", tmp_path / "run")):
        if name == "without":
            shutil.copytree(texts, run, ignore=shutil.ignore_patterns("conditions"))
        out = tmp_path / f"{name}.json"
        assert main(["evaluate", str(run), "--metrics", "bits", "--out", str(out), "--device", "cpu"]) == 0
        found[name] = json.loads(out.read_text())["figures"]
    assert found["captions"]["bits_given"] == "caption" and found["without"]["bits_given"] == "nothing"
    assert found["captions"]["bits_per_code"] < found["without"]["bits_per_code"] - 1
    assert found["captions"]["noise_bits"] == pytest.approx(found["without"]["noise_bits"], rel=1e-6)


def test_a_saved_pipeline_carries_its_local_encoder_and_names_one_of_the_hub(texts: Path, clip: Path, tmp_path: Path):
    pipe = bld.BinaryLatentDiffusionPipeline.from_pretrained(texts)
    assert pipe.index.text_encoder == str(clip) and pipe.index.text_encoder_hash
    pipe.save_pretrained(tmp_path / "whole")
    shutil.move(tmp_path / "whole", tmp_path / "moved")  # nothing points at where it was, or at the encoder's folder
    assert str(tmp_path) not in (tmp_path / "moved" / "model_index.json").read_text()
    moved = bld.BinaryLatentDiffusionPipeline.from_pretrained(tmp_path / "moved")
    assert torch.equal(moved.encode_prompt("a red square"), pipe.encode_prompt("a red square"))
    moved.save_pretrained(tmp_path / "bare", include_text_encoder=False)
    assert not (tmp_path / "bare" / "text_encoder").exists()
    moved.save_pretrained(tmp_path / "moved")  # over itself
    assert torch.equal(moved.encode_prompt("a red square"), pipe.encode_prompt("a red square"))


def test_another_encoder_than_the_trained_one_is_refused(texts: Path, tmp_path: Path):
    shutil.copytree(texts, tmp_path / "run")
    tiny_clip(tmp_path / "run" / "text_encoder", seed=1)
    pipe = bld.BinaryLatentDiffusionPipeline.from_pretrained(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"run/text_encoder .*model_index\.json"):
        pipe(prompt="a red square")


def test_repeating_the_command_trains_nothing_and_keeps_the_vectors(texts: Path, tmp_path: Path):
    shutil.copytree(texts, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    said: list[str] = []
    recipe = Recipe(run.settings(), run, said.append)
    recipe.train()
    assert any("prior" in line and "(400 steps)" in line for line in said)
    vectors = run.conditions / "vectors.bin"
    stamp = vectors.stat().st_mtime_ns
    recipe.condition_vectors()
    assert vectors.stat().st_mtime_ns == stamp


def test_other_captions_make_the_vectors_and_the_prior_anew(texts: Path, tmp_path: Path):
    data = captioned(tmp_path / "data")
    shutil.copytree(texts, tmp_path / "run")
    table = (data / "metadata.jsonl").read_text().replace("a red square", "a square")
    (data / "metadata.jsonl").write_text(table)
    run, said = RunFolder(tmp_path / "run"), []
    stamp = (run.conditions / "vectors.bin").stat().st_mtime_ns
    Recipe(run.adopt(None, ["prior_training.steps=3"], None), run, said.append).condition_vectors()
    assert (run.conditions / "vectors.bin").stat().st_mtime_ns == stamp  # the table there is another file
    overrides = [f"data.captions={data / 'metadata.jsonl'}", "prior_training.steps=3"]
    with pytest.raises(SettingError, match=r"data\.captions="):
        run.adopt(None, overrides, None)
    moved = Path(run.settings().data.location) / "metadata.jsonl"
    kept = moved.read_text()
    try:
        moved.write_text(table)
        Recipe(run.adopt(None, ["prior_training.steps=3"], None), run, said.append).train_prior()
    finally:
        moved.write_text(kept)
    assert any("(data changed)" in line for line in said)
    assert any("captions" in line and "prior" in line for line in said)
    assert run.progress()["prior"]["steps"] == 3


def test_previews_are_of_held_out_captions_which_lie_beside_them(texts: Path):
    lines = (texts / "samples" / "prior-captions.txt").read_text().splitlines()
    assert len(lines) == 36 and lines[0].startswith("1,1: a ") and lines[-1].startswith("6,6: a ")
    assert {line.split()[2] for line in lines} <= set(COLOURS)


def test_the_report_asks_for_captions_and_tells_how(texts: Path, tmp_path: Path):
    from bld.report.page import write_report

    shutil.copytree(texts, tmp_path / "run")
    said: list[str] = []
    page = write_report(RunFolder(tmp_path / "run"), say=said.append).read_text()
    assert "caption of a held-out image" in page and "--prompt &#39;a red square&#39;" in page


def run_bld(capsys: pytest.CaptureFixture, *words: object, status: int = 0) -> str:
    assert main(list(map(str, words))) == status
    out = capsys.readouterr()
    return out.err if status else out.out


def test_the_command_line_samples_from_prompts(texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "prompts.txt").write_text("a red square\n\na blue square\n")
    out = tmp_path / "out"
    words = ["sample", texts, "--num", 4, "--out", out, "--guidance-scale", 2]
    run_bld(capsys, *words, "--prompts", tmp_path / "prompts.txt")
    found = [colour_of(Image.open(out / f"{i:06d}.png")) for i in range(4)]
    assert found == ["red", "blue", "red", "blue"]
    assert json.loads((out / "settings.json").read_text())["prompts"] == ["a red square", "a blue square"]
    run_bld(capsys, *words, "--prompt", "a red square", "--prompt", "a blue square")  # the same, said otherwise
    assert f"{out / 'settings.json'}" in run_bld(capsys, *words, "--prompt", "a green square", status=2)
    assert "--classes and --prompt" in run_bld(capsys, *words, "--classes", "0", "--prompt", "a", status=2)
    pipe = bld.BinaryLatentDiffusionPipeline.from_pretrained(texts)
    np.save(tmp_path / "v.npy", pipe.encode_prompt(["a yellow square"]).numpy())
    run_bld(capsys, "sample", texts, "--num", 2, "--out", tmp_path / "v", "--condition", tmp_path / "v.npy")
    assert colour_of(Image.open(tmp_path / "v" / "000001.png")) == "yellow"
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    Image.new("L", (8, 8), 255).save(tmp_path / "mask.png")
    run_bld(capsys, "inpaint", texts, "--image", tmp_path / "image.png", "--mask", tmp_path / "mask.png",
            "--prompt", "a green square", "--num", 2, "--out", tmp_path / "filled")  # fmt: skip
    assert colour_of(Image.open(tmp_path / "filled" / "000.png")) == "green"
    assert "width 16, of " in run_bld(capsys, "info", texts)


# -- vectors of one's own ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(images, an .npy with a vector for each): two numbers that tell the colour, far from zero and small in spread."""
    place = tmp_path_factory.mktemp("vectors")
    names = squares(place / "data")
    table = np.array([list(COLOURS).index(name) for name in names])
    np.save(place / "v.npy", np.stack([100 + 0.01 * (table // 2), 50 + 0.01 * (table % 2)], 1))
    return place / "data", place / "v.npy"


@pytest.fixture(scope="module")
def vector_run(vectors: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("vector-run") / "run"
    words = [
        "--data",
        vectors[0],
        "--condition",
        vectors[1],
        "--preset",
        "digits",
        *OVERRIDES,
        "prior.null_condition=absent",
    ]
    assert main(["train", "--out", str(run), *map(str, words)]) == 0
    return run


def test_pictures_follow_vectors_too(vector_run: Path):
    """As with prompts; without a token for "none", and with numbers that are large beside what tells them apart."""
    pipe = bld.BinaryLatentDiffusionPipeline.from_pretrained(vector_run)
    asked = [[100 + 0.01 * (i // 2), 50 + 0.01 * (i % 2)] for i in range(4)]
    images = pipe(condition=np.repeat(asked, 8, 0), generator=0, guidance_scale=2.0).images
    assert [colour_of(image) for image in images] == [name for name in COLOURS for _ in range(8)]
    page = (vector_run / "report.html").read_text()
    assert "vector of a held-out image" in page and "report-vectors.npy" in page


def test_training_on_vectors_goes_on_exactly(vectors: tuple[Path, Path], vector_run: Path, tmp_path: Path):
    """Stopped after 5 steps and gone on to 9, every weight is that of 9 steps in one go."""
    weights, constant = [], ["prior_training.decay=constant"]
    for name, stops in (("once", [9]), ("twice", [5, 9])):
        shutil.copytree(vector_run, tmp_path / name, ignore=shutil.ignore_patterns("prior", "diffusion", "checkpoints"))
        run = RunFolder(tmp_path / name)
        (run.path / "progress.json").write_text(json.dumps({
            "tokenizer": run.progress()["tokenizer"], "encode": run.progress().get("encode", {})
        }))  # fmt: skip
        for steps in stops:
            Recipe(
                run.adopt(None, [f"prior_training.steps={steps}", *constant], None), run, lambda _: None
            ).train_prior()
        weights.append(bld.BinaryLatentDiffusionPipeline.from_pretrained(run.path).prior.state_dict())
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.parametrize("fault", ["missing", "too few", "no captions", "no encoder", "no table"])
def test_conditions_that_no_prior_can_be_trained_on_are_refused_before_the_tokenizer_is_trained(
    vectors: tuple[Path, Path], clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture, fault: str
):
    images, out = vectors[0], tmp_path / "run"
    if fault == "too few":
        np.save(tmp_path / "few.npy", np.zeros((59, 2)))
    asked, told = {
        "missing": (["--condition", tmp_path / "nope.npy"], "nope.npy is not there"),
        "too few": (["--condition", tmp_path / "few.npy"], "59 vectors for the 60 images"),
        "no captions": ([f"prior.text_encoder={clip}"], "needs captions"),
        "no encoder": ([f"prior.text_encoder={tmp_path}"], f"{tmp_path}"),
        "no table": ([f"prior.text_encoder={clip}", f"data.captions={tmp_path / 'nope.csv'}"], "nope.csv"),
    }[fault]
    words = ["train", "--data", images, "--out", out, "--preset", "digits", *OVERRIDES, *asked]
    assert told in run_bld(capsys, *words, status=2)
    assert not (out / "tokenizer").exists() and not (out / "checkpoints").exists()
    assert out.exists() == (fault in ("too few", "no captions"))  # which the images tell


def test_a_finished_run_asks_for_its_vectors_no_more(vector_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    shutil.copytree(vector_run, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    file = Path(run.settings().data.condition)
    file.rename(tmp_path / "aside.npy")
    try:
        Recipe(run.settings(), run, print).train()
        run_bld(capsys, "train-tokenizer", "--out", run.path)
        assert "is not there" in run_bld(capsys, "train", "--out", run.path, "prior_training.steps=401", status=2)
    finally:
        (tmp_path / "aside.npy").rename(file)


def cached(folder: Path, file: Path, images: Path, said: list[str] | None = None) -> VectorCache:
    settings = load_settings(overrides=[f"data.condition={file}"])
    say = (lambda _: None) if said is None else said.append
    found = condition_vectors(settings, open_images(images), folder, torch.device("cpu"), Processes(), say)
    assert found is not None
    return found


def test_vectors_lie_in_the_order_of_the_names(vectors: tuple[Path, Path], tmp_path: Path):
    images, file = vectors
    table = np.load(file)
    rows = cached(tmp_path / "plain", file, images).read(np.arange(60))
    assert (rows[:, 0] == 1).all() and np.allclose(rows[:, 1:], table)
    names = [f"{i:03d}.png" for i in range(60)]
    table -= 100, 50  # or halves would not tell them apart
    np.savez(tmp_path / "named.npz", vectors=table[::-1].astype(np.float16), names=names[::-1])
    named = cached(tmp_path / "named", tmp_path / "named.npz", images)
    assert named.key.values == "float16" and np.allclose(named.read(np.arange(60))[:, 1:], table, atol=1e-5)
    as_bytes = np.array([name.encode() for name in names[::-1]])  # as HDF5 keeps them
    np.savez(tmp_path / "bytes.npz", vectors=table[::-1].astype(np.float16), names=as_bytes)
    found = cached(tmp_path / "bytes", tmp_path / "bytes.npz", images)
    assert torch.equal(found.read(np.arange(60)), named.read(np.arange(60)))
    mean, scale = ImageVectors(named, torch.arange(60)).centre_and_scale()
    assert np.allclose(mean, table.mean(0), rtol=1e-3) and scale == pytest.approx(0.005, rel=1e-2)


def test_stale_or_damaged_vectors_are_made_again(vectors: tuple[Path, Path], tmp_path: Path):
    images, said = vectors[0], []
    file = Path(shutil.copy(vectors[1], tmp_path / "v.npy"))
    cached(tmp_path / "c", file, images, said)
    np.save(file, np.load(file) + 1)
    assert np.allclose(cached(tmp_path / "c", file, images, said).read(np.arange(60))[:, 1:], np.load(file))
    (tmp_path / "c" / "vectors.bin").write_bytes(b"half")
    assert np.allclose(cached(tmp_path / "c", file, images, said).read(np.arange(60))[:, 1:], np.load(file))
    assert "(data changed)" in said[0] and "damaged" in said[1] and len(said) == 2


@pytest.mark.parametrize("ending", ["npz", "npy"])
def test_each_image_keeps_its_own_vector_when_one_goes_and_another_comes(tmp_path: Path, ending: str):
    """The file and the number of images are the same before and after."""
    squares(tmp_path / "data", 6)
    (tmp_path / "data" / "000.png").rename(tmp_path / "aside.png")
    file, names = tmp_path / f"v.{ending}", [f"{i:03d}.png" for i in range(6)]
    if ending == "npz":
        np.savez(file, vectors=np.arange(6.0)[:, None], names=names)
    else:
        np.save(file, np.arange(1.0, 6)[:, None])
    first = cached(tmp_path / "c", file, tmp_path / "data")
    assert first.read(np.arange(5))[:, 1].tolist() == [1, 2, 3, 4, 5]
    (tmp_path / "data" / "005.png").unlink()
    (tmp_path / "aside.png").rename(tmp_path / "data" / "000.png")
    second = cached(tmp_path / "c", file, tmp_path / "data")
    assert second.read(np.arange(5))[:, 1].tolist() == ([0, 1, 2, 3, 4] if ending == "npz" else [1, 2, 3, 4, 5])
    assert first.key.digest() != second.key.digest()


def test_vectors_of_before_names_were_kept_are_made_anew_and_the_prior_goes_on(vector_run: Path, tmp_path: Path):
    shutil.copytree(vector_run, tmp_path / "run")
    run, said = RunFolder(tmp_path / "run"), []
    header = json.loads((run.conditions / "header.json").read_text())
    assert header["key"].pop("names")
    (run.conditions / "header.json").write_text(json.dumps(header))
    run.record("prior", condition=VectorKey(**header["key"]).digest())
    Recipe(run.adopt(None, ["prior_training.steps=401"], None), run, said.append).train_prior()
    assert any("(names changed)" in line for line in said)
    assert not any("anew" in line and "prior" in line for line in said)
    assert run.progress()["prior"]["condition"] == VectorCache(run.conditions).key.digest()


def test_an_interrupted_cache_goes_on_with_the_blocks_that_are_left(
    vectors: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("bld.io.resumable_rows.BLOCK", 16)
    images, file = vectors[0], tmp_path / "v.npy"
    table = np.load(vectors[1])
    table[40] = np.nan
    np.save(file, table)
    with pytest.raises(DataError, match=r"\b40 .*v\.npy .*finite"):
        cached(tmp_path / "c", file, images)
    assert (tmp_path / "c" / "done-0").read_text() == "0\n1\n"
    assert not (tmp_path / "c" / "header.json").exists()


def test_no_vector_is_made_again_where_the_header_could_not_be_written(
    vectors: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    images, file = vectors

    def full(*_: object) -> None:
        raise CheckpointError("No space is left")

    with monkeypatch.context() as patched:
        patched.setattr("bld.training.condition_cache.write_json", full)
        with pytest.raises(CheckpointError, match="No space"):
            cached(tmp_path / "c", file, images)
    monkeypatch.setattr("bld.training.condition_cache.write_blocks", finished_only)
    assert np.allclose(cached(tmp_path / "c", file, images).read(np.arange(60))[:, 1:], np.load(file))


def finished_only(folder, name, note, images, row_bytes, make, finish, *rest) -> None:
    """`write_blocks` that has no block left to make."""

    def none(wanted: list[range]) -> list[np.ndarray]:
        assert wanted == []
        return []

    write_blocks(folder, name, note, images, row_bytes, none, finish, *rest)


@pytest.mark.parametrize(
    "array, message",
    [
        (np.zeros((59, 2)), r"v\.npy .*\b59 vectors .* 60 images .*sorted.*\.npz"),
        (np.zeros(60), r"v\.npy .*float64 .*\(60,\).* \(n, V\)"),
        (np.zeros((60, 2), "U1"), r"v\.npy .*<U1 .* numbers"),
        (np.full((60, 2), 1e39), r"\b0 .*v\.npy .*finite"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_vectors_that_do_not_fit_are_refused(vectors, tmp_path: Path, array: np.ndarray, message: str):
    np.save(tmp_path / "v.npy", array)
    with pytest.raises(DataError, match=message):
        cached(tmp_path / "c", tmp_path / "v.npy", vectors[0])


def test_a_file_without_vectors_is_refused(vectors: tuple[Path, Path], tmp_path: Path):
    (tmp_path / "v.npy").write_text("1, 2, 3")
    np.savez(tmp_path / "v.npz", vectors=np.zeros((1, 2)), names=["000.png"])
    np.savez(tmp_path / "w.npz", embeddings=np.zeros((60, 2)))
    names = [f"{i:03d}.png" for i in range(60)]
    np.savez(tmp_path / "column.npz", vectors=np.zeros((60, 2)), names=np.array(names)[:, None])
    np.savez(tmp_path / "numbers.npz", vectors=np.zeros((60, 2)), names=np.arange(60))
    np.savez(tmp_path / "latin.npz", vectors=np.zeros((60, 2)), names=np.array(["ä".encode("latin-1")] * 60))
    np.savez_compressed(tmp_path / "cut.npz", vectors=np.random.default_rng(0).random((60, 2)), names=names)
    cut = bytearray((tmp_path / "cut.npz").read_bytes())
    cut[100:200] = bytes(100)
    (tmp_path / "cut.npz").write_bytes(cut)
    for name, message in {
        "column.npz": r"column\.npz .*`names` .*\(60, 1\).* \(n,\)", "numbers.npz": r"numbers\.npz .*`names` .*int64",
        "latin.npz": r"`names` in .*latin\.npz .*UTF-8", "cut.npz": r"cut\.npz cannot be read",
        "v.npy": r"/v\.npy .*numpy", "none.npy": r"none\.npy is not there",
        "v.npz": r"v\.npz .*\b59 of 60 .* 001\b", "w.npz": r"w\.npz .*`vectors`.*`names`",
    }.items():  # fmt: skip
        with pytest.raises(DataError, match=message):
            cached(tmp_path / "c", tmp_path / name, vectors[0])


def test_paths_in_settings_hold_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "clip").mkdir()
    (tmp_path / "l.csv").write_text("file_name,label\n")
    monkeypatch.chdir(tmp_path)
    overrides = ["prior.text_encoder=clip", "data.labels=l.csv", "data.captions=auto"]
    settings = with_absolute_paths(load_settings("digits", overrides=[*overrides, "data.location=train-{00..11}.tar"]))
    assert settings.prior.text_encoder == str(tmp_path / "clip")
    assert settings.data.labels == str(tmp_path / "l.csv")
    assert settings.data.captions == "auto"
    assert settings.data.location == str(tmp_path / "train-{00..11}.tar")
    hub = with_absolute_paths(load_settings("digits", overrides=["prior.text_encoder=openai/clip-vit-large-patch14"]))
    assert hub.prior.text_encoder == "openai/clip-vit-large-patch14"


# -- what has moved ---------------------------------------------------------------------------------------


def test_a_moved_file_of_vectors_goes_on_and_another_is_refused(vector_run: Path, tmp_path: Path):
    shutil.copytree(vector_run, tmp_path / "run")
    run, said = RunFolder(tmp_path / "run"), []
    moved = Path(shutil.copy(run.settings().data.condition, tmp_path / "moved.npy"))
    kept = run.config.read_bytes()
    np.save(tmp_path / "other.npy", np.load(moved) + 1)
    for wrong in (tmp_path / "other.npy", tmp_path / "nowhere.npy"):
        with pytest.raises(SettingError, match=rf"data\.condition=.*{wrong.name}"):
            run.adopt(None, [f"data.condition={wrong}"], None)
    assert run.config.read_bytes() == kept
    Recipe(run.adopt(None, [f"data.condition={moved}"], None), run, said.append).train()
    assert run.settings().data.condition == str(moved) and any("trained already (400 steps)" in line for line in said)
    Recipe(run.adopt(None, ["prior_training.steps=401"], None), run, said.append).train_prior()
    assert not any("anew" in line for line in said) and run.progress()["prior"]["steps"] == 401


def test_a_moved_table_of_captions_goes_on_and_another_is_refused(texts: Path, tmp_path: Path):
    shutil.copytree(texts, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    table = (Path(run.settings().data.location) / "metadata.jsonl").read_text()
    run.config.write_text(run.config.read_text().replace("captions: auto", f"captions: {tmp_path / 'old.jsonl'}"))
    assert run.settings().data.captions == str(tmp_path / "old.jsonl")  # which is not there any more
    (tmp_path / "new.jsonl").write_text(table)
    assert run.adopt(None, [f"data.captions={tmp_path / 'new.jsonl'}"], None).data.captions.endswith("new.jsonl")
    (tmp_path / "other.jsonl").write_text(table.replace("a red square", "a square"))
    with pytest.raises(SettingError, match=r"data\.captions=.*other\.jsonl"):
        run.adopt(None, [f"data.captions={tmp_path / 'other.jsonl'}"], None)
    shutil.rmtree(run.conditions)  # by which they would be compared
    with pytest.raises(SettingError, match=r"data\.captions=.*again\.jsonl"):
        run.adopt(None, [f"data.captions={shutil.copy(tmp_path / 'new.jsonl', tmp_path / 'again.jsonl')}"], None)


def test_a_moved_text_encoder_goes_on_and_is_what_the_pipeline_loads(texts: Path, clip: Path, tmp_path: Path):
    shutil.copytree(texts, tmp_path / "run")
    shutil.copytree(clip, tmp_path / "moved")
    run = RunFolder(tmp_path / "run")
    with pytest.raises(SettingError, match=r"prior\.text_encoder=.*other"):
        run.adopt(None, [f"prior.text_encoder={tiny_clip(tmp_path / 'other', seed=1)}"], None)
    Recipe(run.adopt(None, [f"prior.text_encoder={tmp_path / 'moved'}"], None), run, lambda _: None).train()
    assert json.loads(run.index.read_text())["text_encoder"] == str(tmp_path / "moved")
    run.config.write_text(run.config.read_text().replace(str(tmp_path / "moved"), str(tmp_path / "gone")))
    Recipe(run.settings(), run, lambda _: None).train_prior()
    assert json.loads(run.index.read_text())["text_encoder"] == str(tmp_path / "moved")  # as named by hand, say


# -- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["prior.text_encoder=x", "data.condition=y"], r"prior\.text_encoder=x .*data\.condition=y"),
        (["prior.text_encoder=x", "data.captions=none"], r"prior\.text_encoder=x .*data\.captions=none .*=auto"),
        (["prior.null_condition=nothing"], r"prior\.null_condition.*'absent'.*nothing"),
    ],
)
def test_settings_that_contradict_are_refused(overrides: list[str], message: str):
    with pytest.raises(SettingError, match=message):
        load_settings(overrides=overrides)


def test_images_without_captions_and_folders_without_an_encoder_are_refused(clip, image_folder, tmp_path: Path):
    images = open_images(image_folder(4))

    def ask(*overrides: str) -> None:
        condition_vectors(load_settings(overrides=overrides), images, tmp_path, torch.device("cpu"), Processes(), print)

    with pytest.raises(DataError, match=r"captions.*/images .*metadata\.jsonl.*data\.captions"):
        ask(f"prior.text_encoder={clip}")
    (tmp_path / "t.csv").write_text("file_name,text\n000.png,a red square\n")
    with pytest.raises(CheckpointError, match=r"encoder .*/nothing .*safetensors"):
        ask(f"prior.text_encoder={tmp_path / 'nothing'}", f"data.captions={tmp_path / 't.csv'}")
    bert = tmp_path / "bert"
    bert.mkdir()
    (bert / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(CheckpointError, match=r" bert, .*\bCLIP\b"):
        ask(f"prior.text_encoder={bert}", f"data.captions={tmp_path / 't.csv'}")


def test_a_model_that_is_no_clip_is_refused_by_its_width_as_by_its_weights(tmp_path: Path):
    """`bld info` asks for the width alone, and says what the training would say."""
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    refusals = []
    for ask in (text_width, TextEncoder.load):
        with pytest.raises(CheckpointError, match="of the kind bert") as caught:
            ask(str(tmp_path))
        refusals.append(str(caught.value))
    assert refusals[0] == refusals[1]


def test_images_without_a_caption_are_trained_on_without_one(clip, image_folder, tmp_path: Path):
    images, said = open_images(image_folder(4)), []
    (tmp_path / "t.csv").write_text("file_name,text\n001.png,a red square\n")
    settings = load_settings(overrides=[f"prior.text_encoder={clip}", f"data.captions={tmp_path / 't.csv'}"])
    found = condition_vectors(settings, images, tmp_path / "c", torch.device("cpu"), Processes(), said.append)
    rows = found.read(np.arange(4))
    assert rows[:, 0].tolist() == [0, 1, 0, 0] and not rows[[0, 2, 3]].any() and rows[1].abs().sum() > 1
    assert len(said) == 1 and said[0].startswith("3 of 4 images")


def test_what_the_prior_cannot_be_asked_for_is_refused(texts: Path, vector_run: Path, trained_run: Path):
    load = bld.BinaryLatentDiffusionPipeline.from_pretrained
    of_text, of_vectors, of_classes = load(texts), load(vector_run), load(trained_run)
    for pipe, asked, message in [
        (of_classes, {"prompt": "a"}, "text: .* 10 class_labels"),
        (of_classes, {"condition": np.zeros(3)}, "vectors: .* 10 class_labels"),
        (of_vectors, {"prompt": "a"}, r"text: .*width 2\b.* condition"),
        (of_text, {"class_labels": 1}, r"\b1\b.* classes: .*prompt.*width 16\b.* condition"),
        (of_text, {"prompt": "a", "class_labels": 1}, "class_labels and prompt"),
        (of_text, {"prompt": ["a", "b"], "num_images": 3}, "2 prompts .* 3 images"),
        (of_text, {"prompt": []}, r"prompt .*not \[\]"),
        (of_text, {"prompt": [3]}, r"prompt .*not \[3\]"),
        (of_text, {"condition": ["red"]}, "condition .*array of numbers"),
        (of_text, {"num_images_per_prompt": 2}, "num_images_per_prompt=2 "),
        (of_text, {"condition": np.zeros((2, 3))}, r"condition .*\(2, 3\).* \(n, 16\)"),
        (of_text, {"condition": np.full(16, np.nan)}, "condition .*finite"),
    ]:
        with pytest.raises(bld.errors.UserError, match=message):
            pipe(**asked)
