"""Eight fake CPU devices for every test, set before JAX first looks for devices."""

import os

# Compiling is most of what the suite would spend; the programs are tiny, so LLVM need not optimise.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

import jax  # noqa: E402

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
