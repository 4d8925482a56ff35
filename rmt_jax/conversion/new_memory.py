"""A new memory cell for a model, in place of its own or of none."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rmt_jax.cli import Usage, apply_overrides
from rmt_jax.config import to_dict
from rmt_jax.conversion.folders import free, sizes, write_json, write_tokenizer


def new_memory(
    source: str, changes: Mapping[str, object], out: Path, dtype: str = "float32"
) -> None:
    """Writes the model `source` (anything that can be loaded) to the workdir `out` with the memory
    cell that `changes` name, its weights as drawn at the start of training; the same cell keeps its
    weights and settings. changes: fields of the config's section `model`, by dotted names:
    {'model.cell': 'kv'}.

    Raises Usage for fields of other sections and adapters (LoRA), or where `out` holds something
    already; ConfigError for sizes that can't be; WeightsError for weights that can't be used.
    """
    from flax import nnx

    from rmt_jax import models
    from rmt_jax.models.backbones import BACKBONES
    from rmt_jax.models.io import hub, weights
    from rmt_jax.models.io.folder import argument

    if others := [name for name in changes if not name.startswith("model.")]:
        raise Usage(
            f"--config.{others[0]} is no field of the model: a new memory changes no other."
        )
    opened = hub.open_source(source)
    if any(name.startswith("adapters/") for name in opened.flat):
        raise Usage(f"{source} has adapters: export it, which puts them into its weights, first.")
    config = opened.config
    if (
        changes.get("model.cell") != config.model.cell
    ):  # what that was told means nothing to another
        config = config.replace(model=replace(config.model, cell_options={}, gate_threshold=()))
    config = apply_overrides(config, changes)
    models.check(config.model, config.prompt)
    own = hub.part_of(opened.flat, "backbone")
    vocab = BACKBONES[config.model.backbone].vocab_of(own)
    tasks = max(1, len(config.data.tasks))
    drawn = models.build(config.model, config.prompt, vocab, tasks, nnx.Rngs(config.seed))
    made = hub.initialise(models.split(drawn)[1], config, source)
    free(out)
    weights.save(out, made, dtype)
    write_json(out / "config.json", to_dict(config))
    write_tokenizer(opened, out / "tokenizer")
    print(
        f"{source}: {sizes(config, weights.flatten(made))}\nwritten: {out}\n"
        f"next:    python -m rmt_jax.train --config CONFIG --config.init={argument(out)}"
        f" --config.model.cell={config.model.cell}"
    )
