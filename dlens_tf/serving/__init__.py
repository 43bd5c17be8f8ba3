"""Serving: bundles for TensorFlow Serving, a local server, and a client for either.

Importing the package is cheap: TensorFlow is imported by the modules that use it.

    >>> with dlens_tf.serving.Client("http://localhost:8501", "dlens") as client:
    ...     posterior = client.predict(images)
"""

__all__ = ["Client"]


def __getattr__(name: str):
    """Imports the client when it is first asked for."""
    if name == "Client":
        from dlens_tf.serving.client import Client

        return Client
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
