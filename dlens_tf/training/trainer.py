"""The training loop: one `strategy.run` for one device, several, or several machines.

Keras 3's `fit` can't run on several machines, so the loop is our own. It trains with AdamW on a
warmed-up cosine schedule, clips the global gradient norm after it is summed over replicas,
keeps an average of the weights, validates that average by the head's score, keeps the best, and
stops early when it no longer improves. Everything that the next step depends
on is in the checkpoint or a function of the step, so a resumed run continues exactly as an
uninterrupted one.
"""

import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from dlens_tf.errors import Interrupted, UserError, choose
from dlens_tf.evaluation import plots
from dlens_tf.io.files import atomic_write, one_line
from dlens_tf.parameters import ParameterSet
from dlens_tf.pipeline.batches import Arrays, Batches
from dlens_tf.training import strategies
from dlens_tf.training.logger import RunLogger, finite
from dlens_tf.training.run_folder import RunFolder

AVERAGES = ("ema", "swa", "none")
"""Of the weights. ema: exponential moving average. swa: plain mean over the last part of the
training, and before it the weights themselves. none: always the weights themselves.

Reference: Izmailov et al. 2018, arXiv:1803.05407 (swa).
"""


@dataclasses.dataclass(frozen=True)
class TrainingPlan:
    """How long and how to optimise.

    Attributes:
      epochs: passes over the training split, or as many simulated images.
      learning_rate: peak of the schedule.
      warmup_fraction: of all steps, in which the rate rises from zero.
      weight_decay: AdamW's decoupled decay; norms, biases and positions are spared.
      clip_norm: largest global gradient norm; positive.
      average: of the weights that are validated and kept, one of `AVERAGES`.
      ema_momentum: of average "ema"; ramps up from zero over the first steps.
      swa_start: fraction of all steps after which average "swa" begins.
      patience: validations without improvement before stopping; 0 never stops early.
      log_every: steps between log lines.
      profile_steps: (first, last) steps of a TensorBoard profile, or None.
      jit: compile the step with XLA; on one device only.
    """

    epochs: int
    learning_rate: float = 2e-3
    warmup_fraction: float = 0.05
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    average: str = "ema"
    ema_momentum: float = 0.998
    swa_start: float = 0.75
    patience: int = 0
    log_every: int = 20
    profile_steps: tuple[int, int] | None = None
    jit: bool = False

    def __post_init__(self):
        numbers = ("learning_rate", "warmup_fraction", "weight_decay", "ema_momentum", "swa_start")
        for name in numbers:
            if not math.isfinite(getattr(self, name)):
                raise UserError(f"{name} is {getattr(self, name)}, must be a finite number")
        choose("average", self.average, AVERAGES)
        if not self.clip_norm > 0:
            raise UserError(
                f"clip_norm is {self.clip_norm}, must be positive; a large one never clips"
            )


class Trainer:
    """Trains one model.

    Args:
      run: the run's folder; resumed if it has a checkpoint.
      strategy: from `strategies.make_strategy`.
      make_model: builds the model; called inside the strategy's scope.
      batches: training batches.
      validation: the validation split, or a part of it, in memory.
      targets: the inferred parameters.
      plan: the optimisation.
      part: gives the part of a model that `batches` feed, where these are not images, as a
        function of inputs and `training`.
      validation_inputs: what that part takes of the validation split, by name, each [N, …]; its
        images if None.

    Attributes:
      model, averaged: the model, and the same with averaged weights.
      optimizer: of the model.
      total_steps: steps in all, those done already included.
      train_step: takes a batch's images and targets and whether to stop, and trains on them.

    Raises:
      UserError: if plan, data and devices do not fit together, or a checkpoint is damaged.
    """

    def __init__(
        self,
        run: RunFolder,
        strategy: tf.distribute.Strategy,
        make_model: Callable[[], keras.Model],
        batches: Batches,
        validation: Arrays,
        targets: ParameterSet,
        plan: TrainingPlan,
        part: Callable[[keras.Model], Callable[..., dict]] = lambda model: model,
        validation_inputs: Mapping[str, np.ndarray] | None = None,
    ):
        self._run = run
        self._strategy = strategy
        self._batches = batches
        self._validation = validation
        self._validation_inputs = validation_inputs
        self._truth = np.stack([validation.parameters[n] for n in targets.names], axis=-1)
        self._targets = targets
        self._plan = plan
        self._batch_size = batches.spec.batch_size
        self._several_workers = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        if self._batch_size % strategy.num_replicas_in_sync:
            raise UserError(
                f"batch_size {self._batch_size} is not a multiple of the "
                f"{strategy.num_replicas_in_sync} devices"
            )
        if plan.jit and strategy.num_replicas_in_sync > 1:
            raise UserError("--jit works on one device only; leave it out or use one_device")
        self.total_steps = plan.epochs * batches.steps_per_epoch
        if plan.profile_steps and plan.profile_steps[0] > self.total_steps:
            raise UserError(
                f"profile_steps start at step {plan.profile_steps[0]}, but the training has only "
                f"{self.total_steps} steps"
            )
        with strategy.scope():
            self.model = make_model()
            self.averaged = keras.models.clone_model(self.model)
            self.averaged.set_weights(self.model.get_weights())
            self._trained, averaged = part(self.model), part(self.averaged)
            # Pairs of all weights: a clone need not remember which of them are trained.
            pairs = zip(self.averaged.weights, self.model.weights, strict=True)
            self._averages = [(average, value) for average, value in pairs if value.trainable]
            self.optimizer = self._make_optimizer()
            self._state = {
                name: tf.Variable(value, trainable=False, name=name)
                for name, value in (
                    ("step", np.int64(0)),
                    ("best_score", np.float64(np.inf)),
                    ("stale", np.int64(0)),
                    ("stopped", False),
                    # Sums since the last log line: steps, loss, score, gradient norm, MAE [P].
                    ("window", np.zeros(4 + len(targets.names), np.float32)),
                )
            }
        self._head = self.model.get_layer("head")
        self.train_step = tf.function(self._distributed_step, jit_compile=plan.jit or None)
        self._predict = tf.function(lambda inputs: averaged(inputs, training=False))
        self._chief = strategies.is_chief(strategy)
        checkpoint = tf.train.Checkpoint(
            model=self.model,
            averaged=self.averaged,
            optimizer=self.optimizer,
            # Keras keeps dropout's random state out of TensorFlow's checkpoints.
            seeds=[v.value for v in self.model.variables if "seed_generator" in v.path],
            **self._state,
        )
        self._manager = tf.train.CheckpointManager(
            checkpoint, str(run.checkpoints_dir), max_to_keep=2
        )
        latest = tf.train.latest_checkpoint(str(run.checkpoints_dir))
        if latest:
            _restore(checkpoint, latest)
        self._window = np.array(self._state["window"].numpy())

    @property
    def step(self) -> int:
        """Steps done so far."""
        return int(self._state["step"].numpy())

    @property
    def best_score(self) -> float:
        """Lowest validation score so far."""
        return float(self._state["best_score"].numpy())

    def _make_optimizer(self) -> keras.optimizers.Optimizer:
        warmup = max(1, int(self._plan.warmup_fraction * self.total_steps))
        schedule = keras.optimizers.schedules.CosineDecay(
            initial_learning_rate=0.0,
            warmup_target=self._plan.learning_rate,
            warmup_steps=warmup,
            decay_steps=max(1, self.total_steps - warmup),
            alpha=0.01,
        )
        optimizer = keras.optimizers.AdamW(schedule, weight_decay=self._plan.weight_decay)
        spared = [v for v in self.model.trainable_variables if len(v.shape) < 2]
        spared += [v for v in self.model.trainable_variables if v.name == "position"]
        optimizer.exclude_from_weight_decay(var_list=spared)
        optimizer.build(self.model.trainable_variables)
        return optimizer

    def _replica_step(self, images: tf.Tensor, targets: tf.Tensor, stop: tf.Tensor):
        with tf.GradientTape() as tape:
            outputs = self._trained(images, training=True)
            # Divided by the global batch, so that the sum over replicas is the mean.
            loss = tf.reduce_sum(self._head.example_loss(targets, outputs)) / self._batch_size
        variables = self.model.trainable_variables
        gradients = tape.gradient(loss, [v.value for v in variables])
        context = tf.distribute.get_replica_context()
        gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        gradients, norm = tf.clip_by_global_norm(gradients, self._plan.clip_norm)
        # Keras clips before it sums over replicas, which would depend on their number; so the
        # sum and the clipping are done here, and Keras's own sum is compensated.
        replicas = float(context.num_replicas_in_sync)
        self.optimizer.apply([g / replicas for g in gradients], variables)
        score = tf.reduce_sum(self._head.score(targets, outputs)) / self._batch_size
        error = tf.reduce_sum(tf.abs(self._head.error(targets, outputs)), axis=0)
        error /= self._batch_size
        stop = context.all_reduce(tf.distribute.ReduceOp.SUM, tf.cast(stop, tf.float32))
        return loss, score, norm / replicas, error, stop / replicas

    def _distributed_step(self, images, targets, stop: tf.Tensor) -> tf.Tensor:
        """One step; `stop` is whether this worker was asked to stop.

        Returns:
          [5 + P]: 1, loss, score, gradient norm, MAE of each target, the share of workers that
          were asked to stop.
        """
        results = self._strategy.run(self._replica_step, args=(images, targets, stop))
        loss, score, norm, error, stop = (
            self._strategy.reduce(tf.distribute.ReduceOp.SUM, r, axis=None) for r in results
        )
        self._state["step"].assign_add(1)
        momentum = self._momentum(tf.cast(self._state["step"], tf.float32))
        for average, value in self._averages:
            average.assign(momentum * average.value + (1.0 - momentum) * value.value)
        return tf.concat([[1.0, loss, score, norm], error, [stop]], axis=0)

    def _momentum(self, done: tf.Tensor) -> tf.Tensor | float:
        """Weight of the average so far against the weights after step `done`."""
        # Not `match`, which AutoGraph can't read.
        if self._plan.average == "ema":
            return tf.minimum(self._plan.ema_momentum, done / (done + 10.0))
        elif self._plan.average == "swa":
            number = done - math.floor(self._plan.swa_start * self.total_steps)
            return 1.0 - 1.0 / tf.maximum(number, 1.0)
        return 0.0

    @contextmanager
    def _input(self) -> Iterator[Callable[[], tuple]]:
        """Gives a function that returns the next global batch: images and targets."""
        replicas = self._strategy.num_replicas_in_sync
        dataset = self._strategy.distribute_datasets_from_function(
            lambda context: self._batches.dataset(
                self.step, replicas, context.input_pipeline_id, context.num_input_pipelines
            )
        )
        iterators = [iter(dataset)]

        def next_batch() -> tuple:
            with self._batches.explained_errors():
                return next(iterators[0])

        try:
            yield next_batch
        finally:
            # Its threads run Python. Were it left to a traceback's frames until the interpreter
            # goes down, which lets no other thread run, it would wait for them for ever.
            iterators.clear()

    def fit(self) -> dict[str, float]:
        """Trains to the end; returns the last validation's metrics.

        Raises:
          Interrupted: after Ctrl-C or SIGTERM, with a checkpoint saved.
          UserError: if the loss is no longer finite.
        """
        if self._state["stopped"].numpy() or self.step >= self.total_steps:
            return self.validate()[0]
        with ExitStack() as stack:
            logger = None
            if self._chief:
                logger = stack.enter_context(
                    closing(RunLogger(self._run.metrics_path, self._run.logs_dir, self.step))
                )
            profile_steps = self._plan.profile_steps if self._chief else None
            profile = stack.enter_context(_profiler(profile_steps, self._run.logs_dir))
            stop_requested = stack.enter_context(_stop_requests())
            bar = stack.enter_context(
                tqdm(
                    total=self.total_steps,
                    initial=self.step,
                    unit="step",
                    desc="train",
                    smoothing=0.05,
                    disable=not self._chief,
                )
            )
            next_batch = stack.enter_context(self._input())
            return self._loop(next_batch, logger, profile, stop_requested, bar)

    def _loop(
        self,
        next_batch: Callable[[], tuple],
        logger: RunLogger | None,
        profile: Callable[[int], None],
        stop_requested: Callable[[], bool],
        bar: tqdm,
    ) -> dict[str, float]:
        per_epoch = self._batches.steps_per_epoch
        step = timed_step = self.step
        start = time.perf_counter()
        while True:
            profile(step + 1)
            images, targets = next_batch()
            sums = self.train_step(images, targets, tf.constant(stop_requested())).numpy()
            self._window += sums[:-1]
            step += 1
            bar.update()
            if step % self._plan.log_every == 0 or step % per_epoch == 0:
                self._check_finite()
                rate = (step - timed_step) * self._batch_size / (time.perf_counter() - start)
                self._log_training(logger, bar, step, rate)
                timed_step, start = step, time.perf_counter()
            if step % per_epoch == 0:
                metrics = self._validate_and_keep(logger, step)
                self._save()
                stopped = bool(self._state["stopped"].numpy())
                if self._chief:
                    bar.write(f"epoch {step // per_epoch}: {_line(metrics)}")
                    if stopped:
                        bar.write(f"no improvement in {self._plan.patience} epochs: stopped")
                if stopped or step >= self.total_steps:
                    return metrics
                start = time.perf_counter()
            # Several workers must stop after the same step, so they wait for its answer.
            if sums[-1] > 0.0 if self._several_workers else stop_requested():
                self._check_finite()
                self._save()
                raise Interrupted

    def _save(self) -> None:
        """Saves a checkpoint, in the first worker only."""
        if not self._chief:
            return
        self._state["window"].assign(self._window)
        try:
            self._manager.save()
        except (OSError, tf.errors.OpError) as error:
            raise UserError(
                f"can't write a checkpoint to {self._run.checkpoints_dir}: {one_line(error)}"
            ) from error

    def _check_finite(self) -> None:
        """Raises a `UserError` unless loss and gradients since the last log line are finite."""
        if not np.all(np.isfinite(self._window)):
            raise self._not_finite("loss or gradient")

    def _not_finite(self, what: str) -> UserError:
        return UserError(
            f"{what} is not finite by step {self.step}: look for bad images, or train in another "
            f"--run_dir with a lower --learning_rate; what {self._run.path} holds is still good"
        )

    def _log_training(self, logger: RunLogger | None, bar: tqdm, step: int, rate: float) -> None:
        """Writes the means since the last log line, and starts a new window."""
        loss, score, norm, *errors = self._window[1:] / self._window[0]
        self._window = np.zeros_like(self._window)
        bar.set_postfix_str(f"loss {loss:.3f}, {rate:.0f} images/s")
        if logger:
            scalars = {
                "loss": loss,
                self._head.score_name: score,
                "learning_rate": float(self.optimizer.learning_rate),
                "gradient_norm": norm,
                "images_per_second": rate,
                **{f"mae/{p.name}": e for p, e in zip(self._targets, errors, strict=True)},
            }
            logger.scalars("train", step, scalars)

    def validate(self) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Validates the averaged weights.

        Returns:
          Metrics (the head's score by its name, `mae/<parameter>` in physical units) and
          outputs, each [N, P].
        """
        inputs = self._validation_inputs
        if inputs is None:
            inputs = self._validation.images
        starts = range(0, len(self._validation), self._batch_size)
        parts = [self._predict(_rows(inputs, slice(i, i + self._batch_size))) for i in starts]
        outputs = {key: np.concatenate([part[key].numpy() for part in parts]) for key in parts[0]}
        tensors = {key: tf.constant(value) for key, value in outputs.items()}
        error = np.abs(self._head.error(self._truth, tensors)).mean(axis=0)
        metrics = {self._head.score_name: float(np.mean(self._head.score(self._truth, tensors)))}
        metrics |= {f"mae/{p.name}": float(e) for p, e in zip(self._targets, error, strict=True)}
        return metrics, outputs

    def _validate_and_keep(self, logger: RunLogger | None, step: int) -> dict[str, float]:
        """Validates, writes pictures, keeps the best model, and decides on stopping."""
        metrics, outputs = self.validate()
        if not finite(metrics):
            raise self._not_finite("a number of the validation")
        score = metrics[self._head.score_name]
        if score < self.best_score:
            self._state["best_score"].assign(score)
            self._state["stale"].assign(0)
            if self._chief:
                save_model(self.averaged, self._run)
        else:
            self._state["stale"].assign_add(1)
        patience = self._plan.patience
        self._state["stopped"].assign(bool(patience) and int(self._state["stale"]) >= patience)
        if logger:
            logger.scalars("validation", step, metrics)
            self._log_pictures(logger, step, outputs)
        return metrics

    def _log_pictures(self, logger: RunLogger, step: int, outputs) -> None:
        for i, parameter in enumerate(self._targets):
            stddev = outputs["stddev"][:, i] if "stddev" in outputs else None
            figure = plots.scatter_figure(
                self._truth[:, i], outputs["mean"][:, i], stddev, parameter
            )
            logger.picture(
                "validation", step, f"predicted/{parameter.name}", plots.figure_to_png(figure)
            )
        if step == self._batches.steps_per_epoch:
            number = min(8, len(self._validation))
            titles = [f"{self._targets.names[0]} {v:.2f}" for v in self._truth[:number, 0]]
            figure = plots.image_grid(self._validation.images[:number], titles)
            logger.picture("validation", step, "samples", plots.figure_to_png(figure))


def _rows(
    inputs: np.ndarray | Mapping[str, np.ndarray], rows: slice
) -> np.ndarray | dict[str, np.ndarray]:
    """Some rows of an array, or of each of several."""
    if isinstance(inputs, Mapping):
        return {name: array[rows] for name, array in inputs.items()}
    return inputs[rows]


def save_model(model: keras.Model, run: RunFolder) -> None:
    """Writes model.keras under a temporary name, then renames."""
    with atomic_write(run.model_path) as partial:
        # Keras goes by the suffix, which the temporary name lacks.
        named = partial.with_suffix(".keras")
        try:
            model.save(named)
            named.replace(partial)
        finally:
            named.unlink(missing_ok=True)


def _restore(checkpoint: tf.train.Checkpoint, path: str) -> None:
    try:
        checkpoint.restore(path).assert_existing_objects_matched()
    except (AssertionError, IndexError, ValueError, tf.errors.OpError) as error:
        raise UserError(
            f"can't resume from checkpoint {path} (damaged, or of another version): "
            "remove it, or choose another --run_dir"
        ) from error


def _line(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())


@contextmanager
def _profiler(steps: tuple[int, int] | None, logs_dir: Path) -> Iterator[Callable[[int], None]]:
    """Gives a function, to be called before each step, that starts and stops the profile."""
    running = False

    def before(step: int) -> None:
        nonlocal running
        if steps and step == steps[0]:
            tf.profiler.experimental.start(str(logs_dir))
            running = True
        elif running and step > steps[1]:
            running = False
            tf.profiler.experimental.stop()

    try:
        yield before
    finally:
        if running:
            tf.profiler.experimental.stop()


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Turns SIGINT and SIGTERM into a question that the loop asks between steps.

    A second signal acts as if there were no such question, and so ends a step that hangs.
    """
    requested = []
    if threading.current_thread() is not threading.main_thread():
        # Python delivers signals to the main thread only.
        yield lambda: False
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request(number, frame):
        del frame
        requested.append(number)
        signal.signal(number, handlers[number])

    for number in handlers:
        signal.signal(number, request)
    try:
        yield lambda: bool(requested)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
