"""Datasets: official layouts -> prepared store -> splits and augmentation.

``registry.py`` names the readers, ``prepare.py`` writes the prepared store, ``prepared.py`` reads it.
"""
