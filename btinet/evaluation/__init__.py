"""Trained model + prepared split -> predictions.parquet, with Monte Carlo dropout beside the single pass."""
