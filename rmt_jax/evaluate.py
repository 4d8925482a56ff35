"""Ask a trained model many questions about long texts, score the answers, report.

    python -m rmt_jax.evaluate --workdir RUN [--tasks qa1,qa2] [--lengths 0k,4k,1M] [--samples 100]
                               [--data generated|official|FOLDER|TASK=FILE] [--perturb NAME,…]
                               [--out DIR]
    python -m rmt_jax.evaluate --workdir RUN --perplexity [--data NAME|FOLDER|FILE] [--tokens N]

A context of any length is read with constant memory, in batches; each batch size is compiled once
for all lengths. Answers are kept in OUT/answers as they come: a stopped evaluation continues where
it stopped, and one with more --samples asks only the new questions. Decoding is free-running and
greedy. `--teacher_forced` is faster and gives higher scores; every table then says so.

`--perplexity` asks nothing: it says how well texts are predicted, in bits per byte and perplexity
per token, by the place in the text, with the memory and with it reset before each segment.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rmt_jax import cli, scores
from rmt_jax.evaluation import evaluate

__all__ = ["evaluate", "main"]


def arguments() -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog="python -m rmt_jax.evaluate",
        description=(__doc__ or "").split("\n\n")[0],
        epilog="Lengths: 4s is four segments; 0k, 1k, 4k, 128k, 1M are BABILong's; 0k facts only.",
    )
    add = parser.add_argument
    add("--workdir", required=True, help="a run's folder, or any checkpoint rmt_jax.load takes")
    add("--tasks", default="", help="names, as qa1,qa2 (default: the tasks it was trained on)")
    add("--lengths", default="", help="e.g. 1s,4s or 0k,4k,32k,1M (default: the config's)")
    add("--samples", type=int, default=0, help="questions per task and length, or texts")
    add(
        "--data",
        default="generated",
        help="generated | official | FOLDER | TASK=FILE; texts: NAME | FOLDER | FILE",
    )
    add("--babi", default="", help="folder of bAbI files for --data official")
    add("--lengths_by", default="", help="tokenizer that counts the lengths, e.g. GPT-2's folder")
    add("--background", default="", help="builtin | none | a folder of books (default: config's)")
    add(
        "--background_split",
        default="",
        choices=("", "train", "validation", "test", "all"),
        help="of the background alone; all: of texts that training never saw (default: --split's)",
    )
    add("--split", default="", choices=("train", "validation", "test"))
    add("--perturb", default="", help="new_people,new_places,paraphrase,…: see data/perturb.py")
    add("--perplexity", action="store_true", help="how well texts are predicted, asking nothing")
    add("--tokens", type=int, default=0, help="with --perplexity: of each text at most")
    add(
        "--segment_tokens",
        "--segment-tokens",
        type=int,
        default=0,
        help="read in segments of so many tokens (default: the model's)",
    )
    add("--suite", default="", choices=("", "paper"), help="everything a paper's table needs")
    add("--inspect", action="store_true", help="draw memory and attention for one sample")
    add("--html", action="store_true", help="with --inspect: one page to look into, for a browser")
    add(
        "--teacher_forced",
        "--teacher-forced",
        action="store_true",
        help="faster, scores higher; named in every table",
    )
    add("--no_reset", "--no-reset", action="store_true", help="leave out the memory-reset control")
    add(
        "--chat",
        choices=("auto", "yes", "no"),
        default="auto",
        help="ask in the tokenizer's chat template (auto: where no task was trained here)",
    )
    add("--score", default="", choices=("", *scores.NAMES), help="of summary.csv and pictures")
    add("--references", action="store_true", help="published curves behind ours")
    add("--batch", type=int, default=0, help="texts read together")
    add("--seed", type=cli.seed, default=None, help="of the stories (default: the config's)")
    add("--name", default="", help="ORG/MODEL in the prediction files")
    add("--out", type=Path, default=None, help="default: WORKDIR/evaluation")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    # JAX loads only now: --help answers at once.
    from rmt_jax.evaluation import command

    return command.run(args)


if __name__ == "__main__":
    cli.run(main)
