"""What pyproject.toml cannot say: the folder configs/ is a part of the package, rmt_jax/configs."""

from setuptools import find_namespace_packages, setup

packages = find_namespace_packages(include=["rmt_jax", "rmt_jax.*"], exclude=["*.__pycache__*"])
setup(packages=[*packages, "rmt_jax.configs"], package_dir={"rmt_jax.configs": "configs"})
