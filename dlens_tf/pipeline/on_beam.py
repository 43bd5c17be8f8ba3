"""Generation on Apache Beam, for more processes than one machine has.

Each block of examples is an element. Beam's workers hand it to a process of their own, started
as those of `generate.run_blocks` are, so that the examples have the same bytes; TFDS encodes,
sorts and writes them, on Beam too.

Apache Beam is imported where it is used: it is an extra.
"""

import contextlib
import io
import logging
import re
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from dlens_tf.errors import UserError
from dlens_tf.io.files import one_line
from dlens_tf.parameters import ParameterSet
from dlens_tf.simulation import generate


def _beam():
    try:
        import apache_beam
    except ModuleNotFoundError as error:
        raise UserError(
            'Apache Beam is not installed; install it with: pip install "dlens_tf[beam]"'
        ) from error
    return apache_beam


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Beam's warnings, and what its parser writes, off the screen."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)


def _pipeline_options(options: Sequence[str]):
    """A `PipelineOptions` of items such as "direct_num_workers=2"."""
    from apache_beam.options.pipeline_options import PipelineOptions

    # With no flags at all Beam would read those of this program.
    names = PipelineOptions([]).get_all_options()
    for option in options:
        name = option.partition("=")[0]
        try:
            parsed = PipelineOptions([f"--{option}"]).get_all_options(drop_default=True)
        except SystemExit as error:  # how its parser answers a wrong value
            raise UserError(f"Apache Beam does not take the option '{option}'") from error
        if not parsed and name not in names:
            raise UserError(f"Apache Beam has no option '{name}'")
    return PipelineOptions([f"--{option}" for option in options])


def _runner(name: str, options):
    """The runner of this name, which `download_and_prepare` takes as it takes a name."""
    from apache_beam.options.pipeline_options import StandardOptions
    from apache_beam.portability.api import beam_provision_api_pb2
    from apache_beam.runners.portability.fn_api_runner import fn_runner
    from apache_beam.runners.portability.portable_runner import JobServiceHandle
    from apache_beam.runners.runner import create_runner

    if name == "DirectRunner":
        # As it does itself where it can't download another one, which it would try first.
        encoded = JobServiceHandle.encode_pipeline_options(options.get_all_options())
        provision = beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded)
        return fn_runner.FnApiRunner(provision_info=fn_runner.ExtendedProvisionInfo(provision))
    try:
        return create_runner(name)
    except (ValueError, AttributeError) as error:
        names = ", ".join(StandardOptions.KNOWN_RUNNER_NAMES)
        raise UserError(f"Apache Beam has no runner '{name}'; valid: {names}") from error
    except ImportError as error:
        raise UserError(f"runner '{name}' is not installed: {one_line(error)}") from error


def _check_options(options, runner) -> None:
    """Raises a `UserError` for what the runner says that its options lack."""
    from apache_beam.options.pipeline_options_validator import PipelineOptionsValidator

    errors = PipelineOptionsValidator(options, runner).validate()
    if errors:
        raise UserError(f"--beam_options: {' '.join(errors)}")


def download_arguments(runner: str, options: Sequence[str] = ()) -> dict[str, Any]:
    """Arguments of `tfds.download.DownloadConfig` that generate on Beam.

    Args:
      runner: name of a runner, as "DirectRunner".
      options: pipeline options, as "direct_num_workers=2".

    Raises:
      UserError: if Beam or the runner is not installed, or an option is unknown or missing.
    """
    with _quiet():
        _beam()
        beam_options = _pipeline_options(options)
        beam_runner = _runner(runner, beam_options)
        _check_options(beam_options, beam_runner)
    return {"beam_runner": beam_runner, "beam_options": beam_options}


_POOLS: dict[str, ProcessPoolExecutor] = {}
_LOCK = threading.Lock()


def _submit(block: generate.Block) -> Future:
    """Hands a block to the one simulating process that this process has for its engine."""
    # Submitting starts the process. The runner's threads would mix up the changed environment.
    with _LOCK, generate.single_threads():
        if block.engine not in _POOLS:
            _POOLS[block.engine] = generate.worker_pool(1, block.engine)
        return _POOLS[block.engine].submit(generate.simulate_block, block)


def end_processes() -> None:
    """Ends the simulating processes that runners have started from within this process."""
    with _LOCK:
        for pool in _POOLS.values():
            pool.shutdown(cancel_futures=True)
        _POOLS.clear()


def _simulate(block: generate.Block, parameters: ParameterSet) -> list[tuple[str, dict[str, Any]]]:
    """The examples of a block; runs in Beam's workers."""
    try:
        arrays = _submit(block).result()
    except BrokenProcessPool:
        end_processes()  # a runner may try the block again
        raise
    return list(generate.block_examples(block, arrays, parameters))


def examples(blocks: Sequence[generate.Block], parameters: ParameterSet):
    """A `beam.PTransform` that makes the examples of the blocks, as `generate.block_examples`."""
    beam = _beam()
    # Without the reshuffle a runner may keep all blocks on the worker that listed them.
    return beam.Create(blocks) | beam.Reshuffle() | beam.FlatMap(_simulate, parameters=parameters)


def user_error(error: BaseException) -> UserError | None:
    """The `UserError` of a worker, from what its runner has made of it; None if it is none."""
    name = f"{UserError.__module__}.{UserError.__name__}: "
    text = name + str(error) if isinstance(error, UserError) else str(error)
    pattern = rf"^{re.escape(name)}(.*?)(?: \[while running .*)?$"
    found = re.findall(pattern, text, re.MULTILINE)
    return UserError(found[-1]) if found else None
