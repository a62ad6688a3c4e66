"""The trained things of a scale: each is trained once, kept in a folder, and shared between experiments.

    ROOT/SCALE/tokenizers/NAME-seedK/    runs with a tokenizer (and codes, where a prior needs them)
    ROOT/SCALE/priors/NAME-seedK/        runs with a prior on the codes of the scale's base tokenizer

What was stopped goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from bld.data import ImageSet, Preprocessing
from bld.errors import DataError, SettingError
from bld.experiments.handed_on import hand_on
from bld.experiments.keys import OF_A_PRIOR, OF_SAMPLES, agree
from bld.experiments.page import machine
from bld.experiments.scales import Scale
from bld.training.config import load_settings
from bld.training.recipe import Recipe
from bld.training.run_folder import RunFolder
from bld.training.run_images import DataRecord, has_seen_images, held_out_below, refuse_others, split_images
from bld.training.settings import Settings

Say = Callable[[str], None]
Asked = tuple[str, str, int]  # tokenizer, prior, seed


class Trainings:
    """Tokenizers and priors of one scale below a root folder.

    data: where the images are, for a scale that does not bring its own.
    """

    def __init__(self, scale: Scale, root: Path, say: Say, data: str = "") -> None:
        if not (data or scale.data):
            raise SettingError(f"The scale {scale.name} brings no images: add --data with a folder or archive.")
        self.scale, self.root, self.say = scale, root / scale.label, say
        data = data or scale.data
        self.data = str(Path(data).resolve()) if Path(data).exists() else data  # the command may come from elsewhere
        self._loaded: dict[Asked, Settings] = {}
        self._fit: set[tuple[Path, tuple[str, ...]]] = set()  # runs that were compared, once for all rows of them

    def overrides(self, tokenizer: str, prior: str, seed: int) -> list[str]:
        """All settings of a run, on top of the scale's preset."""
        return [*self.scale.overrides, *self.scale.tokenizers[tokenizer], *self.scale.prior(prior), f"seed={seed}"]

    def settings(self, tokenizer: str, prior: str, seed: int) -> Settings:
        """All settings of a run, those of the preset included."""
        if (asked := (tokenizer, prior, seed)) not in self._loaded:
            self._loaded[asked] = load_settings(self.scale.preset, overrides=self.overrides(*asked))
        return self._loaded[asked]

    def tokenizer(self, name: str, seed: int, with_codes: bool = False) -> RunFolder:
        """The run that holds a trained tokenizer, and codes drawn with the seed; trained now if it is not."""
        run = RunFolder(self.root / "tokenizers" / f"{name}-seed{seed}")
        asked = (name, "gaussian" if name.startswith("real") else "bernoulli", seed)
        encoded = (run.codes / "header.json").is_file()
        trained = run.tokenizer.is_dir() and "goal" in run.progress().get("tokenizer", {})  # which is noted last
        if trained and (encoded or not with_codes):
            self._refuse_another(run, asked, OF_A_PRIOR)
            return run
        recipe = self._recipe(run, asked, OF_A_PRIOR)
        if self.scale.shares(name) and seed:
            hand_on(self.tokenizer(name, 0), run, codes=False)
        else:
            recipe.train_tokenizer()
        if with_codes:
            recipe.encode()
        return run

    def prior(self, name: str, seed: int) -> RunFolder:
        """The run that holds a trained prior, on the codes of its kind's tokenizer."""
        run = RunFolder(self.root / "priors" / f"{name}-seed{seed}")
        asked = (self.tokenizer_of(name), name, seed)
        if run.index.is_file():
            self._refuse_another(run, asked, OF_SAMPLES)
            return run
        base = self.tokenizer(self.tokenizer_of(name), seed, with_codes=True)
        recipe = self._recipe(run, asked, OF_SAMPLES)
        hand_on(base, run)
        recipe.train_prior()
        run.record("prior", machine=machine())  # which measured what is in metrics.jsonl
        return run

    def tokenizer_of(self, prior: str) -> str:
        """Name of the tokenizer whose codes a prior models."""
        if prior.startswith("gaussian"):
            return self.scale.real
        return self.scale.small if prior == "bernoulli-small" else self.scale.base

    def _recipe(self, run: RunFolder, asked: Asked, besides: tuple[str, ...]) -> Recipe:
        """What makes a run, or goes on with one that has begun, of these settings."""
        overrides = self.overrides(*asked)
        if not run.has_settings():
            return Recipe(run.adopt(self.scale.preset, overrides, self.data), run, self.say)
        self._refuse_another(run, asked, besides)
        return Recipe(run.adopt(None, overrides, self.data), run, self.say)

    def _refuse_another(self, run: RunFolder, asked: Asked, besides: tuple[str, ...]) -> None:
        """A run that is there is taken only if it is made from these images with these settings, `besides` left out.

        Images that were added or removed since move the line between those trained on and those held out: it must lie
        where it lay, or images that were trained on would count as unseen.  Where the images lie is not asked.
        """
        if (run.path, besides) in self._fit:
            return
        wanted = self.settings(*asked)
        record = DataRecord.read(run)  # without it, one that has seen images divided them otherwise
        try:
            if not agree(run.settings(), wanted, besides):
                raise SettingError(f"{run.path} has other settings.")
            if has_seen_images(run):
                if record is None or record.held_out_below != held_out_below(self.images, wanted):
                    raise DataError(f"{run.path} divided its images otherwise.")
                refuse_others(run, record, self.images.source)
                self._fit.add((run.path, besides))
        except (DataError, SettingError) as error:
            raise SettingError(
                f"{run.path} was trained on other images or with other settings than this experiment's: choose another "
                "--out, or delete it."
            ) from error

    @cached_property
    def images(self) -> ImageSet:
        """All images of the data; mirrored ones count as near where the runs are shown them (`nearest`)."""
        settings = self._settings
        prep = Preprocessing(settings.tokenizer.image_size, flip=settings.data.flip)
        return ImageSet.open(self.data, prep, progress=True)

    @cached_property
    def _settings(self) -> Settings:
        return self.settings(self.scale.base, "bernoulli", 0)

    def split(self, seed: int) -> tuple[ImageSet, ImageSet]:
        """(train, held out), as the runs of this seed have it; every scale holds out the same for all seeds."""
        return split_images(self.images, replace(self._settings, seed=seed))
