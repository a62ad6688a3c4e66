from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from bld.diffusion import BernoulliDiffusion, NoiseSchedule
from bld.errors import SettingError
from bld.priors import Denoiser, DenoiserConfig

SMALL = {"code_height": 3, "code_width": 4, "code_bits": 5, "steps": 8, "dim": 16, "depth": 2, "heads": 4}


def build(seed: int = 0, **settings: object) -> Denoiser:
    """A small denoiser whose head does not start at zero."""
    torch.manual_seed(seed)
    model = Denoiser(DenoiserConfig(**{**SMALL, **settings})).eval()
    nn.init.normal_(model.head.weight, std=0.5)
    return model


def codes(count: int) -> torch.Tensor:
    return torch.randint(0, 2, (count, 12, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("num_classes", [0, 7])
@pytest.mark.parametrize("step_embedding", ["table", "sinusoidal"])
@pytest.mark.parametrize("evidence", ["none", "flip", "value"])
@pytest.mark.parametrize("layer_scale", [0.0, 1e-2])
def test_it_maps_codes_to_logits_of_the_same_shape(
    num_classes: int, step_embedding: str, evidence: str, layer_scale: float
):
    model = build(num_classes=num_classes, step_embedding=step_embedding, evidence=evidence, layer_scale=layer_scale)
    t = torch.tensor([1, 4, 8])
    for z_t in (codes(3), codes(3).bool(), codes(3).float()):
        logits = model(z_t, t, torch.tensor([0, 6, 7]) if num_classes else None)
        assert logits.shape == (3, 12, 5) and logits.dtype == torch.float32 and logits.isfinite().all()
    assert model.bfloat16()(codes(3), t).dtype == torch.float32


@pytest.mark.parametrize("step_embedding", ["table", "sinusoidal"])
def test_bits_step_position_and_class_all_matter(step_embedding: str):
    model = build(num_classes=3, step_embedding=step_embedding)
    z, t, label = codes(1), torch.tensor([4]), torch.tensor([1])
    base = model(z, t, label)
    other = z.clone()
    other[0, 11, 4] ^= 1
    changed = model(other, t, label)
    assert not torch.equal(changed[0, 0], base[0, 0])  # every position hears of every other
    assert not torch.equal(model(z, torch.tensor([5]), label), base)
    assert not torch.equal(model(z, t, torch.tensor([2])), base)
    uniform = torch.zeros_like(z)
    assert not torch.allclose(model(uniform, t, label)[0, 0], model(uniform, t, label)[0, 1])


def test_no_labels_are_the_null_token():
    model = build(num_classes=3)
    t = torch.tensor([2, 5])
    null = torch.full((2,), model.null_label)
    assert model.null_label == 3
    assert torch.equal(model(codes(2), t), model(codes(2), t, null))
    assert not torch.equal(model(codes(2), t), model(codes(2), t, torch.tensor([0, 0])))


def test_logits_do_not_depend_on_the_batch():
    model = build(num_classes=3)
    t, labels = torch.arange(1, 9), torch.arange(8) % 4
    together = model(codes(8), t, labels)
    alone = [model(codes(8)[i : i + 1], t[i : i + 1], labels[i : i + 1]) for i in range(8)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)


def test_it_starts_out_knowing_nothing():
    model = Denoiser(DenoiserConfig(**SMALL))
    assert (model(codes(2), torch.tensor([1, 8])) == 0).all()


@pytest.mark.parametrize("side", [1, 2])
def test_a_token_of_a_patch_gives_each_of_its_positions_its_own_logits(side: int):
    """A network that passes on what it is given: what comes out at a position is what went in there."""
    shape = {"code_height": 4, "code_width": 6, "code_bits": 3}
    model = build(**shape, depth=1, dim=16, patch_size=side)
    with torch.no_grad():
        for block in model.blocks:
            block.attention.out.weight.zero_(), block.contract.weight.zero_()
        model.positions.zero_()
        model.norm = nn.Identity()
        model.embed.weight.zero_(), model.head.weight.zero_()
        width = 3 * side**2
        model.embed.weight[:width], model.head.weight[:, :width] = torch.eye(width), torch.eye(width)
    z = torch.randint(0, 2, (5, 24, 3), dtype=torch.uint8)
    assert torch.equal(model(z, torch.tensor([1, 2, 3, 4, 5])), 2.0 * z - 1)
    assert model.blocks[0](model.tokens_of(z.float()), visible=None).shape == (5, 24 // side**2, 16)


def test_patches_see_one_another_and_cost_less():
    fine, coarse = (build(code_height=4, code_width=4, patch_size=side) for side in (1, 2))
    z = torch.randint(0, 2, (1, 16, 5), dtype=torch.uint8)
    other = z.clone()
    other[0, 15, 4] ^= 1
    t = torch.tensor([4])
    assert not torch.equal(coarse(z, t)[0, 0], coarse(other, t)[0, 0])
    for model, tokens in ((fine, 16), (coarse, 4)):
        assert len(model.positions) == tokens
    assert DenoiserConfig(**{**SMALL, "code_height": 4, "patch_size": 2}).code_shape == (4, 4, 5)


def test_positions_start_as_the_two_dimensional_sine_embedding():
    model = Denoiser(DenoiserConfig(**{**SMALL, "dim": 16}))
    frequencies = [10000 ** (-i / 3) for i in range(4)]
    for row in range(3):
        for column in range(4):
            expected = [f(x * w) for x in (row, column) for f in (math.sin, math.cos) for w in frequencies]
            torch.testing.assert_close(model.positions[row * 4 + column], torch.tensor(expected), rtol=0, atol=1e-5)
    assert model.positions.requires_grad


def test_the_step_table_is_trained_and_the_sinusoids_are_not():
    table, sinusoids = build(step_embedding="table"), build(step_embedding="sinusoidal")
    assert table.step.table.shape == (8, 16) and table.step.table.requires_grad
    assert torch.equal(table.step(torch.tensor([1, 8])), table.step.table[[0, 7]])
    assert len(torch.unique(table.step.table, dim=0)) == 8
    assert sinusoids.step(torch.tensor([1, 8])).shape == (2, 16)
    more = build(step_embedding="sinusoidal", steps=800)
    assert sum(p.numel() for p in more.parameters()) == sum(p.numel() for p in sinusoids.parameters())


def parameters(**settings: object) -> int:
    with torch.device("meta"):
        model = Denoiser(DenoiserConfig(**settings))
    return sum(p.numel() for p in model.parameters())


def test_the_papers_sizes():
    def transformer(dim: int, bits: int, tokens: int) -> int:
        block = 12 * dim * dim + 13 * dim  # attention 4D² + 4D, MLP 8D² + 5D, two norms 4D
        return 24 * block + (tokens + 256) * dim + bits * dim + dim + 2 * dim + dim * bits + bits

    assert parameters() == transformer(512, 32, tokens=64)
    conditional = parameters(code_bits=64, num_classes=1000, dim=768, heads=12)
    assert conditional == transformer(768, 64, tokens=64 + 1001)
    assert conditional == pytest.approx(172e6, rel=0.005)  # Table 2 says 172M


@pytest.mark.parametrize("target, evidence", [("flip", "flip"), ("z0", "value"), ("previous", "value")])
@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_for_independent_fair_coins_the_evidence_is_all_there_is(target: str, evidence: str, kind: str):
    """A head at zero plus evidence is the exact posterior, so that the loss is that of the base rate."""
    diffusion = BernoulliDiffusion(NoiseSchedule(kind, 8), target=target)
    model = Denoiser(DenoiserConfig(**SMALL, evidence=evidence), diffusion.evidence_logits())
    z_0, z_t = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    z_0, z_t = (z.to(torch.uint8).view(4, 1, 1).expand(4, 12, 5) for z in (z_0, z_t))
    for t in range(1, 9):
        k, kept = diffusion.retention(t), 1 - diffusion.schedule.beta[t - 1].item()
        logits = model(z_t, torch.full((4,), t))
        s = t - 1 if target == "previous" else 0
        found = diffusion.reverse_probs(logits, z_t, t, s)
        one = (1 + (kept if target == "previous" else k)) / 2  # P(z_s = z_t), by symmetry of a fair coin
        expected = torch.where(z_t == 1, one, 1 - one).float()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        if target != "previous":
            flip = (1 - k) / 2
            weights = torch.where(z_0 == z_t, 1 - flip, flip)[:, 0, 0] / 2
            losses = [
                diffusion.loss(logits[i : i + 1], z_0[i : i + 1], z_t[i : i + 1], torch.tensor([t])).residual.item()
                for i in range(4)
            ]
            entropy = -sum(p * math.log(p) for p in (flip, 1 - flip))
            assert sum(w * x for w, x in zip(weights.tolist(), losses, strict=True)) == pytest.approx(entropy, abs=1e-6)


def test_evidence_is_kept_with_the_weights():
    evidence = BernoulliDiffusion(NoiseSchedule("linear", 8)).evidence_logits()
    model = Denoiser(DenoiserConfig(**SMALL, evidence="flip"), evidence)
    assert torch.equal(model.state_dict()["evidence_logits"], evidence)
    assert "evidence_logits" not in Denoiser(DenoiserConfig(**SMALL)).state_dict()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"depth": 0}, r"prior\.depth is 0\b.*\b1 to 1000"),
        ({"steps": -3}, "prior.steps is -3"),
        ({"num_classes": -1}, "prior.num_classes.*not -1"),
        ({"dim": 510}, r"prior\.dim \(510\).*prior\.heads \(8\)"),
        ({"dim": 18, "heads": 2}, r"prior\.dim \(18\).* 4\b"),
        ({"patch_size": 3}, r"prior.patch_size is 3.*16×16"),
        ({"patch_size": 0}, r"prior.patch_size is 0"),
        ({"mlp_ratio": 0.0}, r"prior\.mlp_ratio is 0\.0\b.*above 0"),
        ({"layer_scale": -1.0}, "prior.layer_scale is -1.0"),
        ({"step_embedding": "tabel"}, r"prior\.step_embedding.*'tabel'.*'table'\?"),
        ({"evidence": "flips"}, r"prior\.evidence.*'flips'.*'flip'\?"),
    ],
)
def test_an_impossible_denoiser_is_refused_with_its_value_and_a_cure(settings: dict, message: str):
    with pytest.raises(SettingError, match=message):
        DenoiserConfig(**settings)
