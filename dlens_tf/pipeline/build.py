"""Building a data set with its TFDS builder, with progress on the terminal."""

import contextlib
import importlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath
from tqdm import tqdm

from dlens_tf.errors import UserError
from dlens_tf.io.files import one_line
from dlens_tf.io.locks import exclusive
from dlens_tf.pipeline import on_beam
from dlens_tf.simulation.catalogue import DATASETS, get_config
from dlens_tf.simulation.engines import make_engine
from dlens_tf.simulation.generate import source_galaxies

MAX_SHARDS = 10_000


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-probe-{os.getpid()}"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise UserError(f"can't write to {folder}: {error.strerror}") from error


@contextlib.contextmanager
def _set_aside(path: Path, aside: Path) -> Iterator[None]:
    """Takes a data set out of the way while the block makes a new one at `path`.

    It is removed when the block succeeds, and put back when it does not.
    """
    if not path.exists():
        yield
        return
    epath.Path(path).replace(aside)
    try:
        yield
    except BaseException:
        epath.Path(aside).replace(path)
        raise
    epath.Path(aside).rmtree()


def _file_error(error: BaseException | None) -> BaseException | None:
    """The file system's own error behind one that TFDS may have wrapped; None if there is none."""
    import tensorflow as tf

    while error is not None:
        if isinstance(error, tf.errors.OpError) or (isinstance(error, OSError) and error.strerror):
            return error
        error = error.__cause__
    return None


def _prepare(builder, num_shards: int, beam: Mapping[str, Any]) -> None:
    import tensorflow_datasets as tfds

    # TFDS announces a download and makes a folder for it, though there is none.
    with tempfile.TemporaryDirectory() as unused, contextlib.redirect_stdout(None):
        builder.download_and_prepare(
            download_dir=unused,
            download_config=tfds.download.DownloadConfig(num_shards=num_shards, **beam),
        )


def _clear_away(path: Path, aside: Path) -> None:
    """Mends what a killed build has left beside the data set at `path`."""
    if aside.exists():
        if path.exists():
            epath.Path(aside).rmtree()
        else:
            epath.Path(aside).replace(path)
    for leftover in path.parent.glob(f"incomplete.*_{path.name}"):
        epath.Path(leftover).rmtree()


def _locked(data_dir: Path, name: str) -> contextlib.AbstractContextManager:
    """Keeps other processes from building the same data set; storage without locks has none."""
    if "://" in str(data_dir):
        return contextlib.nullcontext()
    return exclusive(data_dir / f".{name.replace('/', '-')}.lock", f"building {name}")


def _check_complete(path: Path) -> None:
    """Raises a `UserError` unless a whole data set is at `path`."""
    from dlens_tf.pipeline.reading import open_dataset

    if not (path / "dataset_info.json").is_file():
        raise UserError(f"{path} is no data set; remove it or add --overwrite")
    open_dataset(path.parents[1].name, path.parent.name, path.parents[2])


class _Progress:
    """A bar on the terminal, from the first block that is simulated."""

    def __init__(self, config: str):
        self._config = config
        self._bar = None

    def __call__(self, done: int, total: int, rate: float) -> None:
        del rate
        if self._bar is None:
            what = f"simulate {self._config}"
            self._bar = tqdm(desc=what, total=total, unit="image", smoothing=0.05)
        self._bar.update(done - self._bar.n)
        if done == total:
            self._bar.set_description(f"write {self._config}")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


@contextlib.contextmanager
def _explained_errors(data_dir: Path, beam: bool) -> Iterator[None]:
    """Turns errors of files, and what a Beam runner makes of a `UserError`, into one line."""
    import tensorflow as tf

    try:
        yield
    except (UserError, OSError, RuntimeError, tf.errors.OpError) as error:
        wrapped = on_beam.user_error(error) if beam else None
        if wrapped is not None:
            raise wrapped from error
        cause = None if isinstance(error, UserError) else _file_error(error)
        if cause is None:
            raise
        file = getattr(cause, "filename", None)
        if file and not Path(os.path.realpath(file)).is_relative_to(os.path.realpath(data_dir)):
            raise UserError(f"can't use {file}: {one_line(cause)}") from error
        raise UserError(f"can't write to {data_dir}: {one_line(cause)}") from error
    except KeyboardInterrupt:
        if not beam:
            tqdm.write("what is simulated is kept: the same command goes on from here", sys.stderr)
        raise


def build_dataset(
    dataset: str,
    config: str,
    data_dir: str | Path,
    *,
    sizes: Mapping[str, int],
    num_shards: int = 8,
    workers: int = 1,
    seed: int = 0,
    engine: str | None = None,
    galaxies: str | Path | None = None,
    overwrite: bool = False,
    beam_runner: str | None = None,
    beam_options: Sequence[str] = (),
) -> Path:
    """Simulates and writes a data set; returns its folder.

    An interrupted build is completed by the same call, with the same bytes. A complete one is
    left alone; with `overwrite`, it is replaced once the new one is complete.

    Args:
      dataset: builder name, one of `catalogue.DATASETS`.
      config: configuration name.
      data_dir: folder under which data sets are kept; with Beam, also "gs://…" or the like.
      sizes: examples per class of each split, as `SimulatedBuilder` takes them.
      num_shards: TFRecord files per split, at most `MAX_SHARDS`; no more are made than the
        smallest split has examples.
      workers: processes that simulate.
      seed: seed of the simulation.
      engine: one of `engines.ENGINES`; None for the data set's own.
      galaxies: path of the catalogue that real sources are taken from; None for the bundled one.
      overwrite: whether to build again where a data set exists.
      beam_runner: name of the Apache Beam runner to generate on, instead of `workers`.
      beam_options: its pipeline options, as "direct_num_workers=2".

    Raises:
      UserError: if an argument is not valid, the folder can't be written, holds something else
        or a damaged data set, another process builds the same one, or a simulating process dies.
    """
    recipe = get_config(dataset, config).recipe
    engine = engine or DATASETS[dataset].engine
    if not 1 <= num_shards <= MAX_SHARDS:
        raise UserError(f"num_shards must be between 1 and {MAX_SHARDS:,}, not {num_shards:,}")
    beam = {}
    if beam_runner is None and "://" in str(data_dir):
        raise UserError(f"{data_dir} is no local folder: it needs --beam_runner")
    if beam_options and beam_runner is None:
        raise UserError("beam_options are given without a beam_runner, as DirectRunner")
    if beam_runner is not None:
        beam = on_beam.download_arguments(beam_runner, beam_options)
    # Whether the engine can render the recipe shows before anything is written.
    galaxies = str(galaxies) if galaxies else None
    make_engine(engine, recipe, source_galaxies(recipe, galaxies))

    import tensorflow_datasets as tfds

    from dlens_tf.pipeline.reading import dataset_path

    path = dataset_path(dataset, config, data_dir)
    data_dir = path.parents[2]
    _check_writable(data_dir)
    importlib.import_module(f"dlens_tf.datasets.{dataset}")  # registers the builder
    progress = _Progress(config)

    def make_builder():
        return tfds.builder(
            f"{dataset}/{config}",
            data_dir=data_dir,
            sizes=dict(sizes),
            seed=seed,
            engine=engine,
            galaxies=galaxies,
            workers=workers,
            progress=progress,
        )

    tfds.disable_progress_bar()
    aside = path.with_name(f"replaced_{path.name}")
    with _locked(data_dir, f"{dataset}/{config}"):
        _clear_away(path, aside)
        if path.exists() and not overwrite:
            _check_complete(path)
            make_builder().check_matches()
            print(f"{path} is complete already")
            return path
        with (
            contextlib.closing(progress),
            _explained_errors(data_dir, bool(beam)),
            _set_aside(path, aside),
        ):
            builder = make_builder()
            smallest = min(sizes.values()) * len(builder.spec.classes)
            _prepare(builder, min(num_shards, smallest), beam)
    for name, split in builder.info.splits.items():
        print(f"{name}: {split.num_examples} examples in {len(split.shard_lengths)} shards")
    print(f"wrote {path}")
    return path
