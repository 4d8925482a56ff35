"""The twenty tasks of bAbI: what a model is told about each, and which answers it can have.

Labels are those of BABILong's official scoring. Descriptions are ours.
"""

from typing import NamedTuple

PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
YES_NO = ("no", "yes")


class Task(NamedTuple):
    name: str
    title: str  # the name in the official files
    description: str  # the task prompt
    paraphrases: tuple[str, ...]  # the same in other words, never used in training
    labels: tuple[str, ...]
    questions: tuple[str, ...]  # official forms; P person, L place, O object, D direction
    simulated: bool  # our own world can tell it


def _task(number, title, description, paraphrases, labels, questions, simulated=False) -> Task:
    return Task(f"qa{number}", title, description, paraphrases, labels, questions, simulated)


_ALL = (
    _task(
        1,
        "single-supporting-fact",
        "Say in which place a person is now.",
        ("Tell me the current location of somebody.", "Name the last place that a person went to."),
        PLACES,
        ("Where is P?",),
        True,
    ),
    _task(
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
    _task(
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
    _task(
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
    _task(
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
    _task(
        6,
        "yes-no-questions",
        "Say yes or no: is a person in this place?",
        ("Is somebody there? Answer yes or no.", "Check whether a person is at a location."),
        YES_NO,
        ("Is P in the L?",),
        True,
    ),
    _task(
        7,
        "counting",
        "Say how many objects a person carries.",
        ("Count the things in the hands of somebody.", "Tell me the number of things held."),
        ("none", "one", "two", "three"),
        ("How many objects is P carrying?",),
        True,
    ),
    _task(
        8,
        "lists-sets",
        "Say which objects a person carries.",
        ("List the things in the hands of somebody.", "Name everything that a person holds."),
        ("apple", "football", "milk", "nothing"),
        ("What is P carrying?",),
        True,
    ),
    _task(
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
    _task(
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
    _task(
        11,
        "basic-coreference",
        "Say in which place a person is now. He or she is the person named before.",
        ("Tell me the location of somebody, following the pronouns.",),
        PLACES,
        ("Where is P?",),
    ),
    _task(
        12,
        "conjunction",
        "Say in which place a person is now. Two persons can move together.",
        ("Tell me the location of somebody who may go in company.",),
        PLACES,
        ("Where is P?",),
    ),
    _task(
        13,
        "compound-coreference",
        "Say in which place a person is now. They are the two persons named before.",
        ("Tell me the location of somebody who goes in company, following the pronouns.",),
        PLACES,
        ("Where is P?",),
    ),
    _task(
        14,
        "time-reasoning",
        "Say in which place a person was before another place. Mind the times of the day.",
        ("Order the times of the day, then tell me the location before another one.",),
        ("bedroom", "cinema", "kitchen", "office", "park", "school"),
        ("Where was P before the L?",),
    ),
    _task(
        15,
        "basic-deduction",
        "Say of which animal this one is afraid.",
        ("Tell me what kind of animal frightens this animal.",),
        ("cat", "mouse", "sheep", "wolf"),
        ("What is P afraid of?",),
    ),
    _task(
        16,
        "basic-induction",
        "Say which color this animal has.",
        ("Tell me the color of an animal from others of its kind.",),
        ("gray", "green", "white", "yellow"),
        ("What color is P?",),
    ),
    _task(
        17,
        "positional-reasoning",
        "Say yes or no: does one shape stand there from another?",
        ("Check how two figures stand to each other.",),
        YES_NO,
        ("Is the O above the O?", "Is the O to the left of the O?"),
    ),
    _task(
        18,
        "size-reasoning",
        "Say yes or no: compare the sizes of two things.",
        ("Check whether one thing is bigger or fits in another.",),
        YES_NO,
        ("Is the O bigger than the O?", "Does the O fit in the O?"),
    ),
    _task(
        19,
        "path-finding",
        "Say by which two steps one gets from a place to another.",
        ("Give the two directions of a way between two rooms.",),
        tuple(f"{a},{b}" for a in "nesw" for b in "nesw"),
        ("How do you go from the L to the L?",),
    ),
    _task(
        20,
        "agents-motivations",
        "Say why a person does something, or where the person will go.",
        ("Tell me the reason of an action, or the place that somebody will look for.",),
        ("bedroom", "bored", "garden", "hungry", "kitchen", "thirsty", "tired"),
        ("Where will P go?", "Why did P go to the L?", "Why did P get the O?"),
    ),
)

TASKS: dict[str, Task] = {task.name: task for task in _ALL}
SIMULATED = tuple(task.name for task in _ALL if task.simulated)


def task(name: str) -> Task:
    """The table row of 'qa1' ... 'qa20'. ValueError for another name."""
    try:
        return TASKS[name]
    except KeyError:
        raise ValueError(f"Unknown task {name!r}: the tasks are qa1 to qa20.") from None


def number(name: str) -> int:
    """'qa7' -> 7."""
    return int(task(name).name[2:])
