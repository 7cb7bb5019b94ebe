"""Prefect flows: order, retries, artifacts, cancellation. No science, no tensors."""
