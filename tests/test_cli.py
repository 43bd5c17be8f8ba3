import os
import subprocess
import sys

import pytest

from dlens_tf import cli
from dlens_tf.errors import UserError, choose

PROGRAM = """
import errno, sys
from absl import flags
from dlens_tf import cli
from dlens_tf.errors import UserError
flags.DEFINE_enum("fruit", "pear", ["pear", "plum"], "Fruit.")
flags.DEFINE_string("outcome", None, "How it ends.")
def main(argv):
    cli.require(outcome=flags.FLAGS.outcome)
    match flags.FLAGS.outcome:
        case "user": raise UserError("no such lens")
        case "interrupt": raise KeyboardInterrupt
        case "full": raise OSError(errno.ENOSPC, "No space left on device", "/some/file")
        case "defect": raise ZeroDivisionError("defect")
        case "warning":
            from absl import logging
            logging.info("told to nobody")
            logging.warning("%d lenses", 3)
        case "tensorflow":
            import tensorflow
            print(tensorflow.__name__)
cli.program(main)()
"""


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--outcome=user"], 2, "error: no such lens"),
        (["--outcome=interrupt"], 130, "interrupted"),
        (["--outcome=full"], 2, "error: /some/file: No space left on device"),
        ([], 2, "error: flag --outcome is missing; see --help"),
        (["stray"], 2, "error: unexpected argument 'stray'; flags start with --"),
        (
            ["--fruit=nut"],
            2,
            "error: flag --fruit=nut: value should be one of <pear|plum>; see --help",
        ),
        (["--colour=red"], 2, "error: Unknown command line flag 'colour'; see --help"),
        (["--outcome=good"], 0, ""),
        (["--outcome=warning"], 0, "warning: 3 lenses"),
    ],
)
def test_outcomes(arguments, status, message):
    done = run(*arguments)
    assert (done.returncode, done.stderr.strip(), done.stdout) == (status, message, "")


def test_binary_flagfile(tmp_path):
    (tmp_path / "x.flags").write_bytes(b"\x93NUMPY\xff\xfe")
    done = run(f"--flagfile={tmp_path / 'x.flags'}")
    message = "error: the file given by --flagfile is not a text file\n"
    assert (done.returncode, done.stderr, done.stdout) == (2, message, "")


def test_help_whose_reader_has_gone():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "--help"], stdout=writer, stderr=subprocess.PIPE, timeout=60
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_defects_keep_their_traceback():
    done = run("--outcome=defect")
    assert done.returncode == 1
    assert "ZeroDivisionError: defect" in done.stderr


def test_tensorflow_is_imported_in_silence():
    done = run("--outcome=tensorflow")
    assert (done.returncode, done.stdout, done.stderr) == (0, "tensorflow\n", "")


def test_command_line():
    assert cli.command_line("train", config="a", seed=1) == (
        "python tools/train.py --config=a --seed=1"
    )
    assert cli.command_line("train") == "python tools/train.py"
    assert cli.command_line("train", run_dir="a run") == "python tools/train.py --run_dir='a run'"


def test_require_accepts_zero_and_false():
    cli.require(seed=0, overwrite=False)
    with pytest.raises(UserError, match="flag --targets is missing"):
        cli.require(seed=0, targets=[])


def test_choose():
    assert choose("fruit", "pear", ["pear", "plum"]) == "pear"
    with pytest.raises(UserError, match="unknown fruit 'nut'; valid: pear, plum"):
        choose("fruit", "nut", ["pear", "plum"])
