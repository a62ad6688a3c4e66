"""A trained model ready for use: generate, inpaint, reconstruct, encode, decode."""

from bld.pipeline.pipeline import (
    BinaryLatentDiffusionPipeline,
    PipelineOutput,
    class_names,
    fill_from_surroundings,
)

__all__ = ["BinaryLatentDiffusionPipeline", "PipelineOutput", "class_names", "fill_from_surroundings"]
