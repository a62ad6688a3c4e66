"""A trained model ready for use: generate, inpaint, reconstruct, encode, decode."""

from bld.pipeline.conditioning import class_names, class_words, option_words
from bld.pipeline.masks import fill_from_surroundings
from bld.pipeline.pipeline import BinaryLatentDiffusionPipeline, PipelineOutput

__all__ = [
    "BinaryLatentDiffusionPipeline",
    "PipelineOutput",
    "class_names",
    "class_words",
    "fill_from_surroundings",
    "option_words",
]
