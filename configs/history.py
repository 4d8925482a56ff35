"""Any run of docs/experiments.csv, as it was set:

    python -m rmt_jax.train --config configs/history.py:24-long --config.init=runs/23-delta

`init` names what a run began from by a folder that is only there once that was run too; the column
`parent` of docs/experiments.csv says which. Readable recipes of what ships: configs/pretrain.py.
"""

from rmt_jax.config import Config, ConfigError, from_dict
from rmt_jax.report import history


def get_config(run: str = "") -> Config:
    found = history.pick(history.load(), run)["config"]
    if found is None:
        raise ConfigError(f"The run {run} left no config: python -m rmt_jax.gating made it.")
    return from_dict(found)
