import multiprocessing
import os
import signal

import pytest
from dlens_tf.benchmarks import simulation
from dlens_tf.benchmarks.report import Report, measure, summary
from dlens_tf.benchmarks.simulation import Options
from dlens_tf.benchmarks.simulation_worker import Case, Rates

from dlens_tf.errors import UserError
from dlens_tf.simulation.recipes import RECIPES

CORES = len(os.sched_getaffinity(0))


def test_by_default_everything_is_measured_on_one_and_two_cores():
    options = Options()
    assert set(options.recipes) == set(RECIPES)
    assert set(options.engines) == {"lenstronomy", "fast"}
    assert options.cores == tuple(n for n in (1, 2) if n <= CORES)
    # DeepLense's axion lenses, and each population.
    for name, recipe in RECIPES.items():
        [dm_class] = simulation._classes(name, options.classes)
        assert dm_class in recipe.classes and dm_class != "no_sub"
        if recipe.dataset == "deeplense":
            assert dm_class == "axion"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipes": ["model_v"]}, "unknown recipe 'model_v'; valid: model_i_legacy"),
        ({"recipes": []}, "no recipe to measure"),
        ({"classes": ["baryons"]}, "unknown class 'baryons'; valid: no_sub, axion"),
        ({"engines": ["slow"]}, "unknown engine 'slow'; valid: lenstronomy, fast"),
        ({"cores": [4096]}, f"can't measure on 4096 cores: this process has {CORES}"),
        ({"cores": [0]}, "can't measure on 0 cores"),
        (
            {"recipes": ["model_ii"], "classes": ["wdm", "sidm"]},
            "model_ii has none of the classes wdm, sidm; it has no_sub, axion, cdm",
        ),
    ],
)
def test_bad_options(changes, message):
    with pytest.raises(UserError, match=message):
        Options(**changes)


def test_engines_take_turns_and_processes_add_up():
    calls = []

    class Team:
        name = "2 cores"

        def call(self, function, case, number, repeat):
            calls.append((case.engine, number, repeat))
            rate = {"fast": 100.0, "lenstronomy": 5.0}[case.engine] + repeat
            return [Rates(rate, rate / 2), Rates(2 * rate, rate)]

    options = Options(recipes=["model_ii_instrument"], repeats=3)
    progress = simulation.tqdm(disable=True)
    recipe = simulation._Recipe("model_ii_instrument", options, progress)
    cases = [Case(engine, "model_ii_instrument", "axion", 64) for engine in ("lenstronomy", "fast")]
    results = recipe._measure(Team(), cases, [3, 2])
    assert calls == [
        (engine, number, repeat)
        for repeat in range(3)
        for engine, number in (("lenstronomy", 3), ("fast", 2))
    ]
    assert results["fast"]["noise_free"] == summary([300.0, 303.0, 306.0])
    assert results["fast"]["noisy"] == summary([150.0, 151.5, 153.0])
    assert results["lenstronomy"]["noise_free"]["rates"] == [15.0, 18.0, 21.0]
    assert results["fast"]["images_per_measurement"] == 128
    assert results["lenstronomy"]["images_per_measurement"] == 3
    assert simulation._ratio(results, "noise_free") == pytest.approx(303.0 / 18.0)


def _check_speed(row: dict, engine: str, noisy: bool, repeats: int) -> None:
    result = row["engines"][engine]
    assert len(result["noise_free"]["rates"]) == repeats
    assert all(rate > 0 for rate in result["noise_free"]["rates"])
    assert (result["noisy"] is not None) == noisy
    if noisy:
        # Noise is timed on top of the same rendering.
        pairs = zip(result["noisy"]["rates"], result["noise_free"]["rates"], strict=True)
        assert all(0 < with_noise < without for with_noise, without in pairs)


@pytest.mark.skipif(CORES < 2, reason="needs two cores")
def test_lenstronomy_alone():
    before = set(multiprocessing.active_children())
    options = Options(
        recipes=["model_ii_instrument", "model_iii_legacy"],
        engines=["lenstronomy"],
        cores=[1, 2],
        images=2,
        repeats=2,
        seconds=0.0,
    )
    report = measure("simulation", options, None)
    assert set(multiprocessing.active_children()) <= before
    starts = [row for row in report.rows if "on" not in row]
    speeds = [row for row in report.rows if "on" in row]
    assert [row["recipe"] for row in starts] == list(options.recipes)
    for row in starts:
        start = row["engines"]["lenstronomy"]
        assert start["refused"] is None
        # A process with NumPy, SciPy, Astropy and lenstronomy, and no more than that.
        assert 50 < start["imports_mb"] < start["memory_mb"] < 600
    assert [(row["recipe"], row["dm_class"], row["on"]) for row in speeds] == [
        (recipe, "axion", on) for recipe in options.recipes for on in ("1 core", "2 cores")
    ]
    for row in speeds:
        _check_speed(row, "lenstronomy", row["recipe"] == "model_ii_instrument", 2)
        assert row["ratio"]["noise_free"] is None
    text = report.markdown()
    assert "| model_iii_legacy | axion | 2 cores | " in text
    assert "fast" not in text.split("Machine:")[0]


def test_a_killed_process_gives_one_line():
    with simulation._process(min(os.sched_getaffinity(0))) as pool:
        team = simulation._Team("1 core", [pool])
        [pid] = team.call(os.getpid)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(UserError, match="a measuring process died"):
            team.call(os.getpid)


@pytest.mark.slow
def test_both_engines():
    options = Options(recipes=["model_ii_instrument"], cores=[1], images=4, repeats=2, seconds=0.0)
    report = measure("simulation", options, None)
    start, speed = report.rows
    assert start["engines"]["fast"]["compile_seconds"] > 0
    # TensorFlow takes memory that lenstronomy, measured without it, does not.
    assert start["engines"]["fast"]["imports_mb"] > start["engines"]["lenstronomy"]["memory_mb"]
    assert 0 < start["largest_difference"]["axion"] < 1e-4
    for engine in ("lenstronomy", "fast"):
        _check_speed(speed, engine, True, 2)
    assert speed["ratio"]["noise_free"] > 0
    text = report.markdown()
    assert "| model_ii_instrument | axion | 1 core | " in text
    assert "| recipe | memory of lenstronomy | above its imports | memory of fast |" in text


def _row(engines: dict, **more) -> dict:
    return {"recipe": "model_ii", "engines": engines, **more}


def test_a_refusal_is_told_below_the_table():
    started = {"refused": None, "compile_seconds": 0.0, "memory_mb": 300.0, "imports_mb": 200.0}
    refused = started | {"refused": "too elliptical"}
    rate = {"images_per_measurement": 3, "noise_free": summary([12.34]), "noisy": None}
    rows = [
        _row({"lenstronomy": started, "fast": refused}, largest_difference={}),
        _row(
            {"lenstronomy": rate},
            dm_class="axion",
            on="1 core",
            ratio={"noise_free": None, "noisy": None},
        ),
    ]
    settings = {"engines": ["lenstronomy", "fast"], "repeats": 1, "images": 64}
    text = simulation.table(Report("simulation", settings, {}, "", rows))
    assert "| model_ii | axion | 1 core | 12 (12) | – | – | – | – |" in text
    assert "| model_ii | 300 MB | 100 MB | 300 MB | 100 MB | 0.0 s | – |" in text
    assert "model_ii: fast refuses: too elliptical" in text
