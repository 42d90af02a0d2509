"""Held-out loss, generated samples and benchmarks."""
