"""The model card of an exported checkpoint."""

from rmt_jax.config import Config
from rmt_jax.models.backbones import BACKBONES
from rmt_jax.models.cells import CELLS


def model_card(config: Config, count: int, trained: bool) -> str:
    """README.md of an exported model of `count` weights; `trained`: on the tasks of the config."""
    m, p, cell = config.model, config.prompt, CELLS[config.model.cell]
    tasks = f" Trained on {', '.join(config.data.tasks)}." if trained else ""
    differs = BACKBONES[m.backbone].differs_from_hf(m)
    differs = f"\n{differs}\n" if differs else ""
    prompt = "" if p.source == "none" else (
        f"\nEvery text begins with a task prompt (source `{p.source}`, place `{p.place}`, "
        f"{p.tokens} tokens), between read memory and text.\n"
    )  # fmt: skip
    steps = (
        "model = AutoModelForCausalLM.from_pretrained(FOLDER)\n"
        if not cell.wrapped
        else "state = load_file(FOLDER + '/model.safetensors')\n"
        "memory = state['memory_cell.memory']  # [M, D]\n"
        "prefix = 'memory_cell.model.'\n"
        "state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}\n"
        "model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(FOLDER))\n"
        "model.load_state_dict(state)  # RMT's backbone; the authors' wrapper takes all of it\n"
    )
    loading = f"\nThe memory `{m.cell}` is rmt_jax's own; PyTorch code of others lacks it.\n"
    if cell.in_pytorch:
        loading = (
            "\nIn PyTorch (`from transformers import AutoConfig, AutoModelForCausalLM`,\n"
            f"`from safetensors.torch import load_file`):\n\n```python\n{steps}```\n"
        )
    return f"""---
library_name: rmt_jax
pipeline_tag: text-generation
tags: [recurrent-memory-transformer, long-context, babilong]
---
# Recurrent memory transformer ({m.cell})

{count:,} weights: backbone {m.backbone}, {m.layers} layers of width {m.width}; {cell.describe(m)},
segments of {m.segment_tokens} tokens.{tasks}
{differs}{prompt}
```python
import rmt_jax
model = rmt_jax.load("FOLDER")
```
{loading}"""
