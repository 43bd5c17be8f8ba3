"""A run's model on a split of a data set: truths, posteriors, and what bins and baselines need."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from keras import ops
from tqdm import tqdm

from dlens_tf.errors import UserError
from dlens_tf.evaluation import baselines
from dlens_tf.evaluation.summaries import summarise
from dlens_tf.inference.out_of_distribution import (
    MIN_IMAGES,
    Detector,
    features_of,
    read_detector,
    with_features,
)
from dlens_tf.inference.posterior import Posterior
from dlens_tf.io.files import file_checksum
from dlens_tf.parameters import ParameterSet
from dlens_tf.pipeline.reading import DatasetFolder, explained_read_errors, read_batches
from dlens_tf.quantiles import QUANTILE_LEVELS
from dlens_tf.training.front_end import make_predictor
from dlens_tf.training.run_folder import RunFolder

_DETECTOR_IMAGES = 2000


def point_estimate(posterior: Posterior) -> np.ndarray:
    """What is compared with the truth, float64 [N, P]: medians, or what a point head says."""
    return posterior.mean if posterior.stddev is None else posterior.median


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a model says about examples, beside the truth.

    Attributes:
      truth: true values, inside the prior's support, float64 [N, P].
      posterior: as the model gives them.
      label: class of each example, int64 [N].
      index: index of each example in its class, int64 [N]: with the data set's seed, it makes
        the example again.
      snr: signal-to-noise, float64 [N]; None where the data have no noise.
      statistics: summary statistics, float64 [N, K].
    """

    truth: np.ndarray
    posterior: Posterior
    label: np.ndarray
    index: np.ndarray
    snr: np.ndarray | None
    statistics: np.ndarray

    def arrays(self, posterior: Posterior) -> dict[str, np.ndarray]:
        """Arrays of predictions.npz, with the final posterior, which may be recalibrated."""
        arrays = {
            "parameters": np.array(posterior.parameters.names),
            **{name: getattr(self, name) for name in ("truth", "label", "index", "snr")},
            **{name: getattr(posterior, name) for name in ("mean", "stddev", "ood_score")},
        }
        if posterior.stddev is not None:
            arrays["quantile_levels"] = np.array(QUANTILE_LEVELS)
            arrays["quantiles"] = posterior.quantiles(QUANTILE_LEVELS)
            arrays["cdf"] = posterior.cdf(self.truth)
        return {name: values for name, values in arrays.items() if values is not None}


def _truth(batch: dict[str, np.ndarray], targets: ParameterSet) -> np.ndarray:
    return np.stack([batch[f"parameters/{name}"] for name in targets.names], -1).astype(float)


def _batches(
    folder: DatasetFolder,
    split: str,
    batch_size: int,
    classes: Sequence[str] | None,
    limit: int | None,
    description: str,
) -> Iterator[dict[str, np.ndarray]]:
    """Numpy batches of a split, at most its first `limit` examples, with a progress bar."""
    total = folder.num_examples(split, classes)
    total = total if limit is None else min(limit, total)
    done = 0
    with (
        explained_read_errors(folder, split),
        tqdm(total=total, desc=description, unit="image") as bar,
    ):
        for batch in read_batches(folder, split, batch_size, classes).as_numpy_iterator():
            size = min(len(batch["image"]), total - done)
            yield {key: values[:size] for key, values in batch.items()}
            done += size
            bar.update(size)
            if done == limit:  # otherwise to the end, where lost records are noticed
                break


def _check_matches(run: RunFolder, folder: DatasetFolder) -> None:
    """Raises a `UserError` unless the data set is of the run's kind and keeps its test apart."""
    shape = tuple(run.config["image_shape"])
    if folder.image_shape != shape:
        raise UserError(
            f"data set {folder.path} has images of shape {folder.image_shape}, "
            f"the model of {run.path} takes {shape}"
        )
    for name in run.targets.names:
        if not folder.has(f"parameters/{name}"):
            raise UserError(f"data set {folder.path} has no parameter '{name}' to compare with")
    galaxies = folder.metadata.get("galaxies")
    if run.learned_from_others(galaxies):
        raise UserError(
            f"{run.path} learned from galaxies {run.config['dataset_galaxies']}, but data set "
            f"{folder.path} is made from galaxies {galaxies}, and those it holds out could be "
            "among them: choose one made from the same galaxies"
        )


def _check_truth(truth: np.ndarray, targets: ParameterSet, folder: DatasetFolder) -> None:
    """Raises a `UserError` if truths lie outside the priors by more than float32 rounding."""
    low, high = targets.supports.T
    slack = 1e-5 * (high - low)
    outside = ((truth < low - slack) | (truth > high + slack)).any(axis=0)
    for parameter, is_outside in zip(targets, outside, strict=True):
        if is_outside:
            raise UserError(
                f"'{parameter.name}' in data set {folder.path} leaves the range "
                f"{parameter.prior.support} that the model was trained for"
            )


def _check_outputs(outputs: dict[str, np.ndarray], where: str) -> None:
    """Raises a `UserError` if a prediction is not finite or a deviation not positive."""
    for name, values in outputs.items():
        bad = ~np.isfinite(values)
        if name == "stddev":
            bad |= values <= 0.0
        if bad.any():
            rows = bad.reshape(len(values), -1).any(axis=1).sum()
            raise UserError(
                f"{where}: the model's {name} is {values[bad][0]} for {rows} of {len(values)} "
                "images; train it again with a lower learning rate"
            )


def predict_split(
    run: RunFolder,
    folder: DatasetFolder,
    split: str,
    batch_size: int,
    max_examples: int | None = None,
) -> Predictions:
    """The run's model on a split, in stored order.

    Args:
      run: a run with a model.
      folder: the data set.
      split: of the data set.
      batch_size: images at once.
      max_examples: take only the first ones.

    Raises:
      UserError: if the data set does not fit the run, or a prediction is not finite.
    """
    _check_matches(run, folder)
    model, targets = run.load_model(), run.targets
    detector = read_detector(run)
    predict = make_predictor(model if detector is None else with_features(model))
    has_snr = folder.has("metadata/snr")
    outputs: dict[str, list[np.ndarray]] = {}
    parts: dict[str, list[np.ndarray]] = {}
    for batch in _batches(
        folder, split, batch_size, run.config["classes"], max_examples, f"predict {split}"
    ):
        answer = dict(predict(batch["image"]))
        features = {name: answer.pop(name) for name in list(answer) if name not in model.output}
        if detector is not None:
            answer["ood_score"] = ops.convert_to_numpy(detector.score(features_of(features)))
        _check_outputs(answer, str(run.model_path))
        part = {
            "truth": _truth(batch, targets),
            "label": batch["label"],
            "index": batch["metadata/index"],
            "statistics": summarise(batch["image"]),
        }
        if has_snr:
            part["snr"] = batch["metadata/snr"].astype(np.float64)
        for together, one in ((parts, part), (outputs, answer)):
            for key, values in one.items():
                together.setdefault(key, []).append(values)
    if not parts:
        raise UserError(f"the {split} split of {folder.path} has no examples of the run's classes")
    arrays = {key: np.concatenate(values) for key, values in parts.items()}
    _check_truth(arrays["truth"], targets, folder)
    # What rounding to float32 has put outside of the support, and so outside of each posterior.
    arrays["truth"] = np.clip(arrays["truth"], *targets.supports.T)
    head = model.get_layer("head").density_config
    posterior = Posterior.from_outputs(
        targets, head, {key: np.concatenate(values) for key, values in outputs.items()}
    )
    return Predictions(**{"snr": None, **arrays}, posterior=posterior)


def fit_detector(run: RunFolder, folder: DatasetFolder, batch_size: int) -> Detector | None:
    """Learns what images are unlike the training images, and writes it into the run's folder.

    From (at most 2,000) images of the data set's training split, and as many of its validation
    split. The detector of the run's present model, if there is one, is kept.

    Returns:
      The detector; None if the data set has too few images for one.

    Raises:
      UserError: if the data set does not fit the run.
    """
    _check_matches(run, folder)
    detector, classes = read_detector(run), run.config["classes"]
    if detector is not None:
        return detector
    splits = ("train", "validation")
    if min(folder.num_examples(split, classes) for split in splits) < MIN_IMAGES:
        return None
    predict = make_predictor(with_features(run.load_model()))
    features = {}
    for split in splits:
        parts: dict[str, list[np.ndarray]] = {}
        for batch in _batches(
            folder, split, batch_size, classes, _DETECTOR_IMAGES, f"features of {split}"
        ):
            for name, values in features_of(predict(batch["image"])).items():
                parts.setdefault(name, []).append(values)
        features[split] = {name: np.concatenate(values) for name, values in parts.items()}
    checksum = file_checksum(run.model_path)
    detector = Detector.fit(features["train"], features["validation"], checksum)
    detector.write(run.detector_path)
    return detector


def fit_linear_baseline(
    folder: DatasetFolder, targets: ParameterSet, classes: Sequence[str] | None, batch_size: int
) -> baselines.LinearFit:
    """The linear fit to summary statistics of (at most 5,000) training images."""
    statistics, truth = [], []
    for batch in _batches(
        folder, "train", batch_size, classes, baselines.MAX_TRAINING_IMAGES, "linear baseline"
    ):
        statistics.append(summarise(batch["image"]))
        truth.append(_truth(batch, targets))
    return baselines.fit_linear(np.concatenate(statistics), np.concatenate(truth), targets)


def read_images(
    folder: DatasetFolder,
    split: str,
    classes: Sequence[str] | None,
    batch_size: int,
    positions: set[int],
) -> dict[int, np.ndarray]:
    """Images [H, W, C] at these positions of the split; read again rather than all kept."""
    found, start = {}, 0
    last = max(positions) + 1
    for batch in _batches(folder, split, batch_size, classes, last, "sample images"):
        for i in range(len(batch["image"])):
            if start + i in positions:
                found[start + i] = batch["image"][i]
        start += len(batch["image"])
    return found
