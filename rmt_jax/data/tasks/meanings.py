"""One question, several meanings: the description alone says what is wanted.

'Where is the milk?' may mean where it is now, where it was at first, where it was before that,
where it was longest, or who touched it last; 'Where is Mary?' the same of a person. Persons walk,
take and drop as in bAbI's QA2. Each story has a description of its own, put together from parts, so
that a model learns the parts: those of `TRAINED`, and of `HELD_OUT` for the perturbation
`paraphrase`.

    Data(tasks=("object_now", "object_first", "object_previous", "object_longest", "object_touched",
                "person_now", "person_first", "person_previous"))

leaves `person_longest` for a description whose parts are known and were never trained together.
"""

import functools

from rmt_jax.config import Data
from rmt_jax.data import simulator, words
from rmt_jax.data.corpus import documents
from rmt_jax.data.errors import DataError
from rmt_jax.data.rng import AddressedRng
from rmt_jax.data.simulator import moving
from rmt_jax.data.story import IntermediateQuestion, Story, StoryOptions
from rmt_jax.data.tasks import Task, register
from rmt_jax.data.tokenizer import Tokenizer

FRAMES = (
    "Say {}.", "Tell me {}.", "Name {}.", "Answer with {}.", "Give {}.", "Find {}.",
    "What is asked for is {}.", "The answer is {}.", "I want to know {}.", "Please say {}.",
    "Write {}.", "Wanted: {}.", "{} is wanted.", "{} is the question.", "{} is to be named.",
    "Look for {}.",
)  # fmt: skip
PLACES = ("place", "room", "spot")  # the '[place]' of a form
SUBJECTS = {
    "object": ("the thing", "the object", "the item"),
    "person": ("the person", "somebody", "someone"),
}
TRAINED = {
    "now": (
        "the [place] where {} is now",
        "the present [place] of {}",
        "the last [place] of {}",
        "the current [place] of {}",
        "where {} is now",
        "where to find {} now",
        "the location where {} is at present",
        "the [place] that {} is in by now",
        "where {} can be seen now",
        "where {} ended up",
        "the newest [place] of {}",
        "the [place] in which {} is at the end",
        "where {} has got to by now",
        "the final [place] of {}",
        "the most recent [place] of {}",
        "where one finds {} at the end",
    ),
    "first": (
        "the [place] where {} was at first",
        "the first [place] of {}",
        "where {} began",
        "the starting [place] of {}",
        "where {} was at the start",
        "the [place] of {} to begin with",
        "the location that {} started from",
        "the [place] that was the first for {}",
        "the earliest [place] of {}",
        "the [place] where {} set out",
        "the original [place] of {}",
        "where {} could be found at first",
        "where {} was in the beginning",
        "the [place] in which {} was before any move",
        "the opening [place] of {}",
        "where the text first puts {}",
    ),
    "previous": (
        "the [place] where {} was before the last one",
        "the [place] before the present one of {}",
        "the last [place] but one of {}",
        "the [place] just before the last one of {}",
        "where {} was before coming to the last [place]",
        "the [place] that came before the current one of {}",
        "the [place] one earlier than the last one of {}",
        "the location that {} left last",
        "the previous [place] of {}",
        "where {} was one step earlier",
        "where {} had been just before",
        "the [place] from which {} came to its current one",
        "the [place] of {} one move ago",
        "the second to last [place] of {}",
        "where {} was right before it got where it is",
        "the [place] of {} one before its present one",
    ),
    "longest": (
        "the [place] where {} was longest",
        "the [place] that kept {} for the longest time",
        "the [place] where {} spent most of the story",
        "where {} stayed longest",
        "the [place] that had {} longest",
        "where {} was most of the time",
        "the location in which {} stayed for the most facts",
        "the [place] of the longest stay of {}",
        "where {} spent the most time",
        "the [place] with the longest stay of {}",
        "the usual [place] of {}",
        "where {} mostly was",
        "the [place] where {} was for most facts",
        "where {} remained the longest",
        "the [place] that held {} most of the time",
        "where {} stayed more than in any other [place]",
    ),
    "touched": (
        "who touched {} last",
        "the last person who had {}",
        "who was the last to hold {}",
        "the name of the last one to handle {}",
        "who most recently held {}",
        "the person who last held {}",
        "whose hands held {} last",
        "the last one to have {}",
        "who handled {} last",
        "whoever was the last to touch {}",
        "the last holder of {}",
        "the name of who had {} most recently",
        "who has or had {} last",
        "the latest person to take or drop {}",
        "who took or dropped {} last",
        "the last one whose hand was on {}",
    ),
}
HELD_OUT = {
    "now": (
        "Give the current location of {}.",
        "Where {} can be found by now is asked for.",
        "Say which room {} is in.",
        "I would like the place of {} right now.",
        "Where is {} at the moment?",
    ),
    "first": (
        "Give the starting location of {}.",
        "Where {} was to begin with is asked for.",
        "Say which room {} was in first.",
        "I would like the place where {} was in the very beginning.",
        "Where was {} at first?",
    ),
    "previous": (
        "Give the location of {} just before its current one.",
        "Where {} was one place earlier is asked for.",
        "Say which room {} was in before this one.",
        "I would like the place of {} before the last move.",
        "Where was {} before?",
    ),
    "longest": (
        "Give the location that had {} for most of the time.",
        "Where {} stayed the most is asked for.",
        "Say which room {} was in longest.",
        "I would like the place where {} spent most time.",
        "Where was {} for the longest time?",
    ),
    "touched": (
        "Give the name of whoever handled {} most recently.",
        "Who had {} last is asked.",
        "Say who had {} last.",
        "I would like the name of the last person to touch {}.",
        "Who was last to hold {}?",
    ),
}
# Nobody touches a person.
MEANINGS = {"object": tuple(TRAINED), "person": tuple(m for m in TRAINED if m != "touched")}
SPAN = (4, 12)  # facts of a story where nothing else is said
ATTEMPTS = 5000


class Meaning(Task):
    """Of whom ('object', 'person') and what ('now', 'first', 'previous', 'longest', 'touched')."""

    suite = "meanings"
    several_meanings = True

    def __init__(self, subject: str, meaning: str, data: Data):
        super().__init__(data)
        self.subject, self.meaning, self.name = subject, meaning, f"{subject}_{meaning}"
        self.description = describe(subject, meaning, 0)
        self.paraphrases = tuple(
            text.format(noun) for text in HELD_OUT[meaning] for noun in SUBJECTS[subject]
        )
        self.wrong_descriptions = tuple(
            describe(subject, other, 0) for other in TRAINED if other != meaning
        )
        names = words.OFFICIAL
        self.labels = names.people if meaning == "touched" else names.places
        self.fact_words = words.every_official()

    def sample(self, split: str, seed: int, index: int, options: StoryOptions) -> Story:
        """A story of the split that its facts hash to. Raises DataError where no story has so few
        facts."""
        least, most = options.facts or SPAN
        most = min(most, options.max_facts)
        least = min(max(least, 3), most)
        for attempt in range(ATTEMPTS if most >= 2 else 0):
            rng = AddressedRng(self.seed, seed, index, attempt)
            made = self._story(rng, rng.between(least, most), options)
            if made is not None and documents.split_of_story(made.facts) == split:
                return made
        raise DataError(f"{self.name}: no story of {most} facts or fewer: allow more facts.")

    def answer_tokens(self, tokenizer: Tokenizer, renamed: bool = False) -> int:
        kind = "people" if self.meaning == "touched" else "places"
        found = [super().answer_tokens(tokenizer)]
        if renamed:
            every = (*words.words(kind), *words.words(kind, held_out=True))
            found += [len(tokenizer.sentence(word)) for word in every]
        return max(found)

    def _story(self, rng: AddressedRng, count: int, options: StoryOptions) -> Story | None:
        """None where the question has no answer after so many facts."""
        names = simulator.draw_names("qa2", options, rng)
        world = moving.World("meanings", names, rng)
        facts: list[str] = []
        known: dict[str, list[tuple[int, str]]] = {}  # of whom: the answers on the way
        found: dict[str, tuple[str, tuple[int, ...]]] = {}
        for number in range(count):
            facts.append(world.next_fact())
            found = self._answers(world)
            for who, (answer, _) in found.items():
                known.setdefault(who, []).append((number, answer))
        if not found:
            return None
        asked_of = rng.pick(sorted(found))
        answer, supporting = found[asked_of]
        asked = tuple(
            IntermediateQuestion(number, self._question(who), said)
            for who, answers in sorted(known.items())
            for number, said in answers
            if number < count - 1 and (who == asked_of or not options.final_question_only)
            if rng.uniform() < options.question_rate
        )
        number = rng.below(1 << 20)
        others = {
            meaning: answer_of(world, asked_of, meaning)
            for meaning in MEANINGS[self.subject]
            if meaning != self.meaning
        }
        return Story(
            self.name,
            tuple(facts),
            self._question(asked_of),
            answer,
            supporting,
            asked,
            description=describe(self.subject, self.meaning, number),
            other_meanings=tuple(
                (describe(self.subject, meaning, number), other[0])
                for meaning, other in others.items()
                if other is not None
            ),
        )

    def _answers(self, world: moving.World) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Answer and supporting facts, by the person or object that is asked for, where there is an
        answer now."""
        every = world.names.objects if self.subject == "object" else world.names.people
        each = {who: answer_of(world, who, self.meaning) for who in every}
        return {who: answer for who, answer in each.items() if answer is not None}

    def _question(self, who: str) -> str:
        return f"Where is the {who}?" if self.subject == "object" else f"Where is {who}?"


def describe(subject: str, meaning: str, number: int) -> str:
    """Description `number` of a meaning: one of the sentences that its parts make."""
    chosen = []
    for parts in (FRAMES, SUBJECTS[subject], PLACES, TRAINED[meaning]):
        number, part = divmod(number, len(parts))
        chosen.append(parts[part])
    frame, noun, place, form = chosen
    text = frame.format(form.replace("[place]", place).format(noun))
    return text[0].upper() + text[1:]


def answer_of(world: moving.World, who: str, meaning: str) -> tuple[str, tuple[int, ...]] | None:
    """The answer for a person or an object after the facts so far, and the facts that it rests on;
    None where they do not tell."""
    path = world.path.get(who, [])
    if meaning == "touched":
        if who not in world.handled:
            return None
        person = world.holder.get(who) or world.dropper.get(who, ("", 0))[0]
        return (person, (world.handled[who],)) if person else None
    if not path:
        return None
    arrived = [visit.move if visit.came else visit.handled for visit in path]
    if meaning == "now":
        return path[-1].place, (arrived[-1],)
    if meaning == "first":
        return path[0].place, (arrived[0],)
    if meaning == "previous":
        return (path[-2].place, tuple(arrived[-2:])) if len(path) > 1 else None
    spent: dict[str, int] = {}
    for visit, start, stop in zip(path, arrived, [*arrived[1:], world.fact_count], strict=True):
        spent[visit.place] = spent.get(visit.place, 0) + stop - start
    longest = max(spent, key=spent.__getitem__)
    if len(path) < 2 or sorted(spent.values())[-1:] == sorted(spent.values())[-2:-1]:
        return None  # as long in another place
    return longest, tuple(arrived)


for _subject, _meanings in MEANINGS.items():
    for _meaning in _meanings:
        register(f"{_subject}_{_meaning}")(functools.partial(Meaning, _subject, _meaning))
