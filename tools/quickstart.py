"""From nothing to a trained, evaluated, exported and used model, in a few minutes.

    python tools/quickstart.py --work_dir=runs/quickstart

Runs the tools one after the other, printing each command before it runs: they are what you
would type by hand. An interrupted quickstart goes on where it stopped. It fails if the model is no
better than the baselines, or worse than a trained one should be.
"""

import csv
import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

from absl import flags

from dlens_tf import cli
from dlens_tf.errors import UserError

FLAGS = flags.FLAGS
flags.DEFINE_string("work_dir", "runs/quickstart", "Folder for the data set and the run.")
flags.DEFINE_integer("num_examples", 2000, "Training images.", lower_bound=64)
flags.DEFINE_integer("workers", 2, "Processes that simulate.", lower_bound=1)
flags.DEFINE_list("train_flags", [], "More flags for tools/train.py, such as --epochs=2.")

ROOT = Path(__file__).resolve().parents[1]
FLAGFILE = "configs/quickstart.flags"
CONFIG = "model_ii_instrument"
TARGET = "log10_m_axion"
SHOWN = 8
LARGEST_MAE = 0.18
"""Of a model trained with this tool's defaults, in dex; one that learnt nothing has 0.5."""


def _run(title: str, tool: str, *arguments: str) -> None:
    """Announces and runs one tool; its own output is shown as it comes."""
    print(f"\n== {title}\n$ python tools/{tool}.py {' '.join(arguments)}", flush=True)
    command = [sys.executable, str(ROOT / "tools" / f"{tool}.py"), *arguments]
    # The terminal sends Ctrl-C to the tool as well, which needs time to save; so wait for it. A
    # handler, unlike SIG_IGN, is not inherited.
    received = []
    handler = signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
    try:
        status = subprocess.Popen(command, cwd=ROOT).wait()
    finally:
        signal.signal(signal.SIGINT, handler)
    if received or status in (cli.EXIT_INTERRUPTED, -signal.SIGINT):
        raise KeyboardInterrupt
    if status != 0:
        raise UserError(f"tools/{tool}.py failed with status {status}; see above")


def _write_examples(data_dir: Path, path: Path) -> list[float]:
    """Saves a few test images, evenly spread in axion mass; returns their true values."""
    import numpy as np

    from dlens_tf.pipeline.reading import open_dataset, read_batches

    folder = open_dataset("deeplense", CONFIG, data_dir)
    batch = next(iter(read_batches(folder, "test", 200, features=[f"parameters/{TARGET}"])))
    truth = batch[f"parameters/{TARGET}"].numpy()
    rows = np.argsort(truth)[np.linspace(0, len(truth) - 1, SHOWN).round().astype(int)]
    np.save(path, batch["image"].numpy()[rows])
    return truth[rows].tolist()


def _print_comparison(predictions: Path, truth: list[float]) -> None:
    with predictions.open() as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    print(f"\n{TARGET} [log10(eV)]\n{'image':>6}  {'truth':>7}   predicted (mean ± std)")
    for i, (row, value) in enumerate(zip(rows, truth, strict=True)):
        mean, stddev = float(row[f"{TARGET}_mean"]), float(row[f"{TARGET}_stddev"])
        print(f"{i:>6}  {value:7.2f}   {mean:7.2f} ± {stddev:.2f}")


def _check_learned(evaluation: Path, largest_mae: float | None) -> None:
    """Raises a `UserError` if the model is not better than the baselines and `largest_mae`."""
    rows = json.loads(evaluation.read_text())["parameters"][TARGET]["rows"]
    mae = {row["kind"]: row["metrics"]["mae"]["value"] for row in rows}
    for kind in ("centre", "linear"):
        if not mae["model"] < mae[kind]:
            raise UserError(
                f"the model learnt nothing: its MAE of {mae['model']:.3f} is not below the "
                f"{mae[kind]:.3f} of the baseline '{kind}'; see {evaluation}"
            )
    if largest_mae is not None and mae["model"] > largest_mae:
        raise UserError(
            f"the model's MAE is {mae['model']:.3f}, expected at most {largest_mae}; "
            f"see {evaluation}"
        )


def _quickstart() -> None:
    if not (ROOT / FLAGFILE).is_file():
        raise UserError(f"{ROOT / FLAGFILE} is missing: the quickstart runs from a checkout")
    from dlens_tf.inference import bundle

    start = time.monotonic()
    work_dir = Path(FLAGS.work_dir).absolute()
    data_dir, run_dir = work_dir / "data", work_dir / "cnn"
    images, predictions = work_dir / "examples.npy", work_dir / "predictions.csv"
    _run(
        f"1 of 5: simulate {FLAGS.num_examples:,} lenses with axion vortices",
        "build_dataset",
        f"--config={CONFIG}",
        f"--data_dir={data_dir}",
        f"--num_examples={FLAGS.num_examples}",
        f"--num_test={max(16, FLAGS.num_examples // 4)}",
        f"--workers={FLAGS.workers}",
    )
    _run(
        "2 of 5: train a residual CNN",
        "train",
        f"--flagfile={FLAGFILE}",
        f"--data_dir={data_dir}",
        f"--run_dir={run_dir}",
        *FLAGS.train_flags,
    )
    _run("3 of 5: evaluate on the test split", "evaluate", f"--run_dir={run_dir}")
    if not bundle.versions(run_dir / "export"):
        _run("4 of 5: export for serving", "export", f"--run_dir={run_dir}")
    truth = _write_examples(data_dir, images)
    _run(
        "5 of 5: predict for images that the model has not seen",
        "predict",
        f"--model={run_dir / 'export'}",
        f"--images={images}",
        "--pixel_scale=0.101",
        f"--output={predictions}",
    )
    _print_comparison(predictions, truth)
    minutes = (time.monotonic() - start) / 60
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"\ndone in {minutes:.1f} minutes; largest process {memory:.1f} GB")
    print(f"report:      {run_dir / 'evaluation' / 'test.html'}")
    print(f"model:       {run_dir / 'export'}")
    print(f"TensorBoard: tensorboard --logdir {run_dir}")
    if not FLAGS.train_flags:
        defaults = FLAGS.num_examples == FLAGS["num_examples"].default
        _check_learned(run_dir / "evaluation" / "test.json", LARGEST_MAE if defaults else None)


def main(argv):
    del argv
    try:
        _quickstart()
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on where it stopped")
        return cli.EXIT_INTERRUPTED
    return 0


entry = cli.program(main)

if __name__ == "__main__":
    entry()
