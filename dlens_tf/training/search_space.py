"""What a search for good flags may choose from: "flag=a|b|c", "flag=low:high", "flag=low:high:log".

Needs no TensorFlow, so that a mistake is told before it is imported.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from absl import flags

from dlens_tf.errors import UserError
from dlens_tf.training.launch import RunOptions

_EXAMPLES = "for example resnet_width=16|24|32 or learning_rate=1e-3:5e-3:log"

MakeOptions = Callable[[Mapping[str, str]], RunOptions]
"""From flags as text, which win over those of the command line, to a run's options."""


@dataclasses.dataclass(frozen=True)
class Dimension:
    """One flag of a search space: a few values, or a range.

    Attributes:
      name: of the flag.
      values: those to choose from; () for a range.
      bounds: lowest and highest number of a range, both included; () for a few values.
      log: whether a range is searched in its logarithm.
    """

    name: str
    values: tuple[Any, ...] = ()
    bounds: tuple[float, ...] = ()
    log: bool = False

    @property
    def extremes(self) -> tuple[Any, Any]:
        """Two of its values, as different as can be."""
        ends = self.values or self.bounds
        return ends[0], ends[-1]

    @property
    def is_whole(self) -> bool:
        """Whether a range is one of whole numbers."""
        return all(isinstance(bound, int) for bound in self.bounds)


def flag_text(value: Any) -> str:
    """A flag's value as it stands in a flagfile."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def parse_dimension(text: str, known: flags.FlagValues, searchable: Collection[str]) -> Dimension:
    """Reads one flag of a search space.

    Args:
      text: as in the module's synopsis.
      known: flags that there are; their own parsers judge the values.
      searchable: names of those that can be searched.

    Raises:
      UserError: if the flag can't be searched or doesn't take a value, or the range is none.
    """
    name, _, space = text.partition("=")
    where = f"--search={text}"
    if not space:
        raise UserError(f"{where} is not flag=values; {_EXAMPLES}")
    if name not in searchable:
        raise UserError(f"{where}: '{name}' can't be searched; valid: {', '.join(searchable)}")
    parser = known[name].parser

    def parse(value: str) -> Any:
        try:
            parsed = parser.parse(value)
        except ValueError as error:
            raise UserError(f"{where}: --{name} can't be '{value}': {error}") from error
        if isinstance(parsed, float) and not math.isfinite(parsed):
            raise UserError(f"{where}: --{name} can't be '{value}': it must be finite")
        return parsed

    if ":" not in space:
        values = tuple(parse(value) for value in space.split("|"))
        if len(values) < 2 or len(set(values)) < len(values):
            raise UserError(f"{where} needs at least two values, all different; {_EXAMPLES}")
        return Dimension(name, values)
    low, high, *scale = space.split(":")
    if scale not in ([], ["log"]):
        raise UserError(f"{where} is neither low:high nor low:high:log; {_EXAMPLES}")
    if not isinstance(parser, flags.IntegerParser | flags.FloatParser):
        raise UserError(f"{where}: --{name} is no number; give its values as a|b")
    low, high = parse(low), parse(high)
    if not low < high:
        raise UserError(f"{where}: {low} is not below {high}")
    if scale and low <= 0:
        raise UserError(f"{where}: a logarithmic range begins above 0, not at {low}")
    return Dimension(name, bounds=(low, high), log=bool(scale))


def representatives(
    space: Sequence[Dimension], make_options: MakeOptions
) -> list[dict[Dimension, tuple[RunOptions, RunOptions]]]:
    """Runs of a search space: for each choice of a name or switch, both ends of each dimension."""
    first = {dimension.name: dimension.extremes[0] for dimension in space}
    switches = [d for d in space if d.values and isinstance(d.values[0], str | bool)]
    bases = [first, *({**first, d.name: value} for d in switches for value in d.values[1:])]

    def run(values: Mapping[str, Any]) -> RunOptions:
        return make_options({name: flag_text(value) for name, value in values.items()})

    return [
        {d: tuple(run({**base, d.name: end}) for end in d.extremes) for d in space}
        for base in bases
    ]


def check_space(space: Sequence[Dimension], make_options: MakeOptions) -> None:
    """Refuses a search space with nothing in it, or with a flag that changes nothing.

    A flag that belongs to the value of another, as vit_width to a model, must change something
    for one of the other's values.

    Raises:
      UserError: if there is such a flag, or flags of the space do not fit each other.
    """
    names = [dimension.name for dimension in space]
    if not names:
        raise UserError(f"flag --search is missing; {_EXAMPLES}")
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--search names '{name}' twice; list all its values in one")
    runs = representatives(space, make_options)
    for dimension in space:
        ends = ([dataclasses.replace(o, flags={}) for o in run[dimension]] for run in runs)
        if all(one == other for one, other in ends):
            raise UserError(
                f"--search={dimension.name}=… changes nothing beside the other flags; leave it out"
            )
