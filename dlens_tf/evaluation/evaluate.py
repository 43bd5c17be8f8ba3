"""Evaluating a run: predictions of a split, metrics, baselines, plots and the report.

Writes into the run's `evaluation/` folder, see `report.write_report`, and returns what the JSON
holds:

    format_version, created, run, dataset, split, num_examples, num_available, bootstrap, notes,
    parameters:
      <name>: symbol, unit, difference_unit, description, prior, prior_text,
        metrics:   of the model, `{"mae": {"value", "standard_error"}, ...}`
        by_truth:  its metrics in bins of the true value
        by_snr:    its metrics in bins of signal-to-noise; [] where the data have no noise
        calibration: "before" and "after" recalibration; "after" is None without one, and
                   calibration is None for point estimates. Each has metrics, by_truth and by_snr
                   (coverage only), coverage_curve, pit and sbc
        rows:      the table: the model first, then baselines, published numbers, the limit; each
                   kind, name, source, metrics, mae_over_limit
        baselines: <kind>: by_truth and by_snr of the computed baselines
        limit_by_truth: the exact posterior's expected error in the bins of by_truth, where it
                   is no bound (see `InformationLimit`); None if unknown
    out_of_distribution: what is known of the score, with the share of this split's images above
      its threshold as "false_alarms"; None if the data set has too few images to learn one
    joint: "before" and "after": nll and tarp of all parameters together; None for point estimates
    recalibration: its method, checksum and where it comes from; None without one

The point estimate is the posterior's median, or what a point head says. A run's recalibration, if
it has one, is part of its model: `metrics` are with it.
"""

import dataclasses
import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dlens_tf.commands import command_line
from dlens_tf.errors import UserError, choose
from dlens_tf.evaluation import baselines, calibration, drawing, metrics, report
from dlens_tf.evaluation.predictions import (
    Predictions,
    fit_detector,
    fit_linear_baseline,
    point_estimate,
    predict_split,
    read_images,
)
from dlens_tf.evaluation.recalibration import (
    RecalibratedPosterior,
    Recalibration,
    read_recalibration,
)
from dlens_tf.evaluation.summaries import NAMES
from dlens_tf.inference.out_of_distribution import FALSE_ALARMS
from dlens_tf.inference.posterior import OOD_THRESHOLD, Posterior
from dlens_tf.io.files import file_checksum
from dlens_tf.models.registry import given_to
from dlens_tf.parameters import Choice, Derived, Parameter, ParameterSet, Uniform
from dlens_tf.pipeline.reading import DatasetFolder, build_command, open_dataset
from dlens_tf.simulation.recipes import RECIPES, InformationLimit, Recipe
from dlens_tf.simulation.splits import OPTIONAL_SPLIT_START, SPLIT_START
from dlens_tf.training.cost import training_cost
from dlens_tf.training.run_folder import RunFolder, write_json

FORMAT_VERSION = 2
SPLITS = (*SPLIT_START, *OPTIONAL_SPLIT_START)
CALIBRATION_SPLITS = ("calibration", "validation")
"""Splits to recalibrate on: the network was not trained on them, and results are not told of them.

The best weights are chosen on validation, so posteriors may look a little better there.
"""
_CALIBRATION_IMAGES = 2000


def _prior_text(parameter: Parameter) -> str:
    prior, unit = parameter.prior, f" {parameter.unit}" if parameter.unit else ""
    if isinstance(prior, Uniform):
        return f"uniform from {prior.low:g} to {prior.high:g}{unit}"
    low, high = prior.support
    if isinstance(prior, Choice):
        return f"one of {prior.number:g} values from {low:g} to {high:g}{unit}, equally likely"
    spread, ends = f"{prior.mean:g} ± {prior.std:g}{unit}", f"{low:g} and {high:g}"
    if isinstance(prior, Derived):
        return f"that of a derived quantity, {spread}, between {ends}"
    return f"normal, {spread}, cut at {ends}"


_Bins = dict[str, tuple[np.ndarray, np.ndarray]]
"""By "by_truth" and "by_snr": values [N] and edges of the bins in them."""


def _covers_prior(limit: InformationLimit, parameter: Parameter) -> bool:
    """Whether the exact posterior is known in bins of the true value, all over this prior."""
    edges = limit.bin_edges
    return bool(edges) and np.allclose((edges[0], edges[-1]), parameter.prior.support)


def _bins(
    parameter: Parameter,
    truth: np.ndarray,
    snr: np.ndarray | None,
    limit: InformationLimit | None,
) -> _Bins:
    edges = metrics.equal_edges(parameter)
    if limit and _covers_prior(limit, parameter):
        edges = np.array(limit.bin_edges)
    bins = {"by_truth": (truth, edges)}
    if snr is not None:
        bins["by_snr"] = (snr, metrics.quantile_edges(snr))
    return bins


def _binned(
    parameter: Parameter,
    truth: np.ndarray,
    predicted: np.ndarray,
    marginals: metrics.Marginals | None,
    bins: _Bins,
    seed: int,
) -> dict[str, list[dict]]:
    return {"by_snr": []} | {
        key: metrics.binned_metrics(parameter, truth, predicted, marginals, *values, seed=seed)
        for key, values in bins.items()
    }


def _calibration(
    parameter: Parameter,
    truth: np.ndarray,
    median: np.ndarray,
    marginals: metrics.Marginals,
    ranks: np.ndarray,
    bins: _Bins,
    seed: int,
) -> dict[str, Any]:
    """The JSON of one parameter's calibration, before or after recalibration."""
    binned = _binned(parameter, truth, median, marginals, bins, seed)
    return {
        "metrics": metrics.compute_metrics(parameter, truth, median, marginals, seed=seed),
        **calibration.describe_marginal(marginals.pit, ranks),
        **{
            key: [{**b, "metrics": {m: b["metrics"][m] for m in metrics.COVERAGE}} for b in part]
            for key, part in binned.items()
        },
    }


def _by_state(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """With None for what there is not before or after recalibration; None of point estimates."""
    return {"before": None, "after": None} | dict(values) if values else None


def _evaluate_parameter(
    parameter: Parameter,
    predictors: dict[str, tuple[str, str, np.ndarray, metrics.Marginals | None]],
    truth: np.ndarray,
    snr: np.ndarray | None,
    recipe: Recipe | None,
    seed: int,
    states: Mapping[str, tuple[np.ndarray, metrics.Marginals, np.ndarray]],
) -> dict[str, Any]:
    """The JSON entry of one parameter.

    Args:
      parameter: which.
      predictors: by kind ("model" first): name, source, point estimates [N], and what the
        posteriors say or None.
      truth: [N].
      snr: [N] or None.
      recipe: of the data set; None if unknown.
      seed: of the bootstrap.
      states: medians [N], marginals and SBC ranks [N] "before" and, if recalibrated, "after";
        empty for point estimates.
    """
    limit = baselines.information_limit(recipe, parameter.name)
    by = _bins(parameter, truth, snr, limit)
    limit_bins = list(limit.bin_mae) if limit and _covers_prior(limit, parameter) else None
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
    for kind, (name, source, *answer) in predictors.items():
        values = metrics.compute_metrics(parameter, truth, *answer, seed=seed)
        rows.append(row(kind, name, source, values))
        bins[kind] = _binned(parameter, truth, *answer, by, seed)
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
        "calibration": _by_state(
            {k: _calibration(parameter, truth, *state, by, seed) for k, state in states.items()}
        ),
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
    judged: Mapping[str, calibration.Judgement],
    recalibration: Recalibration | None,
    split: str,
    alarms: metrics.Estimate | None,
) -> list[str]:
    """What the reader should know about the table."""
    notes = [
        f"The linear regression uses {len(NAMES)} summary statistics of each image channel (flux, "
        f"peak, noise, moments, radial profile, multipoles, asymmetry, roughness), fitted on "
        f"{num_fit} training images; its predictions are kept to the prior range, and its "
        "deviation is the rms of its residuals there. The prior's centre has the prior's deviation."
    ]
    if recipe is None:
        notes.append(
            f"The recipe '{recipe_name}' is unknown to this version of dlens_tf: published "
            "numbers and the information limit, if there are any, are not shown."
        )
    else:
        notes.append(given_to(front_end, recipe))
        for name in targets.names:
            if not baselines.published_results(recipe, name):
                notes.append(f"There are no published test errors of {name} on this data set.")
            if not baselines.information_limit(recipe, name):
                notes.append(f"The information limit of {name} on this data set is not known.")
    if alarms is not None:
        share, error = (100.0 * alarms[key] for key in ("value", "standard_error"))
        notes.append(
            f"{share:.1f} ± {error:.1f} % of these images have an out-of-distribution score above "
            f"the threshold, where {100.0 * FALSE_ALARMS:g} % were meant to."
        )
    if not has_snr:
        notes.append("The images have no noise: there are no bins of signal-to-noise.")
    if recalibration is not None:
        source = recalibration.source
        if source["split"] == split:
            seen = "of which the numbers here are, so that they look better than they are"
        elif source["split"] == "validation":
            seen = "which this evaluation has not, but by which the weights were chosen"
        else:
            seen = "which neither training nor this evaluation has"
        notes.append(
            f"The posteriors are recalibrated ({recalibration.method}), fitted on "
            f"{source['num_examples']} images of the {source['split']} split, {seen}."
        )
    for state, judgement in judged.items():
        excluded = int(np.sum(~np.isfinite(judgement.joint_log_prob)))
        if excluded:
            notes.append(
                f"{excluded} truths have no posterior probability at all ({state} recalibration): "
                "the negative log-likelihood is infinite, and left out."
            )
    return notes


def _describe_run(run: RunFolder, description: str) -> dict[str, Any]:
    """Who made the predictions, and at what cost; without paths of this machine."""
    config = run.config
    cost = training_cost(run)
    same = ("model", "head", "seed", "git_commit", "dlens_tf_version", "num_parameters")
    return {
        "name": run.path.resolve().name,
        "description": f"{description}, {config['num_parameters']:,} weights",
        **{key: config[key] for key in same},
        "model_sha256": file_checksum(run.model_path),
        "training": {
            "data": config.get("data", "dataset"),
            "images": config.get("training_examples"),
            "cost": cost and {k: v for k, v in dataclasses.asdict(cost).items() if k != "curve"},
        },
    }


def _open_data(run: RunFolder, split: str, data_dir: str | Path | None, flag: str) -> DatasetFolder:
    """The run's data set; raises a `UserError` where it has not got the split.

    Args:
      run: trained on it.
      split: of the data set.
      data_dir: folder under which it is kept; None takes the run's own.
      flag: that names another `data_dir`.
    """
    config = run.config
    folder = open_dataset(config["dataset"], config["config"], data_dir or config["data_dir"])
    if split not in folder.info.splits:
        other = f"{folder.path.parents[2]}_{split}"
        sizes = {f"num_{name}": 1 for name in ("examples", "validation", "test")}
        sizes[f"num_{split}"] = _CALIBRATION_IMAGES
        command = build_command(folder.path, data_dir=other, **sizes)
        raise UserError(
            f"data set {folder.path} has no {split} split; build one beside it with: {command}, "
            f"and name it with --{flag}={other}"
        )
    return folder


def recalibrate_run(
    run_dir: str | Path,
    method: str = "isotonic",
    split: str = "calibration",
    batch_size: int = 64,
    data_dir: str | Path | None = None,
) -> Recalibration:
    """Learns a recalibration of a run's posteriors, and writes it to its recalibration.json.

    Args:
      run_dir: folder of the run.
      method: one of `recalibration.METHODS`.
      split: to learn from, one of `CALIBRATION_SPLITS`.
      batch_size: images at once.
      data_dir: folder under which the data set with this split is kept; None takes the run's own.

    Raises:
      UserError: if the run, the data set or its split is missing, they don't fit, or the model
        gives point estimates.
    """
    if split not in CALIBRATION_SPLITS:
        raise UserError(
            f"the {split} split is not for recalibration: what is learnt from it could not be "
            "judged on it, nor on what the network has seen; valid: "
            + ", ".join(CALIBRATION_SPLITS)
        )
    run = RunFolder.open(run_dir)
    folder = _open_data(run, split, data_dir, "calibration_data_dir")
    predictions = predict_split(run, folder, split, batch_size)
    source = {
        "split": split,
        "dataset": _describe_data(run, folder),
        "model_sha256": file_checksum(run.model_path),
    }
    pit = predictions.posterior.cdf(predictions.truth)
    recalibration = Recalibration.fit(method, pit, run.targets, source)
    write_json(run.recalibration_path, recalibration.to_dict())
    return recalibration


def _absolute(path: str | Path) -> str:
    return str(path) if "://" in str(path) else str(Path(path).resolve())


def _describe_data(run: RunFolder, folder: DatasetFolder) -> dict[str, Any]:
    """Which data set it is, and the command that makes it; without paths of this machine."""
    config = run.config
    own, used = (_absolute(d) for d in (config["data_dir"], folder.path.parents[2]))
    name = used.rstrip("/").rpartition("/")[2]
    place = "data" if used == own else f"other_{name}" if name in ("", "data") else name
    return {
        "name": config["dataset"],
        "config": config["config"],
        "version": folder.version,
        "recipe": config["recipe"],
        "classes": config["classes"],
        "seed": folder.metadata["seed"],
        "data_dir": place,
        "command": build_command(folder.path, data_dir=place),
    }


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
      run_dir: folder of the run; its recalibration, if there is one, is applied.
      split: one of `SPLITS`.
      batch_size: images at once.
      data_dir: folder under which data sets are kept; None takes the run's own.
      max_examples: evaluate only the first ones of the split.
      seed: of the bootstrap, and of draws from the posteriors.

    Returns:
      What the JSON holds (see the module's synopsis), and the page's path under "report".

    Raises:
      UserError: if the run or its data set is missing or they don't fit, if the recalibration is
        of another model, or if a prediction is not finite.
    """
    choose("split", split, SPLITS)
    run = RunFolder.open(run_dir)
    config, targets = run.config, run.targets
    folder = _open_data(run, split, data_dir, "data_dir")
    recipe, classes = RECIPES.get(config["recipe"]), config["classes"]
    recalibration = read_recalibration(run)
    detector = fit_detector(run, folder, batch_size)
    predictions = predict_split(run, folder, split, batch_size, max_examples)
    posteriors = {"before": predictions.posterior}
    if recalibration is not None:
        posteriors["after"] = RecalibratedPosterior(predictions.posterior, recalibration)
    posterior = posteriors["after" if recalibration is not None else "before"]
    judged = {}
    if posterior.stddev is not None:
        judged = {k: calibration.judge(p, predictions.truth, seed) for k, p in posteriors.items()}
    fit = fit_linear_baseline(folder, targets, classes, batch_size)
    front_end = config["model"].get("front_end", "flux")
    backbone = config["model"].get("backbone", "model")
    description = f"{backbone} with {front_end} front end and {config['head']} head"
    entries = _entries(predictions, posteriors, judged, fit, description, recipe, seed)
    alarms = _share_above(predictions.posterior, seed) if detector else None
    dataset = _describe_data(run, folder)
    options = {} if data_dir is None else {"data_dir": dataset["data_dir"]}
    options |= {} if max_examples is None else {"max_examples": max_examples}
    num = len(predictions.truth)
    result = {
        "format_version": FORMAT_VERSION,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command_line(
            "evaluate", run_dir=f"runs/{run.path.resolve().name}", split=split, **options
        ),
        "run": _describe_run(run, description),
        "dataset": dataset,
        "split": split,
        "num_examples": num,
        "num_available": folder.num_examples(split, classes),
        "bootstrap": {"resamples": metrics.RESAMPLES, "seed": seed},
        "recalibration": recalibration
        and {
            "method": recalibration.method,
            "sha256": file_checksum(run.recalibration_path),
            **recalibration.source,
        },
        "out_of_distribution": detector and {**detector.describe(), "false_alarms": alarms},
        "parameters": entries,
        "joint": _by_state({k: _joint(judgement, seed) for k, judgement in judged.items()}),
        "notes": _notes(
            config["recipe"],
            recipe,
            targets,
            predictions.snr is not None,
            fit.num_images,
            front_end,
            judged,
            recalibration,
            split,
            alarms,
        ),
    }
    figures = drawing.draw(
        predictions,
        posterior,
        judged,
        entries,
        lambda positions: read_images(folder, split, classes, batch_size, positions),
    )
    page = report.write_report(
        run.evaluation_dir, split, result, figures, predictions.arrays(posterior)
    )
    return {**result, "report": str(page)}


def _share_above(posterior: Posterior, seed: int) -> metrics.Estimate:
    """Of images whose score is above the threshold."""
    above = posterior.ood_score > OOD_THRESHOLD
    return metrics.estimate_mean(above.astype(np.float64), seed=seed)


def _joint(judgement: calibration.Judgement, seed: int) -> dict[str, Any]:
    return {
        "nll": metrics.estimate_mean(-judgement.joint_log_prob, seed=seed),
        "tarp": calibration.describe_joint(judgement.fractions),
    }


def _entries(
    predictions: Predictions,
    posteriors: Mapping[str, Posterior],
    judged: Mapping[str, calibration.Judgement],
    fit: baselines.LinearFit,
    description: str,
    recipe: Recipe | None,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """The JSON entries of all parameters; arguments as `evaluate_run` has them."""
    targets = predictions.posterior.parameters
    estimates = {state: point_estimate(posterior) for state, posterior in posteriors.items()}
    final = list(posteriors)[-1]
    guesses = {
        "linear": fit.predict(predictions.statistics),
        "centre": baselines.predict_centre(targets, len(predictions.truth)),
    }
    names = {
        "linear": ("linear regression", f"fitted on {fit.num_images} training images"),
        "centre": ("prior's centre", "constant"),
    }
    entries = {}
    for i, parameter in enumerate(targets):
        truth = predictions.truth[:, i]
        marginals = judged[final].marginals[i] if judged else None
        predictors = {"model": ("this model", description, estimates[final][:, i], marginals)}
        for kind, (mean, stddev) in guesses.items():
            says = None
            if judged:
                # The truth that is nearest, for angles.
                near = mean[:, i] - metrics.residuals(parameter, truth, mean[:, i])
                says = calibration.gaussian_marginals(near, mean[:, i], stddev[:, i])
            predictors[kind] = (*names[kind], mean[:, i], says)
        entries[parameter.name] = _evaluate_parameter(
            parameter,
            predictors,
            truth,
            predictions.snr,
            recipe,
            seed,
            {
                state: (estimates[state][:, i], judgement.marginals[i], judgement.ranks[:, i])
                for state, judgement in judged.items()
            },
        )
    return entries
