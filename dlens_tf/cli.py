"""What every command-line tool shares: parsing, quiet start, one-line errors, exit codes.

A tool is a module with flags, a `main(argv)` and `entry = cli.program(main)`; it imports
TensorFlow inside `main`, so that `--help` answers at once.
"""

import logging as log_records
import os
import sys
import types
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from dlens_tf.commands import command_line as command_line  # tools take it from here
from dlens_tf.errors import UserError
from dlens_tf.quiet import silence_tensorflow

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


class _Formatter(log_records.Formatter):
    """Writes log lines as the tools write errors: "warning: …"."""

    def format(self, record: log_records.LogRecord) -> str:
        return f"{record.levelname.lower()}: {super().format(record)}"


def quiet_tensorflow() -> None:
    """Keeps TensorFlow's start-up messages off the screen; to be called before it is imported."""
    silence_tensorflow()
    if not os.path.exists("/dev/nvidiactl"):
        # Stops TensorFlow from looking, and complaining, where there is no NVIDIA driver.
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    logging.set_verbosity(logging.WARNING)
    logging.get_absl_handler().setFormatter(_Formatter())


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


def require(**values: object) -> None:
    """Raises a `UserError` that names the first flag left empty."""
    for name, value in values.items():
        if value in (None, "", []):
            raise UserError(f"flag --{name} is missing; see --help")
