"""Strong lenses with populations of dark-matter halos, simulated."""

from dlens_tf.datasets.dark_matter.dark_matter_dataset_builder import Builder

__all__ = ["Builder"]
