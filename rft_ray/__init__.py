"""Rejection-sampling fine-tuning of language models on a Ray cluster. Only the version lives here."""

__version__ = "0.1.0"
