"""The Mixture-of-Experts model, in plain PyTorch."""
