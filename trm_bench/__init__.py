"""trm-bench: a benchmark suite for negative transfer in medical image segmentation."""

__version__ = "0.1.0"
