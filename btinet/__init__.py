"""BTI-Net: joint segmentation and classification of medical images, with per-sample failure signals."""

__version__ = "0.1.0"
