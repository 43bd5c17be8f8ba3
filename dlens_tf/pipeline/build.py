"""Building a data set with its TFDS builder, with progress on the terminal."""

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from dlens_tf.errors import UserError


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-probe-{os.getpid()}"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise UserError(f"can't write to {folder}: {error.strerror}") from error


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
    left alone.

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
      UserError: if the folder can't be written, or holds something else.
    """
    import tensorflow_datasets as tfds

    import dlens_tf.datasets.deeplense  # noqa: F401 (registers the builder)

    data_dir = Path(data_dir)
    _check_writable(data_dir)
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

    builder = make_builder()
    path = Path(builder.data_dir)
    if path.exists() and overwrite:
        shutil.rmtree(path)
        builder = make_builder()
    if path.exists():
        if not builder.info.splits:
            raise UserError(f"{path} is no data set; remove it or add --overwrite")
        builder.check_matches()
        print(f"{path} is complete already")
        return path
    for leftover in path.parent.glob("*.incomplete*"):
        shutil.rmtree(leftover)
    tfds.disable_progress_bar()
    try:
        _prepare(builder, min(num_shards, min(sizes.values()) * len(builder.spec.classes)))
    except OSError as error:
        raise UserError(f"can't write to {data_dir}: {error.strerror or error}") from error
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
