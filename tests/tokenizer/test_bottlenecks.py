"""The bottlenecks of Table 4 in one autoencoder: what their codes are, and what they pass on."""

from __future__ import annotations

import builtins
import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bld.errors import MissingPackageError, SettingError
from bld.seeding import keyed_draws, keyed_generator
from bld.serialization.models import load_tokenizer, save_model, tokenizer_hash
from bld.tokenizer import AutoencoderConfig, BinaryAutoencoder, ObjectiveConfig, ReconstructionObjective
from bld.tokenizer.bottlenecks.bernoulli import SPREAD, Gray
from bld.tokenizer.bottlenecks.gaussian import Gaussian, kl_nats
from bld.tokenizer.gray_code import folds, levels

TINY = AutoencoderConfig(8, 4, 8, (1, 2), 1, attention_resolutions=(), embed_dim=8)
KINDS = ("bernoulli", "gray", "vq", "gaussian")


def build(kind: str, seed: int = 0, **settings: object) -> BinaryAutoencoder:
    if kind == "vq":
        pytest.importorskip("vector_quantize_pytorch")
    torch.manual_seed(seed)
    if kind == "gray":
        kind, settings = "bernoulli", {"bits_per_value": 2, **settings}
    model = BinaryAutoencoder(dataclasses.replace(TINY, bottleneck=kind, **settings)).eval()
    torch.nn.init.normal_(model.encoder.to_logits.weight, std=1.0)  # features away from 0
    return model


def pictures(count: int) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("kind", KINDS)
def test_images_become_codes_and_codes_images(kind: str):
    model, images = build(kind), pictures(3)
    codes = model.encode(images)
    assert codes.shape == (3, 4, 4, 4) and model.decode(codes).shape == images.shape
    assert model.is_binary == (kind != "gaussian")
    assert codes.dtype == (torch.float32 if kind == "gaussian" else torch.uint8)
    if model.is_binary:
        assert ((codes == 0) | (codes == 1)).all() and codes.float().std() > 0
    with torch.no_grad():  # with gradients layers may sum in another order
        output = model(images)
    assert torch.equal(output.bits, codes)
    torch.testing.assert_close(output.reconstruction, model.decode(codes), rtol=0, atol=1e-5)
    assert (output.probs is not None) == (kind in ("bernoulli", "gray"))
    assert set(output.penalties) == {"vq": {"commitment"}, "gaussian": {"kl"}}.get(kind, set())


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_reaches_the_encoder(kind: str):
    model, images = build(kind).train(), pictures(2)
    output = model(images, model.draw_noise(2, keyed_draws(0, "n", range(2))))
    gradient = torch.autograd.grad(output.reconstruction.square().mean(), model.encoder.conv_in.weight)[0]
    assert gradient.abs().sum() > 0
    assert not any(key.requires_grad for key in (output.bits,))


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_tokenizer_comes_back_with_the_same_codes_and_moves_to_a_device(kind: str, tmp_path: Path):
    model, images = build(kind), pictures(2)
    save_model(tmp_path, model)
    loaded = load_tokenizer(tmp_path).to("cpu")
    assert not any(tensor.is_meta for tensor in [*loaded.parameters(), *loaded.buffers()])
    assert loaded.config == model.config and tokenizer_hash(loaded) == tokenizer_hash(model)
    codes = model.encode(images)
    assert torch.equal(loaded.encode(images), codes)
    assert torch.equal(loaded.decode(codes), model.decode(codes))
    with torch.no_grad():
        assert torch.equal(loaded.train()(images).bits, codes)


@pytest.mark.parametrize("kind", KINDS)
def test_codes_drawn_depend_on_the_images_own_generator_only(kind: str):
    model, images = build(kind), pictures(6)
    together = model.encode(images, keyed_draws(3, "encode", range(6)))
    alone = [model.encode(images[i : i + 1], keyed_draws(3, "encode", [i])) for i in range(6)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)
    assert torch.equal(together, model.encode(images)) == (kind == "vq")  # a nearest vector is not drawn


@pytest.mark.parametrize("kind", KINDS)
def test_a_half_precision_tokenizer_still_gives_its_codes(kind: str):
    model = build(kind).bfloat16()
    codes = model.encode(pictures(1))
    assert codes.dtype == (torch.float32 if kind == "gaussian" else torch.uint8)
    assert model.decode(codes).dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_each_learns_a_few_images(kind: str):
    model, images = build(kind, code_bits=6).train(), pictures(8)
    objective = ReconstructionObjective(ObjectiveConfig(perceptual=0, adversarial=0))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for step in range(40):
        out = model(images, model.draw_noise(8, keyed_generator(0, "noise", step)))
        loss = objective(out.reconstruction, images, out.probs, penalties=out.penalties)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        losses.append(float(loss.terms["mse"]))
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert losses[-1] < float(images.var())  # better than the best grey


# -- numbers in Gray code ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(1, 9))
def test_each_gray_code_names_a_level_of_its_own_and_neighbours_differ_by_one_bit(bits: int):
    codes = (torch.arange(2**bits)[:, None] >> torch.arange(bits)) & 1
    found = levels(2.0 * codes - 1, bits).flatten()
    order = found.argsort()
    assert torch.equal(found[order], (2 * torch.arange(2**bits) + 1) / 2**bits - 1)  # the middles of equal intervals
    assert ((codes[order][1:] != codes[order][:-1]).sum(1) == 1).all()
    assert torch.equal((folds(found[:, None], bits) > 0).long(), codes)  # each level has its own code


@pytest.mark.parametrize("bits", [1, 2, 3, 5])
def test_a_number_is_rounded_to_its_nearest_level_and_passes_on_its_gradient(bits: int):
    gray = Gray(2 * bits, bits)
    numbers = torch.linspace(-0.999, 0.999, 1998).view(1, 1, 999, 2)
    features = (4 * numbers.atanh()).requires_grad_()
    out = gray(features)
    rounded = out.latent[..., :2] / SPREAD
    assert (rounded - numbers).abs().max() <= 2.0**-bits + 1e-5
    assert torch.equal(out.latent.detach(), gray.latent(gray.codes(features.detach())))
    gradient = torch.autograd.grad(out.latent.sum(), features)[0]
    torch.testing.assert_close(gradient, SPREAD * (1 - numbers**2) / 4, rtol=1e-3, atol=1e-6)


def test_a_gray_bit_is_a_coin_at_its_threshold_where_all_others_are_sure():
    """The first bit of a number of 8 levels has its threshold at 0, the second at ±1/2, the third at ±1/4 and ±3/4."""
    gray = Gray(3, 3, bit_noise=0.2)
    for number, coin in ((0.0, 0), (0.5, 1), (-0.5, 1), (0.25, 2), (-0.75, 2)):
        probs = gray.probs(4 * torch.tensor([number]).atanh().view(1, 1, 1, 1)).flatten()
        assert probs[coin] == pytest.approx(0.5, abs=1e-4)
        assert all(min(p, 1 - p) < 1e-4 for i, p in enumerate(probs.tolist()) if i != coin)


def test_bits_turned_over_are_seen_by_the_decoder_alone():
    gray, features = Gray(4, 2), torch.randn(2, 3, 3, 2, generator=torch.Generator().manual_seed(0))
    flips = torch.zeros(2, 3, 3, 4, dtype=torch.bool)
    flips[0, 0, 0, 0] = True
    plain, turned = gray(features), gray(features, flips=flips)
    assert torch.equal(plain.codes, turned.codes)
    torch.testing.assert_close(turned.latent[0, 0, 0, 0], -plain.latent[0, 0, 0, 0])  # the first bit is the sign
    assert torch.equal((turned.latent != plain.latent).nonzero(), torch.tensor([[0, 0, 0, 0]]))


# -- real values ------------------------------------------------------------------------------------------


def test_the_kl_is_that_of_normal_distributions_in_nats():
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(3, 2, 2, 4, generator=generator, dtype=torch.float64)
    log_variance = torch.randn(3, 2, 2, 4, generator=generator, dtype=torch.float64)
    mine = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    unit = torch.distributions.Normal(torch.zeros(()).double(), torch.ones(()).double())
    expected = torch.distributions.kl_divergence(mine, unit).sum((1, 2, 3)).mean()
    torch.testing.assert_close(kl_nats(mean, log_variance), expected)
    out = Gaussian(4)(torch.cat([mean, log_variance], -1).float())
    torch.testing.assert_close(out.penalties["kl"], expected.float())
    assert kl_nats(torch.zeros(1, 2), torch.zeros(1, 2)) == 0


def test_gaussian_codes_have_the_mean_and_variance_the_encoder_gives():
    count = 4000
    features = torch.tensor([2.0, -1.0, 0.0, -2.0]).expand(count, 1, 1, 4)  # two means, two log-variances
    bottleneck = Gaussian(2)
    assert torch.equal(bottleneck.codes(features)[0].flatten(), torch.tensor([2.0, -1.0]))
    draws = bottleneck.codes(features, bottleneck.noise((count, 1, 1, 2), keyed_generator(0, "x"), torch.device("cpu")))
    draws = draws.view(count, 2).double()
    deviation = torch.tensor([1.0, torch.tensor(-1.0).exp()]).double()
    # 5.5 standard errors, four comparisons: false alarm below 2e-7.
    assert ((draws.mean(0) - torch.tensor([2.0, -1.0])).abs() < 5.5 * deviation / count**0.5).all()
    assert ((draws.std(0) / deviation - 1).abs() < 5.5 / (2 * count) ** 0.5).all()


def test_extreme_log_variances_are_cut_off():
    features = torch.tensor([0.0, 500.0]).view(1, 1, 1, 2)
    out = Gaussian(1)(features, torch.ones(1, 1, 1, 1))
    assert out.latent.isfinite().all() and out.penalties["kl"].isfinite()
    assert out.latent.item() == pytest.approx(float(torch.tensor(10.0).exp()), rel=1e-5)
    assert Gaussian(1)(-features).penalties["kl"].item() == pytest.approx(0.5 * (30 - 1), rel=1e-5)


# -- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vq", "gaussian"])
def test_only_bits_that_are_drawn_have_probabilities(kind: str):
    with pytest.raises(SettingError, match=rf"tokenizer\.bottleneck={kind} .*\bencode\b"):
        build(kind).encode_probs(pictures(1))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"bottleneck": "gausian"}, r"tokenizer\.bottleneck 'gausian'.*'gaussian'\?"),
        (
            {"code_bits": 16, "bits_per_value": 3},
            r"tokenizer\.bits_per_value is 3\b.*\b16: choose 1 or 2 or 4 or 8\.",
        ),
        ({"bits_per_value": 16}, r"tokenizer\.bits_per_value is 16\b.*choose 1 or 2 or 4 or 8\."),
        ({"bottleneck": "vq"}, r"tokenizer\.code_bits is 32\b.*\bvq\b.* 16\b"),
    ],
)
def test_an_impossible_bottleneck_is_refused_with_its_value_and_a_cure(settings: dict, message: str):
    with pytest.raises(SettingError, match=message):
        AutoencoderConfig(**settings)


def test_without_its_package_a_vq_tokenizer_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def absent(name: str, *rest: object) -> object:
        if name == "vector_quantize_pytorch":
            raise ImportError("No module named 'vector_quantize_pytorch'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MissingPackageError, match=r"binary-latent-diffusion\[vq\].*tokenizer.bottleneck=bernoulli"):
        BinaryAutoencoder(dataclasses.replace(TINY, bottleneck="vq"))
    BinaryAutoencoder(TINY)


def test_the_entropy_of_bits_that_are_not_drawn_is_refused():
    objective = ReconstructionObjective(ObjectiveConfig(perceptual=0, code_entropy=0.1))
    images = pictures(1)
    with pytest.raises(SettingError, match=r"objective\.code_entropy=0\.1 .*to 0\b.*tokenizer\.bottleneck=bernoulli"):
        objective(images, images, None)
