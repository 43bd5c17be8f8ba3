"""Trains a model, or resumes its training.

    python tools/train.py --flagfile=configs/model_ii_cnn.flags --run_dir=runs/cnn

Flags after the flagfile win. The same command after an interruption goes on where it stopped.
With --data=simulate:<recipe> training images are simulated as they are needed; validation and
test are those of the data set all the same. Watch it with: tensorboard --logdir runs
"""

import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from dlens_tf import cli
from dlens_tf.errors import Interrupted, UserError
from dlens_tf.simulation.catalogue import DATASETS, all_configs
from dlens_tf.simulation.engines import ENGINES
from dlens_tf.simulation.recipes import CLASSES
from dlens_tf.training.launch import RunOptions

FLAGS = flags.FLAGS
# Data.
flags.DEFINE_enum("dataset", "deeplense", sorted(DATASETS), "Data set.")
flags.DEFINE_enum("config", None, all_configs(), "Configuration of the data set.")
flags.DEFINE_string("data_dir", "data", "Folder under which data sets are kept.")
flags.DEFINE_multi_enum("classes", [], CLASSES, "Classes to keep; all if not given. Repeatable.")
flags.DEFINE_list("targets", ["log10_m_axion"], "Parameters to infer, comma-separated.")
flags.DEFINE_enum(
    "augmentation",
    "auto",
    ["auto", "none", "rot180", "d4", "rotate"],
    "Turns and mirror images, of labels too; auto: the symmetry of the data set's prior.",
)
flags.DEFINE_enum(
    "cache",
    "memory",
    ["memory", "none", "front_end"],
    "Hold decoded images, or stream them; front_end: keep the outputs of --front_end=lens_fit for "
    "the training images, or for the first epoch of simulated ones, on disk.",
)
flags.DEFINE_string(
    "front_end_dir", None, "Where --cache=front_end keeps them; default: in the run's folder."
)
flags.DEFINE_string(
    "data", None, "Training images: dataset, or simulate:<recipe> (default: dataset)."
)
flags.DEFINE_integer(
    "examples_per_epoch",
    None,
    f"Simulated images that count as an epoch (default: {RunOptions.examples_per_epoch}).",
    lower_bound=1,
)
flags.DEFINE_enum("engine", None, ENGINES, f"Of --data=simulate (default: {RunOptions.engine}).")
flags.DEFINE_string(
    "galaxies", None, "Catalogue of real galaxies for --data=simulate; default: the bundled one."
)
flags.DEFINE_integer("max_validation", 2000, "Validation images used at most.", lower_bound=1)
# Model.
flags.DEFINE_enum("model", "resnet", ["resnet", "vit", "convnext", "hybrid", "none"], "Backbone.")
flags.DEFINE_enum(
    "head",
    "gaussian",
    ["point", "gaussian", "covariance", "mixture", "spline", "flow"],
    "What is predicted: points, or posteriors of this family.",
)
flags.DEFINE_enum(
    "loss",
    None,
    ["mae", "huber", "nll", "beta_nll", "crps"],
    "Loss; point: mae or huber; posteriors: nll, or beta_nll of gaussian or crps of spline "
    "(default: mae, nll).",
)
flags.DEFINE_integer("spline_bins", 24, "Bins of each parameter's spline.", lower_bound=2)
flags.DEFINE_integer("mixture_components", 8, "Components.", lower_bound=1)
flags.DEFINE_integer("flow_bins", 16, "Bins of each parameter's spline.", lower_bound=2)
flags.DEFINE_integer("flow_hidden", 8, "Hidden units between parameters.", lower_bound=1)
flags.DEFINE_enum(
    "front_end",
    "flux",
    ["flux", "smooth_residual", "lens_fit"],
    "flux: stretched image; smooth_residual: with the residual against a fitted source behind a "
    "fixed lens; lens_fit: with the residual against a fitted lens and source, and the evidence "
    "for a vortex in it.",
)
flags.DEFINE_string(
    "start_run", None, "lens_fit: run that predicts the smooth lens, to start the fit from."
)
flags.DEFINE_integer("crop", None, "Front ends that fit: central pixels kept.", lower_bound=8)
flags.DEFINE_integer("binning", 1, "The same: pixels averaged per side.", lower_bound=1)
flags.DEFINE_bool("polar", False, "Resample the image to polar coordinates before the backbone.")
flags.DEFINE_integer("polar_radii", 32, "Rings.", lower_bound=1)
flags.DEFINE_integer("polar_angles", 64, "Rays.", lower_bound=1)
flags.DEFINE_float("polar_min_radius", 0.0, "Inner edge, in half sides.", lower_bound=0.0)
flags.DEFINE_float("polar_max_radius", 1.0, "Outer edge, in half sides.", lower_bound=0.0)
flags.DEFINE_integer("polar_overlap", 8, "Rays repeated at each end.", lower_bound=0)
flags.DEFINE_integer("resnet_width", 16, "Channels of the first stage.", lower_bound=1)
flags.DEFINE_integer("resnet_depth", 2, "Blocks per stage.", lower_bound=1)
flags.DEFINE_integer("resnet_stages", 4, "Stages.", lower_bound=1)
flags.DEFINE_integer("resnet_stem_stride", 2, "Stride of the first convolution.", lower_bound=1)
flags.DEFINE_integer("vit_patch_size", 8, "Pixels per side of a patch.", lower_bound=1)
flags.DEFINE_integer("vit_width", 96, "Size of a token.", lower_bound=1)
flags.DEFINE_integer("vit_depth", 6, "Encoder blocks.", lower_bound=1)
flags.DEFINE_integer("vit_heads", 4, "Attention heads.", lower_bound=1)
flags.DEFINE_integer("convnext_width", 24, "Channels of the first stage.", lower_bound=1)
flags.DEFINE_integer("convnext_depth", 2, "Blocks per stage.", lower_bound=1)
flags.DEFINE_integer("convnext_stages", 3, "Stages.", lower_bound=1)
flags.DEFINE_integer("convnext_patch_size", 4, "Pixels per side of a stem patch.", lower_bound=1)
flags.DEFINE_integer("convnext_kernel_size", 7, "Side of the depthwise kernels.", lower_bound=1)
flags.DEFINE_integer("hybrid_width", 16, "Channels of the first stage.", lower_bound=1)
flags.DEFINE_integer("hybrid_depth", 1, "Residual blocks per stage.", lower_bound=1)
flags.DEFINE_integer("hybrid_stages", 3, "Convolutional stages.", lower_bound=1)
flags.DEFINE_integer("hybrid_stem_stride", 2, "Stride of the first convolution.", lower_bound=1)
flags.DEFINE_integer("hybrid_attention_width", 64, "Size of a token.", lower_bound=1)
flags.DEFINE_integer("hybrid_attention_depth", 2, "Encoder blocks.", lower_bound=1)
flags.DEFINE_integer("hybrid_heads", 4, "Attention heads.", lower_bound=1)
flags.DEFINE_float("dropout", 0.0, "Dropout rate.", lower_bound=0.0, upper_bound=0.9)
# Optimisation.
flags.DEFINE_string(
    "initial_run", None, "Run whose weights training begins with, in place of random ones."
)
flags.DEFINE_integer("batch_size", 64, "Images in a global batch.", lower_bound=1)
flags.DEFINE_integer("epochs", 30, "Passes over the training split.", lower_bound=1)
flags.DEFINE_float("learning_rate", 2e-3, "Peak learning rate.", lower_bound=0.0)
flags.DEFINE_float(
    "warmup_fraction", 0.05, "Fraction of steps that warm up.", lower_bound=0.0, upper_bound=1.0
)
flags.DEFINE_float("weight_decay", 1e-4, "AdamW's weight decay.", lower_bound=0.0)
flags.DEFINE_float("clip_norm", 1.0, "Largest global gradient norm.", lower_bound=0.0)
flags.DEFINE_enum(
    "average",
    "ema",
    ["ema", "swa", "none"],
    "Weights that are validated and kept: an exponential moving average, the mean over the last "
    "part of the training, or those of the step.",
)
flags.DEFINE_float("ema_momentum", 0.998, "Of --average=ema.", lower_bound=0.0, upper_bound=1.0)
flags.DEFINE_float(
    "swa_start", 0.75, "Fraction of steps before --average=swa.", lower_bound=0.0, upper_bound=1.0
)
flags.DEFINE_integer(
    "patience", 0, "Epochs without improvement before stopping; 0: never.", lower_bound=0
)
flags.DEFINE_integer(
    "seed", 0, "Seed of weights, order and augmentation.", lower_bound=0, upper_bound=2**32 - 1
)
flags.DEFINE_bool("deterministic", False, "Same bits every time, at some cost in speed.")
# Run.
flags.DEFINE_string("run_dir", None, "Folder of the run.")
flags.DEFINE_enum(
    "strategy",
    "one_device",
    ["one_device", "mirrored", "multi_worker"],
    "Distribution; multi_worker reads TF_CONFIG.",
)
flags.DEFINE_integer("logical_devices", 1, "Cut the CPU into so many devices.", lower_bound=1)
flags.DEFINE_bool("jit", False, "Compile the training step with XLA; on one device only.")
flags.DEFINE_integer("log_every", 20, "Steps between log lines.", lower_bound=1)
flags.DEFINE_list("profile_steps", [], "First and last step of a TensorBoard profile: a,b.")

# Flags that change where or how a run is watched, not what it computes.
HARMLESS = (
    "run_dir", "data_dir", "galaxies", "log_every", "profile_steps", "strategy", "logical_devices",
    "front_end_dir",
)  # fmt: skip

# A backbone's flags are named for it and its option.
_BACKBONE_OPTIONS = {
    "none": (),
    "resnet": ("width", "depth", "stages", "stem_stride"),
    "vit": ("patch_size", "width", "depth", "heads"),
    "convnext": ("width", "depth", "stages", "patch_size", "kernel_size"),
    "hybrid": (
        "width", "depth", "stages", "stem_stride", "attention_width", "attention_depth", "heads",
    ),
}  # fmt: skip
_HEAD_OPTIONS = {"spline": ("bins",), "mixture": ("components",), "flow": ("bins", "hidden")}
_POLAR_OPTIONS = ("radii", "angles", "min_radius", "max_radius", "overlap")


def _profile_steps() -> tuple[int, int] | None:
    if not FLAGS.profile_steps:
        return None
    try:
        first, last = (int(text) for text in FLAGS.profile_steps)
    except ValueError:
        first, last = 0, 0
    if not 0 < first <= last:
        raise UserError("--profile_steps needs a first and a last step, for example 10,20")
    return first, last


def _simulation() -> dict[str, Any]:
    """Values of the flags that belong to --data=simulate; {} without it."""
    given = {name: FLAGS[name].value for name in ("engine", "examples_per_epoch", "galaxies")}
    if FLAGS.data is None or not FLAGS.data.startswith("simulate"):
        for name, value in given.items():
            if value is not None:
                raise UserError(f"--{name} needs --data=simulate:<recipe>")
        return {}
    if FLAGS.cache == "none":
        raise UserError("--cache=none needs --data=dataset: nothing is read to be cached")
    return {
        name: getattr(RunOptions, name) if value is None else value for name, value in given.items()
    }


def _prefixed(prefix: str, options: Sequence[str]) -> dict[str, Any]:
    """Values of the flags --<prefix>_<option>, by option."""
    return {option: FLAGS[f"{prefix}_{option}"].value for option in options}


def run_options() -> RunOptions:
    """The flags as a `launch.RunOptions`."""
    front_end_options = {}
    if FLAGS.front_end != "flux":
        front_end_options = {"crop": FLAGS.crop, "binning": FLAGS.binning}
    elif FLAGS.crop is not None or FLAGS.binning != 1:
        raise UserError("--crop and --binning need --front_end=smooth_residual or lens_fit")
    if FLAGS.front_end != "lens_fit":
        if FLAGS.start_run is not None:
            raise UserError("--start_run needs --front_end=lens_fit")
        if FLAGS.cache == "front_end":
            raise UserError("--cache=front_end needs --front_end=lens_fit")
    if FLAGS.front_end_dir is not None and FLAGS.cache != "front_end":
        raise UserError("--front_end_dir needs --cache=front_end")
    simulation = _simulation()
    own_flags = FLAGS.get_key_flags_for_module(sys.modules[__name__])
    texts = {f.name: _texts(f, f.value) for f in own_flags if f.value not in (None, [])}
    defaults = {f.name: _texts(f, f.default) for f in own_flags if f.default not in (None, [])}
    texts |= {name: [str(value)] for name, value in simulation.items() if value is not None}
    return RunOptions(
        dataset=FLAGS.dataset,
        config=FLAGS.config,
        data_dir=FLAGS.data_dir,
        run_dir=FLAGS.run_dir,
        targets=FLAGS.targets,
        classes=FLAGS.classes,
        batch_size=FLAGS.batch_size,
        augmentation=FLAGS.augmentation,
        cache=FLAGS.cache,
        max_validation=FLAGS.max_validation,
        seed=FLAGS.seed,
        strategy=FLAGS.strategy,
        logical_devices=FLAGS.logical_devices,
        deterministic=FLAGS.deterministic,
        model={
            "backbone": FLAGS.model,
            "options": {
                **_prefixed(FLAGS.model, _BACKBONE_OPTIONS[FLAGS.model]),
                **({} if FLAGS.model == "none" else {"dropout": FLAGS.dropout}),
            },
            "head": FLAGS.head,
            "head_options": _prefixed(FLAGS.head, _HEAD_OPTIONS.get(FLAGS.head, ())),
            "loss": FLAGS.loss or ("mae" if FLAGS.head == "point" else "nll"),
            "front_end": FLAGS.front_end,
            "front_end_options": front_end_options,
            "polar": _prefixed("polar", _POLAR_OPTIONS) if FLAGS.polar else None,
        },
        plan={
            name: FLAGS[name].value
            for name in (
                "epochs",
                "learning_rate",
                "warmup_fraction",
                "weight_decay",
                "clip_norm",
                "average",
                "ema_momentum",
                "swa_start",
                "patience",
                "log_every",
                "jit",
            )
        }
        | {"profile_steps": _profile_steps()},
        flags=dict(sorted(texts.items())),
        harmless_flags=HARMLESS,
        default_flags=defaults,
        data=FLAGS.data or "dataset",
        start_run=FLAGS.start_run,
        initial_run=FLAGS.initial_run,
        front_end_dir=FLAGS.front_end_dir,
        **simulation,
    )


def _texts(flag: flags.Flag, value: Any) -> list[str]:
    """A flag's value as flagfile text; a repeatable flag has several."""
    if isinstance(flag, flags.MultiFlag):
        return [str(item) for item in value]
    if isinstance(value, list):
        return [",".join(value)]
    return [str(value).lower() if flag.boolean else str(value)]


def main(argv):
    del argv
    cli.require(config=FLAGS.config, run_dir=FLAGS.run_dir, data_dir=FLAGS.data_dir)
    options = run_options()
    from dlens_tf.training.launch import train_run

    try:
        run_dir = train_run(options)
    except Interrupted:
        print(f"stopped and saved; run the same command again to go on ({FLAGS.run_dir})")
        return cli.EXIT_INTERRUPTED
    print(f"run folder: {run_dir}")
    print(f"watch:      tensorboard --logdir {run_dir}")
    print(f"evaluate:   {cli.command_line('evaluate', run_dir=run_dir)}")
    return 0


entry = cli.program(main)

if __name__ == "__main__":
    entry()
