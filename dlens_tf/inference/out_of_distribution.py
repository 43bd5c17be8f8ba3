"""How unlike its training images an image is: a score that is served with every prediction.

Features of an image, in groups:

    image     summary statistics of its pixels, see `evaluation.summaries`
    pixels    their noise, its correlation, flat tops, see `pixel_features`
    fit       what a lens_fit tells of its fit, if the model has one: parameters, how well it fits
    network   what the network gives to its head

In each group the distance to the training images is Mahalanobis's: that from their mean, in units
of their covariance. A distance is divided by its 99 % quantile over images like the training ones
that the network was not trained on; the score is the largest of the groups' distances, divided by
its own 99 % quantile over these. So it is above 1 for one in a hundred of images like these, and
for nearly all that are unlike them.

Reference: Lee et al. 2018, arXiv:1807.03888 (Mahalanobis distance of a network's features).
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import keras
import numpy as np
from keras import ops

from dlens_tf.errors import UserError
from dlens_tf.evaluation import summaries
from dlens_tf.inference import pixel_features
from dlens_tf.inference.posterior import OOD_THRESHOLD
from dlens_tf.io.files import atomic_write, file_checksum
from dlens_tf.models.lens_fit import OUTPUTS
from dlens_tf.models.registry import FITTED
from dlens_tf.training.run_folder import RunFolder

FALSE_ALARMS = 0.01
"""Share of images like the training ones whose score is above `OOD_THRESHOLD` all the same."""
MIN_IMAGES = 100
"""From fewer no score is learnt."""
LARGEST = 1e6
"""The score of images whose features are not finite."""

_FEATURES_VERSION = 2
"""Of the features' definitions: changes whenever these do."""

_SMALLEST_SPREAD = 1e-3  # of a feature, in units of its rms: rounding differs between graphs
_SMALLEST_SHARE = 0.1  # of the spreads' rms, where features have one unit: some are nearly always 0
_SMALLEST_VARIANCE = 1e-2  # of a combination of standardised features, for the same reason

Features = Mapping[str, np.ndarray]


class _Statistics(keras.layers.Layer):
    """Statistics as a layer, so that what they compute of no image is in the graph.

    Args:
      module: with `statistics` of images and their `NAMES` in a channel.
    """

    def __init__(self, module: ModuleType):
        super().__init__()
        self._module = module

    def call(self, images):
        return self._module.statistics(images)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], input_shape[-1] * len(self._module.NAMES))


def with_features(model: keras.Model) -> keras.Model:
    """A model that gives what scores are made of beside its own outputs.

    Args:
      model: from `image` [N, H, W, C] to a head's outputs.

    Returns:
      A model with the same weights, from `image` to a dict of the outputs, and
      "features/<group>" [N, F] for each group.
    """
    image, numbers = model.input, model.get_layer("head").input
    features = {
        "image": _Statistics(summaries)(image),
        "pixels": _Statistics(pixel_features)(image),
        "network": ops.concatenate(numbers, axis=-1) if isinstance(numbers, list) else numbers,
    }
    fits = [layer for layer in model.layers if layer.name == FITTED]
    if fits:
        features["fit"] = dict(zip(OUTPUTS, fits[0].output, strict=True))["facts"]
    named = {f"features/{group}": values for group, values in features.items()}
    # The name stands before that of every op in a graph: a long one makes it large.
    return keras.Model(image, {**model.output, **named}, name="m")


def features_of(outputs: Features) -> dict[str, np.ndarray]:
    """The features among the outputs of a model made by `with_features`, by group."""
    prefix = "features/"
    return {k.removeprefix(prefix): v for k, v in outputs.items() if k.startswith(prefix)}


@dataclasses.dataclass(frozen=True)
class _Group:
    """A group of F features of the training images.

    Attributes:
      mean: [F].
      spread: [F], that differences from the mean are divided by.
      axes: [F, K], the directions in which these vary more than `_SMALLEST_VARIANCE`, each as
        long as makes (|x|² / _SMALLEST_VARIANCE - |x·axes|²) the squared distance. They are fewer
        than F, often by much, and so is what a graph has to hold.
      limit: of the distance.
    """

    mean: np.ndarray
    spread: np.ndarray
    axes: np.ndarray
    limit: float = 1.0

    @classmethod
    def fit(cls, features: np.ndarray, one_unit: bool) -> "_Group":
        """Learns from features [N, F]; `one_unit` if they are all of one kind."""
        features = np.asarray(features, np.float64)
        mean = features.mean(axis=0)
        rms = np.sqrt((features**2).mean(axis=0))
        spread = np.hypot(features.std(axis=0), _SMALLEST_SPREAD * rms)
        if one_unit:
            spread = np.maximum(spread, _SMALLEST_SHARE * np.sqrt(np.mean(spread**2)))
        spread[spread == 0.0] = 1.0
        scaled = (features - mean) / spread
        variance, axes = np.linalg.eigh(scaled.T @ scaled / len(scaled))
        varied = variance > _SMALLEST_VARIANCE
        excess = 1.0 / _SMALLEST_VARIANCE - 1.0 / variance[varied]
        return cls(mean, spread, axes[:, varied] * np.sqrt(excess))

    def distance(self, features):
        """Of features [N, F], in units of the limit, [N]."""
        mean, spread, axes = map(np.float32, (self.mean, self.spread, self.axes))
        x = (features - mean) / spread
        square = ops.sum(x**2, axis=-1) / _SMALLEST_VARIANCE
        square -= ops.sum(ops.matmul(x, axes) ** 2, axis=-1)
        return ops.sqrt(ops.maximum(square, 0.0) / len(mean)) / self.limit


@dataclasses.dataclass(frozen=True)
class Detector:
    """Learnt from training images; scores any.

    Attributes:
      groups: by name.
      limit: of the largest distance.
      num_training: images whose mean and covariance are taken.
      num_held_out: images whose distances set the limits.
      model_sha256: checksum of the model whose features these are.
      features_version: of the features' definitions.
    """

    groups: Mapping[str, _Group]
    limit: float
    num_training: int
    num_held_out: int
    model_sha256: str
    features_version: int = _FEATURES_VERSION

    @classmethod
    def fit(cls, training: Features, held_out: Features, model_sha256: str) -> "Detector":
        """Learns from features of images.

        Args:
          training: by group, float [N, F].
          held_out: of other images like these, by group, float [M, F].
          model_sha256: checksum of the model whose features these are.

        Raises:
          UserError: if there are fewer than `MIN_IMAGES` of either.
        """
        numbers = [len(next(iter(features.values()))) for features in (training, held_out)]
        if min(numbers) < MIN_IMAGES:
            raise UserError(
                f"an out-of-distribution score needs at least {MIN_IMAGES} training and as many "
                f"validation images, not {numbers[0]} and {numbers[1]}"
            )
        groups = {}
        for name, features in training.items():
            group = _Group.fit(features, one_unit=name == "network")
            groups[name] = dataclasses.replace(group, limit=_limit(group.distance(held_out[name])))
        detector = cls(groups, 1.0, *numbers, model_sha256)
        return dataclasses.replace(detector, limit=_limit(detector.score(held_out)))

    def score(self, features: Mapping):
        """Scores [N] of features [N, F] by group; tensors or arrays, in float32."""
        distances = [
            group.distance(ops.cast(features[name], "float32"))
            for name, group in self.groups.items()
        ]
        largest = ops.max(ops.stack(distances), axis=0) / self.limit
        return ops.where(largest < LARGEST, largest, LARGEST)  # also of what is no number

    def write(self, path: Path) -> None:
        """Writes an .npz file."""
        arrays = {
            f"{field}/{name}": getattr(group, field)
            for name, group in self.groups.items()
            for field in ("mean", "spread", "axes", "limit")
        }
        numbers = {
            field: getattr(self, field)
            for field in (
                "limit",
                "num_training",
                "num_held_out",
                "model_sha256",
                "features_version",
            )
        }
        with atomic_write(path) as partial, open(partial, "wb") as stream:
            np.savez(stream, allow_pickle=False, **arrays, **numbers)

    @classmethod
    def read(cls, path: Path) -> "Detector":
        """Reads what `write` wrote.

        Raises:
          UserError: if the file is damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                fields = ("mean", "spread", "axes", "limit")
                names = [k.removeprefix("mean/") for k in arrays.files if k.startswith("mean/")]
                groups = {name: _Group(*(arrays[f"{f}/{name}"] for f in fields)) for name in names}
                return cls(
                    groups,
                    float(arrays["limit"]),
                    int(arrays["num_training"]),
                    int(arrays["num_held_out"]),
                    str(arrays["model_sha256"]),
                    int(arrays["features_version"]) if "features_version" in arrays else 1,
                )
        except Exception as error:  # a damaged archive fails in many ways
            raise UserError(f"{path} is damaged; remove it and evaluate the run again") from error

    def describe(self) -> dict:
        """What the manifest says of it."""
        return {
            "threshold": OOD_THRESHOLD,
            "false_alarms": FALSE_ALARMS,
            "groups": list(self.groups),
            "num_training": self.num_training,
            "num_held_out": self.num_held_out,
        }


def _limit(values) -> float:
    return float(np.quantile(ops.convert_to_numpy(values).astype(np.float64), 1.0 - FALSE_ALARMS))


def read_detector(run: RunFolder) -> Detector | None:
    """The detector of a run's present model; None if it has none, or one of other features."""
    path = run.detector_path
    if not path.is_file():
        return None
    detector = Detector.read(path)
    known = (file_checksum(run.model_path), _FEATURES_VERSION)
    return detector if (detector.model_sha256, detector.features_version) == known else None


def with_score(model: keras.Model, detector: Detector | None) -> Callable:
    """A function from images to a model's outputs and, where there is a detector, "ood_score".

    Also "features" [N, F], what the network gives to its head.

    Args:
      model: from `image` [N, H, W, C] to a head's outputs.
      detector: of its features.
    """
    featured = with_features(model)

    def answer(images):
        outputs = featured(images, training=False)
        features = features_of(outputs)
        result = {name: outputs[name] for name in model.output} | {"features": features["network"]}
        return result if detector is None else {**result, "ood_score": detector.score(features)}

    return answer
