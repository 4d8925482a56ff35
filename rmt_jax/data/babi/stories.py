"""Where bAbI's stories come from: our simulator, the official files, or both."""

import contextlib
from typing import Protocol

from rmt_jax import config
from rmt_jax.data import simulator
from rmt_jax.data.babi import table
from rmt_jax.data.babi.official import Official
from rmt_jax.data.corpus import documents
from rmt_jax.data.errors import DataError
from rmt_jax.data.rng import AddressedRng
from rmt_jax.data.story import NoStory, Story, StoryOptions

ATTEMPTS = 5000  # stories tried for one sample before giving up


class Stories(Protocol):
    """A source of stories; `Official` and `FileOrder` are others."""

    def story(self, task: str, split: str, seed: int, index: int, options: StoryOptions) -> Story:
        """The story of an index, of `options.max_facts` facts or fewer."""
        ...


class Simulated:
    """Endless stories of the simulator. A story belongs to the split that its text hashes to, so
    splits share none, whatever the seeds."""

    def story(self, task: str, split: str, seed: int, index: int, options: StoryOptions) -> Story:
        most = options.max_facts
        if most < 2:
            raise DataError(f"There is room for {most} facts, but a story has 2 or more.")
        for attempt in range(ATTEMPTS):
            story = simulator.simulate_story(task, (seed, index, attempt), options)
            if documents.split_of_story(story.facts) == split:
                return story
        raise DataError(
            f"{task}: no story of {most} facts or fewer in {ATTEMPTS:,} attempts. A longer "
            "length, or a stage with fewer facts, leaves room for one."
        )


class Mixed:
    """Half of the stories of official length from the files, where one of the task is short enough,
    and all of a task without simulator; the others simulated, as where a number of facts is asked
    for."""

    def __init__(self, simulated: Stories, official: Stories):
        self.simulated, self.official = simulated, official

    def story(self, task: str, split: str, seed: int, index: int, options: StoryOptions) -> Story:
        half = options.facts is None and AddressedRng(seed, index, 9).uniform() < 0.5
        if half or not table.row(task).simulated:
            with contextlib.suppress(NoStory):
                return self.official.story(task, split, seed, index, options)
        return self.simulated.story(task, split, seed, index, options)


def stories(data: config.Data) -> Stories:
    """The source that `data.facts` names. Raises BabiError where files are needed, none named."""
    if data.facts == "simulated":
        return Simulated()
    if data.facts == "both":
        return Mixed(Simulated(), Official(data.babi_dir))
    return Official(data.babi_dir)
