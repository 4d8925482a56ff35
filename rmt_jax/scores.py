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

_PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
_NO_YES = ("no", "yes")

# The closed sets of answers that BABILong's rule looks for.
LABELS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("qa1", "qa2", "qa3", "qa4", "qa11", "qa12", "qa13"), _PLACES),
    "qa5": ("Bill", "Fred", "Jeff", "Mary", "apple", "football", "milk"),
    **dict.fromkeys(("qa6", "qa9", "qa17", "qa18"), _NO_YES),
    "qa7": ("none", "one", "two", "three"),
    "qa8": ("apple", "football", "milk", "nothing"),
    "qa10": ("maybe", "no", "yes"),
    "qa14": ("bedroom", "cinema", "kitchen", "office", "park", "school"),
    "qa15": ("cat", "mouse", "sheep", "wolf"),
    "qa16": ("gray", "green", "white", "yellow"),
    # Two steps that never lead back: no 'n,s' and the like.
    "qa19": tuple(
        f"{a},{b}" for a in "ensw" for b in "ensw" if a + b not in ("ns", "sn", "ew", "we")
    ),
    "qa20": ("bedroom", "bored", "garden", "hungry", "kitchen", "thirsty", "tired"),
}


def official(
    task: str, question: str, target: str, output: str, labels: Sequence[str] | None = None
) -> bool:
    """BABILong's own rule, faults included, so that numbers compare with the leaderboard's.

    `labels` replaces the task's closed set of answers (perturbed worlds have other words). Raises
    ValueError for a task without labels.
    """
    # Their cut at 'Question' comes after lower-casing and so never fires: it is left out here.
    return _only_label(_first_sentence(output), _set(task, labels), question, target, False)


def corrected(
    task: str, question: str, target: str, output: str, labels: Sequence[str] | None = None
) -> bool:
    """The official rule with its two faults mended: a label inside another label ('one' in 'none')
    must stand as a word of its own, and the text is cut where the model writes a next question."""
    said = _first_sentence(output).split("question")[0]
    return _only_label(said, _set(task, labels), question, target, True)


def exact(
    task: str, question: str, target: str, output: str, labels: Sequence[str] | None = None
) -> bool:
    """Strict exact match, spaces around the texts aside. Needs no labels: works for any task."""
    return output.strip() == target.strip()


def lm_eval(
    task: str, question: str, target: str, output: str, labels: Sequence[str] | None = None
) -> bool:
    """lm-evaluation-harness's rule: target in output, letter case aside. The loosest of the four:
    an output that lists every label is right."""
    return target.strip().lower() in re.sub(r"[\x00-\x1f]", "\n", output).lower()


Rule = Callable[..., bool]
RULES: dict[str, Rule] = {
    "official": official,
    "corrected": corrected,
    "exact": exact,
    "lm_eval": lm_eval,
}


def score(
    rule: str,
    task: str,
    question: str,
    target: str,
    output: str,
    labels: Sequence[str] | None = None,
) -> bool:
    """The rule by its name. Raises ValueError for a name that is none of `RULES`."""
    if rule not in RULES:
        raise ValueError(f"no score is called '{rule}'; there are {', '.join(RULES)}")
    return RULES[rule](task, question, target, output, labels)


def _set(task: str, labels: Sequence[str] | None) -> set[str]:
    if labels is None:
        if task not in LABELS:
            raise ValueError(
                f"the official rule knows the answers of qa1 to qa20, not of '{task}'; "
                "give `labels`, or use the rule 'exact'"
            )
        labels = LABELS[task]
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
    if "," in target and target not in labels:  # qa8 holds several things; qa19's pairs are labels
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


def chance(task: str, targets: Sequence[str]) -> float:
    """Expected accuracy of a uniformly random answer among the task's labels (or among the targets
    seen, where the task has none, or answers that are lists)."""
    if task in LABELS and set(targets) <= set(LABELS[task]):
        return 1 / len(LABELS[task])
    return 1 / len(set(targets)) if targets else 0.0
