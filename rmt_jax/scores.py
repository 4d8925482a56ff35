"""When is an answer right? Four rules, each under its own name, and the interval around a rate.

| rule        | an answer is right if                                                              |
|-------------|------------------------------------------------------------------------------------|
| `official`  | BABILong's rule: the target is the only label of the task that the first sentence  |
|             | names, labels in the question not counted                                          |
| `corrected` | the same with its two faults mended (see `corrected`)                              |
| `exact`     | output and target are the same text, spaces around them aside                      |
| `lm_eval`   | lm-evaluation-harness's rule: the target stands somewhere in the output            |

Sources: BABILong (arXiv 2406.10149) and its published scores; the harness's `babilong_qa*` tasks.
Plain Python: nothing here needs arrays.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

from rmt_jax.errors import RmtError


def official(labels: Sequence[str], question: str, target: str, output: str) -> bool:
    """BABILong's own rule, faults included, so that numbers compare with the leaderboard's.

    `labels`: the closed set of the task's answers. Raises ScoreError where there is none.
    """
    # Their cut at 'Question' comes after lower-casing and so never fires: it is left out here.
    return _only_label(_first_sentence(output), _label_set(labels), question, target, False)


def corrected(labels: Sequence[str], question: str, target: str, output: str) -> bool:
    """The official rule with its two faults mended: a label inside another label ('one' in 'none')
    must stand as a word of its own, and the text is cut where the model writes a next question."""
    said = _first_sentence(output).split("question")[0]
    return _only_label(said, _label_set(labels), question, target, True)


def exact(labels: Sequence[str], question: str, target: str, output: str) -> bool:
    """Strict exact match, spaces around the texts aside. Needs no labels: works for any task."""
    return output.strip() == target.strip()


def lm_eval(labels: Sequence[str], question: str, target: str, output: str) -> bool:
    """lm-evaluation-harness's rule: target in output, letter case aside. The loosest of the four:
    an output that lists every label is right."""
    return target.strip().lower() in re.sub(r"[\x00-\x1f]", "\n", output).lower()


Rule = Callable[[Sequence[str], str, str, str], bool]
RULES: dict[str, Rule] = {
    "official": official,
    "corrected": corrected,
    "exact": exact,
    "lm_eval": lm_eval,
}
LABEL_RULES = ("official", "corrected")  # those that look for labels


class ScoreError(RmtError):
    """A rule that there is not, or that cannot be applied."""


def score(rule: str, labels: Sequence[str], question: str, target: str, output: str) -> bool:
    """The rule by its name. Raises ScoreError for a name that is none of `RULES`."""
    if rule not in RULES:
        raise ScoreError(f"no score is called '{rule}'; there are {', '.join(RULES)}")
    return RULES[rule](labels, question, target, output)


def _label_set(labels: Sequence[str]) -> set[str]:
    if not labels:
        raise ScoreError(
            "This rule looks for the task's labels, and the task has none: use the rule 'exact'"
            " or 'lm_eval'."
        )
    return {label.lower() for label in labels}


def _first_sentence(output: str) -> str:
    """Lower-cased text before the first full stop or the first sign of an invented example."""
    said = output.lower().split(".")[0]
    return said.split("<context>")[0].split("<example>")[0]


def _only_label(said: str, labels: set[str], question: str, target: str, words: bool) -> bool:
    """Is the target the only label said that the question does not name? With `words`, labels of
    which one contains another are looked for as whole words."""
    words = words and any(a != b and a in b for a in labels for b in labels)

    def named(text: str) -> set[str]:
        if words:
            return {x for x in labels if re.search(rf"\b{re.escape(x)}\b", text)}
        return {x for x in labels if x in text}

    left = named(said) - named(question.lower())
    target = target.lower()
    if "," in target and target not in labels:  # several things; but a pair that is a label is one
        parts = target.split(",")
        return len(left) == len(parts) and left.issuperset(parts)
    return left == {target}


def wilson(right: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a rate, (low, high) in [0, 1]; 95 % by default; (0, 1) for none."""
    if count == 0:
        return 0.0, 1.0
    rate = right / count
    spread = z * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count))
    middle = rate + z * z / (2 * count)
    scale = 1 + z * z / count
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def majority(targets: Sequence[str]) -> float:
    """Accuracy of always giving the commonest of these targets: what knowing no fact can reach."""
    return Counter(targets).most_common(1)[0][1] / len(targets) if targets else 0.0


def chance(labels: Sequence[str], targets: Sequence[str]) -> float:
    """Expected accuracy of a uniformly random answer among the task's labels (or among the targets
    seen, where the task has none, or answers that are lists)."""
    if labels and set(targets) <= set(labels):
        return 1 / len(labels)
    return 1 / len(set(targets)) if targets else 0.0
