"""Building a data set with its TFDS builder, with progress on the terminal."""

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from tqdm import tqdm

from dlens_tf.errors import UserError
from dlens_tf.io.files import one_line
from dlens_tf.simulation.catalogue import VERSION


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
    os.replace(path, aside)
    try:
        yield
    except BaseException:
        os.replace(aside, path)
        raise
    shutil.rmtree(aside)


def _write_error(error: BaseException | None) -> BaseException | None:
    """The file system's own error behind one that TFDS may have wrapped; None if there is none."""
    import tensorflow as tf

    while error is not None:
        if isinstance(error, tf.errors.OpError) or (isinstance(error, OSError) and error.strerror):
            return error
        error = error.__cause__
    return None


def _prepare(builder, num_shards: int) -> None:
    import tensorflow_datasets as tfds

    # TFDS announces a download and makes a folder for it, though there is none.
    with tempfile.TemporaryDirectory() as unused, contextlib.redirect_stdout(None):
        builder.download_and_prepare(
            download_dir=unused,
            download_config=tfds.download.DownloadConfig(num_shards=num_shards),
        )


def build_dataset(
    dataset: str,
    config: str,
    data_dir: str | Path,
    *,
    sizes: Mapping[str, int],
    num_shards: int = 8,
    workers: int = 1,
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Simulates and writes a data set; returns its folder.

    An interrupted build is completed by the same call, with the same bytes. A complete one is
    left alone; with `overwrite`, it is replaced once the new one is complete.

    Args:
      dataset: builder name ("deeplense").
      config: configuration name.
      data_dir: folder under which data sets are kept.
      sizes: examples per class of each split.
      num_shards: TFRecord files per split, at most the examples of the smallest split.
      workers: processes that simulate.
      seed: seed of the simulation.
      overwrite: whether to build again where a data set exists.

    Raises:
      UserError: if the folder can't be written, holds something else or a damaged data set, or
        if a simulating process dies.
    """
    import tensorflow as tf
    import tensorflow_datasets as tfds

    import dlens_tf.datasets.deeplense  # noqa: F401 (registers the builder)
    from dlens_tf.pipeline.reading import open_dataset

    data_dir = Path(data_dir)
    _check_writable(data_dir)
    path = data_dir / dataset / config / VERSION
    aside = path.with_name(f"replaced_{VERSION}")
    if aside.exists():  # left by a build that was killed
        if path.exists():
            shutil.rmtree(aside)
        else:
            os.replace(aside, path)
    bar = None

    def progress(done: int, total: int, rate: float) -> None:
        nonlocal bar
        del rate
        if bar is None:
            bar = tqdm(desc=f"simulate {config}", total=total, unit="image", smoothing=0.05)
        bar.update(done - bar.n)
        if done == total:
            bar.set_description(f"write {config}")

    def make_builder():
        return tfds.builder(
            f"{dataset}/{config}",
            data_dir=data_dir,
            sizes=dict(sizes),
            seed=seed,
            workers=workers,
            progress=progress,
        )

    if path.exists() and not overwrite:
        if not (path / "dataset_info.json").is_file():
            raise UserError(f"{path} is no data set; remove it or add --overwrite")
        open_dataset(dataset, config, data_dir)
        make_builder().check_matches()
        print(f"{path} is complete already")
        return path
    for leftover in path.parent.glob(f"incomplete.*_{VERSION}"):
        shutil.rmtree(leftover)
    tfds.disable_progress_bar()
    try:
        with _set_aside(path, aside):
            builder = make_builder()
            _prepare(builder, min(num_shards, min(sizes.values()) * len(builder.spec.classes)))
    except (OSError, RuntimeError, tf.errors.OpError) as error:
        cause = _write_error(error)
        if cause is None:
            raise
        raise UserError(f"can't write to {data_dir}: {one_line(cause)}") from error
    except KeyboardInterrupt:
        tqdm.write("what is simulated is kept: the same command goes on from here", sys.stderr)
        raise
    finally:
        if bar is not None:
            bar.close()
    for name, split in builder.info.splits.items():
        print(f"{name}: {split.num_examples} examples in {len(split.shard_lengths)} shards")
    print(f"wrote {path}")
    return path
