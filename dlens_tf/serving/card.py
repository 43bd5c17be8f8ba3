"""Model cards: what a model infers, how good it is, how it was made, and what it is not for.

A card is written from the run's own records (run.json, flags.cfg, environment.json, metrics.jsonl,
evaluation/test.json) and nothing else, so that each of its numbers is one that a tool measured.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from dlens_tf.evaluation.metrics import EXACT_NOTE, EXACT_TITLE
from dlens_tf.evaluation.plots import STATES
from dlens_tf.evaluation.report import PLOT_CAPTIONS, format_p_value
from dlens_tf.evaluation.tables import (
    bins_table,
    calibration_table,
    markdown_table,
    metrics_table,
)
from dlens_tf.inference.bundle import Manifest
from dlens_tf.training.cost import TrainingCost, format_minutes

_HEADS = {
    "point": "a point estimate without an uncertainty",
    "gaussian": "for each parameter a normal law, cut at the ends of the prior",
    "covariance": "one normal law of full covariance, in probits of the prior's range",
    "mixture": "a mixture of joint laws within the prior",
    "spline": "for each parameter a density of any shape within the prior, by splines",
    "flow": "a joint density of any shape within the prior, by an autoregressive flow",
    "ensemble": "the mean of several networks' or several turned images' posteriors",
}


@dataclasses.dataclass(frozen=True)
class CardContents:
    """What a card is written from.

    Attributes:
      name: of the model.
      manifest: of its bundle.
      description: of its recipe, one line.
      evaluation: its evaluation/test.json.
      data: what it was trained on, run.json's "data": "dataset" or "simulate:<recipe>".
      training_examples: stored training images, or simulated ones an epoch; None if unknown.
      cache: run.json's "cache": with "front_end" each epoch has the same simulated images; None if
        unknown.
      cost: of the training; None if it was not trained itself.
      plots: file name of each plot by parameter and kind of plot.
      limits: sentences on limits of use.
      commands: what made it, one command an item.
    """

    name: str
    manifest: Manifest
    description: str
    evaluation: Mapping[str, Any]
    data: str
    training_examples: int | None
    cache: str | None
    cost: TrainingCost | None
    plots: Mapping[str, Mapping[str, str]]
    limits: Sequence[str]
    commands: Sequence[str]


def model_card(contents: CardContents) -> str:
    """The card, Markdown."""
    targets = ", ".join(f"`{name}`" for name in contents.manifest.parameters.names)
    parts = [
        f"# {contents.name}",
        f"Infers {targets} from an image. Images: {contents.description}.",
        _use(contents),
        _facts(contents),
        "## How good it is",
        _tested(contents.evaluation),
    ]
    for name, entry in contents.evaluation["parameters"].items():
        parts += _quality(name, entry, contents.plots.get(name, {}))
    parts.append("\n".join(f"- {note}" for note in contents.evaluation["notes"]))
    limits = [*contents.limits, *_tails(contents.manifest.head)]
    parts += ["## Limits of use", "\n".join(f"- {limit}" for limit in limits)]
    parts += ["## How it was made", _code("\n".join(contents.commands))]
    return "\n\n".join(parts) + "\n"


def _tails(head: Mapping[str, Any]) -> list[str]:
    """What splines, which leave every value some probability, mean for the standard deviation."""
    if "spline" not in [part["kind"] for part in (head, *head.get("members", []))]:
        return []
    return [
        "Its standard deviation counts improbable values far from the rest, and can be well above "
        "the typical error: what is calibrated are quantiles and intervals."
    ]


def _code(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def _use(contents: CardContents) -> str:
    height, width, channels = contents.manifest.image.shape
    shape = f"[N, {height}, {width}]" if channels == 1 else f"[N, {height}, {width}, {channels}]"
    return (
        "```python\nimport dlens_tf\n\n"
        f'posterior = dlens_tf.load("{contents.name}").predict(images)  # {shape}, raw flux\n```'
    )


def _facts(contents: CardContents) -> str:
    manifest, dataset = contents.manifest, contents.evaluation["dataset"]
    height, width, channels = manifest.image.shape
    stored = f"`{dataset['name']}/{dataset['config']}` {dataset['version']}"
    classes = ", ".join(dataset["classes"])
    rows = [
        [f"`{p.name}`", f"{p.description}; prior {_prior(contents.evaluation, p.name)}"]
        for p in manifest.parameters
    ]
    head = manifest.model["head"]
    rows += [
        ["posterior", _HEADS[head]],
        [
            "images",
            f"float32 [N, {height}, {width}, {channels}], raw flux of `{manifest.instrument}`, "
            f'{manifest.image.pixel_scale:g}" per pixel',
        ],
        ["network", contents.evaluation["run"]["description"]],
        ["training data", _training_data(contents, stored, classes)],
        [
            "test data",
            f"{contents.evaluation['num_examples']:,} other lenses of {stored}, seed "
            f"{dataset['seed']}, classes {classes}",
        ],
    ]
    if contents.cost:
        rows.append(["training", _cost(contents.cost)])
        if contents.cost.start:
            rows.append(["network that fits start from", _cost(contents.cost.start)])
    commit = manifest.git_commit
    code = f"dlens_tf {contents.evaluation['run']['dlens_tf_version']}"
    rows.append(["code", code + (f", commit {commit[:9]}" if commit else "")])
    return markdown_table(["", ""], rows)


def _cost(cost: TrainingCost) -> str:
    parts = [f"{cost.steps:,} steps"]
    if cost.distinct_images is not None:
        parts.append(f"{cost.distinct_images:,} distinct images simulated")
    parts += [f"{cost.images:,} images seen", f"{format_minutes(cost.minutes)} on {cost.machine}"]
    if cost.front_end_minutes:
        parts.append(f"of which {format_minutes(cost.front_end_minutes)} to fit the lenses")
    if cost.initial_minutes:
        parts.append(
            f"of which {format_minutes(cost.initial_minutes)} for the weights to begin with"
        )
    return ", ".join(parts)


def _prior(evaluation: Mapping[str, Any], name: str) -> str:
    return evaluation["parameters"][name]["prior_text"]


def _training_data(contents: CardContents, stored: str, classes: str) -> str:
    number = f"{contents.training_examples:,} " if contents.training_examples else ""
    if contents.data == "dataset":
        return f"{number}lenses of {stored}, classes {classes}"
    lenses = f"lenses of the recipe `{contents.data.partition(':')[2]}`, classes {classes}"
    if contents.cache == "front_end":
        return f"{number}{lenses}, simulated before and seen in every epoch"
    return f"{lenses}, simulated meanwhile, each seen once"


def _tested(evaluation: Mapping[str, Any]) -> str:
    return (
        f"On {evaluation['num_examples']:,} test images; ± is one bootstrap standard error. "
        "All of the evaluation is in [evaluation.json](evaluation.json)."
    )


def _quality(name: str, entry: Mapping[str, Any], plots: Mapping[str, str]) -> list[str]:
    unit = entry["difference_unit"]
    parts = [f"### {name}", metrics_table(entry)]
    low, high = entry["by_truth"][0]["low"], entry["by_truth"][-1]["high"]
    digits = 2 if high - low > 0.5 else 3
    exact = entry["limit_by_truth"]
    parts.append(bins_table(entry["by_truth"], f"true {name}", unit, digits, exact))
    if exact:
        parts.append(f"The {EXACT_TITLE}: {EXACT_NOTE}.")
    if entry["by_snr"]:
        parts.append(bins_table(entry["by_snr"], "signal-to-noise", unit, 0))
    if entry["calibration"]:
        parts.append(calibration_table(entry["calibration"], unit))
        tests = [
            f"{format_p_value(values['pit']['chi2']['p_value'])} ({STATES[state]})"
            for state, values in entry["calibration"].items()
            if values
        ]
        parts.append(
            "The table's p is that of Kolmogorov and Smirnov's test. Pearson's χ² test of the PIT "
            f"histogram gives p = {', '.join(tests)}."
        )
    for plot, file in plots.items():
        parts.append(f"![{PLOT_CAPTIONS[plot]}]({file})")
    return parts
