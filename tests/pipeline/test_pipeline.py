from __future__ import annotations

import functools
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from bld import BinaryLatentDiffusionPipeline
from bld.errors import CheckpointError, DataError, SettingError
from bld.pipeline import fill_from_surroundings
from bld.pipeline.conditioning import Conditioning
from bld.priors import Denoiser, DenoiserConfig
from bld.seeding import hashed_uniform, keyed_draws
from bld.serialization.models import PipelineIndex
from bld.tokenizer import BinaryAutoencoder
from bld.training.config import load_settings
from bld.training.stages.prior import build_network


@pytest.fixture(scope="module")
def pipe(trained_run):
    return BinaryLatentDiffusionPipeline.from_pretrained(trained_run)


@pytest.fixture
def picture():
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))


@pytest.fixture
def mask():
    array = np.zeros((8, 8), np.uint8)
    array[2:5, 3:6] = 255
    return Image.fromarray(array)


def test_sample_i_depends_on_seed_and_i_only(pipe):
    """Same bits in batches of 1, 7 and 64: float32, tolerance zero."""
    labels = [i % 10 for i in range(64)]
    runs = [
        pipe(class_labels=labels, generator=3, batch_size=size, guidance_scale=2.0, output_type="latent").images
        for size in (1, 7, 64)
    ]
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])
    alone = pipe(class_labels=labels[40:41], generator=3, first_index=40, guidance_scale=2.0, output_type="latent")
    assert torch.equal(alone.images, runs[0][40:41])
    assert not torch.equal(runs[0][0], runs[0][10])


@pytest.fixture(scope="module")
def untrained():
    """The preset digits at its full size, whose small maps PyTorch convolves otherwise when an image is alone."""
    torch.manual_seed(0)
    settings = load_settings("digits")
    shape = settings.tokenizer.code_shape
    process = settings.process(shape)
    network = build_network(process, settings.denoiser(shape, 10))
    torch.nn.init.normal_(network.head.weight, std=0.1)
    return BinaryLatentDiffusionPipeline(BinaryAutoencoder(settings.tokenizer), network, process)


def test_an_image_has_the_same_pixels_and_bits_alone_and_in_a_batch_of_any_size(untrained, picture, mask):
    """To the last bit of float32, also of the smaller batch at the end of a call."""
    options = {"num_inference_steps": 2, "generator": 3, "output_type": "pt"}
    codes = untrained(7, **options).codes
    views = torch.rand(7, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def made(size):
        with torch.no_grad():
            probs = torch.cat([untrained.tokenizer.encode_probs(part) for part in views.split(size)])
        return {
            "generated": untrained(7, class_labels=4, guidance_scale=2.0, batch_size=size, **options).images,
            "decoded": untrained.decode(codes, "pt", batch_size=size),
            "probabilities": probs,
            "varied": untrained.vary(codes, batch_size=size, **options).images,
            "filled": untrained.inpaint(picture, mask, 7, batch_size=size, **options).images,
        }

    runs = {size: made(size) for size in (1, 2, 3, 7)}
    for size, run in runs.items():
        for name, images in run.items():
            assert torch.equal(images, runs[7][name]), (name, size)


def test_a_seed_a_generator_and_generators_all_name_the_same_noise(pipe):
    by_seed = pipe(3, generator=5, output_type="latent").images
    own = pipe(3, generator=keyed_draws(5, "sample", range(3)), output_type="latent").images
    assert torch.equal(by_seed, own)
    one, two = (pipe(3, generator=torch.Generator().manual_seed(1), output_type="latent").images for _ in range(2))
    assert torch.equal(one, two)


def test_a_text_encoder_is_copied_where_there_is_one(pipe, tmp_path):
    pipe.save_pretrained(tmp_path, include_text_encoder=True)
    assert not BinaryLatentDiffusionPipeline.from_pretrained(tmp_path).takes_prompts


def test_saving_and_loading_changes_nothing(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    again = BinaryLatentDiffusionPipeline.from_pretrained(tmp_path / "model")
    assert again.index == pipe.index
    assert torch.equal(
        pipe(4, class_labels=3, generator=0, output_type="pt").images,
        again(4, class_labels=3, generator=0, output_type="pt").images,
    )


def test_output_types_agree_with_each_other(pipe):
    args = {"num_images": 2, "generator": 0, "num_inference_steps": 4}
    tensor = pipe(**args, output_type="pt").images
    assert tensor.shape == (2, 3, 8, 8) and tensor.min() >= 0 and tensor.max() <= 1
    np.testing.assert_array_equal(pipe(**args, output_type="np").images, tensor.permute(0, 2, 3, 1).numpy())
    pil = pipe(**args).images
    assert np.abs(np.asarray(pil[0]) / 255 - tensor[0].permute(1, 2, 0).numpy()).max() <= 0.5 / 255 + 1e-6
    codes = pipe(**args, output_type="latent").images
    assert codes.dtype == torch.uint8 and codes.shape == (2, 4, 4, 32) and set(codes.unique().tolist()) <= {0, 1}


def test_classes_are_named_by_number_or_name_and_wrong_ones_refused(pipe):
    by_name = pipe(1, class_labels="7", generator=0, output_type="latent").images
    assert torch.equal(by_name, pipe(1, class_labels=7, generator=0, output_type="latent").images)
    assert len(pipe(class_labels=[1, "2", 3], num_inference_steps=1).images) == 3
    for wrong, words in ((10, r"\b10\b.*\b0 … 9\b"), (-1, r"-1\b.*\b0 … 9\b"), ("seven", "class 'seven'")):
        with pytest.raises(SettingError, match=words):
            pipe(1, class_labels=wrong)
    with pytest.raises(SettingError, match=r"\b2 class labels .*\b3 images"):
        pipe(3, class_labels=[1, 2])


@pytest.mark.parametrize(
    "args, words",
    [
        ({"num_images": 0}, "images .*at least 1, not 0"),
        ({"num_inference_steps": 65}, "1 to 64 steps.*not 65"),
        ({"num_inference_steps": 0}, "1 to 64 steps.*not 0"),
        ({"temperature": 0.0}, r"temperature .*above 0.*not 0\.0"),
        ({"output_type": "png"}, "output_type 'png'"),
        ({"generator": [torch.Generator()]}, "1 generators .*[02-9] images"),
    ],
)
def test_impossible_requests_are_one_sentence(pipe, args, words):
    with pytest.raises(SettingError, match=words):
        pipe(**{"num_images": 2, "num_inference_steps": 1, **args})


def test_an_output_that_there_is_not_is_refused_before_anything_is_made(pipe, picture, mask, monkeypatch):
    codes = pipe.encode(picture)

    def computed(*_, **__):
        raise AssertionError("something was computed")

    for part, method in ((pipe.tokenizer, "encode"), (pipe.tokenizer, "decode"), (pipe.prior, "for_inference")):
        monkeypatch.setattr(part, method, computed)
    for ask in (
        lambda: pipe(1, output_type="PIL"),
        lambda: pipe.inpaint(picture, mask, output_type="PIL"),
        lambda: pipe.vary(codes, output_type="PIL"),
        lambda: pipe.reconstruct(picture, output_type="PIL"),
        lambda: pipe.decode(codes, output_type="PIL"),
    ):
        with pytest.raises(SettingError, match=r"'PIL'.*\bpil\b"):
            ask()


def test_labels_may_come_as_arrays_and_tensors(pipe):
    expected = pipe(class_labels=[1, 2], generator=0, num_inference_steps=2, output_type="latent").images
    for labels in (torch.tensor([1, 2]), np.array([1, 2]), (1, 2)):
        out = pipe(class_labels=labels, generator=0, num_inference_steps=2, output_type="latent").images
        assert torch.equal(out, expected)


def test_tensors_of_another_range_are_refused_with_the_cure(pipe):
    for wrong in (torch.full((1, 3, 8, 8), 2.0), torch.full((1, 3, 8, 8), -0.5)):
        with pytest.raises(SettingError, match=r"\(x \+ 1\) / 2"):
            pipe.encode(wrong)


def test_the_fingerprint_changes_with_any_weight(trained_run):
    pipe = BinaryLatentDiffusionPipeline.from_pretrained(trained_run)
    before = pipe.fingerprint()
    with torch.no_grad():
        pipe.prior.norm.bias[0] += 1e-3
    assert pipe.fingerprint() != before


@pytest.mark.parametrize("bottleneck, kind", [("vq", "absorbing"), ("vq", "autoregressive"), ("gaussian", "gaussian")])
def test_the_fingerprint_of_any_kind_stays_through_use_and_saving(bottleneck, kind, tiny_overrides, picture, tmp_path):
    words = [*tiny_overrides, f"tokenizer.bottleneck={bottleneck}", "tokenizer.code_bits=5", f"prior.kind={kind}"]
    settings = load_settings("digits", overrides=words)
    shape = settings.tokenizer.code_shape
    process = settings.process(shape)
    network = build_network(process, settings.denoiser(shape, 3))
    pipe = BinaryLatentDiffusionPipeline(BinaryAutoencoder(settings.tokenizer), network, process)
    before = pipe.fingerprint()
    pipe.reconstruct(picture)
    pipe(2, class_labels=[0, 2], generator=0)
    assert pipe.fingerprint() == before
    for name in ("copy", "copy of it"):
        pipe.save_pretrained(tmp_path / name)
        pipe = BinaryLatentDiffusionPipeline.from_pretrained(tmp_path / name)
        assert pipe.fingerprint() == before


def test_the_callback_sees_every_step_with_codes(pipe):
    seen = []
    pipe(
        2,
        num_inference_steps=5,
        callback_on_step_end=lambda p, i, t, k: seen.append((i, t, k["latents"].shape)),
    )
    assert [i for i, _, _ in seen] == list(range(5))
    assert [t for _, t, _ in seen] == [64, 51, 38, 26, 13]
    assert all(shape == (2, 4, 4, 32) for _, _, shape in seen)


def test_a_callback_may_change_the_latents_and_sampling_goes_on_from_those(pipe):
    def all_ones_at_step_2(pipe, step, timestep, kwargs):
        return {"latents": torch.ones_like(kwargs["latents"])} if step == 2 else kwargs

    seen = []

    def record(pipe, step, timestep, kwargs):
        seen.append(kwargs["latents"].clone())
        return all_ones_at_step_2(pipe, step, timestep, kwargs)

    args = {"num_images": 2, "generator": 0, "num_inference_steps": 4, "output_type": "latent"}
    plain = pipe(**args).images
    assert torch.equal(pipe(**args, callback_on_step_end=lambda *_: None).images, plain)
    changed = pipe(**args, callback_on_step_end=record).images
    assert not torch.equal(changed, plain) and torch.equal(changed, seen[-1])
    last = {**args, "callback_on_step_end": lambda p, i, t, k: {"latents": 1 - k["latents"]} if i == 3 else k}
    assert torch.equal(pipe(**last).images, 1 - plain)
    with pytest.raises(SettingError, match=r"callback .*latents of \(1, .* \(2, "):
        pipe(**args, callback_on_step_end=lambda p, i, t, k: {"latents": k["latents"][:1]})


def test_return_dict_false_gives_the_tuple_of_images(pipe, picture, mask):
    (images,) = pipe(2, generator=0, num_inference_steps=2, return_dict=False, output_type="latent")
    assert torch.equal(images, pipe(2, generator=0, num_inference_steps=2, output_type="latent").images)
    (filled,) = pipe.inpaint(picture, mask, generator=0, num_inference_steps=2, return_dict=False)
    assert filled[0].size == (8, 8)


def test_inpainting_keeps_every_pixel_outside_the_mask(pipe, picture, mask):
    filled = pipe.inpaint(picture, mask, num_images=5, generator=0, class_labels=2).images
    hole = np.asarray(mask) > 127
    for image in filled:
        assert (np.asarray(image)[~hole] == np.asarray(picture)[~hole]).all()
    assert len({image.tobytes() for image in filled}) > 1


def test_inpainting_does_not_look_into_the_hole(pipe, picture, mask):
    spoiled = np.array(picture)
    spoiled[np.asarray(mask) > 127] = [255, 0, 255]
    one, two = (
        pipe.inpaint(p, mask, generator=0, output_type="latent").images for p in (picture, Image.fromarray(spoiled))
    )
    assert torch.equal(one, two)


@pytest.mark.parametrize("known_bits, resample", [("noised", 1), ("clean", 1), ("noised", 3)])
def test_known_positions_keep_their_bits(pipe, picture, mask, known_bits, resample):
    out = pipe.inpaint(picture, mask, generator=0, known_bits=known_bits, resample=resample, output_type="latent")
    hole = torch.from_numpy(np.asarray(mask) > 127)
    seen = fill_from_surroundings(pipe.preprocess(picture), hole)
    bits = pipe.encode(seen)
    known = ~hole.view(4, 2, 4, 2).any(3).any(1)
    assert torch.equal(out.images[0][known], bits[0][known])


def test_masks_of_arrays_and_tensors_mean_the_same_as_pictures(pipe, picture, mask):
    array = np.asarray(mask)
    expected = pipe.inpaint(picture, mask, generator=0, output_type="pt").images
    for form in (array, array > 0, (array / 255).astype(np.float32), torch.from_numpy(array / 255)):
        assert torch.equal(pipe.inpaint(picture, form, generator=0, output_type="pt").images, expected)


def test_masks_that_cannot_be_meant_are_refused(pipe, picture):
    with pytest.raises(SettingError, match="black everywhere"):
        pipe.inpaint(picture, np.zeros((8, 8), np.uint8))
    with pytest.raises(SettingError, match=r"mask .*\b8, 9\b.*\b8, 8\b"):
        pipe.inpaint(picture, np.ones((9, 8), np.uint8))


def test_the_hole_is_filled_from_its_surroundings_only():
    images = torch.full((1, 3, 16, 16), 0.25)
    hole = torch.zeros(16, 16, dtype=torch.bool)
    hole[2:14, 2:14] = True
    images[..., hole] = 9.0
    torch.testing.assert_close(fill_from_surroundings(images, hole), torch.full((1, 3, 16, 16), 0.25))
    everything = torch.ones(16, 16, dtype=torch.bool)
    assert fill_from_surroundings(images, everything).isfinite().all()


def test_reconstruct_is_decode_of_encode_whatever_the_form(pipe, picture):
    tensor = pipe.preprocess([picture, picture])
    codes = pipe.encode([picture, picture])
    assert codes.dtype == torch.uint8 and torch.equal(codes, pipe.encode(tensor))
    torch.testing.assert_close(pipe.reconstruct(tensor, "pt"), pipe.decode(codes, "pt"))
    assert pipe.encode(picture.resize((40, 30))).shape == (1, 4, 4, 32)


def test_tiling_changes_memory_only(trained_run, picture, mask, monkeypatch):
    pipe = BinaryLatentDiffusionPipeline.from_pretrained(trained_run)
    calls = {
        "generate": lambda: pipe(3, generator=0, num_inference_steps=4, output_type="pt").images,
        "inpaint": lambda: pipe.inpaint(picture, mask, 2, generator=0, num_inference_steps=4, output_type="pt").images,
        "reconstruct": lambda: pipe.reconstruct([picture] * 3, "pt"),
    }
    whole = {name: call() for name, call in calls.items()}
    assert pipe.enable_tiling(3) is pipe
    batches = []
    features, decode = pipe.tokenizer.features, pipe.tokenizer.decode
    monkeypatch.setattr(pipe.tokenizer, "features", lambda x: batches.append(len(x)) or features(x))
    monkeypatch.setattr(pipe.tokenizer, "decode", lambda x: batches.append(len(x)) or decode(x))
    for name, call in calls.items():
        torch.testing.assert_close(call(), whole[name], atol=1e-5, rtol=0)
    assert len(batches) == 3 + (1 + 2) + (3 + 3) and set(batches) == {1}
    assert pipe.disable_tiling() is pipe
    for name, call in calls.items():
        assert torch.equal(call(), whole[name])
    assert set(batches[12:]) == {1, 2, 3}


@pytest.mark.parametrize("rows", [0, -128])
def test_strips_without_rows_are_refused(pipe, rows):
    with pytest.raises(SettingError, match=rf"\b1 row .*not {rows}\b"):
        pipe.enable_tiling(rows)


def test_bfloat16_weights_sample_too(trained_run):
    pipe = BinaryLatentDiffusionPipeline.from_pretrained(trained_run).to(dtype=torch.bfloat16)
    assert pipe(2, generator=0, num_inference_steps=4, output_type="pt").images.isfinite().all()


def test_the_plugin_posterior_is_another_sampler_on_the_same_networks(pipe):
    plugin = pipe.with_posterior("plugin")
    assert plugin.prior is pipe.prior and pipe.diffusion.posterior == "exact"
    assert not torch.equal(
        plugin(4, generator=0, output_type="latent").images, pipe(4, generator=0, output_type="latent").images
    )


def test_parts_that_do_not_belong_together_are_refused(pipe, run_copy):
    config = json.loads((run_copy / "diffusion" / "config.json").read_text())
    (run_copy / "diffusion" / "config.json").write_text(json.dumps({**config, "steps": 32}))
    with pytest.raises(SettingError, match="64 steps"):
        BinaryLatentDiffusionPipeline.from_pretrained(run_copy)


def test_an_index_that_does_not_name_each_class_is_refused(run_copy):
    path = run_copy / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "classes": ["a", "b"]}))
    with pytest.raises(SettingError, match=r"2 classes.* 10\b.*model_index\.json"):
        BinaryLatentDiffusionPipeline.from_pretrained(run_copy)


def test_a_folder_without_a_pipeline_says_what_is_missing(run_copy, tmp_path):
    with pytest.raises(CheckpointError, match=r"no model_index\.json"):
        BinaryLatentDiffusionPipeline.from_pretrained(tmp_path)
    shutil.rmtree(run_copy / "prior")
    with pytest.raises(CheckpointError, match="missing"):
        BinaryLatentDiffusionPipeline.from_pretrained(run_copy)
    with pytest.raises(CheckpointError, match="no folder"):
        BinaryLatentDiffusionPipeline.from_pretrained(tmp_path / "a" / "b")


def test_a_variation_is_the_code_at_little_noise_and_another_picture_at_full_noise(pipe, picture):
    codes = pipe.encode([picture] * 3)
    options = {"num_inference_steps": 16, "generator": 2, "output_type": "latent"}
    near, far = (pipe.vary(codes, strength, **options).codes for strength in (1 / 64, 1.0))
    assert near.shape == far.shape == codes.shape
    changed = [float((varied != codes).float().mean()) for varied in (near, far)]
    assert changed[0] < 0.2 < changed[1]
    assert torch.equal(
        far[1:2], pipe.vary(codes[1:2], 1.0, **{**options, "generator": keyed_draws(2, "vary", [1])}).codes
    )
    assert torch.equal(far, pipe.vary(codes, 1.0, batch_size=2, **options).codes)


class Knows:
    """A prior that knows its codes: independent bits, each 1 with the probability p."""

    config = SimpleNamespace(is_conditional=False)

    def __init__(self, pipe: BinaryLatentDiffusionPipeline, p: float):
        self.diffusion, self.code_shape, self.device, self.p = pipe.diffusion, pipe.prior.code_shape, pipe.device, p

    def no_condition(self, count: int, device: torch.device) -> torch.Tensor:
        return torch.zeros(count, dtype=torch.long, device=device)

    def for_sampling(self) -> Knows:
        return self

    def __call__(self, z_t: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        flips = self.diffusion.flip_posterior(torch.full(z_t.shape, self.p), z_t, t).logit()
        return self.diffusion.flip_logits(flips, z_t)  # which is its own inverse


@pytest.mark.parametrize("generators", ["seed", "seeds", "torch"])
@pytest.mark.parametrize("strength, steps", [(0.5, 4), (0.75, 2)])
def test_a_variation_keeps_the_share_of_ones_that_the_prior_knows(pipe, monkeypatch, strength, steps, generators):
    """After a first step from t to t/2; honest draws leave the bound for one seed in a million (|z| < 4.9)."""
    n, p = 200, 0.1
    shape = (n, *pipe.prior.code_shape)
    codes = (torch.rand(shape, generator=torch.Generator().manual_seed(0)) < p).to(torch.uint8)
    monkeypatch.setattr(pipe.prior, "for_inference", lambda: Knows(pipe, p))
    generator = {
        "seed": 0, "seeds": list(range(n)), "torch": [torch.Generator().manual_seed(i) for i in range(n)]
    }[generators]  # fmt: skip
    seen = []
    pipe.vary(
        codes, strength, num_inference_steps=steps, temperature=1.0, generator=generator,
        output_type="latent", callback_on_step_end=lambda p, i, t, k: seen.append((i, t, k["latents"].clone())),
    )  # fmt: skip
    first = torch.cat([latents for i, _, latents in seen if i == 0]).double()
    t = next(t for i, t, _ in seen if i == 1)
    k = pipe.diffusion.retention(t)
    share = k * p + (1 - k) / 2
    assert t == round(strength * 32) and first.shape == shape
    assert abs(float(first.mean()) - share) < 4.9 * (share * (1 - share) / first.numel()) ** 0.5


def test_no_random_number_serves_two_purposes(pipe, picture, mask, monkeypatch):
    """Of one result, whatever makes it: each call of each key is drawn once."""
    drawn = []

    def spy(keys, call, count):
        drawn.extend((key, call) for key in keys.tolist())
        return hashed_uniform(keys, call, count)

    monkeypatch.setattr("bld.seeding.hashed_uniform", spy)
    codes = pipe.encode([picture] * 3)
    args = {"num_inference_steps": 4, "batch_size": 2}
    for make in (
        lambda own: pipe(3, generator=own, corrector_steps=1, final="draw", **args),
        lambda own: pipe.inpaint(picture, mask, 3, generator=own, known_bits="noised", resample=2, **args),
        lambda own: pipe.vary(codes, 1.0, generator=own, **args),
        lambda own: pipe.likelihood_bits(codes, generator=own, draws=2, **args),
    ):
        for generator in (5, [4, 5, 6], keyed_draws(5, "own", range(3))):
            drawn.clear()
            make(generator)
            assert len(drawn) > 3 and len(set(drawn)) == len(drawn)


def test_a_class_is_drawn_as_often_as_asked_alone_or_in_a_list(pipe):
    """One label alone means four images, unless the number per label is said."""
    options = {"num_inference_steps": 1, "generator": 0, "output_type": "latent"}
    assert len(pipe(class_labels=1, **options).codes) == 4
    for labels, each, count in ((1, 3, 3), ([1], 3, 3), ([1, 2], 2, 4), ([1, 2], 1, 2)):
        assert len(pipe(class_labels=labels, num_images_per_prompt=each, **options).codes) == count


@pytest.mark.parametrize("strength", [0, -0.1, 1.01, float("nan")])
def test_a_strength_outside_its_range_is_refused(pipe, picture, strength):
    with pytest.raises(SettingError, match="strength"):
        pipe.vary(pipe.encode(picture), strength)


def test_compiled_networks_make_the_same_images(trained_run: Path, monkeypatch: pytest.MonkeyPatch):
    """Traced as for torch.compile, and run without its code generator, which takes a minute."""
    pipe, plain = (BinaryLatentDiffusionPipeline.from_pretrained(trained_run) for _ in range(2))
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager", fullgraph=True))
    assert pipe.compile() is pipe
    options = {"num_inference_steps": 2, "generator": 0, "output_type": "pt", "class_labels": [1, 2]}
    mine, theirs = pipe(**options), plain(**options)
    assert pipe.prior._compiled_call_impl is not None
    torch.testing.assert_close(mine.images, theirs.images, rtol=0, atol=1e-4)
    torch.testing.assert_close(pipe.reconstruct(mine.images, "pt"), plain.reconstruct(mine.images, "pt"))


def test_compiling_asks_for_no_graphs_that_belong_to_one_thread(trained_run: Path, monkeypatch: pytest.MonkeyPatch):
    """The studio has a thread a request; "reduce-overhead" and "max-autotune" record graphs for the first alone."""
    asked = []
    monkeypatch.setattr(torch, "compile", lambda call, **options: asked.append(options.get("mode")) or call)
    pipe = BinaryLatentDiffusionPipeline.from_pretrained(trained_run).compile()
    pipe(1, num_inference_steps=2, generator=0)
    assert len(asked) >= 4 and set(asked) == {None}


def test_threads_share_a_pipeline(trained_run: Path):
    pipe = BinaryLatentDiffusionPipeline.from_pretrained(trained_run)
    options = {"num_inference_steps": 3, "output_type": "latent"}
    alone = [pipe(4, generator=seed, **options).codes for seed in range(6)]
    with ThreadPoolExecutor(3) as threads:
        together = list(threads.map(lambda seed: pipe(4, generator=seed, **options).codes, range(6)))
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_what_is_made_after_training_on_is_made_by_the_weights_of_then(trained_run: Path, picture, mask, guard):
    """By our own optimizer, which leaves no trace in the weights' version counters."""
    pipe, other = (BinaryLatentDiffusionPipeline.from_pretrained(trained_run) for _ in range(2))
    codes, options = pipe.encode(picture), {"generator": 0, "output_type": "latent", "num_inference_steps": 4}

    def made(by: BinaryLatentDiffusionPipeline) -> list[torch.Tensor]:
        with guard():
            return [
                by(8, **options).codes,
                by.inpaint(picture, mask, 8, **options).codes,
                by.vary(codes.repeat(8, 1, 1, 1), 0.9, batch_size=4, **options).codes,
                by.likelihood_bits(codes, generator=0),
            ]

    before = made(pipe)
    optimizer = torch.optim.AdamW(pipe.prior.parameters(), lr=0.02, fused=True)
    shape = pipe.prior.code_shape
    z, t = torch.ones(4, shape.positions, shape.c), torch.full((4,), 2)
    for _ in range(5):
        pipe.prior(z, t).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    other.prior.load_state_dict(pipe.prior.state_dict())
    after = made(pipe)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(after, made(other), strict=True))
    assert not any(torch.equal(mine, earlier) for mine, earlier in zip(after, before, strict=True))


# -- habits of users --------------------------------------------------------------------------------------


def test_what_the_pipeline_gives_it_takes_back(pipe):
    made = {kind: pipe(3, generator=0, num_inference_steps=2, output_type=kind).images for kind in ("pil", "np", "pt")}
    codes = {kind: pipe.encode(images) for kind, images in made.items()}
    assert torch.equal(codes["np"], codes["pt"]) and torch.equal(codes["pil"], codes["pt"])
    assert torch.equal(pipe.encode(pipe.preprocess(made["pil"])), codes["pil"])


def test_several_pictures_are_each_filled_and_depend_on_their_own_pixels(pipe, picture, mask):
    other = Image.fromarray(255 - np.asarray(picture))
    both = pipe.inpaint([picture, other], mask, num_images=2, generator=0).images
    assert len(both) == 4
    hole = np.asarray(mask) > 127
    for image, own in zip(both, [picture, picture, other, other], strict=True):
        assert (np.asarray(image)[~hole] == np.asarray(own)[~hole]).all()
    assert [x.tobytes() for x in both[:2]] == [x.tobytes() for x in pipe.inpaint(picture, mask, 2, generator=0).images]
    swapped = pipe.inpaint([other, picture], [mask, mask], class_labels=[1, 2], generator=[5, 6], output_type="latent")
    alone = pipe.inpaint(picture, mask, class_labels=2, generator=[6], output_type="latent")
    assert torch.equal(swapped.images[1:], alone.images)


def test_seeds_may_come_as_a_list(pipe):
    together = pipe(3, generator=[4, 5, 6], num_inference_steps=2, output_type="latent").images
    for row, seed in enumerate((4, 5, 6)):
        alone = pipe(1, generator=seed, num_inference_steps=2, output_type="latent").images
        assert torch.equal(together[row], alone[0])


def test_types_may_be_named(trained_run):
    for name in ("float16", "torch.float16", torch.float16):
        assert (
            BinaryLatentDiffusionPipeline.from_pretrained(trained_run, torch_dtype=name).prior.norm.weight.dtype
            == torch.float16
        )
    for wrong in ("float17", "int8", "nn", 16):
        with pytest.raises(SettingError, match="torch_dtype"):
            BinaryLatentDiffusionPipeline.from_pretrained(trained_run, torch_dtype=wrong)


@pytest.mark.parametrize("args", [
    {"guidance_scale": float("nan"), "class_labels": 1}, {"guidance_scale": float("inf"), "class_labels": 1},
    {"guidance_scale": "2", "class_labels": 1}, {"guidance_scale": True, "class_labels": 1}, {"temperature": [1, 2]},
    {"temperature": np.ones(2)}, {"temperature": torch.ones(2)}, {"temperature": 1j},
    {"temperature": float("nan")}, {"temperature": float("inf")},
    {"num_images": 2.5}, {"num_images": True}, {"num_images": "2"}, {"class_labels": 1.7}, {"class_labels": [1.0, 2.0]},
    {"class_labels": "²"}, {"class_labels": np.array([1.7, 2.0])}, {"class_labels": True}, {"batch_size": 0},
    {"batch_size": 1.5}, {"generator": 0.5}, {"generator": [1, 2.5]}, {"generator": "seed"},
    {"num_images_per_prompt": 1.5, "class_labels": 1, "num_images": None}, {"num_inference_steps": 8.0},
    {"num_inference_steps": "8"}, {"first_index": 1.5}, {"first_index": -1}, {"corrector_steps": 1.5},
    {"corrector_steps": -1}, {"num_inference_steps": True},
])  # fmt: skip
def test_numbers_that_are_none_are_refused_in_a_sentence(pipe, args):
    with pytest.raises(SettingError) as error:
        pipe(**{"num_images": 2, "num_inference_steps": 1, "generator": 0, **args})
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("kind", [np.int64, np.float32, np.float64, torch.tensor], ids=lambda kind: kind.__name__)
def test_numbers_of_numpy_and_torch_are_numbers(pipe, picture, kind):
    options = {"num_inference_steps": 2, "generator": 0, "output_type": "latent"}

    def codes(number):
        drawn = pipe(2, class_labels=1, guidance_scale=number(2), temperature=number(1), **options).codes
        return torch.cat([drawn, pipe.vary(pipe.encode(picture), number(1), **options).codes])

    assert torch.equal(codes(kind), codes(float))


class Texts:
    """A text encoder whose vectors tell how many texts it was given at a time."""

    model = SimpleNamespace(device=torch.device("cpu"))

    def encode(self, texts):
        return torch.tensor([[len(text), len(texts), 0.0] for text in texts])


@pytest.fixture
def conditioning():
    """Of a prior with vectors of width 3, which may be texts."""
    prior = Denoiser(DenoiserConfig(2, 2, 2, steps=4, condition_dim=3, dim=8, depth=1, heads=1))
    return Conditioning(prior, PipelineIndex([], text_encoder="texts"), Texts)


@pytest.mark.parametrize("asked", [{"prompt": "a"}, {"condition": [1, 2, 3]}, {"prompt": ["a"]}])
@pytest.mark.parametrize("count", [2.5, True, "3", 0])
def test_a_number_of_images_that_is_none_is_refused_with_one_prompt_or_vector_too(conditioning, asked, count):
    with pytest.raises(SettingError, match=r"images\b") as error:
        conditioning.rows(count, None, **asked)
    assert len(str(error.value).splitlines()) == 1
    assert len(conditioning.rows(np.int64(1), None, **asked)) == 1


def test_vectors_may_come_as_a_list_of_tensors_or_of_arrays(conditioning):
    arrays = [np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0])]
    tensors = [torch.from_numpy(array).requires_grad_() for array in arrays]
    expected = conditioning.rows(None, None, condition=np.stack(arrays))
    assert torch.equal(conditioning.rows(None, None, condition=arrays), expected)
    assert torch.equal(conditioning.rows(2, None, condition=tensors), expected)
    assert torch.equal(conditioning.rows(None, None, condition=[*torch.ones(3)]), torch.ones(1, 4))
    with pytest.raises(SettingError, match="array of numbers"):
        conditioning.rows(None, None, condition=[torch.ones(3), torch.ones(2)])


def test_the_vector_of_a_prompt_does_not_depend_on_the_prompts_beside_it(conditioning):
    assert torch.equal(conditioning.encode_prompt(["a", "bcd"])[1:], conditioning.encode_prompt("bcd"))


def test_numbers_that_are_none_are_refused_wherever_they_are_taken(pipe, picture, mask):
    codes = pipe.encode(picture)
    for ask in (
        *(lambda n=n: pipe.inpaint(picture, mask, resample=n, num_inference_steps=2) for n in (1.5, 0, "2")),
        *(lambda n=n: pipe.vary(codes, num_inference_steps=n) for n in (0, 2.0)),
        *(lambda n=n: pipe.vary(codes, n) for n in ("half", True)),
        *(lambda n=n: pipe.likelihood_bits(codes, num_inference_steps=n) for n in (0, 2.0)),
        *(lambda n=n: pipe.likelihood_bits(codes, num_inference_steps=1, draws=n) for n in (0, 1.5)),
        lambda: pipe.enable_tiling(1.5),
        *(
            lambda take=take, n=n: take(batch_size=n)
            for n in (0, 1.5, -3)
            for take in (
                lambda **size: pipe.vary(codes, num_inference_steps=1, **size),
                lambda **size: pipe.likelihood_bits(codes, num_inference_steps=1, **size),
                lambda **size: pipe.encode(picture, **size),
                lambda **size: pipe.decode(codes, **size),
                lambda **size: pipe.reconstruct(picture, **size),
                lambda **size: pipe.inpaint(picture, mask, num_inference_steps=1, **size),
            )
        ),
    ):
        with pytest.raises(SettingError) as error:
            ask()
        assert len(str(error.value).splitlines()) == 1


def test_bits_may_come_as_numbers_of_any_type(pipe, picture):
    codes = pipe.encode(picture)
    varied = pipe.vary(codes, generator=0, num_inference_steps=2, output_type="latent").images
    bits = pipe.likelihood_bits(codes, generator=0, num_inference_steps=2)
    for other in (codes.float(), codes.long(), codes.bool()):
        made = pipe.vary(other, generator=0, num_inference_steps=2, output_type="latent").images
        assert made.dtype == torch.uint8 and torch.equal(made, varied)
        assert torch.equal(pipe.likelihood_bits(other, generator=0, num_inference_steps=2), bits)


def test_numpy_numbers_are_numbers(pipe):
    plain = pipe(2, 3, generator=5, num_inference_steps=1, output_type="latent").images
    numbers = {"num_images": np.int64(2), "class_labels": np.int32(3), "generator": np.int64(5)}
    assert torch.equal(pipe(**numbers, num_inference_steps=1, output_type="latent").images, plain)


def test_codes_of_other_values_or_shapes_are_refused(pipe, picture):
    codes = pipe.encode(picture)
    for wrong in (codes + 7, codes.float() + 0.5, codes[0], codes[..., :3], codes.numpy()):
        for use in (pipe.decode, pipe.vary, pipe.likelihood_bits):
            with pytest.raises(SettingError, match="Codes"):
                use(wrong)
    args = {"num_images": 2, "generator": 0, "num_inference_steps": 4, "output_type": "latent"}
    for wrong in (lambda k: k["latents"] + 7, lambda k: "latents"):
        with pytest.raises(SettingError):
            pipe(**args, callback_on_step_end=lambda p, i, t, k, wrong=wrong: {"latents": wrong(k)})


def test_images_that_are_no_numbers_are_refused(pipe, mask):
    with pytest.raises(DataError, match="finite"):
        pipe.encode(torch.full((1, 3, 8, 8), float("nan")))
    with pytest.raises(DataError, match="finite"):
        pipe.inpaint(Image.new("RGB", (8, 8)), np.full((8, 8), np.nan))


def test_classes_that_are_called_by_numbers_are_asked_for_by_name(pipe):
    import copy
    from dataclasses import replace

    named = copy.copy(pipe)
    named.index = replace(pipe.index, classes=[str(n) for n in (1, 2, 10, 20, 30, 40, 50, 60, 70, 80)])
    assert [named.class_index(label) for label in ("1", "10", 0, 2)] == [0, 2, 0, 2]
    for unknown in ("0", "3", "01"):
        with pytest.raises(SettingError, match="Unknown class"):
            named.class_index(unknown)
    words = copy.copy(pipe)
    words.index = replace(pipe.index, classes=list("abcdefghij"))
    assert [words.class_index(label) for label in ("a", "1", "09")] == [0, 1, 9]


def test_the_end_of_sampling_can_be_chosen(pipe, picture, mask):
    args = {"generator": 0, "num_inference_steps": 4, "output_type": "latent"}
    ends = {final: pipe(4, **args, final=final).images for final in ("threshold", "draw", "z1")}
    assert torch.equal(ends["threshold"], pipe(4, **args).images)
    assert not torch.equal(ends["z1"], ends["threshold"]) and not torch.equal(ends["draw"], ends["z1"])
    filled = {final: pipe.inpaint(picture, mask, 3, **args, final=final).images for final in ("threshold", "z1")}
    assert not torch.equal(filled["threshold"], filled["z1"])
    with pytest.raises(SettingError, match="final is"):
        pipe(4, **args, final="last")
