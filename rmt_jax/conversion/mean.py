"""The mean of several runs' weights (Wortsman et al. 2022, "Model soups")."""

from pathlib import Path

from rmt_jax.cli import Usage
from rmt_jax.config import Config, to_dict
from rmt_jax.conversion.folders import free, write_json, write_tokenizer


def shares(words: list[str]) -> dict[str, float]:
    """['a:0.7', 'b:0.3'] -> {'a': 0.7, 'b': 0.3}; without numbers, equal shares. Raises Usage."""
    found = {}
    for word in words:
        name, colon, share = word.rpartition(":")
        if Path(word).is_dir():  # a folder's name may hold a time: runs/2026-01-01T10:30
            name, colon = word, ""
        try:
            found[name if colon else word] = float(share) if colon else 1 / len(words)
        except ValueError:
            raise Usage(f"--of {word}: {share!r} is no share, as in runs/a:0.7.") from None
    if len(found) < max(2, len(words)):
        raise Usage("--of wants two or more runs, each once: --of runs/a:0.7 runs/b:0.3.")
    total = sum(found.values())
    if not abs(total - 1) < 1e-6:  # "not": a share may be nan
        raise Usage(f"--of: the shares add up to {total:g}, not to 1.")
    return found


def mean_weights(of: dict[str, float], out: Path, dtype: str = "float32") -> None:
    """Writes the mean of the weights of `of` (anything that can be loaded, and its share) to the
    workdir `out`, with the first one's config and tokenizer.

    Raises WeightsError for weights that can't be used, Usage when models differ in anything that
    shapes what weights mean, or `out` holds something already.
    """
    import numpy as np

    from rmt_jax.models.io import hub as pretrained
    from rmt_jax.models.io import weights
    from rmt_jax.models.io.folder import argument

    first, total = None, {}
    for name, share in of.items():
        opened = pretrained.open_source(name)
        pretrained.fit(opened.config, opened.params, name)
        first = first or (name, opened)
        if other := _differs(first[1].config, opened.config):
            raise Usage(f"{first[0]} and {name} are different models: {other}.")
        params = weights.adopt(first[1].params, opened.params, name)
        for key, value in weights.flatten(params).items():
            total[key] = total.get(key, 0.0) + share * np.asarray(value, np.float64)
    assert first is not None
    free(out)
    config = first[1].config
    params = weights.unflatten({k: v.astype(np.float32) for k, v in total.items()})
    weights.save(out, params, dtype)
    write_json(out / "config.json", to_dict(config))
    write_tokenizer(first[1], out / "tokenizer")
    said = " + ".join(f"{share:g} {name}" for name, share in of.items())
    folder = argument(out)
    print(f"{said}\nwritten: {out}\nnext:    python -m rmt_jax.evaluate --workdir {folder}")


# Of a model's settings, those that say how it runs and not what its weights are.
RUNNING = ("dtype", "remat", "scan_layers", "attention", "schedule", "bptt", "gate_threshold")


def _differs(one: Config, other: Config) -> str:
    """A difference that makes the weights of two configs incomparable, or ''."""
    from rmt_jax.models.cells import CELLS

    # A memory without memory tokens has the same weights whatever their number says.
    idle = RUNNING + ("memory_tokens",) * (not CELLS[one.model.cell].token_copies())
    for part in ("model", "prompt"):
        a, b = to_dict(one)[part], to_dict(other)[part]
        for name in a:
            if a[name] != b[name] and not (part == "model" and name in idle):
                return f"{part}.{name} is {a[name]!r} and {b[name]!r}"
    names = ["tokenizer"] + ["tasks"] * (one.prompt.source == "learned")
    for name in names:
        a, b = getattr(one.data, name), getattr(other.data, name)
        if a != b:
            return f"data.{name} is {a!r} and {b!r}"
    return ""
