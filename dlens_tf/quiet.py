"""A quiet import of TensorFlow, in tools and in the processes that they start."""

import importlib.abc
import importlib.util
import os
import sys
import tempfile


class SilentImport(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one package with the process's stderr set aside.

    TensorFlow's C++ code logs while it is loaded, before any setting of its own can stop it, so
    the file descriptor itself is redirected. If the import fails, what was written is shown.
    """

    def __init__(self, package: str):
        self._package = package
        self._searching = False

    def find_spec(self, fullname, path=None, target=None):
        if fullname != self._package or self._searching:
            return None
        self._searching = True  # lets the finders behind this one answer
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._searching = False
        if spec is not None:
            self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self._loader
        with tempfile.TemporaryFile() as messages:
            sys.stderr.flush()
            screen = os.dup(2)
            os.dup2(messages.fileno(), 2)
            try:
                self._loader.exec_module(module)
            except BaseException:
                messages.seek(0)
                os.write(screen, messages.read())
                raise
            finally:
                os.dup2(screen, 2)
                os.close(screen)


def silence_tensorflow() -> None:
    """Keeps TensorFlow's start-up messages off the screen; to be called before it is imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("NO_GCE_CHECK", "true")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    silenced = any(isinstance(finder, SilentImport) for finder in sys.meta_path)
    if "tensorflow" not in sys.modules and not silenced:
        sys.meta_path.insert(0, SilentImport("tensorflow"))
