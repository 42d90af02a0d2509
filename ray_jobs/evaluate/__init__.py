"""Held-out loss and generated samples."""
