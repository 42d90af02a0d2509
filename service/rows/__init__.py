"""From files of raw rows to conversations: pure of Ray and PyTorch, for the control plane and the cluster alike."""
