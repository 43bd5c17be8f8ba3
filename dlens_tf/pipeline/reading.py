"""Reading data sets: batch first, decode the whole batch, keep flux in float32.

`open_dataset` checks that a data set is whole; `read_batches` streams it in stored order.
Examples are parsed a batch at a time (`tf.io.parse_example`), several times faster than
TFDS's own decoding one by one.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tensorflow as tf
import tensorflow_datasets as tfds

from dlens_tf import cli
from dlens_tf.errors import UserError, choose
from dlens_tf.parameters import ParameterSet
from dlens_tf.simulation.catalogue import VERSION
from dlens_tf.simulation.recipes import CLASSES


@dataclasses.dataclass(frozen=True)
class DatasetFolder:
    """A complete data set on disk.

    Attributes:
      path: folder with dataset_info.json and the shards.
      info: its `tfds.core.DatasetInfo`.
    """

    path: Path
    info: tfds.core.DatasetInfo

    @property
    def metadata(self) -> dict[str, Any]:
        """The builder's provenance: recipe, classes, seed, parameters, pixel_scale, …"""
        return dict(self.info.metadata)

    @functools.cached_property
    def parameters(self) -> ParameterSet:
        """The parameters stored with each image, with their priors."""
        return ParameterSet.from_dicts(self.metadata["parameters"])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return tuple(self.info.features["image"].shape)

    @property
    def version(self) -> str:
        return str(self.info.version)

    def num_examples(self, split: str) -> int:
        """Examples in a split, all classes together."""
        return self.info.splits[choose("split", split, self.info.splits)].num_examples

    def has(self, feature: str) -> bool:
        """Whether examples carry this feature, by its flat name ("metadata/snr")."""
        return feature in self.info.features.tf_example_spec

    def shards(self, split: str) -> list[str]:
        """Paths of a split's TFRecord files, in order."""
        return [
            str(path)
            for path in self.info.splits[choose("split", split, self.info.splits)].filepaths
        ]


def open_dataset(dataset: str, config: str, data_dir: str | Path) -> DatasetFolder:
    """Opens a data set that `build_dataset` has made.

    Raises:
      UserError: if it is missing or half built; the message names the command that builds it.
    """
    path = Path(data_dir) / dataset / config / VERSION
    build = cli.command_line("build_dataset", dataset=dataset, config=config, data_dir=data_dir)
    if not (path / "dataset_info.json").is_file():
        state = "half built" if path.parent.exists() else "missing"
        raise UserError(f"data set {path} is {state}; build it with: {build}")
    folder = DatasetFolder(path, tfds.builder_from_directory(path).info)
    for split in folder.info.splits:
        for shard in folder.shards(split):
            if not Path(shard).is_file():
                raise UserError(
                    f"data set {path} lacks {Path(shard).name}; build it again with: "
                    f"{build} --overwrite"
                )
    return folder


def decode_batch(
    serialized: tf.Tensor, folder: DatasetFolder, features: Sequence[str] | None = None
) -> dict[str, tf.Tensor]:
    """Parses a batch of serialized examples, [B] strings, into flat features.

    Args:
      serialized: records.
      folder: the data set they are from.
      features: parse only these and `image`; None parses all.

    Returns:
      `image` float32 [B, H, W, C]; every other feature [B] under its flat name.
    """
    spec = folder.info.features.tf_example_spec
    if features is not None:
        spec = {name: spec[name] for name in ("image", *features)}
    batch = tf.io.parse_example(serialized, spec)
    flux = tf.io.decode_raw(batch["image"], tf.float32, little_endian=True)
    batch["image"] = tf.reshape(flux, (-1, *folder.image_shape))
    return batch


def _kept_batches(
    records: tf.data.Dataset,
    folder: DatasetFolder,
    batch_size: int,
    classes: Sequence[str] | None,
    features: Sequence[str] | None,
    drop_remainder: bool = False,
) -> tf.data.Dataset:
    """Batches of decoded records, of the chosen classes only."""
    stored = folder.metadata["classes"]
    for name in classes or ():
        choose(f"class of {folder.path}", name, stored)
    if classes is not None and set(classes) != set(stored):
        labels = [CLASSES.index(name) for name in classes]
        wanted = tf.constant(labels, tf.int64)
        label_spec = {"label": folder.info.features.tf_example_spec["label"]}

        def keep(serialized: tf.Tensor) -> tf.Tensor:
            label = tf.io.parse_single_example(serialized, label_spec)["label"]
            return tf.reduce_any(label == wanted)

        records = records.filter(keep)
    decode = functools.partial(decode_batch, folder=folder, features=features)
    batches = records.batch(batch_size, drop_remainder=drop_remainder)
    return batches.map(decode, num_parallel_calls=1).prefetch(2)


def read_batches(
    folder: DatasetFolder,
    split: str,
    batch_size: int,
    classes: Sequence[str] | None = None,
    features: Sequence[str] | None = None,
) -> tf.data.Dataset:
    """Streams a split in stored order.

    Args:
      folder: an open data set.
      split: "train", "validation" or "test".
      batch_size: examples in a batch; the last one may be smaller.
      classes: keep only these classes; None keeps all.
      features: decode only these and `image`; None decodes all.

    Returns:
      Batches as `decode_batch` describes them.

    Raises:
      UserError: if the split or a class is unknown.
    """
    records = tf.data.TFRecordDataset(folder.shards(split), buffer_size=8 << 20)
    return _kept_batches(records, folder, batch_size, classes, features)


def read_shuffled_batches(
    folder: DatasetFolder,
    split: str,
    batch_size: int,
    seed: int,
    buffer_size: int,
    classes: Sequence[str] | None = None,
    features: Sequence[str] | None = None,
) -> tf.data.Dataset:
    """Streams a split once, shuffled by `seed`, in full batches only.

    Shards are put in random order and read four at a time; a buffer of `buffer_size` records
    shuffles what comes out. The arguments are otherwise those of `read_batches`.
    """
    shards = tf.data.Dataset.from_tensor_slices(folder.shards(split))
    shards = shards.shuffle(len(folder.shards(split)), seed=seed)
    records = shards.interleave(tf.data.TFRecordDataset, cycle_length=4, num_parallel_calls=1)
    records = records.shuffle(buffer_size, seed=seed)
    return _kept_batches(records, folder, batch_size, classes, features, drop_remainder=True)


@contextmanager
def explained_read_errors(folder: DatasetFolder, split: str) -> Iterator[None]:
    """Turns TensorFlow's error about a damaged shard into one that names file and record."""
    try:
        yield
    except (
        tf.errors.DataLossError,
        tf.errors.InvalidArgumentError,
        tf.errors.UnknownError,  # either of them, raised inside a Python generator
    ) as error:
        damage = find_damage(folder, split)
        if damage is None:
            raise
        raise UserError(damage) from error


def find_damage(folder: DatasetFolder, split: str) -> str | None:
    """Looks for the first damaged record; returns a line that says where, or None."""
    for shard, expected in zip(
        folder.shards(split), folder.info.splits[split].shard_lengths, strict=True
    ):
        name = Path(shard).name
        record = 0
        try:
            for serialized in tf.data.TFRecordDataset(shard):
                decode_batch(serialized[tf.newaxis], folder)
                record += 1
        except (tf.errors.DataLossError, tf.errors.InvalidArgumentError):
            return (
                f"shard {name} in {folder.path} is damaged at record {record}; "
                "build the data set again with --overwrite"
            )
        if record != expected:
            return (
                f"shard {name} in {folder.path} holds {record} records instead of {expected}; "
                "build the data set again with --overwrite"
            )
    return None
