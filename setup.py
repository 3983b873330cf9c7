"""Packages tfrec, beam_jobs and serving; Beam's --setup_file takes this file as it is."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'^__version__ = "([^"]+)"$', (ROOT / "tfrec" / "__init__.py").read_text("utf-8"), re.MULTILINE)
if VERSION is None:
    raise SystemExit('tfrec/__init__.py: must hold a line like __version__ = "1.2.3".')

BASE = [
    "h5py>=3.10",
    "keras>=3.15.1,<4",
    "matplotlib>=3.9",
    "ml-dtypes>=0.4",
    "numpy>=2,<3",
    "packaging>=23",
    "psutil>=5.9",
    "pyarrow>=16",
    "pydantic>=2.7,<3",
    "pyyaml>=6",
    "rich>=13.7",
    "scipy>=1.11",
    "tensorflow>=2.20,<2.21",  # ScaNN is compiled against it
    "typer>=0.12",
]
EXTRAS = {
    "beam": ["apache-beam>=2.77,<3", "google-crc32c>=1.5", "polars>=2.1", "scikit-learn>=1.5", "threadpoolctl>=3"],
    "gcp": ["apache-beam[gcp]>=2.77,<3"],
    "aws": ["apache-beam[aws]>=2.77,<3"],
    "serving": [
        "grpcio>=1.66",
        "grpcio-health-checking>=1.60",
        "h11>=0.16",
        "httpx>=0.27",
        "starlette>=0.49.1",
        "tensorflow-serving-api>=2.20,<2.21",
        "uvicorn>=0.54",
    ],
    "retrieval": ["scann>=1.4.2,<1.5", "tensorflow-recommenders>=0.7.7,<0.8", "tf-keras>=2.20,<2.21"],
    "encoders": ["keras-hub>=0.32", "pillow>=10", "tensorflow-text>=2.20,<2.21", "tf-models-official>=2.20,<2.21"],
    "jax": ["jax>=0.4.30"],
    "spreadsheets": ["fastexcel>=0.11", "openpyxl>=3.1", "polars>=1"],
    "dev": [
        "codespell",
        "hypothesis",
        "import-linter",
        "mini-racer",
        "mypy",
        "playwright",
        "pytest",
        "pytest-timeout",
        "pytest-xdist",
        "ruff",
        "tensorboard",
        "types-PyYAML",
    ],
}

setup(
    name="tfrec",
    version=VERSION[1],
    description="From raw logs to served recommendations, with sequence models in Keras 3",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    author="The tfrec authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=["Programming Language :: Python :: 3.11"],
    python_requires=">=3.11",
    packages=find_packages(include=["beam_jobs*", "serving*", "tfrec*"]),
    package_data={"serving": ["deploy/*", "page/*"], "tfrec": ["py.typed"]},
    install_requires=BASE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["tfrec = tfrec.cli:main"]},
)
