"""Texts of the synthetic suites, for the tests."""

from rmt_jax.config import Data
from rmt_jax.data import tokenizer
from rmt_jax.data.compose import Composer

TOKENS = tokenizer.load()
SEGMENT = 512
NEEDLES = (
    "niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2",
    "niah_multikey_3", "niah_multivalue", "niah_multiquery",
)  # fmt: skip
RULER = (*NEEDLES, "vt", "cwe", "fwe")
SUITES = ("recall", "kv_retrieval", "copy", "reverse", *RULER)


def composer(*names, words=TOKENS, split="train", segment=SEGMENT, **changes) -> Composer:
    data = Data(tasks=names or SUITES, **changes)
    return Composer(data, words, split, segment_tokens=segment)
