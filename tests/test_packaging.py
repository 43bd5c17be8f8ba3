"""The wheel: built from a copy of the sources, installed elsewhere, used from another folder."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dlens_tf.simulation.recipes import get_recipe
from dlens_tf.simulation.simulator import Simulator

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ["dlens_tf", "datasets", "tools", "benchmarks", "saved_models"]
SOURCES = ["setup.py", "pyproject.toml", "README.md", "LICENSE", *PACKAGES]


def run(*command: object, cwd: Path) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def pip(*arguments: object, cwd: Path) -> None:
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel, built without network and without leaving build files in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    copy.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, copy / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, copy)
    pip("wheel", "--no-index", "--no-deps", "--no-build-isolation", "-w", folder, ".", cwd=copy)
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def members(wheel) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A virtual environment that holds the wheel, and the packages of this one behind it."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip("--python", python, "install", "--no-index", "--no-deps", wheel, cwd=folder)
    [site] = folder.glob("lib/python*/site-packages")
    # A path in a .pth file is searched, but the .pth files in it are not read: an editable
    # install of the checkout stays out of sight.
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder


def test_source_distribution_is_whole(tmp_path):
    copy = tmp_path / "source"
    not_sources = {".git", ".venv", "build", "dist", "data", "runs", "shared"}

    def ignore(folder, names):
        ours = not_sources if Path(folder) == ROOT else set()
        return {n for n in names if n in ours or "cache" in n or n.endswith(".egg-info")}

    shutil.copytree(ROOT, copy, ignore=ignore)
    killed = copy / "saved_models" / ".partial-killed"
    (killed / "1").mkdir(parents=True)
    (killed / "1" / "saved_model.pb").write_text("half")
    code = "import setuptools.build_meta as backend; print(backend.build_sdist('dist'))"
    name = run(sys.executable, "-c", code, cwd=copy).stdout.splitlines()[-1]
    with tarfile.open(copy / "dist" / name) as archive:
        members = {m.name.split("/", 1)[1] for m in archive.getmembers() if m.isfile()}
    expected = {
        p.relative_to(copy).as_posix()
        for p in copy.rglob("*")
        if p.is_file() and p.suffix != ".pyc" and not p.is_relative_to(copy / "dist")
    }
    left_out = {n for n in expected - members if ".egg-info/" not in n}
    half_written = "saved_models/.partial-killed/1/saved_model.pb"
    assert left_out - {".gitignore"} == {half_written}


def test_only_our_own_name_is_installed(members):
    top_level = {name.split("/")[0] for name in members}
    assert "dlens_tf" in top_level
    assert all(re.fullmatch(r"dlens_tf(-[\d.]+\.dist-info)?", name) for name in top_level)


def test_every_module_is_in_the_wheel(members):
    for package in PACKAGES:
        inside = "" if package == "dlens_tf" else "dlens_tf/"
        for path in (ROOT / package).rglob("*.py"):
            assert inside + path.relative_to(ROOT).as_posix() in members


def test_every_other_file_of_the_packages_is_in_the_wheel(members):
    expected = {
        ("" if package == "dlens_tf" else "dlens_tf/") + path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert "dlens_tf/evaluation/report.html" in expected
    assert "dlens_tf/datasets/deeplense/CITATIONS.bib" in expected
    bundle = re.compile(r"dlens_tf/saved_models/axion_model_i/\d+/saved_model\.pb")
    assert any(map(bundle.fullmatch, expected))
    assert expected <= members


def test_the_licence_is_in_the_wheel(members):
    assert any(name.endswith("/LICENSE") for name in members)


def test_every_tool_has_a_console_script(wheel):
    with zipfile.ZipFile(wheel) as archive:
        [name] = [n for n in archive.namelist() if n.endswith("entry_points.txt")]
        scripts = set(re.findall(r"^(dlens-[\w-]+) =", archive.read(name).decode(), re.MULTILINE))
    tools = {path.stem for path in (ROOT / "tools").glob("[a-z]*.py")}
    assert scripts == {f"dlens-{tool.replace('_', '-')}" for tool in tools}


def test_version_is_the_package_s(wheel):
    import dlens_tf

    assert wheel.name.split("-")[1] == dlens_tf.__version__


def test_the_builder_is_found_from_another_folder(installed, tmp_path):
    code = (
        "import importlib.util, dlens_tf, dlens_tf.evaluation\n"
        "import dlens_tf.datasets.deeplense as deeplense\n"
        "import tensorflow_datasets as tfds\n"
        "builder = tfds.builder('deeplense/model_ii', data_dir='data')\n"
        "print(dlens_tf.__file__)\n"
        "print(deeplense.__file__)\n"
        "print(type(builder).__module__, builder.info.citation[:8])\n"
        "names = 'datasets', 'tools', 'benchmarks', 'saved_models'\n"
        "print([importlib.util.find_spec(name) for name in names])\n"
    )
    done = run(installed / "bin" / "python", "-c", code, cwd=tmp_path)
    package, deeplense, builder, top_level = done.stdout.splitlines()
    assert Path(package).is_relative_to(installed)
    assert Path(deeplense).is_relative_to(installed)
    assert builder.startswith("dlens_tf.datasets.deeplense")
    assert "@" in builder  # the citation beside the builder was read
    assert top_level == "[None, None, None, None]"


def test_ready_to_use_models_load_from_another_folder(installed, tmp_path):
    lenses = Simulator(get_recipe("model_i_legacy")).simulate_many("axion", 79, range(2))
    np.save(tmp_path / "images.npy", np.stack([lens.image for lens in lenses]))
    code = (
        "import sys, numpy as np, dlens_tf\n"
        "models = dlens_tf.available_models()\n"
        "print('tensorflow' in sys.modules)\n"
        "print(*models)\n"
        "predictor = dlens_tf.load('axion_model_i')\n"
        "print(predictor.bundle)\n"
        "print(predictor.card.splitlines()[0])\n"
        "print(predictor.predict(np.load('images.npy')).mean.shape)\n"
    )
    done = run(installed / "bin" / "python", "-c", code, cwd=tmp_path)
    early, models, bundle, title, shape = done.stdout.splitlines()
    assert early == "False"
    published = {p.parent.name for p in (ROOT / "saved_models").glob("*/README.md")}
    assert set(models.split()) == published
    assert Path(bundle).is_relative_to(installed)
    assert title == "# axion_model_i"
    assert shape == "(2, 1)"


def test_console_scripts_answer_from_another_folder(installed, tmp_path):
    scripts = sorted((installed / "bin").glob("dlens-*"))
    assert scripts
    for script in scripts:
        done = subprocess.run(
            [script, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        tool = ROOT / "tools" / f"{script.name.removeprefix('dlens-').replace('-', '_')}.py"
        synopsis = tool.read_text().splitlines()[0].strip('"')
        assert done.stdout.startswith(synopsis)
        for flag in re.findall(r'DEFINE_\w+\(\s*"(\w+)"', tool.read_text()):
            assert re.search(rf"--(\[no\])?{flag}:", done.stdout), f"{script.name}: {flag}"
        assert (done.returncode, done.stderr) == (0, "")
