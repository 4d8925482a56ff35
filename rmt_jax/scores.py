"""How right is an answer? Rules, each under its own name, and the interval around a rate.

| rule         | an answer is right if                                                             |
|--------------|-----------------------------------------------------------------------------------|
| `official`   | BABILong's rule: the target is the only label of the task that the first sentence |
|              | names, labels in the question not counted                                         |
| `corrected`  | the same with its two faults mended (see `corrected`)                             |
| `exact`      | output and target are the same text, spaces around them aside                     |
| `lm_eval`    | lm-evaluation-harness's rule: the target stands somewhere in the output           |
| `normalised` | SQuAD's exact match: the same words, without case, punctuation and articles       |
| `f1`         | SQuAD's F1 of the words that output and target share, from 0 to 1                 |
| `contains`   | the target's words, normalised, stand side by side in the output                  |
| `label`      | of all labels of the task, the first that the output names is the target          |
| `match_all`  | RULER's rule: the share of the right answers that stand in the output             |

Where several answers are right, the best counts; `match_all` wants all of them.

Sources: BABILong (arXiv 2406.10149) and its published scores; the harness's `babilong_qa*` tasks;
SQuAD (arXiv 1606.05250), its evaluation; RULER (arXiv 2404.06654). Plain Python: nothing here needs
arrays.
"""

import math
import re
import string
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from rmt_jax.config.tree import IMPORTED
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


def normalised(labels: Sequence[str], question: str, target: str, output: str) -> bool:
    """SQuAD's exact match: the same words in the same order after `normal_words`."""
    return normal_words(output) == normal_words(target)


def f1(labels: Sequence[str], question: str, target: str, output: str) -> float:
    """SQuAD's F1 between the words of output and target (`normal_words`), each counted as often as
    it stands. An empty target is matched by an empty output alone."""
    said, wanted = normal_words(output), normal_words(target)
    if not said or not wanted:
        return float(said == wanted)
    shared = sum((Counter(said) & Counter(wanted)).values())
    return 2 * shared / (len(said) + len(wanted))


def contains(labels: Sequence[str], question: str, target: str, output: str) -> bool:
    """The target's words (`normal_words`) stand side by side in the output's."""
    said, wanted = normal_words(output), normal_words(target)
    return any(said[i : i + len(wanted)] == wanted for i in range(len(said) - len(wanted) + 1))


def label(labels: Sequence[str], question: str, target: str, output: str) -> bool:
    """Classification: of all labels, the one that the output names first, as whole words, is the
    target; of two that begin at the same word, the longer one. Raises ScoreError without labels."""
    said, found = normal_words(output), []
    for name in _label_set(labels):
        words = normal_words(name)
        at = [i for i in range(len(said)) if words and said[i : i + len(words)] == words]
        found += [(at[0], -len(words), words)] if at else []
    return bool(found) and min(found)[2] == normal_words(target)


def match_all(labels: Sequence[str], question: str, targets: Sequence[str], output: str) -> float:
    """RULER's `string_match_all`: the share of `targets` that stand in the output, case aside."""
    said = output.lower()
    return sum(target.lower() in said for target in targets) / len(targets)


def normal_words(text: str) -> list[str]:
    """Words of a text as SQuAD compares them: lower case, without punctuation and the articles a,
    an, the."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


Rule = Callable[[Sequence[str], str, str, str], float]  # labels, question, target, output
RULES: dict[str, Rule] = {
    "official": official,
    "corrected": corrected,
    "exact": exact,
    "lm_eval": lm_eval,
    "normalised": normalised,
    "f1": f1,
    "contains": contains,
    "label": label,
}
LABEL_RULES = ("official", "corrected", "label")  # those that look for labels
NAMES = (*RULES, "match_all")
OF_LABELS = ("official", "corrected", "exact", "lm_eval")  # of a task with labels that names none
OF_TEXTS = ("exact", "lm_eval")  # of one without


class ScoreError(RmtError):
    """A rule that there is not, or that cannot be applied."""


def check(rule: str) -> str:
    """The name, if there is such a rule. Raises ScoreError otherwise."""
    if ":" in rule:
        _own_rule(rule)
    elif rule not in NAMES:
        raise ScoreError(
            f"No score is called '{rule}': there are {', '.join(NAMES)}, and functions of your own"
            " as module:function."
        )
    return rule


def score(
    rule: str, labels: Sequence[str], question: str, targets: Sequence[str], output: str
) -> float:
    """How right an output is by a rule, from 0 to 1.

    Args:
      rule: one of `NAMES`, or module:function of your own, in a module that `config.imports` names;
        it is called as function(output, targets, question).
      labels: the closed set of the task's answers, or none.
      targets: all right answers.

    Raises ScoreError for a rule that there is not, one that the task cannot have, and a function
    that gives no number from 0 to 1.
    """
    check(rule)
    if ":" in rule:
        found = _own_rule(rule)(output, tuple(targets), question)
        if not isinstance(found, (bool, int, float)) or not 0 <= found <= 1:
            raise ScoreError(f"The score {rule} is to give a number from 0 to 1, not {found!r}.")
        return found
    if rule == "match_all":
        return match_all(labels, question, targets, output)
    return max(RULES[rule](labels, question, target, output) for target in targets)


def _own_rule(rule: str) -> Callable[[str, tuple[str, ...], str], Any]:
    """Of a module that was imported as the user's own: a checkpoint from elsewhere may name any."""
    module, _, name = rule.partition(":")
    if module not in IMPORTED:
        raise ScoreError(
            f"The score {rule} is in the module '{module}', which was not imported: name it in"
            " config.imports too."
        )
    function = getattr(sys.modules[module], name, None)
    if not callable(function):
        raise ScoreError(f"The module '{module}' has no function '{name}', which scores name.")
    return function


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
