"""The twenty tasks of bAbI: descriptions, labels, and the forms of questions.

Labels are those of BABILong's official scoring. Descriptions are ours.
"""

from typing import NamedTuple

from rmt_jax.errors import RmtError

PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
YES_NO = ("no", "yes")


class BabiError(RmtError):
    """A bAbI task or file that is not there, or not what bAbI's are."""


class Row(NamedTuple):
    number: int  # of the task: 1 is qa1
    title: str  # the name in the official files
    description: str  # the task prompt
    paraphrases: tuple[str, ...]  # the same in other words, never used in training
    labels: tuple[str, ...]
    questions: tuple[str, ...]  # official forms; P person, L place, O object, D direction
    simulated: bool = False  # has a simulator

    @property
    def name(self) -> str:
        return f"qa{self.number}"


_ALL = (
    Row(
        1,
        "single-supporting-fact",
        "Say in which place a person is now.",
        ("Tell me the current location of somebody.", "Name the last place that a person went to."),
        PLACES,
        ("Where is P?",),
        True,
    ),
    Row(
        2,
        "two-supporting-facts",
        "Say in which place an object is now.",
        (
            "Tell me the current location of a thing.",
            "People carry things around. Find where one of them is.",
        ),
        PLACES,
        ("Where is the O?",),
        True,
    ),
    Row(
        3,
        "three-supporting-facts",
        "Say in which place an object was before another place.",
        (
            "Tell me the location of a thing before it came somewhere else.",
            "Follow an object backwards: from which room was it brought?",
        ),
        PLACES,
        ("Where was the O before the L?",),
        True,
    ),
    Row(
        4,
        "two-arg-relations",
        "Say which place lies in a direction from another place.",
        (
            "Tell me what is north, south, east or west of a room.",
            "Two places are next to each other. Name the other one.",
        ),
        PLACES,
        ("What is D of the L?", "What is the L D of?"),
        True,
    ),
    Row(
        5,
        "three-arg-relations",
        "Say who gave which object to whom.",
        (
            "Tell me the giver, the receiver or the thing that was given.",
            "Somebody hands something to somebody. Name the one in question.",
        ),
        ("Bill", "Fred", "Jeff", "Mary", "apple", "football", "milk"),
        (
            "What did P give to P?",
            "Who gave the O?",
            "Who gave the O to P?",
            "Who received the O?",
            "Who did P give the O to?",
        ),
        True,
    ),
    Row(
        6,
        "yes-no-questions",
        "Say yes or no: is a person in this place?",
        ("Is somebody there? Answer yes or no.", "Check whether a person is at a location."),
        YES_NO,
        ("Is P in the L?",),
        True,
    ),
    Row(
        7,
        "counting",
        "Say how many objects a person carries.",
        ("Count the things in the hands of somebody.", "Tell me the number of things held."),
        ("none", "one", "two", "three"),
        ("How many objects is P carrying?",),
        True,
    ),
    Row(
        8,
        "lists-sets",
        "Say which objects a person carries.",
        ("List the things in the hands of somebody.", "Name everything that a person holds."),
        ("apple", "football", "milk", "nothing"),
        ("What is P carrying?",),
        True,
    ),
    Row(
        9,
        "simple-negation",
        "Say yes or no: is a person in this place? Some facts say where a person is not.",
        (
            "Is somebody there? Mind the negations. Answer yes or no.",
            "Check a location when facts can deny.",
        ),
        YES_NO,
        ("Is P in the L?",),
        True,
    ),
    Row(
        10,
        "indefinite-knowledge",
        "Say yes, no or maybe: is a person in this place?",
        (
            "Is somebody there? Answer yes, no, or maybe when it is not certain.",
            "Check a location when facts can be uncertain.",
        ),
        ("maybe", "no", "yes"),
        ("Is P in the L?",),
        True,
    ),
    Row(
        11,
        "basic-coreference",
        "Say in which place a person is now. He or she is the person named before.",
        ("Tell me the location of somebody, following the pronouns.",),
        PLACES,
        ("Where is P?",),
    ),
    Row(
        12,
        "conjunction",
        "Say in which place a person is now. Two persons can move together.",
        ("Tell me the location of somebody who may go in company.",),
        PLACES,
        ("Where is P?",),
    ),
    Row(
        13,
        "compound-coreference",
        "Say in which place a person is now. They are the two persons named before.",
        ("Tell me the location of somebody who goes in company, following the pronouns.",),
        PLACES,
        ("Where is P?",),
    ),
    Row(
        14,
        "time-reasoning",
        "Say in which place a person was before another place. Mind the times of the day.",
        ("Order the times of the day, then tell me the location before another one.",),
        ("bedroom", "cinema", "kitchen", "office", "park", "school"),
        ("Where was P before the L?",),
    ),
    Row(
        15,
        "basic-deduction",
        "Say of which animal this one is afraid.",
        ("Tell me what kind of animal frightens this animal.",),
        ("cat", "mouse", "sheep", "wolf"),
        ("What is P afraid of?",),
    ),
    Row(
        16,
        "basic-induction",
        "Say which color this animal has.",
        ("Tell me the color of an animal from others of its kind.",),
        ("gray", "green", "white", "yellow"),
        ("What color is P?",),
    ),
    Row(
        17,
        "positional-reasoning",
        "Say yes or no: does one shape stand there from another?",
        ("Check how two figures stand to each other.",),
        YES_NO,
        ("Is the O above the O?", "Is the O to the left of the O?"),
    ),
    Row(
        18,
        "size-reasoning",
        "Say yes or no: compare the sizes of two things.",
        ("Check whether one thing is bigger or fits in another.",),
        YES_NO,
        ("Is the O bigger than the O?", "Does the O fit in the O?"),
    ),
    Row(
        19,
        "path-finding",
        "Say by which two steps one gets from a place to another.",
        ("Give the two directions of a way between two rooms.",),
        # Two steps that never lead back: no 'n,s' and the like.
        tuple(f"{a},{b}" for a in "ensw" for b in "ensw" if a + b not in ("ns", "sn", "ew", "we")),
        ("How do you go from the L to the L?",),
    ),
    Row(
        20,
        "agents-motivations",
        "Say why a person does something, or where the person will go.",
        ("Tell me the reason of an action, or the place that somebody will look for.",),
        ("bedroom", "bored", "garden", "hungry", "kitchen", "thirsty", "tired"),
        ("Where will P go?", "Why did P go to the L?", "Why did P get the O?"),
    ),
)

ROWS: dict[str, Row] = {row.name: row for row in _ALL}
SIMULATED = tuple(row.name for row in _ALL if row.simulated)


def row(name: str) -> Row:
    """The row of 'qa1' ... 'qa20'. BabiError for another name."""
    try:
        return ROWS[name]
    except KeyError:
        raise BabiError(f"There is no bAbI task {name!r}: they are qa1 to qa20.") from None


def number(name: str) -> int:
    """'qa7' -> 7."""
    return row(name).number
