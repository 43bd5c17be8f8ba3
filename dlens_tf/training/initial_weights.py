"""The weights that training begins with, where these are another run's and not random ones.

Taken over are the weights that training changes, each to its place. Front ends are those of the new
run, fitted to its images and recipe, and so is a network that fits start from.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras

from dlens_tf.errors import UserError
from dlens_tf.models import ModelSpec
from dlens_tf.parameters import ParameterSet
from dlens_tf.training.run_folder import RunFolder


def check_initial_run(
    run: RunFolder,
    targets: ParameterSet,
    galaxies: str | None,
    spec: ModelSpec,
) -> None:
    """Checks that a run may lend its weights.

    Args:
      run: whose weights are to be taken over.
      targets: what is to be inferred.
      galaxies: of the data set that is to be trained on, its `content_id`; None without.
      spec: of the model that is to be trained.

    Raises:
      UserError: if the run infers something else, relative to other priors, with another network,
        or learned from galaxies that the data set may hold out.
    """
    if run.targets.names != targets.names:
        raise UserError(
            f"--initial_run={run.path} infers {','.join(run.targets.names)}, not "
            f"{','.join(targets.names)}: train one with --targets={','.join(targets.names)}"
        )
    for theirs, ours in zip(run.targets, targets, strict=True):
        # A head's numbers are places in the support, or relative to mean and deviation.
        if theirs.prior != ours.prior:
            raise UserError(
                f"--initial_run={run.path} infers {ours.name} under the prior {theirs.prior}, not "
                f"{ours.prior}, so its head's numbers mean something else: choose a run with the "
                "same prior of each target; all other parameters may have wider ones"
            )
    if run.learned_from_others(galaxies):
        raise UserError(
            f"--initial_run={run.path} learned from galaxies {run.config['dataset_galaxies']}, but "
            f"the data set is made from galaxies {galaxies}, and those it holds out could be among "
            "them: choose a run on images of the same galaxies"
        )
    # Weights can fit where strides, attention heads or pixels differ.
    theirs = _model_flags(run.config["model"])
    for flag, value in _model_flags(dataclasses.asdict(spec)).items():
        if theirs.get(flag, value) != value:
            raise _other_network(run.path, f"its {flag} is {theirs[flag]}, not {value}")


def _model_flags(model: Mapping[str, Any]) -> dict[str, Any]:
    """What run.json's "model" says of a network, by the names of the flags; older ones lack some.

    Without dropout and loss, which may differ.
    """
    keys = {"model": "backbone", "front_end": "front_end", "head": "head"}
    flags = {flag: model[key] for flag, key in keys.items() if key in model}
    flags["polar"] = model.get("polar") is not None
    parts = {
        flags.get("model"): "options", flags.get("head"): "head_options", "polar": "polar",
    }  # fmt: skip
    for prefix, key in parts.items():
        options = model.get(key) or {}
        flags |= {f"{prefix}_{name}": v for name, v in options.items() if name != "dropout"}
    return flags | model.get("front_end_options", {})


def take_over(model: keras.Model, initial: keras.Model, folder: str) -> None:
    """Sets the weights of a model that training changes to those of another model.

    Args:
      model: to be trained; its strategy's scope is entered.
      initial: of the run that lends its weights.
      folder: of that run.

    Raises:
      UserError: if the heads are of different kinds, or the weights of different number or shape.
    """
    head, own_head = (m.get_layer("head").density_config for m in (initial, model))
    for key, value in own_head.items():
        if head.get(key) != value:
            raise _other_network(folder, f"its head's {key} is {head.get(key)}, not {value}")
    weights, own = ({w.path: w for w in m.trainable_weights} for m in (initial, model))
    for path in dict.fromkeys([*own, *weights]):
        shape, own_shape = (
            str(list(w[path].shape)) if path in w else "missing" for w in (weights, own)
        )
        if shape != own_shape:
            raise _other_network(folder, f"its weight {path} is {shape}, here it is {own_shape}")
    for path, weight in own.items():
        weight.assign(weights[path].numpy())


def _other_network(folder: str, difference: str) -> UserError:
    return UserError(
        f"--initial_run={folder} has another network ({difference}): train one with the same "
        "flags of the model, vit and hybrid also on images of the same size"
    )
