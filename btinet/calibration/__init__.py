"""When a prediction may be relied on: certified thresholds, and the distribution of the training images. No torch."""
