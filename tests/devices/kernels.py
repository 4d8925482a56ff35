"""The Triton kernels on two devices, by Triton's interpreter."""

import numpy as np
import test_steps
from test_kernels import interpreted  # noqa: F401  (a fixture)

from rmt_jax.config import Mesh
from rmt_jax.models.ops import kernels


def test_each_device_has_them_do_its_own_texts(interpreted, monkeypatch):  # noqa: F811
    """Two devices under the train step's `shard_map`: the curve of one without the kernels."""
    monkeypatch.setattr(kernels, "TILE", 1024)
    settings = test_steps.config()
    shared = test_steps.curve(settings, Mesh(data=2), count=2, devices=2)
    assert interpreted
    monkeypatch.setattr(kernels, "ready", lambda x: False)
    np.testing.assert_allclose(shared, test_steps.curve(settings, None, count=2), rtol=1e-5)
