"""Training: data, augmentation and cache, losses, and the loop."""
