"""Benchmarks the training steps of a detector and its distilled arms on random data."""
