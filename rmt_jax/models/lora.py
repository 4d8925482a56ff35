"""Adapters of low rank beside the matrices of the layers (Hu et al. 2021, LoRA).

A matrix W [D, E] of a layer computes x·W + (alpha / r)·(x·A)·B with A [D, r] and B [r, E], of which
A and B alone are trained. They are a tree of their own, `adapters/query/a`, the layer first, beside
the backbone's, and work on every backbone: which matrices there are, `Backbone.weights()` says.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rmt_jax import config as settings
from rmt_jax.config import ConfigError
from rmt_jax.models.backbones import Backbone, Block
from rmt_jax.models.io.lazy import Array, Index, LazyArray
from rmt_jax.models.ops.block import matmul
from rmt_jax.models.ops.linear import Linear
from rmt_jax.types import WeightInfo

TREE = "adapters"  # begins the names of their weights
BLOCKS, KERNEL = "blocks/", "/kernel"  # around the name of a matrix that a `Linear` holds


class LoraError(ConfigError):
    """Adapters that a backbone can't have; the message says what there is."""


class LowRank(nnx.Module):
    """The adapters of one matrix, of all layers; called on one layer's slice of them."""

    def __init__(self, shape: tuple[int, int, int], lora: settings.Lora, rngs: nnx.Rngs):
        """shape: of the matrix, (layers, inputs, outputs)."""
        layers, inputs, outputs = shape
        self.scale = lora.alpha / lora.rank
        # As PEFT draws them: what is added begins as zero.
        limit = inputs**-0.5
        drawn = jax.random.uniform(
            rngs.params(), (layers, inputs, lora.rank), minval=-limit, maxval=limit
        )
        self.a = nnx.Param(drawn)
        self.b = nnx.Param(jnp.zeros((layers, lora.rank, outputs)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., D] -> [..., E], in the dtype of x."""
        inner = matmul(x, self.a[...].astype(x.dtype))
        return self.scale * matmul(inner, self.b[...].astype(x.dtype))

    def product(self) -> jax.Array:
        """What is added to the matrix, [D, E]."""
        return self.scale * (self.a[...] @ self.b[...])


class Adapters(nnx.Module):
    """A `LowRank` for each matrix, by the matrix's name with full stops: `query`."""

    def __init__(self, backbone: Backbone, lora: settings.Lora, rngs: nnx.Rngs):
        """Raises LoraError for targets that there are not, and for a rank that is no low one."""
        found = find(type(backbone), backbone.weights(), lora.targets)
        self.matrices = tuple(found.items())
        for name, matrix in self.matrices:
            shape = _at(backbone, matrix).shape
            if lora.rank > min(shape[1:]):
                raise LoraError(
                    f"lora.rank {lora.rank} is above the smaller side of {name}, {shape[1]} by"
                    f" {shape[2]}: lower it, or leave {name} out of lora.targets."
                )
            setattr(self, name, LowRank(shape, lora, rngs))

    def weights(self, backbone: Backbone) -> dict[str, WeightInfo]:
        """By name below `adapters/`; they are split as their matrix is."""
        infos, found = backbone.weights(), {}
        for name, matrix in self.matrices:
            layers, inputs, outputs = infos[matrix].axes
            found[f"{name}/a"] = WeightInfo((layers, inputs, None), "matrix")
            found[f"{name}/b"] = WeightInfo((layers, None, outputs), "matrix")
        return found

    def attach(self, block: Block) -> None:
        """Puts the slice of one layer beside the matrices of its block. A matrix that no `Linear`
        holds takes the adapter's product into itself: more work in the backward pass."""
        for name, matrix in self.matrices:
            owner, _, last = matrix.removeprefix(BLOCKS).rpartition("/")
            adapter, module = getattr(self, name), _at(block, owner)
            if isinstance(module, Linear):
                module.adapter = nnx.data(adapter)
            else:
                own = getattr(module, last)
                setattr(module, last, nnx.Param(own[...] + adapter.product()))


def find(
    backbone: type[Backbone], weights: Mapping[str, WeightInfo], targets: tuple[str, ...]
) -> dict[str, str]:
    """The matrices that get adapters: short name -> name below `backbone/`. Targets are short names
    or Hugging Face's, whole or their last words as in PEFT; none: every matrix.

    Raises LoraError for a target that nothing is called, with what there is.
    """
    theirs: dict[str, list[str]] = {}
    for name, ours in backbone.hf.layer.items():
        theirs.setdefault(ours, []).append(name.removesuffix(".weight"))
    known = {
        short_name(name): name
        for name, info in weights.items()
        if name.startswith(BLOCKS) and info.kind == "matrix"
    }
    found = {}
    for target in targets or known:
        hit = {
            short: name
            for short, name in known.items()
            if short == target or any(f".{t}".endswith(f".{target}") for t in theirs.get(name, ()))
        }
        if not hit:
            there = ", ".join(
                f"{short} ({theirs[name][0]})" if name in theirs else short
                for short, name in known.items()
            )
            raise LoraError(
                f"lora.targets names {target!r}, but no matrix of the layers is called that: there"
                f" {'are ' + there if known else 'is none'}."
            )
        found |= hit
    if not found:
        raise LoraError("optimizer.train=lora: this backbone names no matrix of its layers.")
    return {short: name for short, name in known.items() if short in found}


def short_name(matrix: str) -> str:
    """'blocks/query/kernel' -> 'query', 'blocks/mlp/inward' -> 'mlp.inward'."""
    return matrix.removeprefix(BLOCKS).removesuffix(KERNEL).replace("/", ".")


def merged(flat: Mapping[str, Array], lora: settings.Lora) -> dict[str, Array]:
    """Weights by name, 'backbone/wte', with the adapters among them put into their matrices: the
    same model without adapters, in float32. Lazy matrices stay so."""
    own = {n: v for n, v in flat.items() if not n.startswith(f"{TREE}/")}
    for name in {n.split("/")[1] for n in flat.keys() - own.keys()}:
        a, b = (flat[f"{TREE}/{name}/{part}"] for part in "ab")
        matrix = next(n for n in own if _is_matrix(n, name))
        found = _with_product(own[matrix], a, b, lora.alpha / lora.rank)
        own[matrix] = np.asarray(found) if isinstance(own[matrix], np.ndarray) else found
    return own


def _with_product(matrix: Array, a: Array, b: Array, scale: float) -> LazyArray:
    """matrix [layers, D, E] + scale·a·b, as many layers at a time as are asked for."""

    def read(index: Index) -> np.ndarray:
        layers, *rest = index
        own, a_, b_ = (np.asarray(part[layers], np.float32) for part in (matrix, a, b))
        return (own + scale * (a_ @ b_))[(slice(None), *rest)]

    return LazyArray(matrix.shape, np.float32, read)


def _is_matrix(weight: str, name: str) -> bool:
    """Is 'backbone/blocks/query/kernel' the matrix with the short name 'query'?"""
    matrix = weight.removeprefix("backbone/")
    return matrix.startswith(BLOCKS) and not matrix.endswith("/bias") and short_name(matrix) == name


def _at(module: Any, path: str) -> Any:
    """What 'blocks/query/kernel' names in a module."""
    for part in filter(None, path.split("/")):
        module = getattr(module, part)
    return module
