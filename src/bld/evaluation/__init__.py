"""Measuring what a run has learned.

evaluate          reconstructions, samples and likelihood of a run, streaming and resumable
features          what metrics see of an image
metrics           one file each
neighbours        samples → nearest training images, so that copies would show
digit_accuracy    share of generated digits that a classifier of real ones recognises
"""
