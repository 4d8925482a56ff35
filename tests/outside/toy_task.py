"""A task from outside the package: say the word that was whispered last."""

from rmt_jax.data.rng import AddressedRng
from rmt_jax.data.tasks import Story, StoryOptions, Task, register

WORDS = ("apple", "garden", "river", "stone", "candle", "window")
SPLITS = ("train", "validation", "test")


@register("echo")
class Echo(Task):
    name = "echo"
    description = "Say the word that was whispered last."
    labels = WORDS
    question_forms = (r"Which word was whispered\?",)
    fact_words = ("whispered",)

    def sample(self, split: str, seed: int, index: int, options: StoryOptions) -> Story:
        rng = AddressedRng(self.seed, SPLITS.index(split), seed, index)
        words = [rng.pick(WORDS) for _ in range(min(2, options.max_facts))]
        facts = tuple(f"Somebody whispered {word}." for word in words)
        question = "Which word was whispered?"
        return Story(self.name, facts, question, words[-1], (len(facts) - 1,))
