"""Evaluating a run: predictions of a split, metrics, baselines, plots and the report.

Writes into the run's `evaluation/` folder, see `report.write_report`, and returns what the JSON
holds:

    format_version, created, run, dataset, split, num_examples, num_available, bootstrap, notes,
    parameters:
      <name>: symbol, unit, difference_unit, description, prior, prior_text,
        metrics:   of the model, `{"mae": {"value", "standard_error"}, ...}`
        by_truth:  its metrics in bins of the true value
        by_snr:    its metrics in bins of signal-to-noise; [] where the data have no noise
        rows:      the table: the model first, then baselines, published numbers, the limit; each
                   kind, name, source, metrics, mae_over_limit
        baselines: <kind>: by_truth and by_snr of the computed baselines
        limit_by_truth: the information limit in the bins of by_truth; None if unknown
"""

import dataclasses
import datetime
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from dlens_tf.errors import UserError, choose
from dlens_tf.evaluation import baselines, metrics, plots, report
from dlens_tf.evaluation.summaries import NAMES, summarise
from dlens_tf.parameters import Parameter, ParameterSet, Uniform
from dlens_tf.pipeline.reading import (
    DatasetFolder,
    explained_read_errors,
    open_dataset,
    read_batches,
)
from dlens_tf.simulation.recipes import RECIPES, Recipe
from dlens_tf.training.run_folder import RunFolder

FORMAT_VERSION = 1
SPLITS = ("train", "validation", "test")
GRID_COLUMNS = 4


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a model says about examples, beside the truth.

    Attributes:
      truth: true values, float64 [N, P].
      mean: predicted values, float64 [N, P].
      stddev: predicted standard deviations, float64 [N, P]; None from a point head.
      label: class of each example, int64 [N].
      index: index of each example in its class, int64 [N]: with the data set's seed, it makes
        the example again.
      snr: signal-to-noise, float64 [N]; None where the data have no noise.
      statistics: summary statistics, float64 [N, K].
    """

    truth: np.ndarray
    mean: np.ndarray
    stddev: np.ndarray | None
    label: np.ndarray
    index: np.ndarray
    snr: np.ndarray | None
    statistics: np.ndarray

    def arrays(self, targets: ParameterSet) -> dict[str, np.ndarray]:
        """Arrays of predictions.npz."""
        arrays = {"parameters": np.array(targets.names)}
        for name in ("truth", "mean", "stddev", "label", "index", "snr"):
            if getattr(self, name) is not None:
                arrays[name] = getattr(self, name)
        return arrays


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
    total = folder.num_examples(split)
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
    """Raises a `UserError` if the data set is not of the kind that the run was trained on."""
    shape = tuple(run.config["image_shape"])
    if folder.image_shape != shape:
        raise UserError(
            f"data set {folder.path} has images of shape {folder.image_shape}, "
            f"the model of {run.path} takes {shape}"
        )
    for name in run.targets.names:
        if not folder.has(f"parameters/{name}"):
            raise UserError(f"data set {folder.path} has no parameter '{name}' to compare with")


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
        bad = ~np.isfinite(values) if name == "mean" else ~(np.isfinite(values) & (values > 0.0))
        if bad.any():
            raise UserError(
                f"{where}: the model's {name} is {values[bad][0]} for {bad.any(axis=-1).sum()} of "
                f"{len(values)} images; train it again with a lower learning rate"
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
      split: "train", "validation" or "test".
      batch_size: images at once.
      max_examples: take only the first ones.

    Raises:
      UserError: if the data set does not fit the run, or a prediction is not finite.
    """
    _check_matches(run, folder)
    model, targets = run.load_model(), run.targets
    spec = tf.TensorSpec((None, *folder.image_shape), tf.float32)
    predict = tf.function(lambda images: model(images, training=False), input_signature=[spec])
    has_snr = folder.has("metadata/snr")
    parts: dict[str, list[np.ndarray]] = {}
    for batch in _batches(
        folder, split, batch_size, run.config["classes"], max_examples, f"predict {split}"
    ):
        outputs = {k: v.numpy() for k, v in predict(tf.constant(batch["image"])).items()}
        _check_outputs(outputs, str(run.model_path))
        part = {
            "truth": _truth(batch, targets),
            "label": batch["label"],
            "index": batch["metadata/index"],
            "statistics": summarise(batch["image"]),
            **{k: v.astype(np.float64) for k, v in outputs.items() if k in ("mean", "stddev")},
        }
        if has_snr:
            part["snr"] = batch["metadata/snr"].astype(np.float64)
        for key, values in part.items():
            parts.setdefault(key, []).append(values)
    if not parts:
        raise UserError(f"the {split} split of {folder.path} has no examples of the run's classes")
    arrays = {key: np.concatenate(values) for key, values in parts.items()}
    _check_truth(arrays["truth"], targets, folder)
    return Predictions(**{"stddev": None, "snr": None, **arrays})


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


def _prior_text(parameter: Parameter) -> str:
    prior, unit = parameter.prior, f" {parameter.unit}" if parameter.unit else ""
    if isinstance(prior, Uniform):
        return f"uniform from {prior.low:g} to {prior.high:g}{unit}"
    low, high = prior.support
    return f"normal, {prior.mean:g} ± {prior.std:g}{unit}, cut at {low:g} and {high:g}"


def _evaluate_parameter(
    parameter: Parameter,
    predictors: dict[str, tuple[str, str, np.ndarray, np.ndarray | None]],
    truth: np.ndarray,
    snr: np.ndarray | None,
    recipe: Recipe | None,
    seed: int,
) -> dict[str, Any]:
    """The JSON entry of one parameter.

    Args:
      parameter: which.
      predictors: by kind ("model" first): name, source, mean [N], stddev [N] or None.
      truth: [N].
      snr: [N] or None.
      recipe: of the data set; None if unknown.
      seed: of the bootstrap.
    """
    limit = baselines.information_limit(recipe, parameter.name)
    truth_edges = metrics.equal_edges(parameter)
    limit_bins = None
    edges = limit.bin_edges if limit else ()
    if edges and np.allclose((edges[0], edges[-1]), parameter.prior.support):
        truth_edges, limit_bins = np.array(edges), list(limit.bin_mae)
    best = None
    if limit:
        best = {"value": limit.mae, "standard_error": limit.mae_error}

    def row(kind: str, name: str, source: str, values: dict[str, metrics.Estimate]) -> dict:
        over = metrics.ratio(values["mae"], best) if best and kind != "limit" else None
        return {
            "kind": kind,
            "name": name,
            "source": source,
            "metrics": values,
            "mae_over_limit": over,
        }

    rows, bins = [], {}
    for kind, (name, source, mean, stddev) in predictors.items():
        rows.append(
            row(
                kind,
                name,
                source,
                metrics.compute_metrics(parameter, truth, mean, stddev, seed=seed),
            )
        )
        by = {"by_truth": (truth, truth_edges)}
        if snr is not None:
            by["by_snr"] = (snr, metrics.quantile_edges(snr))
        bins[kind] = {"by_snr": []} | {
            key: metrics.binned_metrics(parameter, truth, mean, stddev, *values, seed=seed)
            for key, values in by.items()
        }
    for result in baselines.published_results(recipe, parameter.name):
        mae = {"mae": {"value": result.mae, "standard_error": None}}
        rows.append(row("published", result.model, result.source, mae))
    if limit:
        rows.append(row("limit", "information limit", limit.source, {"mae": best}))
    model_bins = bins.pop("model")
    return {
        **parameter.to_dict(),
        "difference_unit": metrics.difference_unit(parameter),
        "prior_text": _prior_text(parameter),
        "metrics": rows[0]["metrics"],
        **model_bins,
        "rows": rows,
        "baselines": bins,
        "limit_by_truth": limit_bins,
    }


def _notes(
    recipe_name: str,
    recipe: Recipe | None,
    targets: ParameterSet,
    has_snr: bool,
    num_fit: int,
    front_end: str,
) -> list[str]:
    """What the reader should know about the table."""
    notes = [
        f"The linear regression uses {len(NAMES)} summary statistics of each image channel (flux, "
        f"peak, noise, moments, radial profile, multipoles, asymmetry, roughness), fitted on "
        f"{num_fit} training images; its predictions are kept to the prior range, and its "
        "deviation is the rms of its residuals there. The prior's centre has the prior's deviation."
    ]
    if front_end == "smooth_residual":
        notes.append(
            "The model's smooth_residual front end is given the recipe's fixed macro-model of lens "
            "and source, which published networks and the other baselines are not; its numbers "
            "say nothing about real lenses."
        )
    if recipe is None:
        notes.append(
            f"The recipe '{recipe_name}' is unknown to this version of dlens_tf: published "
            "numbers and the information limit, if there are any, are not shown."
        )
    else:
        for name in targets.names:
            if not baselines.published_results(recipe, name):
                notes.append(f"There are no published test errors of {name} on this data set.")
            if not baselines.information_limit(recipe, name):
                notes.append(f"The information limit of {name} on this data set is not known.")
    if not has_snr:
        notes.append("The images have no noise: there are no bins of signal-to-noise.")
    return notes


def _pick_examples(error: np.ndarray) -> dict[str, np.ndarray]:
    """Positions of the best, the most typical and the worst predicted examples."""
    size = np.abs(error)
    order = np.argsort(size, kind="stable")
    typical = np.argsort(np.abs(size - np.median(size)), kind="stable")
    return {
        "best": order[:GRID_COLUMNS],
        "typical": typical[:GRID_COLUMNS],
        "worst": order[::-1][:GRID_COLUMNS],
    }


def _read_images(
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


def _title(truth: float, mean: float, stddev: float | None) -> str:
    predicted = f"{mean:.3g}" if stddev is None else f"{mean:.2f} ± {stddev:.2f}"
    return f"{predicted}\ntrue {truth:.2f}"


def _draw(
    predictions: Predictions,
    targets: ParameterSet,
    entries: dict[str, dict[str, Any]],
    read_images,
) -> dict[str, dict[str, bytes]]:
    """PNG bytes by parameter and plot."""
    picks = {
        p.name: _pick_examples(
            metrics.residuals(p, predictions.truth[:, i], predictions.mean[:, i])
        )
        for i, p in enumerate(targets)
    }
    images = read_images({int(i) for rows in picks.values() for row in rows.values() for i in row})
    figures: dict[str, dict[str, bytes]] = {}
    for i, parameter in enumerate(targets):
        truth, mean = predictions.truth[:, i], predictions.mean[:, i]
        stddev = None if predictions.stddev is None else predictions.stddev[:, i]
        entry = entries[parameter.name]
        labels = {"model": "this model", "centre": "prior's centre", "linear": "linear regression"}
        by_kind = {"model": entry, **entry["baselines"]}
        drawn = {
            "scatter": plots.scatter_figure(truth, mean, stddev, parameter),
            "residuals": plots.residual_figure(truth, mean, parameter),
        }
        rows = [(kind, labels[kind], bins["by_truth"]) for kind, bins in by_kind.items()]
        if entry["limit_by_truth"]:
            limit = [
                {**b, "metrics": {"mae": {"value": value, "standard_error": None}}}
                for b, value in zip(entry["by_truth"], entry["limit_by_truth"], strict=True)
            ]
            rows.append(("limit", "information limit", limit))
        drawn["by_truth"] = plots.truth_bins_figure(rows, parameter)
        if entry["by_snr"]:
            rows = [(kind, labels[kind], bins["by_snr"]) for kind, bins in by_kind.items()]
            drawn["by_snr"] = plots.snr_bins_figure(rows, parameter)
        if stddev is not None:
            drawn["calibration"] = plots.calibration_figure(truth, mean, stddev, parameter)
        shown = [j for row in picks[parameter.name].values() for j in row]
        drawn["images"] = plots.image_grid(
            np.stack([images[int(j)] for j in shown]),
            [_title(truth[j], mean[j], None if stddev is None else stddev[j]) for j in shown],
            columns=len(picks[parameter.name]["best"]),
            row_labels=list(picks[parameter.name]),
        )
        figures[parameter.name] = {k: plots.figure_to_png(f) for k, f in drawn.items()}
    return figures


def evaluate_run(
    run_dir: str | Path,
    split: str = "test",
    batch_size: int = 64,
    data_dir: str | Path | None = None,
    max_examples: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Evaluates a run's model on a split and writes the report into its folder.

    Args:
      run_dir: folder of the run.
      split: "train", "validation" or "test".
      batch_size: images at once.
      data_dir: folder under which data sets are kept; None takes the run's own.
      max_examples: evaluate only the first ones of the split.
      seed: of the bootstrap.

    Returns:
      What the JSON holds (see the module's synopsis), and the page's path under "report".

    Raises:
      UserError: if the run or its data set is missing or they don't fit, or if a prediction is
        not finite.
    """
    choose("split", split, SPLITS)
    run = RunFolder.open(run_dir)
    config, targets = run.config, run.targets
    folder = open_dataset(config["dataset"], config["config"], data_dir or config["data_dir"])
    recipe = RECIPES.get(config["recipe"])
    classes = config["classes"]
    predictions = predict_split(run, folder, split, batch_size, max_examples)
    fit = fit_linear_baseline(folder, targets, classes, batch_size)
    num = len(predictions.truth)
    centre, linear = baselines.predict_centre(targets, num), fit.predict(predictions.statistics)
    has_stddev = predictions.stddev is not None
    front_end = config["model"].get("front_end", "flux")
    backbone = config["model"].get("backbone", "model")
    description = f"{backbone} with {front_end} front end and {config['head']} head"
    entries = {}
    for i, parameter in enumerate(targets):

        def column(values, i=i):
            return values[:, i] if has_stddev else None

        entries[parameter.name] = _evaluate_parameter(
            parameter,
            {
                "model": (
                    "this model",
                    description,
                    predictions.mean[:, i],
                    column(predictions.stddev),
                ),
                "linear": (
                    "linear regression",
                    f"fitted on {fit.num_images} training images",
                    linear[0][:, i],
                    column(linear[1]),
                ),
                "centre": (
                    "prior's centre",
                    "constant",
                    centre[0][:, i],
                    column(centre[1]),
                ),
            },
            predictions.truth[:, i],
            predictions.snr,
            recipe,
            seed,
        )
    result = {
        "format_version": FORMAT_VERSION,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "run": {
            "name": run.path.resolve().name,
            "description": f"{description}, {config['num_parameters']:,} weights",
            **{key: config[key] for key in ("model", "head", "seed", "git_commit")},
            **{key: config[key] for key in ("dlens_tf_version", "num_parameters")},
        },
        "dataset": {
            "name": config["dataset"],
            "config": config["config"],
            "version": folder.version,
            "recipe": config["recipe"],
            "classes": classes,
            "seed": folder.metadata["seed"],
        },
        "split": split,
        "num_examples": num,
        "num_available": folder.num_examples(split),
        "bootstrap": {"resamples": metrics.RESAMPLES, "seed": seed},
        "parameters": entries,
        "notes": _notes(
            config["recipe"],
            recipe,
            targets,
            predictions.snr is not None,
            fit.num_images,
            front_end,
        ),
    }
    figures = _draw(
        predictions,
        targets,
        entries,
        lambda positions: _read_images(folder, split, classes, batch_size, positions),
    )
    page = report.write_report(
        run.evaluation_dir, split, result, figures, predictions.arrays(targets)
    )
    return {**result, "report": str(page)}
