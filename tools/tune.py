"""Searches for flags of tools/train.py that train better.

    python tools/tune.py --flagfile=configs/model_ii_cnn.flags --tune_dir=tunes/cnn \\
        --search="resnet_width=16|24|32" --search=learning_rate=1e-3:5e-3:log

Takes the flags of train.py, except for --run_dir: those not searched hold for every trial. The
best flags are kept in <tune_dir>/best.flags; train.py takes them by --flagfile. The same command
after an interruption goes on where it stopped. Needs the extra: pip install "dlens_tf[tune]"
"""

from collections.abc import Mapping
from importlib.util import find_spec

from absl import flags
from absl.testing import flagsaver
from dlens_tf.tools import train

from dlens_tf import cli
from dlens_tf.errors import Interrupted, UserError
from dlens_tf.training.launch import RunOptions
from dlens_tf.training.search_space import check_space, parse_dimension

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(train)
flags.DEFINE_multi_string(
    "search", [], "A flag to choose: flag=a|b|c, flag=low:high or flag=low:high:log. Repeatable."
)
flags.DEFINE_enum(
    "algorithm",
    "hyperband",
    ["hyperband", "bayesian"],
    "Many short trainings and ever fewer longer ones, up to --epochs; or full ones, each chosen by "
    "a Gaussian process.",
)
flags.DEFINE_integer(
    "trials", None, "Trainings at most (default: one sweep of hyperband).", lower_bound=1
)
flags.DEFINE_string("tune_dir", None, "Folder of the search.")

# Flags that change what a score is measured on, or nothing about the model.
_FIXED = {
    *train.HARMLESS, "dataset", "config", "classes", "targets", "cache", "data",
    "examples_per_epoch", "engine", "max_validation", "seed", "deterministic", "jit", "start_run",
    "initial_run",
}  # fmt: skip


def searchable() -> list[str]:
    """Names of the flags that can be searched."""
    return [flag.name for flag in FLAGS.get_key_flags_for_module(train) if flag.name not in _FIXED]


def options_with(chosen: Mapping[str, str]) -> RunOptions:
    """The options of a run with some flags set anew."""
    with flagsaver.as_parsed(**chosen):
        return train.run_options()


def main(argv):
    del argv
    cli.require(config=FLAGS.config, data_dir=FLAGS.data_dir, tune_dir=FLAGS.tune_dir)
    if FLAGS.run_dir is not None:
        raise UserError("--run_dir is train.py's; a search has a --tune_dir")
    if FLAGS.strategy == "multi_worker":
        raise UserError("--strategy=multi_worker can't be tuned; use one_device or mirrored")
    space = [parse_dimension(text, FLAGS, searchable()) for text in FLAGS.search]
    # Mistakes are told before TensorFlow is imported.
    check_space(space, options_with)
    for package in ("keras_tuner", "sklearn"):
        if find_spec(package) is None:
            raise UserError(
                f"{package} is not installed; tuning needs it: pip install 'dlens_tf[tune]'"
            )
    from dlens_tf.training.tuning import Search, tune

    search = Search(space, FLAGS.algorithm, FLAGS.trials, FLAGS.epochs, FLAGS.seed)
    try:
        trials = tune(search, options_with, FLAGS.tune_dir)
    except Interrupted:
        print(f"stopped and saved; run the same command again to go on ({FLAGS.tune_dir})")
        return cli.EXIT_INTERRUPTED
    print("\ntrial  score")
    for trial in trials:
        score = "failed" if trial.score is None else f"{trial.score:.4f}"
        chosen = " ".join(f"--{name}={value}" for name, value in trial.flags.items())
        print(f"{trial.name}   {score:8} {trial.message or chosen}")
    best = f"{FLAGS.tune_dir}/best.flags"
    print(f"\nwatch: tensorboard --logdir {FLAGS.tune_dir} (page HParams)")
    print(f"train: {cli.command_line('train', flagfile=best, run_dir='runs/best')}")
    return 0


entry = cli.program(main)

if __name__ == "__main__":
    entry()
