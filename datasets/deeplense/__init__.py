"""The DeepLense strong-lensing data sets, simulated."""

from dlens_tf.datasets.deeplense.deeplense_dataset_builder import Builder

__all__ = ["Builder"]
