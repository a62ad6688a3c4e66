"""What a prior is conditioned on: labels or vectors, and what stands for none of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bld.diffusion import with_guidance
from bld.errors import SettingError
from bld.io.files import read_json, write_json
from bld.nn.attention import attention
from bld.priors import KINDS, Autoregression, DenoiserConfig, Transformer
from bld.priors.embeddings import StepSinusoids, VectorToken
from bld.seeding import keyed_draws
from bld.serialization.models import load_prior, save_model

N, C, V = 6, 3, 5
NAMES = sorted(KINDS)
CONDITIONS = {"labels": {"num_classes": 4}, "vectors": {"condition_dim": V}}


def build(kind: str, **settings: object) -> Transformer:
    """A small network of the kind, untrained but far from its zero start."""
    torch.manual_seed(0)
    config = DenoiserConfig(2, 3, C, steps=N, dim=16, depth=2, heads=4, **settings)
    model = KINDS[kind].network(config).eval()
    nn.init.normal_(model.head.weight, std=0.5)
    for name, parameter in model.named_parameters():
        if name.startswith(("classes", "vectors", "no_vector", "blocks")) and not name.endswith("bias"):
            nn.init.normal_(parameter, std=1.0 if "blocks" not in name else 0.3)
    return model


def inputs(kind: str, count: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    z = torch.randint(0, 2, (count, N, C), dtype=torch.uint8, generator=generator)
    return (z.float() if kind == "gaussian" else z), 1 + torch.arange(count) % N


def conditions(what: str, count: int = 4) -> Tensor:
    return torch.arange(count) % 4 if what == "labels" else torch.randn(count, V, generator=torch.Generator("cpu"))


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("what", sorted(CONDITIONS))
@torch.no_grad()
def test_an_absent_condition_is_no_token_at_all_beside_samples_that_have_one(kind: str, what: str):
    """In one batch: those without equal a forward without the token, those with one a forward where all have one."""
    model = build(kind, **CONDITIONS[what], null_condition="absent")
    (z, t), condition = inputs(kind), conditions(what)
    drop = torch.tensor([True, False, True, False])
    mixed = model(z, t, model.dropped(condition, drop))
    given, bare = model(z, t, condition), model(z, t)
    torch.testing.assert_close(mixed[~drop], given[~drop], rtol=0, atol=1e-5)
    torch.testing.assert_close(mixed[drop], bare[drop], rtol=0, atol=1e-5)
    assert (given - bare).abs().amax((1, 2)).min() > 1e-2
    torch.testing.assert_close(model(z, t, model.no_condition(4)), bare, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", NAMES)
@torch.no_grad()
def test_without_the_token_only_the_step_token_stands_beside_the_positions(kind: str):
    """An unconditional network with the same weights gives the same: nothing of the condition is left."""
    model, plain = build(kind, condition_dim=V, null_condition="absent"), build(kind)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("vectors")})
    z, t = inputs(kind)
    assert torch.equal(model(z, t), plain(z, t))


@pytest.mark.parametrize("kind", NAMES)
@torch.no_grad()
def test_no_vector_is_a_learned_token_where_it_is_not_absent(kind: str):
    model = build(kind, condition_dim=V)
    (z, t), vectors = inputs(kind), conditions("vectors")
    none = model(z, t)
    assert torch.equal(none, model(z, t, model.no_condition(4)))
    assert torch.equal(none, model(z, t, model.dropped(vectors, torch.ones(4, dtype=torch.bool))))
    assert torch.equal(model(z, t, vectors), model(z, t, model.dropped(vectors, torch.zeros(4, dtype=torch.bool))))
    assert not torch.allclose(none, model(z, t, torch.zeros(4, V)))  # zeros are a vector like others
    model.no_vector *= -1
    assert not torch.allclose(none, model(z, t))


@pytest.mark.parametrize("null", ["learned", "absent"])
@pytest.mark.parametrize("what", sorted(CONDITIONS))
@pytest.mark.parametrize("kind", [kind for kind in NAMES if kind != "autoregressive"])
@torch.no_grad()
def test_guidance_in_one_forward_equals_two(kind: str, what: str, null: str):
    model = build(kind, **CONDITIONS[what], null_condition=null)
    (z, t), condition = inputs(kind), conditions(what)
    condition = model.dropped(condition, torch.tensor([False, False, False, True]))
    found = with_guidance(model, condition, model.no_condition(4), 3.0)(z, t)
    expected = 3 * model(z, t, condition) - 2 * model(z, t)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("null", ["learned", "absent"])
@pytest.mark.parametrize("what", sorted(CONDITIONS))
@torch.no_grad()
def test_the_cached_walk_gives_the_same_logits_as_the_full_pass(what: str, null: str):
    model = build("autoregressive", **CONDITIONS[what], null_condition=null)
    z, _ = inputs("autoregressive")
    condition = model.dropped(conditions(what), torch.tensor([True, False, False, True]))
    whole, walk = model(z, condition=condition), model.for_sampling()
    for i in range(N):
        logits = walk(z, torch.full((len(z),), i + 1), condition)
        torch.testing.assert_close(logits[:, 0], whole[:, i], rtol=0, atol=1e-5)


@pytest.mark.parametrize("null", ["learned", "absent"])
@torch.no_grad()
def test_a_guided_walk_over_positions_samples_with_vectors(null: str):
    model = build("autoregressive", condition_dim=V, null_condition=null)

    def draw(rows: range) -> Tensor:
        condition = conditions("vectors", 6)[rows.start : rows.stop]
        denoise = with_guidance(model.for_sampling(), model.dropped(condition, torch.zeros(len(rows)).bool()),
                                model.no_condition(len(rows)), 2.0)  # fmt: skip
        return Autoregression(N).sample(denoise, (len(rows), N, C), generators=keyed_draws(3, "sample", rows))

    assert torch.equal(draw(range(6))[2:4], draw(range(2, 4)))


@torch.no_grad()
def test_vectors_are_centred_and_scaled_by_numbers_kept_with_the_weights():
    model, moved = build("bernoulli", condition_dim=V), build("bernoulli", condition_dim=V)
    assert {"vectors.mean", "vectors.scale"} <= model.state_dict().keys()
    moved.vectors.mean += 7
    moved.vectors.scale *= 2
    (z, t), vectors = inputs("bernoulli"), conditions("vectors")
    torch.testing.assert_close(model(z, t, vectors), moved(z, t, 2 * vectors + 7), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("what", ["vector", "step"])
@torch.no_grad()
def test_a_token_has_the_same_numbers_alone_and_in_a_batch_of_any_size(what: str):
    torch.manual_seed(0)
    token = VectorToken(48, 128) if what == "vector" else StepSinusoids(64, 128)
    given = torch.randn(17, 48) if what == "vector" else torch.full((17,), 7)
    whole = token(given)
    for size in (1, 2, 7, 8):
        assert torch.equal(torch.cat([token(part) for part in given.split(size)]), whole), size


def test_a_hidden_token_is_seen_by_itself_alone():
    """Causal or not, written out (bfloat16 on a CPU) or fused, a hidden token never makes a not-a-number."""
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v = torch.randn(3, 2, 2, 5, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
        visible = torch.ones(2, 5, dtype=torch.bool)
        visible[1, 0] = False
        for causal in (False, True):
            y = attention(q, k, v, causal, visible)
            without = attention(q[:, :, 1:], k[:, :, 1:], v[:, :, 1:], causal)
            assert y.isfinite().all()
            torch.testing.assert_close(y[1, :, 1:], without[1])
            torch.testing.assert_close(y[0], attention(q, k, v, causal)[0])


def test_a_config_from_before_there_was_a_choice_loads_and_means_the_same(tmp_path):
    model = build("bernoulli", num_classes=4)
    save_model(tmp_path, model)
    fields = read_json(tmp_path / "config.json")
    write_json(
        tmp_path / "config.json", {k: v for k, v in fields.items() if k not in ("condition_dim", "null_condition")}
    )
    again = load_prior(tmp_path)
    assert again.config == model.config and again.config.null_condition == "learned"
    (z, t), labels = inputs("bernoulli"), torch.tensor([0, 1, 4, 3])
    assert torch.equal(again(z, t, labels), model(z, t, labels))


def test_the_absent_null_has_no_parameters():
    for what, fewer in (("labels", 16), ("vectors", 16)):
        sizes = {
            null: sum(p.numel() for p in build("bernoulli", **CONDITIONS[what], null_condition=null).parameters())
            for null in ("learned", "absent")
        }
        assert sizes["learned"] - sizes["absent"] == fewer


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"num_classes": 3, "condition_dim": 5}, r"\b3 classes.* width 5: .*num_classes.*condition_dim"),
        ({"condition_dim": -1}, r"prior\.condition_dim is -1\b.* 0 .*65536"),
        ({"condition_dim": 10**9}, r"prior\.condition_dim is 1000000000\b.*65536"),
        ({"null_condition": "absnt"}, r"prior\.null_condition 'absnt'.*'absent'\?"),
    ],
)
def test_an_impossible_condition_is_refused_with_its_value_and_a_cure(settings: dict, message: str):
    with pytest.raises(SettingError, match=message):
        DenoiserConfig(**settings)


@pytest.mark.parametrize(
    "what, condition, message",
    [
        ("vectors", torch.zeros(4, V + 2), r"vectors.* float \(B, 5\).*float32 \(4, 7\)"),
        ("vectors", torch.zeros(4, dtype=torch.long), r"vectors.* float \(B, 5\).*int64 \(4,\)"),
        ("labels", torch.zeros(4, V), r"labels.* int64 \(B,\).*float32 \(4, 5\)"),
    ],
)
def test_a_condition_of_another_kind_is_refused(what: str, condition: Tensor, message: str):
    with pytest.raises(SettingError, match=message):
        build("bernoulli", **CONDITIONS[what])(*inputs("bernoulli"), condition)
