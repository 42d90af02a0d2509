"""The training loop on Ray Train and DeepSpeed."""
