"""The training loop with a two-layer model: optimisation, resuming, stopping, failing."""

import math
import signal
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from dlens_tf.errors import UserError
from dlens_tf.inference.posterior import Posterior
from dlens_tf.models.heads import GaussianHead
from dlens_tf.models.vit import PatchEmbedding
from dlens_tf.pipeline import reading
from dlens_tf.pipeline.batches import BatchSpec, TrainingBatches
from dlens_tf.training.logger import RunLogger
from dlens_tf.training.run_folder import RunFolder
from dlens_tf.training.trainer import Interrupted, Trainer, TrainingPlan, save_model


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """They take most of the time; test_logger.py looks at them."""
    monkeypatch.setattr(Trainer, "_log_pictures", lambda *_: None)


def _values(variables) -> list[np.ndarray]:
    return [v.numpy() for v in variables]


def _assert_all_close(arrays, expected, **tolerances):
    for array, expected_array in zip(arrays, expected, strict=True):
        np.testing.assert_allclose(array, expected_array, **tolerances)


# Optimisation.


@pytest.mark.parametrize("method", ["_distributed_step", "_replica_step", "_momentum"])
def test_autograph_can_read_the_step(method):
    """It warns of what it can't read in every training."""
    assert method in tf.autograph.to_code(getattr(Trainer, method))


def test_learning_rate_warms_up_and_decays(make_trainer, read_metrics, tmp_path):
    make_trainer(tmp_path, learning_rate=0.4, warmup_fraction=1 / 3, log_every=1).fit()
    rates = [line["learning_rate"] for line in read_metrics(tmp_path) if line["split"] == "train"]
    rise = [0.1, 0.2, 0.3, 0.4]
    fall = [0.004 + 0.396 * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(1, 9)]
    assert rates == pytest.approx(rise + fall, rel=1e-5)


@pytest.mark.parametrize("clip_norm", [0.01, 1e3])
def test_global_norm_of_applied_gradient_is_clipped(
    make_trainer, tiny_batches, read_metrics, tmp_path, clip_norm
):
    trainer = make_trainer(tmp_path, clip_norm=clip_norm, epochs=1, log_every=1)
    # The first step's gradient, by the definition of the loss.
    images, truth = next(iter(tiny_batches.dataset()))
    head = trainer.model.get_layer("head")
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(head.example_loss(truth, trainer.model(images)))
    gradient = tape.gradient(loss, [v.value for v in trainer.model.trainable_variables])
    norm = math.sqrt(sum(float(tf.reduce_sum(g**2)) for g in gradient))
    assert 0.01 < norm < 1e3

    applied = []
    apply = trainer.optimizer.apply

    def recording_apply(gradients, variables):
        tf.py_function(lambda *g: applied.append([x.numpy() for x in g]), gradients, [])
        apply(gradients, variables)

    trainer.optimizer.apply = recording_apply
    trainer.fit()
    _assert_all_close(
        applied[0], [g * min(1.0, clip_norm / norm) for g in gradient], rtol=1e-4, atol=1e-7
    )
    line = read_metrics(tmp_path)[0]
    assert line["gradient_norm"] == pytest.approx(norm, rel=1e-4)
    assert line["loss"] == pytest.approx(float(loss), rel=1e-5)


def test_average_of_weights(make_trainer, at_step, tmp_path):
    trainer = make_trainer(tmp_path, ema_momentum=0.3, learning_rate=0.1)
    expected = _values(trainer.model.trainable_variables)
    momenta = []

    def follow(step):
        # Ramps up from 1/11 and stays at 0.3.
        momentum = min(0.3, step / (step + 10))
        momenta.append(momentum)
        for average, value in zip(expected, trainer.model.trainable_variables, strict=True):
            average[...] = momentum * average + (1 - momentum) * value.numpy()
        _assert_all_close(_values(trainer.averaged.trainable_variables), expected, atol=1e-6)

    at_step(follow)
    trainer.fit()
    assert momenta[0] == pytest.approx(1 / 11) and momenta[-1] == 0.3 and len(momenta) == 12
    difference = max(
        np.abs(v - e).max()
        for v, e in zip(_values(trainer.model.trainable_variables), expected, strict=True)
    )
    assert difference > 1e-3


@pytest.mark.parametrize("start", [0.0, 0.5])
def test_stochastic_weight_average_is_the_mean(make_trainer, at_step, tmp_path, start):
    trainer = make_trainer(tmp_path, average="swa", swa_start=start, learning_rate=0.1)
    past = []

    def follow(step):
        past.append(_values(trainer.model.trainable_variables))
        averaged = past[int(12 * start) :] or past[-1:]
        expected = [np.mean(values, axis=0) for values in zip(*averaged, strict=True)]
        _assert_all_close(_values(trainer.averaged.trainable_variables), expected, atol=1e-6)

    at_step(follow)
    trainer.fit()
    assert len(past) == 12
    assert max(np.abs(a - b).max() for a, b in zip(past[-1], past[-6], strict=True)) > 1e-3


def test_no_average_is_the_last_step(make_trainer, tmp_path):
    trainer = make_trainer(tmp_path, average="none", learning_rate=0.1)
    trainer.fit()
    _assert_all_close(_values(trainer.averaged.weights), _values(trainer.model.weights), atol=0)


def test_weight_decay_spares_vectors_and_positions(make_trainer, tiny_folder, tmp_path):
    targets = tiny_folder.parameters.select(["log10_m_axion", "source_x"])

    def make_model():
        image = keras.Input((64, 64, 1))
        x = PatchEmbedding(32, 4, name="patches")(image)
        x = keras.layers.GlobalAveragePooling1D()(keras.layers.LayerNormalization()(x))
        return keras.Model(image, GaussianHead.for_targets(targets, "nll", name="head")(x))

    # A gradient of no size leaves the decay alone at work.
    trainer = make_trainer(
        tmp_path,
        make_model=make_model,
        clip_norm=1e-30,
        weight_decay=0.5,
        learning_rate=0.4,
        warmup_fraction=1 / 3,
    )
    before = {v.path: v.numpy() for v in trainer.model.trainable_variables}
    trainer.fit()
    rates = [0.0, 0.1, 0.2, 0.3, 0.4]
    rates += [0.004 + 0.396 * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(1, 8)]
    factor = np.prod([1 - 0.5 * rate for rate in rates])
    decayed = set()
    for variable in trainer.model.trainable_variables:
        value, start = variable.numpy(), before[variable.path]
        if not np.allclose(value, start, atol=1e-9):
            np.testing.assert_allclose(value, factor * start, rtol=1e-4, atol=1e-9)
            decayed.add(variable.path)
    kernels = {path for path in before if path.endswith("kernel")}
    assert len(kernels) == 2 and decayed == kernels


def test_compiled_equals_uncompiled(make_trainer, tmp_path, read_metrics):
    for jit in (False, True):
        make_trainer(tmp_path / str(jit), learning_rate=0.05, clip_norm=0.1, jit=jit).fit()
    lines, compiled = (read_metrics(tmp_path / name) for name in ("False", "True"))
    for line, compiled_line in zip(lines, compiled, strict=True):
        assert line.pop("split") == compiled_line.pop("split")
        assert compiled_line == pytest.approx(line, rel=1e-4)


# Stopping early and keeping the best.


@pytest.mark.parametrize("loss", ["nll", "beta_nll"])
def test_validation_is_scored_by_the_likelihood(
    make_trainer, tiny_folder, tiny_validation, read_metrics, tmp_path, loss
):
    targets = tiny_folder.parameters.select(["log10_m_axion", "source_x"])

    def make_model():
        image = keras.Input((64, 64, 1))
        x = keras.layers.Rescaling(1e-2)(keras.layers.Flatten()(image))
        return keras.Model(image, GaussianHead.for_targets(targets, loss, name="head")(x))

    trainer = make_trainer(tmp_path, make_model=make_model, epochs=1, log_every=3)
    metrics = trainer.fit()
    outputs = RunFolder(tmp_path).load_model()(tiny_validation.images)
    truth = np.stack([tiny_validation.parameters[n] for n in targets.names], axis=-1)
    outputs = {name: value.numpy() for name, value in outputs.items()}
    posterior = Posterior.from_outputs(targets, {"kind": "gaussian"}, outputs)
    density = posterior.log_prob(truth) + np.log(targets.stds)
    assert metrics["nll"] == pytest.approx(-density.mean(), rel=1e-4)
    assert trainer.best_score == metrics["nll"]
    assert "loss" not in metrics
    training, validation = read_metrics(tmp_path)
    assert validation["nll"] == metrics["nll"] and "loss" not in validation
    assert (training["loss"] == pytest.approx(training["nll"], rel=1e-6)) == (loss == "nll")


def _script_scores(trainer, scores):
    """Replaces the validation's scores by scripted ones."""
    validate, rest = trainer.validate, iter(scores)

    def scripted():
        metrics, outputs = validate()
        return {**metrics, "nll": next(rest)}, outputs

    trainer.validate = scripted


def test_best_model_is_kept_and_training_stops_early(make_trainer, tmp_path, read_metrics):
    trainer = make_trainer(tmp_path, epochs=9, patience=2, learning_rate=0.1)
    _script_scores(trainer, [2.0, 1.0, 1.5, 1.0])
    averages = []
    validate = trainer.validate

    def recording():
        averages.append(_values(trainer.averaged.weights))
        return validate()

    trainer.validate = recording
    assert trainer.fit()["nll"] == 1.0
    assert trainer.step == 12  # the fourth epoch's equal score is no improvement
    assert trainer.best_score == 1.0
    model = RunFolder(tmp_path).load_model()
    _assert_all_close(_values(model.weights), averages[1], atol=0)
    assert any(not np.array_equal(a, b) for a, b in zip(averages[1], averages[3], strict=True))

    resumed = make_trainer(tmp_path, epochs=9, patience=2, learning_rate=0.1)
    resumed.fit()
    assert resumed.step == 12
    assert [line["step"] for line in read_metrics(tmp_path)][-1] == 12


def test_patience_is_remembered(make_trainer, at_step, tmp_path):
    trainer = make_trainer(tmp_path, epochs=9, patience=2)
    _script_scores(trainer, [1.0, 1.5])
    at_step(lambda step: signal.raise_signal(signal.SIGINT) if step == 7 else None)
    with pytest.raises(Interrupted):
        trainer.fit()
    kept = (tmp_path / "model.keras").read_bytes()
    resumed = make_trainer(tmp_path, epochs=9, patience=2)
    assert resumed.best_score == 1.0
    _script_scores(resumed, [1.25])
    resumed.fit()
    assert resumed.step == 9
    assert (tmp_path / "model.keras").read_bytes() == kept


# Interrupting, crashing and resuming.


@pytest.fixture(scope="module")
def plan():
    """Lines every 2 steps and epochs of 3, so that step 5 is amid both."""
    return {"dropout": 0.5, "learning_rate": 0.05, "clip_norm": 0.1}


@pytest.fixture(params=[(signal.SIGINT, 5), (signal.SIGTERM, 6), (None, 5)], ids=str)
def broken_off(request, make_trainer, at_step, plan, tmp_path):
    """A run that a signal or a crash has broken off at a step."""
    number, at = request.param

    class CrashError(Exception):
        pass

    def break_off(step):
        if step == at and number is None:
            raise CrashError
        if step == at:
            signal.raise_signal(number)

    at_step(break_off)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    trainer = make_trainer(tmp_path / "broken", **plan)
    with pytest.raises(CrashError if number is None else Interrupted):
        trainer.fit()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    at_step(lambda step: None)
    return tmp_path / "broken", 3 if number is None else at


def test_resumed_equals_uninterrupted(
    broken_off, make_trainer, plan, assert_same_run, read_checkpoint, tmp_path
):
    folder, step = broken_off
    resumed = make_trainer(folder, **plan)
    assert resumed.step == step
    resumed.fit()
    make_trainer(tmp_path / "whole", **plan).fit()
    assert_same_run(folder, tmp_path / "whole", tolerance=1e-7)
    seeds = [value for name, value in read_checkpoint(folder).items() if "seeds" in name]
    assert len(seeds) == 1 and seeds[0][1] > 0


def test_stochastic_weight_average_resumes(make_trainer, at_step, assert_same_run, tmp_path):
    swa = {"average": "swa", "swa_start": 0.25, "learning_rate": 0.05}
    at_step(lambda step: signal.raise_signal(signal.SIGINT) if step == 7 else None)
    with pytest.raises(Interrupted):
        make_trainer(tmp_path / "broken", **swa).fit()
    at_step(lambda step: None)
    make_trainer(tmp_path / "broken", **swa).fit()
    make_trainer(tmp_path / "whole", **swa).fit()
    assert_same_run(tmp_path / "broken", tmp_path / "whole", tolerance=1e-7)


def test_interrupted_in_the_last_step_is_finished(make_trainer, at_step, tmp_path):
    at_step(lambda step: signal.raise_signal(signal.SIGINT) if step == 3 else None)
    trainer = make_trainer(tmp_path, epochs=1)
    assert math.isfinite(trainer.fit()["nll"])


def test_second_signal_acts_at_once(make_trainer, at_step, tmp_path):
    def twice(step):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    at_step(twice)
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path).fit()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_failure_closes_logs_and_profile(make_trainer, at_step, monkeypatch, tmp_path):
    closed = []
    monkeypatch.setattr(RunLogger, "close", lambda self: closed.append(self))

    def crash(step):
        if step == 3:
            raise RuntimeError("crash")

    at_step(crash)
    with pytest.raises(RuntimeError, match="crash"):
        make_trainer(tmp_path, profile_steps=(2, 9)).fit()
    assert len(closed) == 1
    with pytest.raises(tf.errors.UnavailableError, match="No profiler is running"):
        tf.profiler.experimental.stop()


@pytest.mark.parametrize("steps", [(2, 3), (11, 99)])
def test_profile(make_trainer, tmp_path, steps):
    make_trainer(tmp_path, profile_steps=steps).fit()
    assert len(list((tmp_path / "logs" / "plugins" / "profile").glob("*/*.xplane.pb"))) == 1


def test_damaged_checkpoint_is_named(make_trainer, tmp_path):
    make_trainer(tmp_path, epochs=1).fit()
    for path in (tmp_path / "checkpoints").glob("*.data*"):
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"can't resume from checkpoint .*ckpt-1 \(damaged") as info:
        make_trainer(tmp_path, epochs=1)
    assert "\n" not in str(info.value)


def test_checkpoint_of_another_model_is_refused(make_trainer, tmp_path):
    make_trainer(tmp_path, epochs=1).fit()
    with pytest.raises(UserError, match="can't resume from checkpoint"):
        make_trainer(tmp_path, epochs=1, dropout=0.5)


def test_unwritable_checkpoints(make_trainer, tmp_path):
    trainer = make_trainer(tmp_path, epochs=1)
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(UserError, match=r"can't write a checkpoint to .*checkpoints") as info:
        trainer.fit()
    assert "\n" not in str(info.value)


# Numbers that are not finite.


def _spoilt(batches: TrainingBatches, value: float, from_step: int):
    """The batches with `value` in the first pixel of every image from a step on."""

    def dataset(start_step, *arguments):
        pixels = np.zeros((64, 64, 1), np.float32)
        pixels[0, 0] = value
        return (
            batches.dataset(start_step, *arguments)
            .enumerate(start_step + 1)
            .map(lambda i, pair: (tf.where(i >= from_step, pair[0] + pixels, pair[0]), pair[1]))
        )

    return SimpleNamespace(
        spec=batches.spec,
        steps_per_epoch=3,
        explained_errors=batches.explained_errors,
        dataset=dataset,
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("interrupted", [False, True])
def test_not_finite_stops_and_spoils_nothing(
    make_trainer, tiny_batches, at_step, read_checkpoint, read_metrics, tmp_path, value, interrupted
):
    trainer = make_trainer(
        tmp_path, batches=_spoilt(tiny_batches, value, from_step=5), log_every=100
    )

    def keep(step):
        if step == 4:
            kept.append((tmp_path / "model.keras").read_bytes())
        if step == 5 and interrupted:
            signal.raise_signal(signal.SIGINT)

    kept = []
    at_step(keep)
    step = 5 if interrupted else 6
    message = f"loss or gradient is not finite by step {step}: look for bad images, or train"
    with pytest.raises(UserError, match=message) as info:
        trainer.fit()
    assert "\n" not in str(info.value) and str(tmp_path) in str(info.value)
    values = read_checkpoint(tmp_path)
    assert values["step"] == 3
    assert all(np.all(np.isfinite(v)) for v in values.values())
    assert (tmp_path / "model.keras").read_bytes() == kept[0]
    assert [line["step"] for line in read_metrics(tmp_path)] == [3, 3]


def test_weights_that_overflow_are_not_saved(make_trainer, tmp_path):
    # The losses before the overflow are finite; the validation notices it.
    trainer = make_trainer(tmp_path, learning_rate=1e38, epochs=1, warmup_fraction=1.0)
    with pytest.raises(UserError, match="not finite"):
        trainer.fit()
    assert not (tmp_path / "model.keras").exists()
    assert not list(tmp_path.glob("checkpoints/*"))


# Bad input.


@pytest.mark.parametrize(
    ("replicas", "jit", "message"),
    [
        (3, False, "batch_size 8 is not a multiple of the 3 devices"),
        (2, True, "--jit works on one device only"),
    ],
)
def test_several_devices_refuse(tiny_batches, tiny_validation, tmp_path, replicas, jit, message):
    with pytest.raises(UserError, match=message):
        Trainer(
            RunFolder(tmp_path / "run"),
            SimpleNamespace(num_replicas_in_sync=replicas),
            None,
            tiny_batches,
            tiny_validation,
            tiny_batches.folder.parameters.select(["log10_m_axion", "source_x"]),
            TrainingPlan(epochs=1, jit=jit),
        )
    assert not (tmp_path / "run").exists()


def test_profile_after_the_end_is_refused(make_trainer, tmp_path):
    with pytest.raises(UserError, match=r"profile_steps start at step 13, .* only 12 steps"):
        make_trainer(tmp_path, profile_steps=(13, 14))


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, math.nan])
def test_clip_norm_must_be_positive(clip_norm):
    with pytest.raises(UserError, match=r"clip_norm is .* must be positive"):
        TrainingPlan(epochs=1, clip_norm=clip_norm)


@pytest.mark.parametrize(
    "name", ["learning_rate", "warmup_fraction", "weight_decay", "ema_momentum"]
)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_plan_must_be_finite(name, value):
    with pytest.raises(UserError, match=f"{name} is {value}, must be a finite number"):
        TrainingPlan(epochs=1, **{name: value})


@pytest.mark.parametrize("failing", ["save", "replace"])
def test_model_that_cannot_be_written_leaves_the_last(make_trainer, tmp_path, monkeypatch, failing):
    trainer = make_trainer(tmp_path)
    save_model(trainer.averaged, RunFolder(tmp_path))
    before = (tmp_path / "model.keras").read_bytes()

    def fail(*arguments):
        if failing == "save":
            Path(arguments[0]).write_text("cut off")
        raise OSError(28, "No space left on device")

    if failing == "save":
        monkeypatch.setattr(trainer.averaged, "save", fail)
    else:
        monkeypatch.setattr("dlens_tf.io.files.os.replace", fail)
    with pytest.raises(UserError, match=r"can't write .*model\.keras: No space left") as info:
        save_model(trainer.averaged, RunFolder(tmp_path))
    assert "\n" not in str(info.value)
    assert (tmp_path / "model.keras").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]


def test_damaged_shard_of_a_stream_is_named(tiny_folder, make_trainer, tmp_path, monkeypatch):
    batches = TrainingBatches(
        tiny_folder, BatchSpec(["log10_m_axion", "source_x"], batch_size=8, cache="none")
    )
    trainer = make_trainer(tmp_path, batches=batches)
    shard = tmp_path / "deeplense-train.tfrecord-00001-of-00002"
    content = bytearray(Path(tiny_folder.shards("train")[1]).read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    monkeypatch.setattr(
        reading.DatasetFolder,
        "shards",
        lambda self, split: [str(shard)] * len(self.info.splits[split].shard_lengths),
    )
    with pytest.raises(UserError, match=r"shard deeplense-train.* damaged at record \d+") as info:
        trainer.fit()
    assert "\n" not in str(info.value)
