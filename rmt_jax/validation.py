"""What a config must hold to beside the limits of its fields, as sentences: checked before data or
devices are touched."""

import re

from rmt_jax import scores
from rmt_jax.config import Config, ConfigError, check_values


def validate(config: Config) -> None:
    """Checks what can be checked without data, devices or JAX. Backbone, cell and tasks check
    their own settings (`models.check`, `data.tasks.check`).

    Raises:
      ConfigError: one sentence with the numbers and the way out.
    """
    check_values(config)
    _validate_tasks(config)
    _validate_data(config)
    _validate_stages(config)
    _validate_training(config)
    _validate_schedule(config)


def _validate_data(config: Config) -> None:
    data = config.data
    if data.weights and (
        len(data.weights) != len(data.tasks) or min(data.weights) < 0 or not sum(data.weights)
    ):
        raise ConfigError(
            f"data.weights has {len(data.weights)} numbers for {len(data.tasks)} tasks: give one"
            " weight of 0 or more for each task (not all 0), or none at all."
        )
    if data.facts == "official" and not data.babi_dir:
        raise ConfigError(
            "data.facts=official needs data.babi_dir, the folder of the bAbI text files"
            " (qa1_single-supporting-fact_train.txt, ...)."
        )
    if not config.evaluation.lengths:
        raise ConfigError("evaluation.lengths is empty: name at least one length, e.g. 4s.")
    for length in config.evaluation.lengths:
        if not re.fullmatch(r"[1-9]\d*[skM]?|0k|all", length):
            raise ConfigError(
                f"evaluation.lengths: '{length}' is no length: write 4s (segments), 0k (facts"
                " only), 4k or 1M (nominal tokens), 300 (tokens of context), or all (documents"
                " of any length)."
            )
    if config.evaluation.score:
        try:
            scores.check(config.evaluation.score)
        except scores.ScoreError as error:
            raise ConfigError(f"evaluation.score: {error}") from None


def _validate_stages(config: Config) -> None:
    if not config.stages:
        raise ConfigError("stages is empty: a curriculum needs at least one stage.")
    if not sum(stage.steps for stage in config.stages):
        raise ConfigError("steps is 0 in every stage: there is nothing to train.")
    for number, stage in enumerate(config.stages):
        name = f"stages.{number}"
        for task in stage.tasks:
            if task not in config.data.tasks:
                raise ConfigError(
                    f"{name}.tasks names '{task}', which data.tasks does not:"
                    f" {', '.join(config.data.tasks)}."
                )
        if stage.tasks and not sum(stage.tasks.values()):
            raise ConfigError(f"{name}.tasks must have weights of 0 or more, not all 0.")
        if not stage.facts or not stage.question_rates:
            empty = "question_rates" if stage.facts else "facts"
            raise ConfigError(f"{name}.{empty} is empty: one of its entries is drawn per sample.")
        for facts in stage.facts:
            if facts is not None and facts.most < facts.least:
                raise ConfigError(
                    f"{name}.facts goes from {facts.least} to {facts.most}: the first number is the"
                    " smaller one."
                )
        if stage.probes and config.data.facts != "simulated":
            raise ConfigError(
                f"{name}.probes needs the answer after every fact, which the official files do not"
                f" give: take data.facts=simulated, or set {name}.probes to false."
            )


def _validate_training(config: Config) -> None:
    optimizer = config.optimizer
    batches = tuple(stage.batch for stage in config.stages)
    if any(batch % optimizer.accumulate for batch in batches):
        raise ConfigError(
            f"optimizer.accumulate {optimizer.accumulate} does not divide the batches"
            f" {', '.join(map(str, batches))}: the batch of every stage must be a multiple of it."
        )
    asked = any(stage.dense or stage.probes for stage in config.stages)
    if optimizer.memory_drift_penalty and not asked:
        raise ConfigError(
            f"optimizer.memory_drift_penalty {optimizer.memory_drift_penalty:g} needs texts that"
            " are asked in every segment: give a stage a question rate above 0, or set its probes"
            " to true, or the penalty to 0."
        )
    if optimizer.train != "all" and not config.init:
        raise ConfigError(
            f"optimizer.train={optimizer.train} keeps the backbone as it starts, but config.init is"
            " empty: name the weights to start from, or set optimizer.train=all."
        )
    if config.model.backbone == "init" and not config.init:
        raise ConfigError(
            "model.backbone=init is the backbone of the weights to start from, but config.init is"
            " empty: name a folder, a name on the hub or a GGUF file, or another backbone."
        )
    if not config.tokenizer:
        raise ConfigError(
            "data.tokenizer=init is the tokenizer of the weights to start from, but config.init is"
            " empty: name them, or another tokenizer."
        )
    first = config.stages[0].learning_rate
    if optimizer.name == "muon" and not first > 0:
        raise ConfigError(
            f"stages.0.learning_rate is {first:g}, but with optimizer.name=muon the rates of Adam's"
            " weights are in proportion to it: give a number above 0."
        )


def _validate_tasks(config: Config) -> None:
    """There are tasks, each once; `data.tasks.check` looks them up."""
    tasks = config.data.tasks
    if not tasks:
        raise ConfigError("data.tasks is empty: name at least one task, e.g. qa1.")
    if len(set(tasks)) < len(tasks):
        raise ConfigError(f"data.tasks names a task twice: {','.join(tasks)}.")
    for name, texts in config.data.texts.items():
        if not re.fullmatch(r"\w[\w-]*", name):
            raise ConfigError(
                f"data.texts has an entry '{name}': give it a name of letters, digits, - and _."
            )
        if name in tasks and not texts.train:
            raise ConfigError(
                f"data.texts.{name}.train is empty: give a folder of .txt or .jsonl files, one such"
                " file, or builtin."
            )


def _validate_schedule(config: Config) -> None:
    if config.prompt.source != "none" and config.prompt.tokens < 1:
        raise ConfigError(
            f"config.prompt.tokens must be 1 or more, but got {config.prompt.tokens}."
        )
    if config.model.schedule != "diagonal":
        return
    penalty = config.optimizer.memory_drift_penalty
    if penalty:
        raise ConfigError(
            f"optimizer.memory_drift_penalty {penalty:g} needs the memory after each segment,"
            " which the diagonal schedule never holds whole: take model.schedule=auto, or set"
            " the penalty to 0."
        )
    if any(stage.probes for stage in config.stages):
        raise ConfigError(
            "probes of a stage ask the memory of one segment after the other, which the"
            " diagonal schedule never holds whole: take model.schedule=auto, or set probes to"
            " false."
        )
