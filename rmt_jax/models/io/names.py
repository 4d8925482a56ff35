"""Other people's names of weights, and ours: both ways.

Theirs are Hugging Face's names of the backbone, under `memory_cell.model.` where the authors'
wrapper stands around it, with the memory's own tensors beside. Theirs is one tensor per layer,
`memory_cell.model.transformer.h.3.ln_1.weight`; ours has all layers in one array,
`backbone/blocks/ln_1/scale`. What a backbone or a cell has no name for, and the task prompt, goes
by our own name, `rmt_jax.prompt.table`. The tables are the backbone's (`HFNames`) and the cell's.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from rmt_jax.models.backbones import BACKBONES, Backbone, HFNames
from rmt_jax.models.cells import CELLS, MemoryCell
from rmt_jax.models.io import lazy
from rmt_jax.models.io.lazy import Array
from rmt_jax.models.io.weights import WeightsError

WRAPPER = "memory_cell.model."
COPY = "memory_cell.layers."  # where ARMT's saves hold the layers a second time
OWN = "rmt_jax."
MATRIX = ".weight"  # ends the names of torch's linear maps, which hold (out, in)


def backbone_of(theirs: Mapping[str, Any], model_type: str | None, what: str) -> str:
    """Which backbone these tensors are of: by the `model_type` of a config.json, else by their
    names. Raises WeightsError."""
    if model_type is not None:
        return backbone_of_type(model_type, what)
    for name in sorted(_model_types().values(), key=lambda name: -len(BACKBONES[name].hf.marks)):
        backbone = BACKBONES[name]
        tops = {theirs for theirs, ours in backbone.hf.top.items() if ours == backbone.embedding}
        marked = all(any(t.endswith(f".{mark}") for t in theirs) for mark in backbone.hf.marks)
        if marked and any(_short(tensor, backbone) in tops for tensor in theirs):
            return name
    raise WeightsError(_strange(theirs, list(theirs), what))


def backbone_of_type(model_type: str, what: str) -> str:
    """Which backbone a config.json is of. Raises WeightsError with those that there are."""
    known = _model_types()
    if model_type not in known:
        raise WeightsError(
            f"{what}/config.json says model_type = {model_type!r}, but only"
            f" {', '.join(map(repr, known))} can be loaded."
        )
    return known[model_type]


def _model_types() -> dict[str, str]:
    return {kind: name for name in BACKBONES for kind in BACKBONES[name].model_types}


def to_ours(
    theirs: Mapping[str, Array],
    backbone: type[Backbone],
    what: str,
    hf: HFNames | None = None,
) -> dict[str, Array]:
    """Flat weights under our names; dtypes are kept, and what is lazy stays so. hf: other names
    than `Backbone.hf`.

    Mask buffers and second copies are dropped; a head equal to the embedding is tied and dropped.
    Raises WeightsError for names that belong to neither, missing layers, or unequal copies.
    """
    hf = hf or backbone.hf
    around = {name: f"memory/{ours}" for cell in _cells() for name, ours in cell.theirs.items()}
    within = {
        name: f"memory/{ours}" for cell in _cells() for name, ours in cell.their_layer.items()
    }
    between = "|".join(re.escape(c.their_block) for c in _cells() if c.their_block)
    layer = re.compile(rf"{re.escape(hf.layer_prefix)}(\d+)\.(?:{between})?(.+)")
    flat: dict[str, Array] = {}
    stacks: dict[str, dict[int, Array]] = {}
    unknown = []
    for name, value in theirs.items():
        if hf.dropped and re.fullmatch(hf.dropped, name):
            continue
        short = _short(name, backbone)
        match = layer.fullmatch(short)
        if name.startswith(COPY):
            _check_copy(theirs, name, value, hf.layer_prefix, what)
        elif name in around:
            flat[around[name]] = value
        elif short in hf.top:
            flat[f"backbone/{hf.top[short]}"] = value
        elif short in filter(None, (hf.head, hf.head_too)):
            flat["backbone/head"] = value
        elif name.startswith(OWN):
            flat[name.removeprefix(OWN).replace(".", "/")] = value
        elif match and match[2] in hf.layer:
            ours = hf.layer[match[2]]
            value = value.T if ours in hf.transposed else value
            stacks.setdefault(f"backbone/{ours}", {})[int(match[1])] = value
        elif match and match[2] in within:
            value = value.T if match[2].endswith(MATRIX) else value
            stacks.setdefault(within[match[2]], {})[int(match[1])] = value
        else:
            unknown.append(name)
    embedding = f"backbone/{backbone.embedding}"
    if unknown or embedding not in flat or (hf.layer and not stacks):
        raise WeightsError(_strange(theirs, unknown, what))
    layers = max((max(held) for held in stacks.values()), default=-1) + 1
    for name, held in stacks.items():
        flat[name] = _stack(name, held, layers, what)
    head = flat.get("backbone/head")
    if head is not None and lazy.equal(head, flat[embedding]):
        del flat["backbone/head"]
    return flat


def to_theirs(
    flat: Mapping[str, Array], backbone: type[Backbone], cell: type[MemoryCell]
) -> dict[str, Array]:
    """The inverse of `to_ours`; what is lazy stays so. What torch saves twice (a tied head, ARMT's
    layers) is here twice too, for a strict loader."""
    hf, wrapper = backbone.hf, WRAPPER if cell.wrapped else ""
    tops = {f"backbone/{ours}": f"{wrapper}{name}" for name, ours in hf.top.items()}
    tops |= {f"memory/{ours}": name for name, ours in cell.theirs.items()}
    if hf.head:
        tops["backbone/head"] = f"{wrapper}{hf.head}"
    blocks = {f"backbone/{ours}": f"{cell.their_block}{name}" for name, ours in hf.layer.items()}
    within = {f"memory/{ours}": name for name, ours in cell.their_layer.items()}
    turned = {f"backbone/{ours}" for ours in hf.transposed}
    turned |= {ours for ours, name in within.items() if name.endswith(MATRIX)}
    theirs: dict[str, Array] = {}
    for name, value in flat.items():
        inside = blocks.get(name) or within.get(name)
        if name in tops:
            theirs[tops[name]] = value
        elif inside is None:
            theirs[OWN + name.replace("/", ".")] = value
        else:
            for layer, part in enumerate(lazy.unstack(value)):
                place = f"{wrapper}{hf.layer_prefix}{layer}.{inside}"
                theirs[place] = part.T if name in turned else part
    if hf.head:
        theirs.setdefault(f"{wrapper}{hf.head}", flat[f"backbone/{backbone.embedding}"])
    if cell.saves_layers_twice:
        first = f"{wrapper}{hf.layer_prefix}"
        copies = {n.removeprefix(first): v for n, v in theirs.items() if n.startswith(first)}
        theirs |= {f"{COPY}{name}": value for name, value in copies.items()}
    return theirs


def of_theirs(backbone: type[Backbone], hf: HFNames | None = None) -> dict[str, str]:
    """Our names of a backbone's weights -> theirs, 'N' for the number of a layer."""
    hf = hf or backbone.hf
    found = {f"backbone/{ours}": name for name, ours in hf.top.items()}
    layer = {f"backbone/{ours}": f"{hf.layer_prefix}N.{n}" for n, ours in hf.layer.items()}
    return found | layer


def check_sizes(said: Mapping[str, Any], held: Mapping[str, set], what: str) -> None:
    """held: fields of a config.json -> what the tensors' shapes allow them to be. Raises
    WeightsError where the file says anything else."""
    for name, sizes in held.items():
        if said.get(name) is not None and said[name] not in sizes:
            found = " or ".join(map(str, sorted(sizes)))
            raise WeightsError(
                f"The config of {what} says {name} = {said[name]}, but its tensors have {found}:"
                " tensors were lost, or the config is another model's. Copy both again."
            )


def check_head(
    said: Mapping[str, Any],
    theirs: Mapping[str, Array],
    flat: Mapping[str, Array],
    backbone: type[Backbone],
    what: str,
) -> None:
    """Raises WeightsError where a config.json says that the output embedding is tied and the
    tensors, `flat` under our names, hold another one; or that it is not, and they hold none."""
    head, tied = backbone.hf.head, said.get("tie_word_embeddings")
    heads = (head, backbone.hf.head_too)
    held = any(_short(name, backbone) in heads for name in theirs)
    if head and (tied is False and not held or tied is True and "backbone/head" in flat):
        raise WeightsError(
            f"The config of {what} says tie_word_embeddings = {tied}, but its tensors have"
            f" {'an' if held else 'no'} output embedding {head}{' of their own' if held else ''}:"
            " tensors were lost, or the config is another model's. Copy both again."
        )


def _cells() -> list[type[MemoryCell]]:
    return [CELLS[name] for name in CELLS]


def _short(name: str, backbone: type[Backbone]) -> str:
    """Without the wrapper: `transformer.…` or `lm_head.weight`."""
    name = name.removeprefix(WRAPPER)
    bare = backbone.hf.bare_prefix
    first = {known.removeprefix(bare).split(".")[0] for known in backbone.hf.top} | {
        backbone.hf.layer_prefix.removeprefix(bare).split(".")[0]
    }
    return f"{bare}{name}" if bare and name.split(".")[0] in first else name


def _check_copy(
    theirs: Mapping[str, Array], name: str, value: Array, prefix: str, what: str
) -> None:
    twin = name.replace(COPY, WRAPPER + prefix, 1)
    if twin not in theirs or not np.array_equal(theirs[twin], value):
        raise WeightsError(
            f"{what}: {name} should be a second copy of {twin}, but that is "
            f"{'different' if twin in theirs else 'missing'}; which of them to use is unknown."
        )


def _stack(name: str, held: dict[int, Array], layers: int, what: str) -> Array:
    missing = [str(layer) for layer in range(layers) if layer not in held]
    if missing:
        raise WeightsError(f"{what}: {name} is missing for layer {', '.join(missing)}.")
    shapes = {value.shape for value in held.values()}
    if len(shapes) > 1:
        raise WeightsError(f"{what}: {name} has different shapes in its layers: {sorted(shapes)}.")
    return lazy.stack([held[layer] for layer in range(layers)])


def _strange(theirs: Mapping[str, Array], unknown: list[str], what: str) -> str:
    shown = ", ".join(unknown[:6]) or "none"
    more = f" and {len(unknown) - 6} more" if len(unknown) > 6 else ""
    kinds = [kind for name in BACKBONES for kind in BACKBONES[name].model_types]
    known = [next(iter(BACKBONES[name].hf.top), "") for name in BACKBONES]
    return (
        f"{what} holds {len(theirs)} tensors, but they are no model that can be loaded "
        f"({', '.join(kinds)}), alone or under {WRAPPER} of a memory transformer. Unknown names: "
        f"{shown}{more}. Known are, for example, {', '.join(filter(None, known))}."
    )
