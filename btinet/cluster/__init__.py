"""The only room that imports Ray: a run's stage as a Ray Train job, its evaluation as a Ray task."""
