"""The experiment as one typed tree (`rmt_jax.validation` checks what its fields say together).

`schema` has the fields, `sources` those of tasks of your own, `setting` what a field says about
itself, `tree` reads and changes them by dotted names. Files in `configs/` import this package
alone. Every field can be set from the command line as `--config.section.field=value`
(`rmt_jax.cli`).
"""

from rmt_jax.config.gates import GateTraining
from rmt_jax.config.schema import (
    OFFICIAL,
    SHIPPED,
    Checkpoint,
    Config,
    Data,
    Evaluation,
    Facts,
    Lora,
    Mesh,
    Model,
    Optimizer,
    Prompt,
    Stage,
)
from rmt_jax.config.setting import FrozenDict, NoOptions, Setting, describe, section, setting
from rmt_jax.config.sources import Questions, Texts
from rmt_jax.config.tree import (
    build_options,
    check_values,
    fields,
    from_dict,
    import_extensions,
    settings,
    to_dict,
    update,
)
from rmt_jax.errors import ConfigError

__all__ = [
    "OFFICIAL",
    "SHIPPED",
    "Checkpoint",
    "Config",
    "ConfigError",
    "Data",
    "Evaluation",
    "Facts",
    "FrozenDict",
    "GateTraining",
    "Lora",
    "Mesh",
    "Model",
    "NoOptions",
    "Optimizer",
    "Prompt",
    "Questions",
    "Setting",
    "Stage",
    "Texts",
    "build_options",
    "check_values",
    "describe",
    "fields",
    "from_dict",
    "import_extensions",
    "section",
    "setting",
    "settings",
    "to_dict",
    "update",
]
