"""Weakly supervised semantic segmentation: from image-level tags to masks and a trained segmenter."""

__version__ = "0.1.0"
