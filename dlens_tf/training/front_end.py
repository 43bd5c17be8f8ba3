"""Batches of a front end's outputs, computed once for a finite training set and kept on disk.

A front end without trainable weights gives the same outputs in every epoch, and may cost more
than the network behind it. `FrontEndBatches` computes them once, on all cores, resumably, into a
folder that several runs with the same data and front end can share.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from dlens_tf.errors import UserError
from dlens_tf.io.files import atomic_write
from dlens_tf.io.locks import exclusive
from dlens_tf.models.lens_fit import FIT_VERSION, LensFit, TemplateStart
from dlens_tf.models.registry import all_layers, fits_lenses
from dlens_tf.pipeline.batches import Batches

_TARGETS = "targets"
_HALF = ("pictures",)  # nearly all of the volume, and stretched to order one: kept in float16
_BLOCK = 512
_SOME = 16
"""Images that one core predicts together."""


def output_shapes(front: keras.Model) -> dict[str, tuple[int, ...]]:
    """Shape of each output for one image."""
    return {n: tuple(o.shape[1:]) for n, o in front(keras.Input(front.input_shape[1:])).items()}


def compiled(front: keras.Model) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """A front end as one XLA program that stays in a core's cache: one image after the other."""
    signature = {n: tf.TensorSpec(shape, tf.float32) for n, shape in output_shapes(front).items()}

    def one(image):
        return {name: values[0] for name, values in front(image[tf.newaxis]).items()}

    def call(images):
        return tf.map_fn(one, images, fn_output_signature=signature)

    return tf.function(call, jit_compile=True)


def make_predictor(model: keras.Model) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """A function from images [N, H, W, C] to a model's outputs, each [N, …].

    Models that fit lenses are compiled and run on all cores, each some of the images.
    """
    if not fits_lenses(model):
        spec = tf.TensorSpec((None, *model.input_shape[1:]), tf.float32)
        eager = tf.function(lambda images: model(images, training=False), input_signature=[spec])
        return lambda images: {n: v.numpy() for n, v in eager(tf.constant(images)).items()}
    run, pool = compiled(model), ThreadPoolExecutor(os.cpu_count())

    def some(images: np.ndarray) -> dict[str, np.ndarray]:
        # Always as many, so that there is one program.
        padded = np.resize(images, (_SOME, *images.shape[1:]))
        outputs = run(tf.constant(padded))
        return {name: values.numpy()[: len(images)] for name, values in outputs.items()}

    def predict(images: np.ndarray) -> dict[str, np.ndarray]:
        pieces = [images[i : i + _SOME] for i in range(0, len(images), _SOME)]
        parts = list(pool.map(some, pieces))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    return predict


def weights_digest(front: keras.Model) -> str:
    """A checksum of what a front end computes.

    The weights of a fit follow from its options, but only up to the last bits, which are another
    linear algebra library's own: in their place stand the options and `FIT_VERSION`.
    """
    digest = hashlib.sha256(f"fit {FIT_VERSION}".encode())
    for layer in all_layers(front):
        if isinstance(layer, LensFit | TemplateStart):
            digest.update(json.dumps(layer.get_config(), sort_keys=True).encode())
            continue
        for weight in layer.get_weights():
            digest.update(np.ascontiguousarray(weight).tobytes())
    return digest.hexdigest()


class FrontEndBatches(Batches):
    """Batches of what a front end makes of other batches' images.

    The first epoch of `source` is the training set; each epoch is a fresh permutation of it.

    Args:
      source: gives the images and targets.
      front: from images to a dict of arrays.
      folder: where the outputs are kept; filled if it is not complete.
      key: what the data come from, JSON-ready: a folder of others is refused. The targets and
        batch size of `source` are added.

    Attributes:
      spec, num_examples: of the source.
      fill_seconds: how long it took to fill the folder, whoever did; None if it does not say.

    Raises:
      UserError: if the folder is of other data or another front end, or damaged.
    """

    def __init__(self, source: Batches, front: keras.Model, folder: Path, key: Mapping[str, Any]):
        self._source = source
        self.spec = source.spec
        self.num_examples = source.steps_per_epoch * source.spec.batch_size
        self._folder = folder
        self._shapes = {**output_shapes(front), _TARGETS: (len(source.spec.targets),)}
        key = {
            **key,
            "targets": list(source.spec.targets),
            "batch_size": source.spec.batch_size,
            "examples": self.num_examples,
            "front_end": weights_digest(front),
        }
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder / "lock", f"filling {folder}"):
            self.fill_seconds = self._fill(front, key)
        try:
            self._arrays = {n: np.load(self._path(n), mmap_mode="r") for n in self._shapes}
        except (OSError, ValueError) as error:
            raise self._damaged() from error

    def _damaged(self) -> UserError:
        return UserError(f"{self._folder} is damaged: remove it, and it is filled again")

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.npy"

    def _fill(self, front: keras.Model, key: dict[str, Any]) -> float | None:
        """Computes what is not there yet; returns the seconds that all of it took."""
        state = self._folder / "state.json"
        done, seconds = 0, 0.0
        if state.is_file():
            try:
                recorded = json.loads(state.read_text())
                whose, done = recorded["key"], recorded["done"]
            except (ValueError, KeyError, TypeError) as error:
                raise self._damaged() from error
            if whose != json.loads(json.dumps(key)):
                raise UserError(
                    f"{self._folder} holds the outputs of another front end or of other data; "
                    "choose another --front_end_dir"
                )
            seconds = recorded.get("seconds")
        if done == self.num_examples:
            return seconds
        begin, before = time.monotonic(), seconds or 0.0
        arrays = {}
        for name, shape in self._shapes.items():
            dtype = np.float16 if name in _HALF else np.float32
            mode = "r+" if done else "w+"
            if done and not self._path(name).is_file():
                raise self._damaged()
            arrays[name] = np.lib.format.open_memmap(
                self._path(name), mode, dtype, (self.num_examples, *shape)
            )
        size = self.spec.batch_size
        run = compiled(front)
        images = self._source.dataset(done // size)
        outputs = images.map(
            lambda image, targets: {**run(image), _TARGETS: targets},
            num_parallel_calls=2,
        ).prefetch(2)
        iterator = iter(outputs)
        with (
            self._source.explained_errors(),
            tqdm(total=self.num_examples, initial=done, desc="front end", unit="image") as bar,
        ):
            while done < self.num_examples:
                for name, values in next(iterator).items():
                    arrays[name][done : done + size] = values.numpy()
                done += size
                bar.update(size)
                if done % math.lcm(_BLOCK, size) == 0 or done == self.num_examples:
                    for array in arrays.values():
                        array.flush()
                    seconds = before + time.monotonic() - begin
                    with atomic_write(state) as partial:
                        record = {"key": key, "done": done, "seconds": seconds}
                        partial.write_text(json.dumps(record))
        del iterator  # its threads run Python, see `Trainer._input`
        return seconds

    def sample_images(self, number: int = 512) -> np.ndarray:
        """Images of the source."""
        return self._source.sample_images(number)

    def explained_errors(self) -> AbstractContextManager[None]:
        """A context that turns an error of the input into one that a user can mend."""
        return self._source.explained_errors()

    def dataset(
        self,
        start_step: int = 0,
        replicas: int = 1,
        pipeline: int = 0,
        num_pipelines: int = 1,
    ) -> tf.data.Dataset:
        """As `Batches.dataset`, with the front end's outputs in place of images."""
        size = self.spec.batch_size // replicas
        own = self.spec.batch_size // num_pipelines
        steps = self.steps_per_epoch

        def generate():
            epoch, first = divmod(start_step, steps)
            while True:
                order = np.random.default_rng([self.spec.seed, epoch]).permutation(
                    self.num_examples
                )
                for step in range(first, steps):
                    for start in range(pipeline * own, (pipeline + 1) * own, size):
                        begin = step * self.spec.batch_size + start
                        rows = order[begin : begin + size]
                        # In ascending order: a memory map reads neighbours together.
                        part = {n: a[np.sort(rows)] for n, a in self._arrays.items()}
                        part = {n: np.asarray(a, np.float32) for n, a in part.items()}
                        targets = part.pop(_TARGETS)
                        yield part, targets
                epoch, first = epoch + 1, 0

        specs = {n: tf.TensorSpec((size, *s), tf.float32) for n, s in self._shapes.items()}
        targets = specs.pop(_TARGETS)
        return tf.data.Dataset.from_generator(generate, output_signature=(specs, targets)).prefetch(
            4
        )
