"""Pictures of what memory does while a text is read."""

import dataclasses

import numpy as np
import pytest
import tiny_run

from rmt_jax import api
from rmt_jax.evaluation import inspection, sources, tracing


def test_inspection_marks_facts_where_they_were_read(tmp_path):
    config = tiny_run.config()
    config = config.replace(data=dataclasses.replace(config.data, align="sentence"))
    model = api.load(tiny_run.save(tmp_path, config))
    asked = sources.Generated(model).ask("qa1", "3s", range(1))[0]
    trace = tracing.trace(model, asked.encoded)
    assert (np.diff(trace.bounds) < trace.mask.shape[1]).any()  # ragged
    flat, facts = trace.tokens.reshape(-1), asked.facts
    for (start, stop), (first, last) in zip(facts, tracing.read_spans(trace, facts), strict=True):
        assert np.array_equal(flat[first:last], asked.encoded.context[start:stop])


@pytest.mark.parametrize("cell", ["none", "prmt", "armt", "delta", "kv"])
def test_other_cells_can_be_inspected(tmp_path, cell):
    model = tiny_run.model(tmp_path, cell)
    source = sources.Generated(model)
    trace = tracing.trace(model, source.ask("qa1", "3s", range(1))[0].encoded)
    assert len(trace.change) == 3 and np.isfinite(trace.change).all()
    if model.memory_cell.has_gates:  # of every token of the text, layer by layer; padding has none
        rows = 1 if model.memory_cell.one_gate else model.config.model.layers
        assert trace.token_values.shape[1] == rows
        assert (0 <= trace.token_values).all() and 0 < trace.token_values.max() <= 1
        assert not np.moveaxis(trace.token_values, 1, 2)[~trace.mask].any()
        paths = inspection.inspect_memory(model, source, ["qa1"], ["3s"], tmp_path)
        assert {p.suffix for p in paths} == {".png", ".pdf", ".json"}
