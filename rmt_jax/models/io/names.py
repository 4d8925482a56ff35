"""The authors' names of weights (HF's GPT-2 inside a `memory_cell`), and ours: both ways.

Theirs is one tensor a layer, `memory_cell.model.transformer.h.3.ln_1.weight`; ours has all layers
in one array, `backbone/blocks/ln_1/scale`. HF's Conv1D holds (in, out), as we do; torch's Linear,
which ARMT uses, holds (out, in) and is transposed.
"""

import re
from collections.abc import Mapping

import numpy as np

from rmt_jax.models.io.weights import WeightsError

BLOCK = {
    "ln_1.weight": "ln_1/scale",
    "ln_1.bias": "ln_1/bias",
    "attn.c_attn.weight": "qkv/kernel",
    "attn.c_attn.bias": "qkv/bias",
    "attn.c_proj.weight": "out/kernel",
    "attn.c_proj.bias": "out/bias",
    "ln_2.weight": "ln_2/scale",
    "ln_2.bias": "ln_2/bias",
    "mlp.c_fc.weight": "up/kernel",
    "mlp.c_fc.bias": "up/bias",
    "mlp.c_proj.weight": "down/kernel",
    "mlp.c_proj.bias": "down/bias",
    "conv.weight": "conv",  # ours alone: no such thing in GPT-2
}
ASSOCIATIVE = {
    "W_mq.weight": "query",
    "W_mk.weight": "key",
    "W_mv.weight": "value",
    "W_mb.weight": "beta",
    "W_mb.bias": "beta_bias",
}
TOP = {
    "transformer.wte.weight": "backbone/wte",
    "transformer.wpe.weight": "backbone/wpe",
    "transformer.ln_f.weight": "backbone/ln_f/scale",
    "transformer.ln_f.bias": "backbone/ln_f/bias",
    "lm_head.weight": "backbone/head",
}
OURS = {"rmt_jax.prompt.table": "prompt/table"}  # what the authors' layout has no place for
COPY = "memory_cell.layers."  # where ARMT's saves hold the layers a second time
LAYER = re.compile(r"transformer\.h\.(\d+)\.(layer\.)?(.+)")
BUFFER = re.compile(r"(.*\.)?attn\.(masked_)?bias")  # causal masks that older saves hold


def to_ours(theirs: Mapping[str, np.ndarray], what: str) -> dict[str, np.ndarray]:
    """Flat weights under our names, from HF's GPT-2 or the authors' layout; dtypes are kept.

    Mask buffers and second copies are dropped; a head equal to the embedding is tied and dropped.
    Raises WeightsError for names that belong to neither, missing layers, or unequal copies.
    """
    flat: dict[str, np.ndarray] = {}
    layers: dict[str, dict[int, np.ndarray]] = {}
    unknown = []
    for name, value in theirs.items():
        if BUFFER.fullmatch(name):
            continue
        short = _short(name)
        match = LAYER.fullmatch(short)
        if name.startswith(COPY):  # ARMT saves its layers twice
            _same(theirs, name, value, what)
        elif name == "memory_cell.memory":
            flat["memory"] = value
        elif short in TOP or name in OURS:
            flat[TOP.get(short) or OURS[name]] = value
        elif match and match[3] in BLOCK:
            place = layers.setdefault(f"backbone/blocks/{BLOCK[match[3]]}", {})
            place[int(match[1])] = value
        elif match and match[3] in ASSOCIATIVE:
            place = layers.setdefault(f"associative/{ASSOCIATIVE[match[3]]}", {})
            place[int(match[1])] = value.T
        elif match and match[3] == "memory":  # PRMT, in a layout of our own
            layers.setdefault("memory", {})[int(match[1])] = value
        else:
            unknown.append(name)
    if unknown or "backbone/wte" not in flat or not layers:
        raise WeightsError(_strange(theirs, unknown, what))
    for name, held in layers.items():
        flat[name] = _stack(name, held, max(map(max, layers.values())) + 1, what)
    head = flat.get("backbone/head")
    if head is not None and np.array_equal(head, flat["backbone/wte"]):
        del flat["backbone/head"]
    return flat


def to_theirs(flat: Mapping[str, np.ndarray], cell: str) -> dict[str, np.ndarray]:
    """The inverse of `to_ours`: the authors' names, or for the cell `none` HF's GPT-2.

    What torch saves twice (a tied head, ARMT's layers) is here twice too, for a strict loader.
    """
    theirs: dict[str, np.ndarray] = {}
    wrapper = "" if cell == "none" else "memory_cell.model."
    tops = {ours: f"{wrapper}{name}" for name, ours in TOP.items()}
    tops |= {ours: name for name, ours in OURS.items()}
    blocks = {f"backbone/blocks/{ours}": name for name, ours in BLOCK.items()}
    maps = {f"associative/{ours}": name for name, ours in ASSOCIATIVE.items()}
    inner = "layer." if cell in ("armt", "delta") else ""
    for name, value in flat.items():
        if name == "memory" and cell != "prmt":
            theirs["memory_cell.memory"] = value
        elif name in tops:
            theirs[tops[name]] = value
        else:
            for layer, part in enumerate(value):
                place = f"{wrapper}transformer.h.{layer}."
                if name in blocks:
                    theirs[f"{place}{inner}{blocks[name]}"] = part
                elif name in maps:
                    theirs[f"{place}{maps[name]}"] = part.T
                else:
                    theirs[f"{place}{name}"] = part
    theirs.setdefault(f"{wrapper}lm_head.weight", flat["backbone/wte"])
    if cell == "armt":
        first = f"{wrapper}transformer.h."
        copies = {n.removeprefix(first): v for n, v in theirs.items() if n.startswith(first)}
        theirs |= {f"{COPY}{name}": value for name, value in copies.items()}
    return theirs


def _short(name: str) -> str:
    """Without the wrapper: `transformer.…` or `lm_head.weight`."""
    name = name.removeprefix("memory_cell.model.")
    bare = name.startswith(("wte.", "wpe.", "h.", "ln_f."))  # GPT2Model saves without the prefix
    return f"transformer.{name}" if bare else name


def _same(theirs: Mapping[str, np.ndarray], name: str, value: np.ndarray, what: str) -> None:
    twin = name.replace(COPY, "memory_cell.model.transformer.h.", 1)
    if twin not in theirs or not np.array_equal(theirs[twin], value):
        raise WeightsError(
            f"{what}: {name} should be a second copy of {twin}, but that is "
            f"{'different' if twin in theirs else 'missing'}; which of them to use is unknown."
        )


def _stack(name: str, held: dict[int, np.ndarray], layers: int, what: str) -> np.ndarray:
    missing = [str(layer) for layer in range(layers) if layer not in held]
    if missing:
        raise WeightsError(f"{what}: {name} is missing for layer {', '.join(missing)}.")
    shapes = {value.shape for value in held.values()}
    if len(shapes) > 1:
        raise WeightsError(f"{what}: {name} has different shapes in its layers: {sorted(shapes)}.")
    return np.stack([held[layer] for layer in range(layers)])


def _strange(theirs: Mapping[str, np.ndarray], unknown: list[str], what: str) -> str:
    shown = ", ".join(unknown[:6]) or "none"
    more = f" and {len(unknown) - 6} more" if len(unknown) > 6 else ""
    return (
        f"{what} holds {len(theirs)} tensors, but they are not a GPT-2 or a memory transformer on "
        f"GPT-2. Unknown names: {shown}{more}. Expected: transformer.wte.weight, "
        "transformer.h.0.attn.c_attn.weight and so on, alone or under memory_cell.model. Only "
        "GPT-2-shaped models can be loaded."
    )
