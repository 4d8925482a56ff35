"""Fits the one gate of a token: logistic regression on what a layer's attention reads.

The layers of a pretrained model tell facts from background already, and their numbers are badly
scaled for a gradient: most of each is one direction that all tokens share. Newton's method on
standardised numbers finds the best gate in a few steps, from a minute of reading.
"""

from typing import Any

import jax
import numpy as np

from rmt_jax import models
from rmt_jax.data.gate_labels import BACKGROUND, FACT, PADDING, LabelledSegments
from rmt_jax.models.recurrent import RecurrentModel
from rmt_jax.types import Prompt, Segment

RIDGE = 10.0  # tokens' worth of pull towards zero, of each weight on standardised numbers
STEPS = 50  # of Newton's method at most
CLOSE = 1e-6  # the largest change of a weight that ends it


def enter_segments(
    model: Any, params: Any, batch: LabelledSegments
) -> tuple[RecurrentModel, tuple[Any, Segment, Prompt | None]]:
    """The model with these weights; an empty memory, the segments and their prompt."""
    segment, prompt = Segment(batch.tokens, batch.label != PADDING), None
    if model.config.prompt.source != "none":
        task = np.zeros(len(batch.tokens), np.int32)
        prompt = Prompt(batch.prompt, batch.prompt_mask, task)
    whole = models.merge(model.graph, params)
    return whole, (whole.initial(len(batch.tokens)), segment, prompt)


class GateRegression:
    """Gathers facts and background batch by batch, and fits the gate to all of them."""

    def __init__(self, model: Any):
        self.model = model
        self.features: list[np.ndarray] = []
        self.is_fact: list[np.ndarray] = []
        self.price: list[np.ndarray] = []

        def features(params: Any, batch: LabelledSegments):
            whole, entered = enter_segments(model, params, batch)
            return whole.memory.gate_features(whole, *entered)

        self._compiled = jax.jit(features, out_shardings=model.placement.whole)

    def step(self, batch: LabelledSegments) -> dict[str, float]:
        """Adds what stands in a batch. Returns the tokens that the fit has so far."""
        found = np.asarray(self._compiled(self.model.params, self.model.placement.texts(batch)))
        known = (batch.label == FACT) | (batch.label == BACKGROUND)
        self.features.append(found[known].astype(np.float64))
        self.is_fact.append(batch.label[known] == FACT)
        self.price.append(batch.price[known].astype(np.float64))
        facts = sum(int(each.sum()) for each in self.is_fact)
        return {"fact_tokens": facts, "background_tokens": sum(map(len, self.is_fact)) - facts}

    def params(self) -> Any:
        """All weights of the model, with the gate that fits best."""
        weight, bias = fit(*map(np.concatenate, (self.features, self.is_fact, self.price)))
        vector, number = self.model.memory_cell.gate_weights
        gate = {"memory": {vector: weight.astype(np.float32), number: np.float32(bias)}}
        own, place = self.model.params, self.model.placement.beside_weights(gate, gate)
        gate = gate if place is None else jax.device_put(gate, place)
        return own | {"memory": own["memory"] | gate["memory"]}


def fit(features: np.ndarray, is_fact: np.ndarray, price: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights f64[D] and bias of a logistic regression on features f64[n, D] with labels bool[n];
    price f64[n] is the weight of each error."""
    mean, spread = features.mean(axis=0), features.std(axis=0) + 1e-6
    rows = np.column_stack([(features - mean) / spread, np.ones(len(features))])
    price = price * len(price) / price.sum()
    pull = np.full(rows.shape[1], RIDGE)
    pull[-1] = 0.0  # not of the bias
    found = np.zeros(rows.shape[1])
    for _ in range(STEPS):
        likely = 1 / (1 + np.exp(-np.clip(rows @ found, -30, 30)))
        slope = rows.T @ (price * (likely - is_fact)) + pull * found
        curvature = (rows.T * (price * likely * (1 - likely) + 1e-9)) @ rows + np.diag(pull)
        change = np.linalg.solve(curvature, slope)
        found -= change * min(1.0, 5.0 / np.abs(change).max(initial=1e-9))
        if np.abs(change).max() < CLOSE:
            break
    weight = found[:-1] / spread
    return weight, float(found[-1] - weight @ mean)
