"""The diagonal schedule gives the sequential one's numbers, values and gradients."""

import jax
import numpy as np
import pytest
import tiny
from test_recurrence import ASKED, loss_of

from rmt_jax import config, models
from rmt_jax.models import diagonal, recurrence


@pytest.mark.parametrize("cell", ("prmt", "armt"))
def test_equal_to_the_sequential_schedule(cell):
    graph, params = tiny.model(ASKED, cell=cell, layers=3, conv_width=2)
    batch = tiny.batch(segments=4, answered=2)
    batch.mask[1, 1] = False  # one text pauses for a segment

    def results(schedule):
        def run(params):
            model = models.merge(graph, params)
            told = tiny.prompt()
            memory = schedule.read(model, model.initial(2), batch.tokens, batch.mask, told)
            return loss_of(schedule.answer_logits(model, batch), batch), memory

        # One cell's gradients are enough: the schedule is the same for both.
        return jax.jit(jax.value_and_grad(run, has_aux=True) if cell == "armt" else run)(params)

    pairs = (jax.tree.leaves(results(schedule)) for schedule in (recurrence, diagonal))
    for a, b in zip(*pairs, strict=True):
        scale = max(1.0, np.abs(a).max())
        np.testing.assert_allclose(a / scale, b / scale, atol=2e-5)


def test_refused_for_rmt():
    model = models.merge(*tiny.model(cell="rmt"))
    tokens, mask = tiny.text()
    with pytest.raises(config.ConfigError, match="prmt or armt"):
        diagonal.read(model, model.initial(2), tokens, mask)
