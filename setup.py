"""Packaging of dlens_tf.

`datasets/`, `tools/`, `benchmarks/` and `saved_models/` stand at top level in the repository and
are installed inside the dlens_tf namespace: a top-level package named `datasets` would shadow
Hugging Face's.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
TOOLS = [
    "build_dataset", "explore", "train", "evaluate", "export", "predict", "quickstart",
    "benchmark", "tune", "combine", "publish", "results", "serve", "serving_kit",
]  # fmt: skip

# pyHalo is what dlens_tf's halo populations are tested against; nothing imports it at run time.
# 1.3.5 is the version whose presets they reproduce. 1.4.0 to 1.4.6 import as cleanly, but other
# concentrations and positions are their defaults; 1.4.7 and later import lenstronomy profiles
# that no release of lenstronomy has (core_collapsed_halo, core_collapsed_halo_bh, king). It
# declares Click alone, so what else it imports and dlens_tf does not require stands here.
POPULATIONS = ["pyHalo>=1.3.5,<1.4", "colossus>=1.3", "mcfit>=0.0.18"]

# The local server, tools/serve.py.
SERVE = ["aiohttp>=3.10", "pillow>=10", "prometheus-client>=0.20"]

# KerasTuner's Bayesian search imports scikit-learn without requiring it.
TUNE = ["keras-tuner>=1.4.8,<1.5", "scikit-learn>=1.5"]

INIT = (ROOT / "dlens_tf" / "__init__.py").read_text(encoding="utf-8")
VERSION = re.search(r'^__version__ = "([^"]+)"$', INIT, re.MULTILINE).group(1)

setup(
    name="dlens_tf",
    version=VERSION,
    description="Dark matter from pictures of strong gravitational lenses",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The dlens_tf authors",
    license="MIT",
    license_files=["LICENSE"],
    keywords="gravitational lensing, dark matter, tensorflow, simulation-based inference",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Astronomy",
    ],
    python_requires=">=3.11,<3.12",
    packages=[
        *find_packages(include=["dlens_tf", "dlens_tf.*"]),
        "dlens_tf.datasets",
        *(f"dlens_tf.datasets.{name}" for name in find_packages("datasets")),
        "dlens_tf.tools",
        "dlens_tf.benchmarks",
        "dlens_tf.saved_models",  # data only
    ],
    package_dir={
        f"dlens_tf.{name}": name for name in ("datasets", "tools", "benchmarks", "saved_models")
    },
    package_data={
        # What a builder reads beside its code, or TFDS looks for there.
        **{
            f"dlens_tf.datasets.{name}": ["*.md", "*.bib", "*.txt", "dummy_data/*"]
            for name in find_packages("datasets")
        },
        "dlens_tf.evaluation": ["report.html"],
        "dlens_tf.saved_models": ["README.md", "*/**"],
        "dlens_tf.serving": ["kit_files/*"],
        "dlens_tf.serving.server": ["page.html"],
        "dlens_tf.simulation": ["data/*.md", "data/*/*.md", "data/*/*.fits", "data/*/*.npy"],
    },
    # Lower bounds: what the code needs, or, of the machine-learning stack, the tested series.
    # constraints.txt holds the exact versions that the tests ran with.
    install_requires=[
        "absl-py>=2.1",
        "astropy>=6.1",
        "etils>=1.9.1",
        "h5py>=3.11",
        "importlib_resources",  # tensorflow-datasets imports it without declaring it
        "jinja2>=3.1",
        "keras>=3.12",
        "keras-cv>=0.9",
        "lenstronomy>=1.14",  # renamed numPix and deltapix
        "matplotlib>=3.9",
        "numpy>=2.2",  # savez takes allow_pickle
        "requests>=2.31",
        "scipy>=1.13",
        "tensorboard>=2.20",
        "tensorflow>=2.21",
        "tensorflow-datasets>=4.9.8",
        "tensorflow-serving-api>=2.21",
        "tqdm>=4.66",
    ],
    extras_require={
        "beam": ["apache-beam>=2.77"],
        "populations": POPULATIONS,
        "serve": SERVE,
        "tune": TUNE,
        "dev": [
            *POPULATIONS,
            *SERVE,
            *TUNE,
            "deprecation",  # tarp imports it without declaring it
            "dill",  # tfds.testing imports it
            "hypothesis>=6.100",
            "playwright>=1.49",  # drives a Chromium that is installed
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff==0.17.6",  # another release formats and lints differently
            "scoringrules>=0.10",
            "setuptools>=70.1",  # the first that builds wheels by itself
            "tarp>=0.1.1",
            "uncertainty-toolbox>=0.1.1",
        ],
    },
    entry_points={
        "console_scripts": [
            f"dlens-{tool.replace('_', '-')} = dlens_tf.tools.{tool}:entry" for tool in TOOLS
        ]
    },
)
