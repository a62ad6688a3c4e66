"""Settings from a run's `config.yaml`, presets and `key=value` overrides; the later win."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from bld.errors import SettingError, did_you_mean
from bld.training.settings import Settings, leaves, plain, settings_tree, tree_of

FAITHFUL = (
    "tokenizer.decoder_res_blocks=3",
    "tokenizer.bit_noise=1",
    "tokenizer.bits_per_value=1",
    "objective.bit_flips=0",
    "tokenizer_training.ema_decay=0",
    "tokenizer_training.clip_norm=0",
    "tokenizer_training.optimizer=adamw",
    "codes.fresh=true",
    "prior.evidence=false",
    "prior.null_condition=absent",
    "prior.patch_size=1",
    "prior.soft_targets=false",
    "prior.inpainting=0",
    "prior.guide=0",
    "diffusion.target=flip",
    "prior_training.ema_decay=0",
    "prior_training.clip_norm=0",
    "prior_training.optimizer=adamw",
    "sampling.steps=0",
)
"""The paper's method to the letter, over any preset: three residual blocks a level in the decoder, a logit for each
bit, codes drawn anew at each step, a token for each position, the network's output as it is, the condition's token left
out for guidance, flip as the target, all T steps, Adam, and neither weight averages nor gradient clipping, of which the
paper says nothing."""


def preset_names() -> list[str]:
    """The presets shipped with the package."""
    folder = resources.files("bld.presets")
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_settings(
    preset: str | None = None,
    base: dict[str, Any] | None = None,
    overrides: Sequence[str] = (),
    over: dict[str, Any] | None = None,
) -> Settings:
    """Settings (see the page Settings) from defaults, `base`, `preset`, `over` and `overrides`; later ones win.

    Args:
        preset: name of a preset (`preset_names`), or a YAML file.
        base: nested dict of settings, such as those of a run.
        overrides: texts `key=value`, with dotted keys, such as prior.dim=256.
        over: nested dict of settings.

    Raises:
        SettingError: for an unknown preset or key, naming the nearest one, or an impossible value.
    """
    tree = dict(base or {})
    if preset is not None:
        tree = {**overlaid(tree, _read_preset(preset)), "preset": preset}
    tree = overlaid(tree, over or {})
    for key, _ in leaves(tree):
        _check_key(key)
    given = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise SettingError(f"'{override}' is not a setting: write key=value, for example prior.dim=256.")
        _check_key(key)
        given[key] = _parse_value(key, value)
    return _build(overlaid(tree, tree_of(given)))


@lru_cache
def known_keys() -> list[str]:
    """Every dotted key that can be set."""
    return [key for key, _ in leaves(settings_tree(Settings()))]


def is_file(preset: str) -> bool:
    """Whether a preset is a YAML file of the user's."""
    return preset.endswith((".yaml", ".yml"))


def said_by_files(preset: str | None) -> dict[str, Any]:
    """The leaves of a preset by dotted key, as far as files of the user's say them; `base` is the shipped one below."""
    if preset is None or not is_file(preset):
        return {}
    return dict(leaves(_read_preset(preset, shipped=False)))


def values_of(said: dict[str, Any]) -> dict[str, Any]:
    """Every setting by dotted key, as a preset of which `said_by_files` returned this has it; defaults are included.

    Whether they fit together is not asked. What is no setting or no shipped preset, or is none any more, counts as not
    said.
    """
    base = said.get("base")
    tree = tree_of({key: value for key, value in said.items() if key in known_keys()})
    if base in preset_names():
        tree = overlaid(_read_preset(base), tree)
    with _refusals():
        return dict(leaves(plain(_parser().parse_object(tree).as_dict())))


def _read_preset(name: str, above: tuple[str, ...] = (), shipped: bool = True) -> dict[str, Any]:
    """The leaves of a preset over those of its `base`, another preset.

    Args:
        name: of the preset, or its file.
        above: the presets that it is the base of.
        shipped: whether to read a base that is shipped too; if not, its name stays as `base`.
    """
    if name in above:
        raise SettingError(f"The presets {', '.join(above)} name each other as base, in a circle.")
    if is_file(name):
        path: Any = Path(name)
        if not path.is_file():
            raise SettingError(f"There is no settings file {name}.")
    else:
        if name not in preset_names():
            raise SettingError(f"Unknown preset '{name}'.{did_you_mean(name, preset_names())}")
        path = resources.files("bld.presets") / f"{name}.yaml"
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _KeysOnce) or {}
    except UnicodeDecodeError as error:
        raise SettingError(f"{name} is not written in UTF-8: save it as UTF-8.") from error
    except (yaml.YAMLError, ValueError) as error:  # a date that there is not, for one
        raise SettingError(f"{name} is not valid YAML: {' '.join(str(error).split()).rstrip('.')}.") from error
    if not isinstance(tree, dict):
        raise SettingError(f"{name} must hold settings as key: value lines, not a {type(tree).__name__}.")
    tree = nested(tree, name)
    base = tree.get("base")
    if base is None or not (shipped or is_file(str(base))):
        return tree
    del tree["base"]
    return overlaid(_read_preset(str(base), (*above, name), shipped), tree)


class _KeysOnce(yaml.SafeLoader):
    """YAML without tags that refuses a key that a mapping has twice, of which the last would count alone."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """The mapping as it is written."""
        node = super().compose_mapping_node(anchor)
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for i, key in enumerate(keys):
            if any(key.value == earlier.value for earlier in keys[:i]):
                raise yaml.composer.ComposerError(None, None, f"the key {key.value} is there twice", key.start_mark)
        return node


def nested(tree: dict[Any, Any], name: str) -> dict[str, Any]:
    """What a file of settings says as a tree, whether it says `prior: {dim: 64}` or `prior.dim: 64`.

    Args:
        tree: as YAML read it.
        name: of the file.

    Raises:
        SettingError: for a key that is no text, and where the file says two things of one setting.
    """
    said: dict[str, Any] = {}
    for key, value in _spelled(tree, name):
        if key in said and said[key] != value:
            raise SettingError(f"{name} says both {key}={said[key]} and {key}={value}: leave one of them out.")
        said[key] = value
    for key in said:
        if above := next((other for other in said if key.startswith(f"{other}.")), None):
            raise SettingError(f"{name} says both {above}={said[above]} and {key}={said[key]}: leave one of them out.")
    return tree_of(said)


def _spelled(tree: dict[Any, Any], name: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf of what YAML read."""
    for key, value in tree.items():
        if not isinstance(key, str):
            raise SettingError(
                f"{name} has the key {prefix}{key}, which YAML does not read as text: name a setting, and quote a "
                "name such as on, off, yes, no or a number."
            )
        if isinstance(value, dict):
            yield from _spelled(value, name, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def overlaid(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """The base with the leaves of `over` in their places."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = overlaid(merged[key], value) if both else value
    return merged


def _check_key(key: str) -> None:
    known = known_keys()
    if key not in known:
        candidates = known
        if "." not in key:  # a bare name: look for it at the end of the dotted ones too
            inner = [name for name in known if name.rsplit(".", 1)[-1] == key]
            if inner:
                raise SettingError(f"Unknown setting '{key}'. Did you mean '{inner[0]}'?")
        raise SettingError(f"Unknown setting '{key}'.{did_you_mean(key, candidates)}")


def _parse_value(key: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise SettingError(f"The value of {key}, '{text}', is not valid YAML.") from error


@lru_cache
def _parser() -> Any:
    """What checks and converts settings; made once, as making it takes longer than using it."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Settings)
    return parser


_built: dict[str, Settings] = {}
"""What was built, by the text of its tree: checking takes a tenth of a second, and the same trees come again."""


def _build(tree: dict[str, Any]) -> Settings:
    """The typed tree; jsonargparse checks and converts each value."""
    text = repr(tree)
    if text not in _built:
        parser = _parser()
        with _refusals():
            _built[text] = Settings(**vars(parser.instantiate(parser.parse_object(tree))))
    return _built[text]


@contextmanager
def _refusals() -> Iterator[None]:
    """Whatever is wrong with a value as one sentence."""
    try:
        yield
    except SettingError:
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:  # a refusal by one of our own configs says it best
            if isinstance(cause, SettingError):
                raise cause from None
            cause = cause.__cause__ or cause.__context__
        raise SettingError(_one_sentence(str(error))) from error


def _one_sentence(message: str) -> str:
    """jsonargparse's report of a wrong value, on one line and without Python's spelling of types."""
    text = " ".join(message.split())
    text = text.replace("Parser key", "The setting").replace("<class '", "").replace("'>", "")
    text = text.replace('": Expected a typing.Literal', '" is one of ').replace('": Expected a', '" expects a')
    text = text.replace("expects a int", "expects an int").replace("expects a tuple", "expects a list, [a, b, …]")
    return text.rstrip(".") + "."
