"""Others' weights -> a workdir of ours."""

from pathlib import Path

from rmt_jax.config import to_dict
from rmt_jax.conversion.folders import (
    free,
    generation,
    say_if_unusable,
    sizes,
    tokenizer_files,
    write_json,
    write_tokenizer,
)


def import_weights(
    source: str | Path, out: Path, dtype: str = "float32", revision: str | None = None
) -> None:
    """Writes config.json, weights.safetensors and tokenizer/ to the workdir `out`.

    Raises WeightsError for weights that can't be used, Usage when `out` holds something already.
    """
    from rmt_jax.models.io import hub as pretrained
    from rmt_jax.models.io import weights
    from rmt_jax.models.io.folder import argument

    opened = pretrained.open_source(source, revision)
    params = weights.unflatten(opened.flat)  # read as it is written
    pretrained.fit(opened.config, params, str(source))
    tokenizer_files(opened.folder)  # a pointer in place of one is said now
    free(out)
    weights.save(out, params, dtype)
    write_json(out / "config.json", to_dict(opened.config))
    write_json(out / "generation_config.json", generation(opened.ends))
    copied = write_tokenizer(opened, out / "tokenizer")
    print(sizes(opened.config, opened.flat))
    for guess in opened.guessed:
        print(f"not said by the checkpoint, so taken as: {guess}")
    if copied:
        say_if_unusable(out / "tokenizer")
    else:
        print(f"no tokenizer in {opened.folder}: put its files into {out / 'tokenizer'}")
    print(f"written: {out}\nnext:    python -m rmt_jax.ask --workdir {argument(out)}")
