"""What both contenders do: sizes, and one batch of random ids. NumPy only, so that a child process
loads one framework and not the other."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

ANSWER = 2  # tokens of an answer, the end token included


@dataclass(frozen=True)
class Size:
    """The shape of a model and of the texts that it is measured on."""

    layers: int
    width: int
    heads: int
    vocab: int
    positions: int  # rows of the position table
    segment: int  # L
    memory: int  # M
    batch: int  # texts a train step, on a CPU
    large: int  # texts a train step, on an accelerator
    # Of a Llama, in place of GPT-2: key-value heads, and the width of the feed-forward.
    kv_heads: int = 0
    mlp: int = 0

    def __post_init__(self):
        assert self.segment + 2 * self.memory <= self.positions


SIZES = {
    "tiny": Size(2, 32, 2, 512, 64, 32, 4, 8, 64),
    # The preset `rmt` of configs/multitask.py, but with GPT-2's block: HF has no other.
    "small": Size(4, 64, 4, 4096, 128, 64, 12, 32, 512),
    "base": Size(12, 768, 12, 50257, 1024, 512, 16, 1, 16),  # GPT-2 small, 124M weights
    # SmolLM2-135M, with the segments of configs/multitask.py's `pretrained`.
    "smollm2": Size(30, 576, 9, 49152, 8192, 256, 16, 1, 32, kv_heads=3, mlp=1536),
}

LENGTHS = {"4k": 4096, "32k": 32768, "128k": 131072, "1M": 1048576}


class Texts(NamedTuple):
    """B texts of S whole segments; the answer is the last ANSWER tokens of the last one."""

    tokens: np.ndarray  # i32[B, S, L]
    answer: np.ndarray  # i32[B, T]: predicted at places L - 1 - T ... L - 2


def texts(size: Size, segments: int, batch: int, seed: int = 0) -> Texts:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, size.vocab, (batch, segments, size.segment)).astype(np.int32)
    return Texts(tokens, tokens[:, -1, -ANSWER:].copy())


class Case(NamedTuple):
    """One measurement; its name is kind/size/rest, as `--only` sees it."""

    name: str
    kind: str  # train | read | answer
    size: str
    segments: int  # S; for an answer, the tokens to make
    batches: tuple[int, ...]  # texts side by side; of several, each contender takes its best
    contenders: tuple[str, ...]  # names in benchmarks/child.py
    rounds: int | None = None  # fewer than asked for, where one round takes minutes
    left_out: tuple[tuple[str, str], ...] = ()  # contender, why

    def tokens(self, batch: int) -> int:
        """Tokens of text that one call goes through; of an answer, those that it makes."""
        if self.kind == "answer":
            return batch * self.segments
        return batch * self.segments * SIZES[self.size].segment


SIDES = ("ours", "best", "published")
NO_ROOM = "the logits that it keeps do not fit"


def cases(accelerator: bool) -> list[Case]:
    """All that is measured, cheap things first."""
    found = []
    for name, size in SIZES.items():
        batch = (size.large if accelerator else size.batch,)
        for segments in (1, 4) if size.kv_heads else (1, 4, 16):
            case = Case(f"train/{name}/{segments}", "train", name, segments, batch, SIDES)
            if size.kv_heads:
                case = case._replace(contenders=("ours", "best"), rounds=3)
            if name == "small":
                case = case._replace(contenders=(*SIDES, "preset"))
            if name == "base" and segments == 4:
                case = case._replace(contenders=(*SIDES, "remat"))
            if name == "base" and segments == 16 and not accelerator:
                # 16 · 512 rows of 50,257 floats, three times over, beside the activations
                case = case._replace(
                    contenders=("ours", "best"), rounds=3, left_out=(("published", NO_ROOM),)
                )
            found.append(case)
    length = SIZES["small"].segment
    for name, tokens in LENGTHS.items():
        case = Case(f"read/small/{name}", "read", "small", tokens // length, (1,), SIDES)
        if name == "1M":
            case = case._replace(
                contenders=("ours", "best"), rounds=1, left_out=(("published", NO_ROOM),)
            )
        found.append(case)
    batches = (64, 256, 1024) if accelerator else (4, 16, 32)
    found.append(Case("read/small/4k-batch", "read", "small", 4096 // length, batches, SIDES))
    segments = (LENGTHS["1M"] if accelerator else LENGTHS["4k"]) // SIZES["base"].segment
    base = Case("read/base/4k", "read", "base", segments, (1,), SIDES)
    if accelerator:
        base = base._replace(
            name="read/base/1M", contenders=("ours", "best"), left_out=(("published", NO_ROOM),)
        )
        found.append(base._replace(name="read/base/1M-batch", batches=(4, 8, 16)))
    found.append(base)
    texts = (1, 8, 32) if accelerator else (1,)
    case = Case("read/smollm2/2k", "read", "smollm2", 8, texts, ("ours", "best"), rounds=3)
    found.append(case)
    for name in ("small", "base"):
        found.append(Case(f"answer/{name}/4", "answer", name, 4, (1,), ("ours", "best")))
    return sorted(found, key=lambda case: case.name == "train/base/16")
