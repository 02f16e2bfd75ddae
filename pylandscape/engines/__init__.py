"""What evaluates an objective: `eager` runs the module through PyTorch and is the reference."""
