"""dlens_tf: dark matter from pictures of strong gravitational lenses.

Importing the package is cheap: TensorFlow, Keras and lenstronomy are imported by the
subpackages that use them (`simulation`, `pipeline`, `models`, `training`, `evaluation`,
`inference`, `serving`).

    >>> dlens_tf.available_models()                     # the ready-to-use models
    >>> posterior = dlens_tf.load("axion_model_i").predict(images)
"""

__version__ = "0.1.0"
__all__ = ["__version__", "available_models", "load"]

_FROM_HUB = ("available_models", "load")


def __getattr__(name: str):
    """Imports what stands in `hub` when it is first asked for."""
    if name in _FROM_HUB:
        from dlens_tf import hub

        return getattr(hub, name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
