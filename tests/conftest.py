"""One CPU device for every test, set before JAX first looks for devices.

Tests about several devices are the files of `tests/devices/`, which `test_devices.py` runs in
processes of their own: those find JAX_NUM_CPU_DEVICES in their environment.
"""

import importlib.metadata
import os

DEVICES = os.environ.get("JAX_NUM_CPU_DEVICES", "1")
# Compiling is most of what the suite would spend; the programs are tiny, so LLVM need not optimise.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
# XLA's former code for fused loops compiles in half the time. Later versions have lost it, and stop
# at a flag that they do not know. It rounds one sum differently in two programs, so that the files
# of `tests/devices/`, which compare bits of several, do without.
if importlib.metadata.version("jaxlib").startswith("0.10.") and DEVICES == "1":
    QUICK += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}"
# Triton reads it when it is first imported, by whom ever: test_kernels.py needs no GPU then.
os.environ["TRITON_INTERPRET"] = "1"

import jax  # noqa: E402

jax.config.update("jax_platforms", "cpu")
# What an earlier run of the tests compiled shall decide nothing.
jax.config.update("jax_enable_compilation_cache", False)
jax.config.update("jax_num_cpu_devices", int(DEVICES))
