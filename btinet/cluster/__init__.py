"""The only room that imports Ray: a run's stages as Ray Train runs, of which the last evaluates, too."""
