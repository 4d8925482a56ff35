"""The model card of an exported folder: what it is, how good it is, how to load it."""

from pathlib import Path
from typing import NamedTuple

from rmt_jax.config import Config

TAGS = "[recurrent-memory-transformer, long-context, babilong]"


class RunFacts(NamedTuple):
    """What a run's folder says beside its weights."""

    trained: bool = False  # was it trained here?
    results: str = ""  # a table in Markdown; empty: nothing was evaluated


def about_run(workdir: Path) -> RunFacts:
    """Of the folder of a run, or of anything else that was exported. The table is of the last
    `rmt_jax.evaluate`, else of the end of training."""
    from rmt_jax import report

    for folder in (workdir / "evaluation", workdir / "results"):
        if (folder / "summary.json").is_file():
            found = report.read(folder)
            if found:
                text = report.markdown(found, report.main_rule(found))
                return RunFacts((workdir / "metrics.jsonl").is_file(), text)
    return RunFacts((workdir / "metrics.jsonl").is_file())


def model_card(config: Config, count: int, run: RunFacts, name: str) -> str:
    """README.md of a whole model of `count` weights; name: what to load it by."""
    from rmt_jax.models.backbones import BACKBONES
    from rmt_jax.models.cells import CELLS

    m, p, cell = config.model, config.prompt, CELLS[config.model.cell]
    differs = BACKBONES[m.backbone].differs_from_hf(m)
    differs = f"\n{differs}\n" if differs else ""
    prompt = "" if p.source == "none" else (
        f"\nEvery text begins with a task prompt (source `{p.source}`, place `{p.place}`, "
        f"{p.tokens} tokens), between read memory and text.\n"
    )  # fmt: skip
    steps = (
        f"model = AutoModelForCausalLM.from_pretrained({name!r})\n"
        if not cell.wrapped
        else f"state = load_file({name!r} + '/model.safetensors')  # of a folder\n"
        "memory = state['memory_cell.memory']  # [M, D]\n"
        "prefix = 'memory_cell.model.'\n"
        "state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}\n"
        f"model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained({name!r}))\n"
        "model.load_state_dict(state)  # RMT's backbone; the authors' wrapper takes all of it\n"
    )
    loading = f"\nThe memory `{m.cell}` is rmt_jax's own; PyTorch code of others lacks it.\n"
    if cell.in_pytorch:
        loading = (
            "\nIn PyTorch (`from transformers import AutoConfig, AutoModelForCausalLM`,\n"
            f"`from safetensors.torch import load_file`):\n\n```python\n{steps}```\n"
        )
    return (
        _front(config, run, "rmt_jax" if cell.wrapped else "transformers")
        + f"""# Recurrent memory transformer ({m.cell})

{count:,} weights: backbone {m.backbone}, {m.layers} layers of width {m.width}; {cell.describe(m)},
segments of {m.segment_tokens} tokens.{_training(config, run)}
{differs}{prompt}
{_ours(name)}{loading}{_results(run)}"""
    )


def adapter_card(config: Config, count: int, run: RunFacts, name: str) -> str:
    """README.md of the adapters of a run, `count` weights of them."""
    tuned = config.lora
    base = config.init
    peft = (
        "In PyTorch, with PEFT (the backbone alone; the memory is in `rmt_jax.safetensors`):\n\n"
        "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n"
        f"model = AutoModelForCausalLM.from_pretrained({base!r})\n"
        f"model = PeftModel.from_pretrained(model, {name!r})\n```\n"
    )
    return (
        _front(config, run, "peft")
        + f"""# LoRA adapters for {base}, with a recurrent memory ({config.model.cell})

{count:,} weights of rank {tuned.rank}, alpha {tuned.alpha:g}; segments of
{config.model.segment_tokens} tokens.{_training(config, run)}

{_ours(name)}
{peft}{_results(run)}"""
    )


def _front(config: Config, run: RunFacts, library: str) -> str:
    """The metadata that the hub reads."""
    base = ""
    if run.trained and config.init.count("/") == 1 and not config.init.startswith((".", "~", "/")):
        base = f"base_model: {config.init.partition('@')[0]}\n"
    return f"---\nlibrary_name: {library}\npipeline_tag: text-generation\n{base}tags: {TAGS}\n---\n"


def _ours(name: str) -> str:
    return f'```python\nimport rmt_jax\nmodel = rmt_jax.load("{name}")\n```\n'


def _training(config: Config, run: RunFacts) -> str:
    return f" Trained on {', '.join(config.data.tasks)}." if run.trained else ""


def _results(run: RunFacts) -> str:
    return (
        f"\n## Results\n\nPer cent, by length of the text.\n\n{run.results}" if run.results else ""
    )
