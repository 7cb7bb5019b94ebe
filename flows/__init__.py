"""Prefect flows: order, retries, artifacts, cancellation. No science, no tensors."""

import os

# Prefect reads these when it is imported: nothing is sent anywhere
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
