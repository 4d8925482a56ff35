"""How the gates of a trained delta memory are taught (`rmt_jax.gating`)."""

from dataclasses import dataclass

from rmt_jax.config.schema import OFFICIAL, Facts
from rmt_jax.config.setting import freeze, setting


@dataclass(frozen=True)
class GateTraining:
    """Settings of one teaching. Prices weigh the error at one token against another's."""

    steps: int = setting(
        500, "Optimizer steps; of a gate that is fitted (kv), batches.", unit="steps", least=1
    )
    batch: int = setting(64, "Segments per step.", unit="segments", least=1)
    learning_rate: float = setting(1e-3, "Peak rate of Adam; it falls to 0 by a cosine.", least=0)
    warmup: int = setting(20, "Steps up to the peak rate.", unit="steps", least=0)
    segments: tuple[int, ...] = setting(
        (2, 4, 8, 16), "Lengths of the texts; one is drawn per text.", unit="segments", least=1
    )
    facts: tuple[Facts | None, ...] = setting(
        (OFFICIAL, OFFICIAL, Facts(3, 12), Facts(2, 5)),
        "Facts per story. One range is drawn per text; null is the official number.",
    )
    texts_mixed: int = setting(
        64, "Texts whose segments are shuffled together.", unit="texts", least=1
    )
    made_negatives: float = setting(
        0.5, "Of the texts with hard negatives, the share whose are made and not found.",
        least=0, most=1,
    )  # fmt: skip
    least_leak: float = setting(
        0.1,
        "Layers are taught up to the deepest whose gates, added up over 1,000 tokens of background,"
        " open more than this.",
        least=0,
    )
    price_background: float = setting(1.0, "Price at a token of background.", least=0)
    price_fact: float = setting(
        6.0, "Price at a token of a fact: facts are few, and rare ones fewer.", least=0
    )
    price_question: float = setting(
        0.3, "Price at a token of a question in the text, which writes little.", least=0
    )
    least_fact_tokens: int = setting(
        80, "A story with fewer tokens of facts counts for as many.", unit="tokens", least=1
    )
    price_open: float = setting(
        400.0,
        "Added for a wholly open gate over background: few are, and over a million tokens these"
        " matter.",
        least=0,
    )
    price_was_open: float = setting(
        80.0, "Added at a token of a fact whose gate was wholly open before.", least=0
    )
    hold: float = setting(
        3.0, "Price of what moves in a layer's output, against a gate's cross entropy.", least=0
    )
    hold_background: float = setting(
        0.1, "Share of that price at a token of background; at facts and questions it is 1.",
        least=0,
    )  # fmt: skip
    checked_segments: int = setting(
        1600, "Validation segments that gates are measured on.", unit="segments", least=1
    )
    seed: int = setting(0, "Of the texts.", least=0, most=2**31 - 1)

    def __post_init__(self):
        freeze(self)
