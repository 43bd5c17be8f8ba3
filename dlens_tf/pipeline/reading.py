"""Reading data sets: batch first, decode the whole batch, keep flux in float32.

`open_dataset` checks that a data set is whole; `read_batches` streams it in stored order.
Examples are parsed a batch at a time (`tf.io.parse_example`), several times faster than
TFDS's own decoding one by one.
"""

import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tensorflow as tf
import tensorflow_datasets as tfds
from etils import epath

from dlens_tf.commands import command_line
from dlens_tf.errors import UserError, choose
from dlens_tf.parameters import Choice, ParameterSet
from dlens_tf.simulation.catalogue import DATASETS, get_config
from dlens_tf.simulation.galaxies import GalaxyCatalogue
from dlens_tf.simulation.recipes import CLASSES
from dlens_tf.simulation.splits import OPTIONAL_SPLIT_START, SPLIT_START

_METADATA_KEYS = ("recipe", "classes", "seed", "instrument", "pixel_scale")


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

    def num_examples(self, split: str, classes: Sequence[str] | None = None) -> int:
        """Examples in a split, of these classes or of all; each class has as many."""
        total = self.info.splits[choose("split", split, self.info.splits)].num_examples
        every = self.metadata["classes"]
        return total if classes is None else total * len({*classes} & {*every}) // len(every)

    def has(self, feature: str) -> bool:
        """Whether examples carry this feature, by its flat name ("metadata/snr")."""
        return feature in self.info.features.tf_example_spec

    def shards(self, split: str) -> list[str]:
        """Paths of a split's TFRecord files, in order."""
        return [
            str(path)
            for path in self.info.splits[choose("split", split, self.info.splits)].filepaths
        ]


def dataset_path(dataset: str, config: str, data_dir: str | Path) -> Path:
    """The folder of a data set; with `data_dir` on "gs://…" or the like, an `epath.Path`."""
    root = epath.Path(data_dir) if "://" in str(data_dir) else Path(data_dir)
    return root / dataset / config / DATASETS[dataset].version


def build_command(path: Path, **changes: object) -> str:
    """The command that builds the data set at data_dir/dataset/config/version.

    Where the folder still says with which seed, sizes, engine and galaxies it was built, the
    command names them, so that it makes the same data set again. With `changes`, which are flags
    and their values, it makes another one.
    """
    values = {
        "dataset": path.parents[1].name,
        "config": path.parent.name,
        "data_dir": path.parents[2],
    }
    try:
        metadata = json.loads((path / "metadata.json").read_bytes())
        sizes = metadata["sizes_per_class"]
        values |= {
            "num_examples": int(sizes["train"]),
            "num_validation": int(sizes["validation"]),
            "num_test": int(sizes["test"]),
            **{f"num_{name}": int(sizes[name]) for name in OPTIONAL_SPLIT_START if name in sizes},
            "seed": int(metadata["seed"]),
        }
        if metadata["engine"] != DATASETS[values["dataset"]].engine:
            values["engine"] = metadata["engine"]
        galaxies = metadata.get("galaxies")
        if galaxies not in (None, GalaxyCatalogue.open(None).content_id):
            # No path of a file: it is not known, and the bundled ones would not do.
            values["galaxies"] = f"<catalogue whose content_id is {galaxies}>"
    except (OSError, ValueError, KeyError, TypeError):
        pass  # missing or damaged: the command without them is still of use
    command = command_line("build_dataset", **values | changes)
    return f"{command} --overwrite" if path.exists() and not changes else command


def _read_info(path: Path) -> DatasetFolder:
    """Reads what describes the data set, and checks that all of it is there."""
    folder = DatasetFolder(path, tfds.builder_from_directory(path).info)
    features = ["label", *(f"parameters/{name}" for name in folder.parameters.names)]
    features += [f"classes/{p.name}" for p in folder.parameters if isinstance(p.prior, Choice)]
    missing = [key for key in _METADATA_KEYS if key not in folder.metadata]
    missing += [feature for feature in features if not folder.has(feature)]
    missing += [split for split in SPLIT_START if folder.num_examples(split) < 1]
    if missing or len(folder.image_shape) != 3:
        raise ValueError(f"missing: {missing}; image shape: {folder.image_shape}")
    return folder


def open_dataset(dataset: str, config: str, data_dir: str | Path) -> DatasetFolder:
    """Opens a data set that `build_dataset` has made.

    Raises:
      UserError: if it is unknown, missing, half built or damaged; where it can be built, the
        message names the command.
    """
    get_config(dataset, config)
    path = dataset_path(dataset, config, data_dir)
    build = build_command(path)
    if not (path / "dataset_info.json").is_file():
        state = "half built" if path.parent.exists() else "missing"
        raise UserError(f"data set {path} is {state}; build it with: {build}")
    try:
        folder = _read_info(path)
    except PermissionError:
        raise
    except Exception as error:  # TFDS, JSON and protobuf raise all kinds for a broken file
        raise UserError(
            f"the description of data set {path} is damaged; build it again with: {build}"
        ) from error
    for split in folder.info.splits:
        for shard in map(epath.Path, folder.shards(split)):
            if not shard.is_file():
                raise UserError(f"data set {path} lacks {shard.name}; build it again with: {build}")
            if shard.stat().length == 0:
                raise UserError(
                    f"shard {shard.name} in {path} is empty; build it again with: {build}"
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


def _all_records(records: tf.data.Dataset, folder: DatasetFolder, split: str) -> tf.data.Dataset:
    """The same records; fails where they are more or fewer than the split has.

    A shard that lost whole records reads without error otherwise.
    """
    return records.apply(tf.data.experimental.assert_cardinality(folder.num_examples(split)))


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

    Iterate within `explained_read_errors`, and to the end: records that a shard has lost are
    noticed there.
    """
    records = tf.data.TFRecordDataset(folder.shards(split), buffer_size=8 << 20)
    records = _all_records(records, folder, split)
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
    records = _all_records(records, folder, split)
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
        tf.errors.FailedPreconditionError,  # records are missing or too many
        tf.errors.UnknownError,  # any of them, raised inside a Python generator
    ) as error:
        damage = find_damage(folder, split)
        if damage is None:
            raise
        raise UserError(damage) from error


def find_damage(folder: DatasetFolder, split: str) -> str | None:
    """Looks for the first damaged record; returns a line that says where, or None."""
    again = f"build it again with: {build_command(folder.path)}"
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
            return f"shard {name} in {folder.path} is damaged at record {record}; {again}"
        if record != expected:
            return (
                f"shard {name} in {folder.path} holds {record} records instead of {expected}; "
                f"{again}"
            )
    return None
