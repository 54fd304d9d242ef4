"""mlx-lm, driven in its own environment."""
