"""BABILong as a TensorFlow Datasets builder, written as array_record and read without TensorFlow.

    import tensorflow_datasets as tfds
    import rmt_jax.data.tfds_builder  # registers 'babilong'
    source = tfds.data_source("babilong/4k", split="qa1", data_dir="OUT")
    source[0]["question"]

A config is a length, a split is a task. `python -m rmt_jax.prepare` builds it.
"""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import tensorflow_datasets as tfds  # noqa: E402

from rmt_jax.data.records import Recipe, available, records  # noqa: E402

LENGTHS = ("0k", "1k", "2k", "4k", "8k", "16k", "32k", "64k", "128k", "256k", "512k", "1M", "10M")


@dataclasses.dataclass(kw_only=True)
class BabilongConfig(tfds.core.BuilderConfig):
    recipe: Recipe = dataclasses.field(default_factory=Recipe)


class Babilong(tfds.core.GeneratorBasedBuilder):
    """bAbI questions hidden in long texts. Features: input, question, target (texts), and the
    number of the sample."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        BabilongConfig(name=length, recipe=Recipe(length=length), description=f"Length {length}.")
        for length in LENGTHS
    ]

    def __init__(
        self,
        *,
        recipe: Recipe | None = None,
        parts: tuple[str, int] | None = None,
        beam: bool = False,
        **settings: Any,
    ):
        """`recipe` replaces the config's; `parts`: a folder of finished parts (`rmt_jax.prepare`)
        and their number, without which samples are made here, with Apache Beam if `beam`."""
        super().__init__(**settings)
        self._recipe: Recipe = recipe or self.builder_config.recipe  # type: ignore
        self._parts, self._beam = parts, beam

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        features = {"input": text(), "question": text(), "target": text(), "index": _int64()}
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            supervised_keys=None,
            disable_shuffling=True,  # sample k is row k
            citation="Kuratov et al., BABILong, 2024; Weston et al., bAbI, 2015.",
        )

    def _split_generators(self, dl_manager: Any):
        return {task: self._generate_examples(task) for task in self._recipe.tasks}

    def _generate_examples(self, task: str):
        return self._with_beam(task) if self._beam else self._one_by_one(task, self._parts)

    def _one_by_one(
        self, task: str, parts: tuple[str, int] | None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        if parts:
            from rmt_jax.data.records import read_parts

            found = read_parts(Path(parts[0]), task, self._recipe.length, parts[1])
        else:
            found = records(self._recipe, task, range(available(self._recipe, task)))
        for index, record in enumerate(found):
            yield index, {**record, "index": index}

    def _with_beam(self, task: str):
        beam = tfds.core.lazy_imports.apache_beam
        recipe = self._recipe

        def make(index: int):
            (record,) = records(recipe, task, range(index, index + 1))
            return index, {**record, "index": index}

        return beam.Create(range(available(recipe, task))) | beam.Map(make)


def _int64():
    import numpy as np

    return tfds.features.Scalar(dtype=np.int64)


def build(
    recipe: Recipe,
    out: str | Path,
    parts: tuple[str | Path, int] | None = None,
    beam: bool = False,
) -> Any:
    """Writes OUT/babilong/LENGTH/1.0.0 as array_record; returns the builder. What is there already
    is kept."""
    config: Any = recipe.length
    if recipe.length not in LENGTHS:
        config = BabilongConfig(name=recipe.length, recipe=recipe)
    builder = Babilong(
        recipe=recipe,
        parts=parts and (str(parts[0]), parts[1]),
        beam=beam,
        config=config,
        data_dir=str(out),
        file_format="array_record",
    )
    builder.download_and_prepare()
    return builder
