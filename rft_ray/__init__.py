"""Rejection-sampling fine-tuning of language models on a Ray cluster; only the version is here."""

__version__ = "0.1.0"
