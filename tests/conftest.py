"""Eight fake CPU devices for every test, set before JAX first looks for devices."""

import os

# Compiling is most of what the suite would spend; the programs are tiny, so LLVM need not optimise.
# XLA aborts the process when a device keeps the others waiting for 40 seconds, which a machine that
# is paused or overloaded does.
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
# Eight devices share the threads of one pool. With the next step dispatched before all of them are
# through with the last, some wait in the next one's collectives on the threads that the others
# need: twice, on a busy machine, a test of eight devices stood still until XLA aborted the process
# (JAX's issue 25861 is of the same kind).
jax.config.update("jax_cpu_enable_async_dispatch", False)
