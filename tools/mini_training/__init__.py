"""The parts of `tools/train_mini.py`: batches of rendered scenes, the model, its losses, the optimiser, checkpoints."""
