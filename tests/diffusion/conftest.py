"""Hypothesis without chance and without a clock: the same examples on every machine, however busy it is."""

from hypothesis import settings

settings.register_profile("bld", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("bld")
