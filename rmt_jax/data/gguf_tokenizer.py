"""A tokenizer from the metadata of a GGUF file: byte-level BPE, as Llama 3, SmolLM2 and Qwen have.

The metadata holds the tokens in the order of their ids, the merges, which tokens are control tokens
and the name of the rule that splits a text before BPE; the rule itself is llama.cpp's to know, so
those that are known here are written out below.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rmt_jax import gguf_file
from rmt_jax.data.errors import DataError
from rmt_jax.data.tokenizer import Tokenizer, foreign

TOKENS, EMBEDDING = "tokenizer.ggml.tokens", "token_embd.weight"
MERGES = "tokenizer.ggml.merges"
CONTROL, USER_DEFINED = 3, 4  # in `tokenizer.ggml.token_type`
# Contractions; words with what stands before them; numbers; punctuation; white space.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
WAY_OUT = (
    "put the model's tokenizer.json into a folder tokenizer/ of the workdir; for a training, name"
    " its folder by data.tokenizer."
)
PRE_TOKENIZERS = {  # `tokenizer.ggml.pre` -> the rule
    "default": "gpt2",
    "gpt-2": "gpt2",
    "smollm": "digits",
    "llama-bpe": "llama3",
    "llama3": "llama3",
    "llama-v3": "llama3",
    "qwen2": "qwen2",
}


def load(file: Path) -> Tokenizer:
    """The tokenizer in a GGUF file. Raises DataError as `build` does, and for no GGUF file."""
    try:
        reader, metadata = gguf_file.open_file(file)
    except gguf_file.GGUFError as error:
        raise DataError(str(error)) from error
    said = gguf_file.tokenizer_of(metadata)
    sizes = {tensor.name: int(tensor.shape[-1]) for tensor in reader.tensors}
    return build(said, file.stem, sizes.get(EMBEDDING, len(said.get(TOKENS, ()))))


def build(metadata: Mapping[str, Any], name: str, vocab_size: int) -> Tokenizer:
    """metadata: the keys that begin with 'tokenizer.'. vocab_size: tokens that the model embeds.
    Raises DataError for tokenizers of another kind, or with more tokens."""
    from tokenizers import AddedToken, decoders, models, normalizers
    from tokenizers import Tokenizer as Inner

    kind, rule = (metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if not metadata.get(TOKENS):
        raise DataError(f"The GGUF file of {name} holds no tokenizer: {WAY_OUT}")
    if kind != "gpt2":
        raise DataError(
            f"The GGUF file of {name} has a tokenizer of the kind {kind!r}, and only byte-level BPE"
            f" ('gpt2') can be built from its metadata: {WAY_OUT}"
        )
    if rule not in PRE_TOKENIZERS:
        raise DataError(
            f"The GGUF file of {name} splits texts by the rule {rule!r}, and only"
            f" {', '.join(PRE_TOKENIZERS)} are known: {WAY_OUT}"
        )
    rule, tokens = PRE_TOKENIZERS[rule], list(metadata[TOKENS])
    if len(tokens) > vocab_size:
        raise DataError(
            f"The tokenizer in the GGUF file of {name} has {len(tokens):,} tokens, but the model"
            f" embeds {vocab_size:,}: the file was put together of two models' parts."
        )
    merges = [tuple(merge.split(" ", 1)) for merge in metadata.get(MERGES, ())]
    vocab = {token: number for number, token in enumerate(tokens)}
    inner = Inner(models.BPE(vocab, merges, ignore_merges=rule == "llama3"))
    inner.pre_tokenizer = _pre_tokenizer(rule)  # type: ignore
    inner.decoder = decoders.ByteLevel()  # type: ignore
    if rule == "qwen2":
        inner.normalizer = normalizers.NFC()  # type: ignore
    kinds = metadata.get("tokenizer.ggml.token_type", [])
    for token, kind in zip(tokens, kinds, strict=False):
        if kind in (CONTROL, USER_DEFINED):
            inner.add_tokens([AddedToken(token, special=kind == CONTROL, normalized=False)])
    return foreign(inner, name, _token(metadata, "eos"), _token(metadata, "padding"))


def hub_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json of it, for transformers; with the chat template, where there is one."""
    said = {"tokenizer_class": "PreTrainedTokenizerFast"}
    roles = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding"}
    said |= {theirs: _token(metadata, role) for theirs, role in roles.items()}
    said["chat_template"] = metadata.get("tokenizer.chat_template")
    return {key: value for key, value in said.items() if value is not None}


def _token(metadata: Mapping[str, Any], role: str) -> str | None:
    number = metadata.get(f"tokenizer.ggml.{role}_token_id")
    return None if number is None else metadata[TOKENS][number]


def _pre_tokenizer(rule: str) -> Any:
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

    if rule == "gpt2":
        return ByteLevel(add_prefix_space=False)
    if rule == "digits":
        return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    pattern = Split(Regex(LLAMA3 if rule == "llama3" else QWEN2), "isolated")
    return Sequence([pattern, ByteLevel(add_prefix_space=False, use_regex=False)])
