"""Eight fake CPU devices for every test, set before JAX first looks for devices."""

import os

# Compiling is most of what the suite would spend; the programs are tiny, so LLVM need not optimise.
# XLA aborts the process when a device keeps the others waiting for 40 seconds, which an overloaded
# machine may do.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    + " --xla_cpu_collective_call_terminate_timeout_seconds=300"
)
# Triton reads it when it is first imported, by whom ever: test_kernels.py needs no GPU then.
os.environ["TRITON_INTERPRET"] = "1"

import jax  # noqa: E402

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
# Eight devices share one pool of threads, of which there are as many. Late in the suite a step on
# eight (fsdp) waited in a collective for ever, twice, until XLA aborted the process; alone
# the test never does. XLA's own variable makes the pool larger; processes that tests start do
# without it.
os.environ["NPROC"] = "32"
jax.devices()
del os.environ["NPROC"]
