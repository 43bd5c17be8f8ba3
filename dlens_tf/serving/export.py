"""Exporting a run's model as a bundle that TF Serving, Python and tools/predict.py load.

See `dlens_tf.inference.bundle` for the layout and `dlens_tf.serving.signatures` for what the
bundle answers.
"""

import contextlib
import dataclasses
import os
import shutil
import time
import uuid
from pathlib import Path
from typing import Any

import tensorflow as tf

import dlens_tf
from dlens_tf.errors import UserError
from dlens_tf.evaluation.recalibration import Recalibration, read_recalibration
from dlens_tf.inference.bundle import Manifest, versions
from dlens_tf.inference.out_of_distribution import Detector, read_detector
from dlens_tf.io.contract import ImageContract
from dlens_tf.io.files import file_checksum, one_line
from dlens_tf.models.registry import fits_lenses
from dlens_tf.quantiles import QUANTILE_LEVELS
from dlens_tf.serving.check import FIT_TOLERANCE, TOLERANCE, check_bundle, write_golden
from dlens_tf.serving.signatures import describe_signatures, outputs_of, write_saved_model
from dlens_tf.serving.warmup import example_images, write_warmup_requests
from dlens_tf.training.run_folder import RunFolder

PARTIAL = ".partial-"
"""How names of folders begin that are being written."""
_STALE_AFTER = 3600.0  # seconds; an export takes about a minute


def export_run(
    run_dir: str | Path, output: str | Path | None = None, first_version: int = 1
) -> Path:
    """Exports a run's best model, and checks what was written.

    Args:
      run_dir: the run's folder.
      output: base folder; None takes <run_dir>/export. The bundle becomes its next free
        integer version; no version is ever replaced.
      first_version: from which versions are counted.

    Returns:
      The bundle's folder.

    Raises:
      UserError: if the run has no model yet, the folder can't be written, or the bundle does
        not answer as the model does; nothing is left then.
    """
    run = RunFolder.open(run_dir)
    model = run.load_model()
    base = Path(output) if output is not None else run.export_dir
    base_is_new = not base.exists()
    partial = base / f"{PARTIAL}{uuid.uuid4().hex}"
    try:
        partial.mkdir(parents=True)
        remove_stale(base)
        _write_bundle(run, model, partial)
        bundle = _publish(partial, base, first_version)
    except (OSError, tf.errors.OpError) as error:
        raise UserError(f"can't export to {base}: {one_line(error)}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if base_is_new and base.is_dir() and not any(base.iterdir()):
            base.rmdir()
    return bundle


def remove_stale(base: Path) -> None:
    """Removes what a killed process left behind; a younger one may still be at work."""
    for path in base.glob(f"{PARTIAL}*"):
        with contextlib.suppress(FileNotFoundError):  # finished by another export just now
            if time.time() - path.stat().st_mtime > _STALE_AFTER:
                shutil.rmtree(path, ignore_errors=True)


def _write_bundle(run: RunFolder, model, bundle: Path) -> None:
    config = run.config
    image_shape = tuple(config["image_shape"])
    recalibration, detector = read_recalibration(run), read_detector(run)
    manifest = _manifest(run, model, recalibration, detector)
    write_saved_model(model, image_shape, bundle, manifest.to_served(), recalibration, detector)
    signatures = describe_signatures(tf.saved_model.load(str(bundle)))
    images = example_images(config["recipe"], config["classes"][0])
    write_warmup_requests(bundle, images, signatures)
    outputs = tf.function(outputs_of(model, recalibration, detector))
    answers = outputs(tf.constant(images), tf.range(len(images), dtype=tf.int64))
    write_golden(bundle, images, {name: value.numpy() for name, value in answers.items()})
    files = sorted(path for path in bundle.rglob("*") if path.is_file())
    sums = {path.relative_to(bundle).as_posix(): file_checksum(path) for path in files}
    dataclasses.replace(manifest, signatures=signatures, sha256=sums).write(bundle)
    check_bundle(bundle, _foreign_paths(run))


def _manifest(
    run: RunFolder, model, recalibration: Recalibration | None, detector: Detector | None
) -> Manifest:
    """The manifest but for what only the written bundle tells."""
    config = run.config
    return Manifest(
        parameters=run.targets,
        quantile_levels=QUANTILE_LEVELS if "quantiles" in model.output else (),
        head=model.get_layer("head").density_config,
        recalibration=recalibration.to_dict() if recalibration else None,
        ood=detector.describe() if detector else None,
        tolerance=FIT_TOLERANCE if fits_lenses(model) else TOLERANCE,
        image=ImageContract(tuple(config["image_shape"]), config["pixel_scale"]),
        instrument=config["instrument"],
        recipe=config["recipe"],
        dataset={
            "name": config["dataset"],
            "config": config["config"],
            "version": config["dataset_version"],
            "classes": config["classes"],
        },
        model={
            **config["model"],
            "head": config["head"],
            "num_parameters": config["num_parameters"],
        },
        git_commit=config["git_commit"],
        dlens_tf_version=dlens_tf.__version__,
        signatures={},
        metrics=_metrics(run),
        sha256={},
    )


def _metrics(run: RunFolder) -> dict[str, Any] | None:
    if not (run.evaluation_dir / "test.json").is_file():
        return None
    evaluation = run.read_evaluation(allow_part=True)
    return {
        "split": evaluation["split"],
        "num_examples": evaluation["num_examples"],
        "parameters": {name: entry["metrics"] for name, entry in evaluation["parameters"].items()},
    }


def _foreign_paths(run: RunFolder) -> tuple[str, ...]:
    """Paths of this machine; the file system's root would be in anything."""
    paths = {Path.home(), Path(dlens_tf.__file__).parents[1], Path.cwd(), run.path.resolve()}
    return tuple(sorted(f"{path}/" for path in paths if path != Path(path.anchor)))


def _publish(partial: Path, base: Path, first_version: int) -> Path:
    """Renames a finished bundle to the next free version."""
    while True:
        bundle = base / str(max([first_version - 1, *versions(base)]) + 1)
        try:
            os.rename(partial, bundle)
            return bundle
        except OSError:
            # Another export may have taken the version in the meantime; then the next is free.
            if not bundle.exists():
                raise
