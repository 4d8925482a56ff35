"""Data: tasks, background, samples, batches. Everything here is a pure function of an address.

tasks/             what a task is; one file per task, or group of tasks
story.py           what a task hands on: Story, Document, Passage, and the options of a story
rows/              question-and-answer rows of a user's own: read, checked, tokenised once
babi/              bAbI's table of tasks, official files, sources of stories
simulator/         our own bAbI, endless; words.py has the names
corpus/            background text: sentences, tokenised once; hard negatives; PG-19; texts to model
compose.py         a sample: a story hidden in background (haystack.py), a document, a passage
perturb.py         changes of evaluation data
segmentation.py    where texts are cut into segments
collate.py         samples as a batch; prompts.py has the task prompt
loader.py          batches as a function of the step
records.py         samples on disk (tfds_builder.py: as TensorFlow Datasets)
published.py       BABILong's own evaluation sets
rng.py             random draws at an address
tokenizer.py       text and ids (tokenizer_recipe.py made the one in the package)

numpy only; the loader alone asks JAX which host this is.
"""
