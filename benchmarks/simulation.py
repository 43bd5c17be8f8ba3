"""How fast lenses are simulated: both engines, on some cores and on a GPU, in one run.

Engines take turns, so that a passing disturbance does not hit one of them alone. On N cores N
processes simulate at once, each bound to a core and with one thread; their rates are added.
Memory and compile time are those of fresh processes.
"""

import contextlib
import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, NamedTuple

from dlens_tf.benchmarks import cores
from dlens_tf.benchmarks import simulation_worker as worker
from dlens_tf.benchmarks.processes import fresh_process, result
from dlens_tf.benchmarks.report import Report, markdown_table, summary
from dlens_tf.benchmarks.simulation_worker import Case
from tqdm import tqdm

from dlens_tf.errors import UserError, choose
from dlens_tf.simulation.engines import ENGINES
from dlens_tf.simulation.generate import single_threads
from dlens_tf.simulation.recipes import CLASSES, RECIPES, get_recipe

COMPARED = 3
"""Lenses of each class that are compared between the engines."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to simulate and how often.

    Attributes:
      recipes: names; all by default.
      classes: of dark matter, where a recipe has them; by default each recipe's first one with
        substructure.
      engines: names.
      images: in a batch.
      repeats: measurements of each engine.
      cores: numbers of cores to measure on; by default 1 and 2, where there are so many.
      seconds: that a measurement lasts at least.

    Raises:
      UserError: if something is unknown, there are too few cores, or nothing is left to measure.
    """

    recipes: Sequence[str] = tuple(RECIPES)
    classes: Sequence[str] = ()
    engines: Sequence[str] = ENGINES
    images: int = 64
    repeats: int = 3
    cores: Sequence[int] = ()
    seconds: float = 0.3

    def __post_init__(self):
        for kind, values, valid in (
            ("recipe", self.recipes, RECIPES),
            ("class", self.classes, CLASSES),
            ("engine", self.engines, ENGINES),
        ):
            if not values and kind != "class":
                raise UserError(f"there is no {kind} to measure")
            for value in values:
                choose(kind, value, valid)
        most = len(cores.available())
        numbers = self.cores or [number for number in (1, 2) if number <= most]
        object.__setattr__(self, "cores", tuple(numbers))
        for number in self.cores:
            if not 1 <= number <= most:
                raise UserError(f"can't measure on {number} cores: this process has {most}")
        for name in self.recipes:
            if not _classes(name, self.classes):
                raise UserError(
                    f"recipe {name} has none of the classes {', '.join(self.classes)}; it has "
                    f"{', '.join(get_recipe(name).classes)}"
                )


def _classes(recipe: str, wanted: Sequence[str]) -> list[str]:
    """The wanted classes that a recipe has; without a wish its first one with substructure."""
    classes = get_recipe(recipe).classes
    if not wanted:
        return [name for name in classes if name != "no_sub"][:1]
    return [name for name in classes if name in wanted]


def _result(future: Future) -> Any:
    return result(future, "fewer --images take less memory")


class _Team(NamedTuple):
    """Processes that measure at the same time, and what the table calls them."""

    name: str
    pools: Sequence[ProcessPoolExecutor]

    def call(self, function: Callable, *arguments: Any) -> list[Any]:
        """Calls a function of `simulation_worker` in all of them at once."""
        return [_result(f) for f in [pool.submit(function, *arguments) for pool in self.pools]]


def _process(core: int | None) -> contextlib.AbstractContextManager[ProcessPoolExecutor]:
    return fresh_process(worker.start, core)


class _Recipe:
    """Measures one recipe, in processes of its own.

    Args:
      name: of the recipe.
      options: what to measure.
      progress: told of each turn.
    """

    def __init__(self, name: str, options: Options, progress: tqdm):
        self._name = name
        self._options = options
        self._progress = progress
        self._classes = _classes(name, options.classes)
        self._engines = list(dict.fromkeys(options.engines))
        self._numbers = list(dict.fromkeys(options.cores))
        self._cores = cores.available()[: max(self._numbers)]

    def _cases(self, engine: str) -> list[Case]:
        images = self._options.images
        return [Case(engine, self._name, dm_class, images) for dm_class in self._classes]

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row for the start of the engines, then one for each class and team."""
        with contextlib.ExitStack() as stack:
            pools = [stack.enter_context(_process(core)) for core in self._cores]
            yield self._start(pools)
            teams = [_Team(f"{n} core{'s' * (n > 1)}", pools[:n]) for n in self._numbers]
            crews = [(_Team("all cores", pools), teams)]
            if "fast" in self._engines and os.environ.get("CUDA_VISIBLE_DEVICES") != "-1":
                gpu = [stack.enter_context(_process(None))]
                [name] = _Team("GPU", gpu).call(worker.gpu_name)
                if name:
                    crews.append((_Team(name, gpu), [_Team(name, gpu)]))
            for dm_class, (crew, teams) in itertools.product(self._classes, crews):
                yield from self._class_rows(dm_class, crew, teams)

    def _start(self, pools: Sequence[ProcessPoolExecutor]) -> dict[str, Any]:
        """Starts the engines; one that refuses the recipe is left out from then on."""
        row = {"recipe": self._name, "engines": {}, "largest_difference": {}}
        starts = {}
        with contextlib.ExitStack() as stack:
            if "lenstronomy" in self._engines:
                # In a process that has not imported TensorFlow: the last one, until it does.
                several = len(pools) > 1
                pool = pools[-1] if several else stack.enter_context(_process(self._cores[0]))
                future = pool.submit(worker.prepare, self._cases("lenstronomy"), 1.0)
                starts["lenstronomy"] = future
                if not several:
                    _result(future)
            if "fast" in self._engines:
                cases = self._cases("fast")
                prepared = [pool.submit(worker.prepare, cases, 1.0) for pool in pools]
                starts["fast"] = prepared[0]
            for engine in list(self._engines):
                start = _result(starts[engine])
                row["engines"][engine] = start._asdict()
                if start.refused:
                    self._engines.remove(engine)
        if len(self._engines) == 2:
            for case in self._cases("fast"):
                compared = min(COMPARED, case.images)
                future = pools[0].submit(worker.largest_difference, case, compared)
                row["largest_difference"][case.dm_class] = _result(future)
        return row

    def _class_rows(
        self, dm_class: str, crew: _Team, teams: Sequence[_Team]
    ) -> Iterator[dict[str, Any]]:
        """Measures a class with each team, whose processes are of the crew."""
        own = [case for e in self._engines for case in self._cases(e) if case.dm_class == dm_class]
        least = self._options.seconds
        numbers = [max(1, math.ceil(least / max(crew.call(worker.warm_up, case)))) for case in own]
        for team in teams:
            self._progress.set_postfix_str(f"{self._name} {dm_class}, {team.name}")
            results = self._measure(team, own, numbers)
            yield {
                "recipe": self._name,
                "dm_class": dm_class,
                "on": team.name,
                "engines": results,
                "ratio": {noise: _ratio(results, noise) for noise in ("noise_free", "noisy")},
            }

    def _measure(
        self, team: _Team, cases: Sequence[Case], numbers: Sequence[int]
    ) -> dict[str, Any]:
        """The rates of the engines, taken in turns."""
        rates = {case.engine: [] for case in cases}
        for repeat in range(self._options.repeats):
            for case, number in zip(cases, numbers, strict=True):
                rates[case.engine].append(team.call(worker.measure, case, number, repeat))
            self._progress.update()
        results = {}
        for case, number in zip(cases, numbers, strict=True):
            noise_free = [sum(r.noise_free for r in each) for each in rates[case.engine]]
            noisy = None
            if get_recipe(case.recipe).has_noise:
                noisy = summary([sum(r.noisy for r in each) for each in rates[case.engine]])
            results[case.engine] = {
                "images_per_measurement": number * (case.images if case.engine == "fast" else 1),
                "noise_free": summary(noise_free),
                "noisy": noisy,
            }
        return results


def _ratio(engines: dict[str, Any], noise: str) -> float | None:
    """How much faster the fast engine is, by the medians."""
    if len(engines) < 2 or engines["fast"][noise] is None:
        return None
    return engines["fast"][noise]["median"] / engines["lenstronomy"][noise]["median"]


def run(options: Options) -> Iterator[dict[str, Any]]:
    """Measures recipe after recipe; see `_Recipe.rows` for the rows."""
    turns = {
        name: len(_classes(name, options.classes)) * options.repeats * len(set(options.cores))
        for name in options.recipes
    }
    with single_threads(), tqdm(total=sum(turns.values()), desc="measure", unit="turn") as progress:
        for name in turns:
            progress.set_postfix_str(f"{name}, starting")
            yield from _Recipe(name, options, progress).rows()


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 20 else f"{value:.2g}"


def _rate(result: dict[str, Any] | None) -> str:
    return "–" if result is None else f"{_number(result['median'])} ({_number(result['highest'])})"


def _speed_table(rows: Sequence[dict[str, Any]], engines: Sequence[str]) -> str:
    header = ["recipe", "class", "on"]
    for engine in engines:
        header += [engine, f"{engine}, with noise"]
    cells = []
    for row in rows:
        line = [row["recipe"], row["dm_class"], row["on"]]
        for engine in engines:
            result = row["engines"].get(engine, {"noise_free": None, "noisy": None})
            line += [_rate(result["noise_free"]), _rate(result["noisy"])]
        if len(engines) == 2:
            ratio = row["ratio"]["noise_free"]
            line.append("–" if ratio is None else f"{_number(ratio)}×")
        cells.append(line)
    return markdown_table(header + ["ratio"] * (len(engines) == 2), cells)


def _start_table(rows: Sequence[dict[str, Any]], engines: Sequence[str]) -> str:
    header = ["recipe"]
    for engine in engines:
        header += [f"memory of {engine}", "above its imports"]
    header += ["compilation"] * ("fast" in engines) + ["largest difference"] * (len(engines) == 2)
    cells = []
    for row in rows:
        line = [row["recipe"]]
        for engine in engines:
            start = row["engines"][engine]
            above = start["memory_mb"] - start["imports_mb"]
            line += [f"{start['memory_mb']:,.0f} MB", f"{above:,.0f} MB"]
        if "fast" in engines:
            line.append(f"{row['engines']['fast']['compile_seconds']:.1f} s")
        if len(engines) == 2:
            differences = row["largest_difference"].values()
            line.append(f"{max(differences):.1e}" if differences else "–")
        cells.append(line)
    return markdown_table(header, cells)


def table(report: Report) -> str:
    """Rates by recipe, class and cores; then memory, compilation and differences by recipe."""
    settings = report.settings
    engines = list(dict.fromkeys(settings["engines"]))
    starts = [row for row in report.rows if "on" not in row]
    speeds = [row for row in report.rows if "on" in row]
    parts = [
        f"Images a second, drawing included: median (best) of {settings['repeats']} measurements, "
        f"batches of {settings['images']}",
        _speed_table(speeds, engines),
        f"A first batch of {settings['images']} of each class in a fresh process",
        _start_table(starts, engines),
    ]
    parts += [
        f"{row['recipe']}: {engine} refuses: {start['refused']}"
        for row in starts
        for engine, start in row["engines"].items()
        if start["refused"]
    ]
    return "\n\n".join(parts)
