"""Building a data set with its TFDS builder, with progress on the terminal."""

import os
import shutil
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
      UserError: if the folder can't be written, or holds a data set made otherwise.
    """
    import tensorflow_datasets as tfds

    import dlens_tf.datasets.deeplense  # noqa: F401 (registers the builder)

    data_dir = Path(data_dir)
    _check_writable(data_dir)
    bar = tqdm(desc=f"simulate {config}", unit="image", smoothing=0.05)

    def progress(done: int, total: int, rate: float) -> None:
        del rate
        bar.total = total
        bar.update(done - bar.n)

    builder = tfds.builder(
        f"{dataset}/{config}",
        data_dir=data_dir,
        sizes=dict(sizes),
        seed=seed,
        workers=workers,
        progress=progress,
    )
    path = Path(builder.data_dir)
    if path.exists() and overwrite:
        shutil.rmtree(path)
        builder = tfds.builder(
            f"{dataset}/{config}",
            data_dir=data_dir,
            sizes=dict(sizes),
            seed=seed,
            workers=workers,
            progress=progress,
        )
    if path.exists():
        builder.check_matches()
        bar.close()
        print(f"{path} is complete already")
        return path
    for leftover in path.parent.glob(f"*.incomplete*"):
        shutil.rmtree(leftover)
    tfds.disable_progress_bar()
    try:
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(
                num_shards=min(num_shards, min(sizes.values()) * len(builder.spec.classes))
            )
        )
    except OSError as error:
        raise UserError(f"can't write to {data_dir}: {error.strerror or error}") from error
    finally:
        bar.close()
    builder.discard_blocks()
    for name, split in builder.info.splits.items():
        print(f"{name}: {split.num_examples} examples in {len(split.shard_lengths)} shards")
    print(f"wrote {path}")
    return path
