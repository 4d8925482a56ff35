"""Data: stories, haystacks, samples, batches. Everything here is a pure function of an address.

story.py, tasks.py, words.py    what a story is; the twenty tasks; names
worlds/                         our own bAbI, endless
babi.py, official.py            the official files
sources.py, background.py       background text, cut and tokenised once
compose.py, perturb.py          a story in its haystack; changes of evaluation data
fold.py, prompts.py, loader.py  segments, task prompts, batches
samples.py, tfds_builder.py     datasets on disk; published.py reads BABILong's own, pg19.py fetches
tokenizer.py                    text and ids (tokenizer_recipe.py made the one in the package)

numpy only; the loader alone asks JAX which host this is.
"""
