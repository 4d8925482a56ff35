"""Language modelling: the tasks of `data.texts`, whose samples are passages of texts."""

from rmt_jax import config as settings
from rmt_jax.data.corpus import documents, texts
from rmt_jax.data.rng import AddressedRng
from rmt_jax.data.story import Passage, StoryOptions
from rmt_jax.data.tasks import Task, TaskError
from rmt_jax.data.tokenizer import Tokenizer


class LanguageTask(Task):
    """Passages of one entry of `data.texts`, from random places of texts drawn by their size. A
    passage never goes on from one text into another: memory is carried through one text."""

    models_language = True

    def __init__(self, name: str, data: settings.Data):
        super().__init__(data)
        self.name, self.section = name, data.texts[name]
        self.description = self.section.description
        self._opened: dict[str, texts.Documents] = {}

    def open(self, split: str, tokenizer: Tokenizer) -> None:
        if split in self._opened:
            return
        self._opened[split] = texts.load(self.section, split, tokenizer, self.name)
        if split != "train":
            texts.tell_shared(self.section, split, tokenizer, self.name)

    def sample(self, split: str, seed: int, index: int, options: StoryOptions) -> Passage:
        if split not in self._opened:
            raise TaskError(f"The task '{self.name}' must be opened before it is sampled: .open.")
        rng = AddressedRng(seed, index, self.seed, documents.SPLITS.index(split))
        found = self._opened[split]
        room = options.max_tokens or found.total
        return Passage(self.name, found.window(rng, room + 1))
