"""The training loop and what it needs: data, optimiser, checkpoints, processes."""
