"""Data sets with ground truth, for training and for evaluation."""
