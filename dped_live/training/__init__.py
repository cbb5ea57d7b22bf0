"""Training of the generator on pairs of pictures, and judging it: the original train_model.py, in PyTorch."""
