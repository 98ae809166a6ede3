"""PyTorch modules whose state-dict keys and arithmetic are those of the official checkpoint."""
