"""The documents agree with the code: links, commands, flags, names and numbers in them."""

import ast
import importlib
import re
from pathlib import Path

import pytest

from dlens_tf.parameters import Constant, Normal, Uniform
from dlens_tf.simulation.catalogue import all_configs
from dlens_tf.simulation.instruments import INSTRUMENTS
from dlens_tf.simulation.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "tests/data/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
FLAGFILES = sorted((ROOT / "configs").glob("*.flags"))
# Flags that absl gives to every program.
COMMON_FLAGS = {"flagfile", "help"}

document = pytest.mark.parametrize(
    "path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix()
)


def tool_flags(tool: Path) -> set[str]:
    """Names of the flags that a tool defines, found without importing it."""
    return set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', tool.read_text()))


def commands(text: str) -> list[tuple[Path, list[str]]]:
    """The `python tools/….py` and `python benchmarks/….py` commands with their arguments."""
    joined = re.sub(r"\\\n[#\s]*", " ", text)
    found = re.findall(r"python ((?:tools|benchmarks)/\w+\.py)([^\n`]*)", joined)
    return [(ROOT / script, re.findall(r"--\S+", rest)) for script, rest in found]


def table(path: Path, header: str) -> list[list[str]]:
    """The cells of the table that begins with this header line, without markup."""
    lines = path.read_text().split(header + "\n", 1)[1].splitlines()[1:]
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
    return rows


@document
def test_links_resolve(path):
    text = path.read_text()
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    for target in targets:
        if not re.match(r"https://", target):
            assert (path.parent / target.split("#")[0]).exists(), target


@pytest.mark.parametrize("path", DOCUMENTS + FLAGFILES, ids=lambda path: path.name)
def test_commands_exist_with_their_flags(path):
    for script, arguments in commands(path.read_text()):
        assert script.is_file()
        known = tool_flags(script) | COMMON_FLAGS
        for argument in arguments:
            name, _, value = argument.removeprefix("--").partition("=")
            assert name in known or name.removeprefix("no") in known, f"{script.name} {argument}"
            if name == "flagfile" and value.startswith("configs/"):
                assert (ROOT / value).is_file(), value
            if name == "config":
                assert value in all_configs()
            if name == "recipe" and "<" not in value:
                assert value in RECIPES


@document
def test_make_targets_exist(path):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in re.findall(r"(?:`|^ {4})make ([a-z-]+)", path.read_text(), re.MULTILINE):
        assert target in targets


@document
def test_named_files_exist(path):
    names = re.findall(
        r"`((?:configs|tools|tests|benchmarks|dlens_tf)/[\w/.]+\.\w+)`", path.read_text()
    )
    for name in names:
        assert "/x/" in name or (ROOT / name).is_file(), name


@document
def test_python_examples_import_what_exists(path):
    for block in re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("dlens_tf"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names)


@pytest.mark.parametrize("path", FLAGFILES, ids=lambda path: path.name)
def test_flagfiles_name_flags_of_the_tool(path):
    known = tool_flags(ROOT / "tools" / "train.py")
    lines = [line.strip() for line in path.read_text().splitlines()]
    for line in lines:
        if line and not line.startswith("#"):
            name = line.removeprefix("--").partition("=")[0]
            assert name in known, line


def test_the_readme_lists_every_tool():
    rows = table(ROOT / "README.md", "| tool | installed as | what it does |")
    tools = {f"tools/{path.name}" for path in (ROOT / "tools").glob("[a-z]*.py")}
    assert {row[0] for row in rows} == tools
    for tool, script, _ in rows:
        assert script == "dlens-" + Path(tool).stem.replace("_", "-")


def test_the_readme_names_every_recipe():
    text = (ROOT / "README.md").read_text()
    assert all(f"`{name}`" in text for name in RECIPES)


@pytest.mark.parametrize(
    ("guide", "tool"), [("training", "train"), ("data", "build_dataset")], ids=str
)
def test_guides_name_every_flag(guide, tool):
    text = (ROOT / "docs" / f"{guide}.md").read_text()
    for flag in tool_flags(ROOT / "tools" / f"{tool}.py"):
        assert re.search(rf"--{flag}\b", text), flag


def test_recipes_are_as_documented():
    rows = table(
        ROOT / "docs" / "recipes.md", "| recipe | image | instrument | noise | lens and source |"
    )
    assert [row[0] for row in rows] == list(RECIPES)
    noise = {
        "instrument": "instrument",
        "none, flux doubled": "none_doubled",
        "counts, shot noise twice": "deeplense_counts",
    }
    for name, image, instrument, law, freedom in rows:
        recipe = RECIPES[name]
        assert image == f"{recipe.num_pix}×{recipe.num_pix}"
        assert instrument == recipe.instrument.name
        assert noise[law] == recipe.noise
        free = {p.name for p in recipe.shared_parameters.free}
        assert (freedom == "fixed, position free") == (free == {"source_x", "source_y"})
        assert (freedom == "free") == (len(free) == len(recipe.shared_parameters))


@pytest.mark.parametrize("name", ["model_i", "model_ii", "model_iii"])
def test_physical_priors_are_as_documented(name):
    documented = {}
    for parameter, text, unit in table(
        ROOT / "docs" / "recipes.md", "| parameter | prior | unit |"
    ):
        kind, first, second = re.fullmatch(r"([UN])\((\S+), (\S+)\)", text).groups()
        prior = {"U": Uniform, "N": Normal}[kind](float(first), float(second))
        documented[parameter] = (prior, unit)
    actual = {p.name: (p.prior, p.unit) for p in RECIPES[name].shared_parameters}
    assert documented == actual


@pytest.mark.parametrize("kind", ["cdm", "wdm", "sidm", "uldm"])
@pytest.mark.parametrize(("suffix", "sources"), [("", "Sersic"), ("_hst_cosmos", "COSMOS")])
def test_population_priors_are_as_documented(kind, suffix, sources):
    recipe = RECIPES[kind + suffix]
    words = {"cdm": "cold", "wdm": "warm", "sidm": "self-interacting", "uldm": "ultralight"}
    documented = {}
    header = "| parameter | prior | unit | recipes |"
    for parameter, text, unit, where in table(ROOT / "docs" / "recipes.md", header):
        law, first, second = re.fullmatch(r"([UN])\((\S+), (\S+)\)", text).groups()
        if where in ("all", words[kind], f"{sources} sources"):
            prior = {"U": Uniform, "N": Normal}[law](float(first), float(second))
            documented[parameter] = (prior, unit)
    parameters = recipe.class_parameters(kind)
    actual = {p.name: (p.prior, p.unit) for p in parameters if p.name not in parameters.derived}
    assert documented == actual


def test_instruments_are_as_documented():
    header = (
        "| instrument | pixel | PSF FWHM | zero point | sky | exposures | read noise | gain "
        "| source |"
    )
    rows = table(ROOT / "docs" / "recipes.md", header)
    assert [row[0] for row in rows] == list(INSTRUMENTS)
    for name, pixel, fwhm, zero_point, sky, exposures, read_noise, gain, _ in rows:
        instrument = INSTRUMENTS[name]
        assert (float(pixel), float(fwhm)) == (instrument.pixel_scale, instrument.psf_fwhm)
        if zero_point == "–":  # its noise numbers are not used
            continue
        number, seconds = exposures.split(" × ")
        assert (int(number), float(seconds)) == (instrument.num_exposures, instrument.exposure_time)
        assert float(zero_point) == instrument.magnitude_zero_point
        assert float(sky) == instrument.sky_brightness
        assert (float(read_noise), float(gain)) == (instrument.read_noise, instrument.gain)


def test_published_numbers_are_as_documented():
    rows = table(ROOT / "docs" / "recipes.md", "| network | Model I | Model II | Model III |")
    for column, name in enumerate(["model_i_legacy", "model_ii_legacy", "model_iii_legacy"], 1):
        actual = {result.model: result.mae for result in RECIPES[name].published}
        assert {row[0]: float(row[column]) for row in rows} == actual


def test_information_limits_are_as_documented():
    path = ROOT / "docs" / "recipes.md"
    limits = {name: r.information_limit for name, r in RECIPES.items() if r.information_limit}
    totals = {row[0]: row[1] for row in table(path, "| recipe | limit, dex |")}
    bins = {row[0]: row[1:] for row in table(path, "| recipe | | | | | | | | |")}
    assert set(bins) == set(limits)
    for name, limit in limits.items():
        assert totals[name] == f"{limit.mae:.3f} ± {limit.mae_error:.3f}"
        assert tuple(map(float, bins[name])) == limit.bin_mae


def test_legacy_values_are_as_documented():
    rows = dict(table(ROOT / "docs" / "recipes.md", "| parameter | value |"))
    priors = RECIPES["model_ii_legacy"].priors
    for names, text in rows.items():
        parameters = re.findall(r"\w+", names)
        if parameters == ["source_x", "source_y"]:
            assert text == "uniform in [-0.35, 0.35]"
            assert all(priors[p] == Uniform(-0.35, 0.35) for p in parameters)
        elif set(parameters) <= set(priors):
            for parameter, number in zip(parameters, re.findall(r"-?[\d.]+", text), strict=False):
                assert isinstance(priors[parameter], Constant)
                assert float(number) == pytest.approx(priors[parameter].value, abs=5e-5)
