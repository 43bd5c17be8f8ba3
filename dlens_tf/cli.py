"""What every command-line tool shares: parsing, quiet start, one-line errors, exit codes.

A tool is a module with flags, a `main(argv)` and `entry = cli.program(main)`; it imports
TensorFlow inside `main`, so that `--help` answers at once.
"""

import importlib.abc
import importlib.util
import logging as log_records
import os
import sys
import tempfile
import types
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from dlens_tf.errors import UserError

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


class _SilentImport(importlib.abc.MetaPathFinder, importlib.abc.Loader):
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


class _Formatter(log_records.Formatter):
    """Writes log lines as the tools write errors: "warning: …"."""

    def format(self, record: log_records.LogRecord) -> str:
        return f"{record.levelname.lower()}: {super().format(record)}"


def quiet_tensorflow() -> None:
    """Keeps TensorFlow's start-up messages off the screen; to be called before it is imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("NO_GCE_CHECK", "true")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    if not os.path.exists("/dev/nvidiactl"):
        # Stops TensorFlow from looking, and complaining, where there is no NVIDIA driver.
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    logging.set_verbosity(logging.WARNING)
    logging.get_absl_handler().setFormatter(_Formatter())
    silenced = any(isinstance(finder, _SilentImport) for finder in sys.meta_path)
    if "tensorflow" not in sys.modules and not silenced:
        sys.meta_path.insert(0, _SilentImport("tensorflow"))


def _flush_to_reader() -> None:
    """Flushes stdout; a reader that has gone, as in `--help | head`, is no failure."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # What is left in the buffer would fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parse_flags(argv: Sequence[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except (SystemExit, BrokenPipeError):
        # absl exits with status 1 after it has answered --help, which is no failure.
        _flush_to_reader()
        sys.exit(0)
    except UnicodeDecodeError:
        print("error: the file given by --flagfile is not a text file", file=sys.stderr)
        sys.exit(EXIT_ERROR)
    except flags.Error as error:
        print(f"error: {error}; see --help", file=sys.stderr)
        sys.exit(EXIT_ERROR)


def _describe(tool: types.ModuleType) -> None:
    """Makes --help speak of the tool where it isn't `__main__`, as in a console script."""
    script = sys.modules["__main__"]
    if tool is not script:
        script.__doc__ = tool.__doc__
        for flag in flags.FLAGS.get_key_flags_for_module(tool):
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def program(main: Callable[[Sequence[str]], int | None]) -> Callable[[], None]:
    """Wraps a tool's `main` into a function for `__main__` and console scripts.

    A wrong flag or a `UserError` is printed as one line on stderr and exits with status 2;
    Ctrl-C exits with status 130. Anything else is a defect and keeps its traceback.
    """

    def guarded(argv: Sequence[str]) -> int | None:
        quiet_tensorflow()
        try:
            if len(argv) > 1:
                raise UserError(f"unexpected argument '{argv[1]}'; flags start with --")
            return main(argv)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return EXIT_ERROR
        except OSError as error:
            if error.filename is None and error.errno is None:
                raise
            where = f"{error.filename}: " if error.filename else ""
            print(f"error: {where}{error.strerror}", file=sys.stderr)
            return EXIT_ERROR
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return EXIT_INTERRUPTED

    def entry() -> None:
        _describe(sys.modules[main.__module__])
        app.run(guarded, flags_parser=_parse_flags)

    return entry


def command_line(tool: str, **values: object) -> str:
    """The command a user would type, for messages that say what to run."""
    arguments = " ".join(f"--{name}={value}" for name, value in values.items())
    return f"python tools/{tool}.py {arguments}".strip()


def require(**values: object) -> None:
    """Raises a `UserError` that names the first flag left empty."""
    for name, value in values.items():
        if value in (None, "", []):
            raise UserError(f"flag --{name} is missing; see --help")
