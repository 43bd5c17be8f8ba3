"""What every command-line tool shares: parsing, quiet start, one-line errors, exit codes.

A tool is a module with flags, a `main(argv)` and `entry = cli.program(main)`; it imports
TensorFlow inside `main`, so that `--help` answers at once.
"""

import os
import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from dlens_tf.errors import UserError

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


def quiet_tensorflow() -> None:
    """Keeps TensorFlow's start-up messages off the screen; to be called before it is imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("NO_GCE_CHECK", "true")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    if not os.path.exists("/dev/nvidiactl"):
        # Stops TensorFlow from looking, and complaining, where there is no NVIDIA driver.
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    logging.set_verbosity(logging.WARNING)


def program(main: Callable[[Sequence[str]], int | None]) -> Callable[[], None]:
    """Wraps a tool's `main` into a function for `__main__` and console scripts.

    A `UserError` is printed as one line on stderr and exits with status 2; Ctrl-C exits with
    status 130. Anything else is a defect and keeps its traceback.
    """

    def guarded(argv: Sequence[str]) -> int | None:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected argument '{argv[1]}'; flags start with --")
        quiet_tensorflow()
        try:
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
        app.run(guarded)

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


FLAGS = flags.FLAGS
