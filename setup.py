"""Packaging of dlens_tf.

`datasets/` and `tools/` stand at top level in the repository and are installed inside the
dlens_tf namespace: a top-level package named `datasets` would shadow Hugging Face's.
"""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
TOOLS = ["build_dataset", "explore", "train", "evaluate", "export", "predict"]

version = {}
for line in (ROOT / "dlens_tf" / "__init__.py").read_text().splitlines():
    if line.startswith("__version__"):
        exec(line, version)  # noqa: S102 (our own one-line assignment)

packages = find_packages(include=["dlens_tf", "dlens_tf.*"])
packages += ["dlens_tf.datasets", "dlens_tf.datasets.deeplense", "dlens_tf.tools"]

setup(
    name="dlens_tf",
    version=version["__version__"],
    description="Dark matter from pictures of strong gravitational lenses",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11,<3.12",
    packages=packages,
    package_dir={
        "dlens_tf.datasets": "datasets",
        "dlens_tf.datasets.deeplense": "datasets/deeplense",
        "dlens_tf.tools": "tools",
    },
    package_data={
        "dlens_tf.datasets.deeplense": ["README.md", "CITATIONS.bib", "TAGS.txt"],
        "dlens_tf.evaluation": ["*.html"],
    },
    install_requires=[
        "absl-py>=2.1",
        "astropy>=6.0",
        "h5py>=3.10",
        "importlib_resources",  # tensorflow-datasets imports it without declaring it
        "jinja2>=3.1",
        "keras>=3.10",
        "keras-cv>=0.9",
        "lenstronomy>=1.14",  # renamed num_pix and delta_pix
        "matplotlib>=3.8",
        "numpy>=2.0",
        "tensorboard>=2.18",
        "tensorflow>=2.18",
        "tensorflow-datasets>=4.9.8",
        "tensorflow-serving-api>=2.18",
        "tqdm>=4.66",
    ],
    extras_require={
        "beam": ["apache-beam>=2.60", "mlcroissant"],
        "dev": ["dill", "pytest>=8", "pytest-xdist>=3.5", "ruff>=0.8", "scipy>=1.12"],
    },
    entry_points={
        "console_scripts": [
            f"dlens-{tool.replace('_', '-')} = dlens_tf.tools.{tool}:entry" for tool in TOOLS
        ]
    },
)
