"""Batches for training: a pure function of (seed, step), whatever they come from.

`Batches` is what the trainer knows of them. `TrainingBatches` come from a stored data set,
`simulated.SimulatedBatches` straight from the simulation. Training resumed at any step sees
what uninterrupted training would have seen, and any number of devices sees the same global
batches (with the fast engine on several machines, up to the last bits).

The order of epoch e of a stored data set is a permutation drawn from (seed, e), and so are its
augmentations. With `cache="memory"` the decoded split is held in memory and every epoch is a
fresh, full permutation. With `cache="none"` examples are streamed: shards in a fresh order each
epoch, then a shuffle buffer.
"""

import abc
import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from dlens_tf.errors import UserError, choose
from dlens_tf.pipeline import augment, reading
from dlens_tf.pipeline.reading import DatasetFolder

CACHES = ("memory", "none")
SHUFFLE_BUFFER = 4096


@dataclasses.dataclass(frozen=True)
class BatchSpec:
    """How training batches are made.

    Attributes:
      targets: names of the target parameters.
      batch_size: examples in a global batch.
      seed: of order and augmentation.
      augmentation: one of `augment.AUGMENTATIONS`.
      cache: "memory" or "none"; of a stored data set.
      classes: classes to keep; None keeps all.
    """

    targets: Sequence[str]
    batch_size: int
    seed: int = 0
    augmentation: str = "none"
    cache: str = "memory"
    classes: Sequence[str] | None = None


@dataclasses.dataclass(frozen=True)
class Arrays:
    """A decoded split: images [N, H, W, C] and parameters by name, each [N], float32."""

    images: np.ndarray
    parameters: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.images)

    def first(self, number: int) -> "Arrays":
        """The first examples only."""
        return Arrays(
            self.images[:number], {name: v[:number] for name, v in self.parameters.items()}
        )


def load_arrays(
    folder: DatasetFolder,
    split: str,
    names: Sequence[str],
    classes: Sequence[str] | None = None,
) -> Arrays:
    """Decodes a split into memory, in stored order.

    Raises:
      UserError: if a shard is damaged (names file and record) or no example is left.
    """
    # Filled batch by batch: the data are held once, also while they are read.
    size, count = folder.num_examples(split), 0
    images = np.empty((size, *folder.image_shape), np.float32)
    parameters = {name: np.empty(size, np.float32) for name in names}
    with reading.explained_read_errors(folder, split):
        for batch in reading.read_batches(
            folder, split, 256, classes, features=[f"parameters/{name}" for name in names]
        ):
            rows = slice(count, count + len(batch["image"]))
            images[rows] = batch["image"].numpy()
            for name in names:
                parameters[name][rows] = batch[f"parameters/{name}"].numpy()
            count = rows.stop
    if not count:
        raise UserError(f"split '{split}' of {folder.path} has no example of the chosen classes")
    # Rows that other classes would have taken were never written, so they take no memory.
    return Arrays(images, parameters).first(count)


class Rows(NamedTuple):
    """Some examples of a batch: images [N, H, W, C], and by name and turn [N] each."""

    images: np.ndarray
    parameters: dict[str, np.ndarray]
    turns: augment.Turns

    def part(self, piece: slice) -> "Rows":
        """Some of them."""
        return Rows(
            self.images[piece],
            {name: values[piece] for name, values in self.parameters.items()},
            augment.Turns(*(values[piece] for values in self.turns)),
        )


class Batches(abc.ABC):
    """An endless, resumable source of training batches.

    Attributes:
      spec: how batches are made.
      num_examples: examples in an epoch.
    """

    spec: BatchSpec
    num_examples: int

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in an epoch; what is left of a stored epoch differs from one to the next."""
        return self.num_examples // self.spec.batch_size

    @abc.abstractmethod
    def sample_images(self, number: int = 512) -> np.ndarray:
        """Some training images [≤ number, H, W, C], for fitting the input's stretch."""

    @abc.abstractmethod
    def explained_errors(self) -> AbstractContextManager[None]:
        """A context that turns an error of the input into one that a user can mend."""

    @abc.abstractmethod
    def dataset(
        self,
        start_step: int = 0,
        replicas: int = 1,
        pipeline: int = 0,
        num_pipelines: int = 1,
    ) -> tf.data.Dataset:
        """Batches from global step `start_step` on, without end.

        A global batch is cut into one piece per replica, in order; this data set gives out
        the pieces of one worker's replicas one after the other.

        Args:
          start_step: steps of global batches to leave out.
          replicas: replicas in all, a divisor of the batch size.
          pipeline: which worker's input this is.
          num_pipelines: workers, a divisor of `replicas`.

        Returns:
          A `tf.data.Dataset` of (inputs, targets [B, P]), float32, with B = batch size /
          replicas; inputs are images [B, H, W, C] unless a subclass says otherwise. Iterate
          within `explained_errors`.
        """


class ImageBatches(Batches):
    """Batches of images that may be turned.

    Args:
      spec: how to make batches.
      image_shape: of an image, (H, W, C).

    Raises:
      UserError: if the augmentation is unknown.
    """

    def __init__(self, spec: BatchSpec, image_shape: tuple[int, int, int]):
        choose("augmentation", spec.augmentation, augment.AUGMENTATIONS)
        self.spec = spec
        self._image_shape = image_shape
        self._names = augment.partners(list(spec.targets))

    @abc.abstractmethod
    def _rows(self, start_step: int, part: slice) -> Iterator[Rows]:
        """Some rows of each global batch, from step `start_step` on, without end."""

    def dataset(
        self,
        start_step: int = 0,
        replicas: int = 1,
        pipeline: int = 0,
        num_pipelines: int = 1,
    ) -> tf.data.Dataset:
        """See `Batches.dataset`."""
        size = self.spec.batch_size // replicas
        own = self.spec.batch_size // num_pipelines

        def generate() -> Iterator[Rows]:
            for rows in self._rows(start_step, slice(pipeline * own, (pipeline + 1) * own)):
                for start in range(0, own, size):
                    yield rows.part(slice(start, start + size))

        signature = Rows(
            tf.TensorSpec((size, *self._image_shape), tf.float32),
            {name: tf.TensorSpec((size,), tf.float32) for name in self._names},
            augment.Turns(*(tf.TensorSpec((size,), t) for t in (tf.bool, tf.int32, tf.float32))),
        )
        dataset = tf.data.Dataset.from_generator(generate, output_signature=signature)
        return dataset.map(self._augmented, num_parallel_calls=1).prefetch(2)

    def _augmented(self, rows: Rows) -> tuple[tf.Tensor, tf.Tensor]:
        """Images and targets [B, P] of a piece, turned."""
        images, parameters, turns = rows
        if self.spec.augmentation != "none":
            images = augment.turn_images(images, turns, self.spec.augmentation == "rotate")
            parameters = augment.turn_parameters(parameters, turns)
        return images, tf.stack([parameters[name] for name in self.spec.targets], axis=-1)


class TrainingBatches(ImageBatches):
    """Batches of a stored data set's training split.

    Args:
      folder: an open data set.
      spec: how to make batches.

    Attributes:
      spec, folder: as given.
      num_examples: training examples of the chosen classes.

    Raises:
      UserError: if the split holds fewer examples than a batch.
    """

    def __init__(self, folder: DatasetFolder, spec: BatchSpec):
        choose("cache", spec.cache, CACHES)
        super().__init__(spec, folder.image_shape)
        self.folder = folder
        self._arrays = None
        if spec.cache == "memory":
            self._arrays = load_arrays(folder, "train", self._names, spec.classes)
            self.num_examples = len(self._arrays)
        else:
            self.num_examples = self._count()
        if self.num_examples < spec.batch_size:
            raise UserError(
                f"batch_size {spec.batch_size} is larger than the {self.num_examples} training "
                f"examples of {folder.path}"
            )

    def _count(self) -> int:
        classes = self.spec.classes
        if classes is None or set(classes) >= set(self.folder.metadata["classes"]):
            return self.folder.num_examples("train")
        batches = reading.read_batches(self.folder, "train", 1024, classes, features=["label"])
        with reading.explained_read_errors(self.folder, "train"):
            return sum(int(batch["label"].shape[0]) for batch in batches)

    def sample_images(self, number: int = 512) -> np.ndarray:
        """The first training images, as stored."""
        if self._arrays is not None:
            return self._arrays.images[:number]
        with reading.explained_read_errors(self.folder, "train"):
            batches = reading.read_batches(self.folder, "train", number, self.spec.classes)
            return next(iter(batches))["image"].numpy()

    def explained_errors(self) -> AbstractContextManager[None]:
        """A context in which a damaged shard is named, with the record."""
        return reading.explained_read_errors(self.folder, "train")

    def _epoch_rng(self, epoch: int) -> np.random.Generator:
        return np.random.default_rng([self.spec.seed, epoch])

    def _epochs(self, start_step: int) -> Iterator[tuple[np.random.Generator, range]]:
        """Each epoch's generator and the steps of it that are still to come."""
        epoch, first = divmod(start_step, self.steps_per_epoch)
        while True:
            yield self._epoch_rng(epoch), range(first, self.steps_per_epoch)
            epoch, first = epoch + 1, 0

    def _rows(self, start_step: int, part: slice) -> Iterator[Rows]:
        rows = self._cached_rows if self._arrays is not None else self._streamed_rows
        return rows(start_step, part)

    def _cached_rows(self, start_step: int, part: slice) -> Iterator[Rows]:
        size = self.spec.batch_size
        for rng, steps in self._epochs(start_step):
            order = rng.permutation(self.num_examples)
            turns = augment.draw_turns(self.spec.augmentation, rng, self.num_examples)
            for step in steps:
                piece = slice(step * size + part.start, step * size + part.stop)
                rows = order[piece]
                yield Rows(
                    self._arrays.images[rows],
                    {name: values[rows] for name, values in self._arrays.parameters.items()},
                    augment.Turns(*(values[piece] for values in turns)),
                )

    def _streamed_rows(self, start_step: int, part: slice) -> Iterator[Rows]:
        size = self.spec.batch_size
        keys = [f"parameters/{name}" for name in self._names]
        for rng, steps in self._epochs(start_step):
            shuffle_seed = int(rng.integers(1 << 31))
            turns = augment.draw_turns(self.spec.augmentation, rng, self.num_examples)
            batches = reading.read_shuffled_batches(
                self.folder, "train", size, shuffle_seed, SHUFFLE_BUFFER, self.spec.classes, keys
            )
            for step, batch in zip(steps, batches.skip(steps.start), strict=False):
                piece = slice(step * size, (step + 1) * size)
                yield Rows(
                    batch["image"].numpy(),
                    {name: batch[f"parameters/{name}"].numpy() for name in self._names},
                    augment.Turns(*(values[piece] for values in turns)),
                ).part(part)
