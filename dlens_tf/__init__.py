"""dlens_tf: dark matter from pictures of strong gravitational lenses.

Importing the package is cheap: TensorFlow, Keras and lenstronomy are imported by the
subpackages that use them (`simulation`, `pipeline`, `models`, `training`, `evaluation`,
`inference`, `serving`).
"""

__version__ = "0.1.0"
