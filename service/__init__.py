"""The control plane: who may use it, what was asked, how it stands."""
