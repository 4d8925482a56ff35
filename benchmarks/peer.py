"""The peer: a recurrent memory transformer in PyTorch on Hugging Face's `GPT2LMHeadModel` or
`LlamaForCausalLM`.

What the authors' wrapper does (Bulatov et al. 2022), written anew: a loop over segments, memory
embeddings at both ends of each, the last hidden states as the next memory, loss on the answer.

`best`: logits at answer places only, scaled-dot-product attention without a mask array, each
segment compiled by torch.compile, fused AdamW. `published`: logits of all segments made, kept and
joined before the answer's are picked, nothing compiled, an attention mask passed along.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from benchmarks.cases import ANSWER, Size, Texts, texts

RATE, DECAY, CLIP = 1e-4, 0.01, 1.0  # as in benchmarks/ours.py


class Cell(torch.nn.Module):
    """Weights under the authors' names: `memory`, and the backbone as `model`."""

    def __init__(self, size: Size):
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

            llama = LlamaConfig(
                num_hidden_layers=size.layers, hidden_size=size.width, vocab_size=size.vocab,
                num_attention_heads=size.heads, num_key_value_heads=size.kv_heads or size.heads,
                intermediate_size=size.mlp, max_position_embeddings=size.positions,
                rms_norm_eps=1e-5, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
            )  # fmt: skip
            config = GPT2Config(
                n_layer=size.layers, n_embd=size.width, n_head=size.heads, vocab_size=size.vocab,
                n_positions=size.positions, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                bos_token_id=0, eos_token_id=0,
            )  # fmt: skip
            self.model: Any = LlamaForCausalLM(llama) if size.kv_heads else GPT2LMHeadModel(config)
        deviation = self.model.get_input_embeddings().weight.std()
        self.memory = torch.nn.Parameter(deviation * torch.randn(size.memory, size.width))


class Peer(torch.nn.Module):
    """Tokens i64[B, S, L] in; the loss or the memory out."""

    def __init__(self, size: Size, published: bool = False):
        super().__init__()
        self.memory_cell, self.size, self.published = Cell(size), size, published

    def segment(self, memory: torch.Tensor, tokens: torch.Tensor):
        """One segment: hidden [B, L, D] after the final LayerNorm, memory [B, M, D]."""
        transformer, places = self.memory_cell.model.base_model, self.size.memory
        embed = transformer.get_input_embeddings()
        embedded = torch.cat([memory, embed(tokens), memory], dim=1)
        mask = torch.ones(embedded.shape[:2], device=tokens.device) if self.published else None
        out = transformer(inputs_embeds=embedded, attention_mask=mask, use_cache=False)
        hidden = out.last_hidden_state
        return hidden[:, places:-places], hidden[:, -places:]

    def silent(self, memory: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """One segment, of which only the memory is wanted."""
        return self.segment(memory, tokens)[1]

    def initial(self, batch: int) -> torch.Tensor:
        return self.memory_cell.memory.expand(batch, -1, -1)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.memory_cell.model.lm_head(hidden)

    def loss(self, tokens: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of the answers i64[B, T]."""
        memory = self.initial(len(tokens))
        if not self.published:
            for s in range(tokens.shape[1] - 1):
                memory = self.silent(memory, tokens[:, s])
            hidden, _ = self.segment(memory, tokens[:, -1])
            logits = self.head(hidden[:, -ANSWER - 1 : -1])
            return functional.cross_entropy(logits.flatten(0, 1).float(), answer.flatten())
        logits, memory = self.all_logits(memory, tokens)
        # Shifted as a whole, then picked: the authors' order.
        shifted = logits[:, :-1].contiguous()
        labels = tokens.flatten(1)[:, 1:].contiguous()
        asked = torch.zeros(labels.shape, dtype=torch.bool, device=labels.device)
        asked[:, -ANSWER:] = True
        return functional.cross_entropy(shifted[asked].float(), labels[asked])

    def all_logits(self, memory: torch.Tensor, tokens: torch.Tensor):
        """Logits [B, S * L, V] of all segments, and the last memory."""
        kept = []
        for s in range(tokens.shape[1]):
            hidden, memory = self.segment(memory, tokens[:, s])
            kept.append(self.head(hidden))
        return torch.cat(kept, dim=1), memory

    def read(self, memory: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The memory after all segments."""
        if self.published:
            return self.all_logits(memory, tokens)[1]
        for s in range(tokens.shape[1]):
            memory = self.silent(memory, tokens[:, s])
        return memory

    def answer(self, memory: torch.Tensor, tail: torch.Tensor, new: int) -> torch.Tensor:
        """Greedy continuation i64[B, new] of the last segment, with a KV cache (GPT-2)."""
        from transformers import DynamicCache

        transformer, cache = self.memory_cell.model.base_model, DynamicCache()
        embedded = torch.cat([memory, transformer.get_input_embeddings()(tail)], dim=1)
        # By position: version 5 renames this argument.
        out = transformer(None, cache, inputs_embeds=embedded, use_cache=True)
        made = [self.head(out.last_hidden_state[:, -1]).argmax(-1, keepdim=True)]
        while len(made) < new:
            out = transformer(made[-1], cache, use_cache=True)
            made.append(self.head(out.last_hidden_state[:, -1]).argmax(-1, keepdim=True))
        return torch.cat(made, dim=1)


def optimizer_of(peer: Peer) -> torch.optim.Optimizer:
    """AdamW with one kernel for all weights in the best form, a loop over them as published; decay
    on what ours decays: the blocks' matrices."""
    matrices, rest = [], []
    for name, weight in peer.named_parameters():
        inner = (".h." in name or ".layers." in name) and weight.ndim == 2
        (matrices if inner else rest).append(weight)
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=RATE, fused=not peer.published)


class Theirs:
    """What a child process runs: each method makes a function without arguments that does the work
    once and waits for it."""

    def __init__(self, published: bool, device: str, compiled: bool = True):
        self.published, self.device, self.compiled = published, device, compiled and not published
        torch.set_float32_matmul_precision("highest")
        self.dtype = torch.float32 if device == "cpu" else torch.bfloat16

    def _model(self, size: Size) -> Peer:
        torch.manual_seed(0)
        peer = Peer(size, self.published).to(self.device)
        if self.compiled:
            torch.compiler.reset()
            peer.segment = torch.compile(peer.segment)  # pyright: ignore
            peer.silent = torch.compile(peer.silent)  # pyright: ignore
        return peer

    def _put(self, made: Texts) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(torch.from_numpy(x).long().to(self.device) for x in made)  # pyright: ignore

    def _cast(self):
        return torch.autocast(self.device, torch.bfloat16, enabled=self.device != "cpu")

    def _wait(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()

    def train(self, size: Size, segments: int, batch: int) -> Callable[[], Any]:
        peer = self._model(size).train()
        tokens, answer = self._put(texts(size, segments, batch))
        optimizer = optimizer_of(peer)

        def step():
            optimizer.zero_grad(set_to_none=True)
            with self._cast():
                loss = peer.loss(tokens, answer)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(peer.parameters(), CLIP, foreach=not self.published)
            optimizer.step()
            self._wait()
            return loss

        return step

    def read(self, size: Size, segments: int, batch: int) -> Callable[[], Any]:
        peer = self._model(size).eval()
        tokens, _ = self._put(texts(size, segments, batch))

        def step():
            with torch.inference_mode(), self._cast():
                memory = peer.read(peer.initial(batch), tokens)
            self._wait()
            return memory

        return step

    def answer(self, size: Size, new: int) -> Callable[[], Any]:
        peer = self._model(size).eval()
        tokens, _ = self._put(texts(size, 2, 1))

        with torch.inference_mode(), self._cast():
            memory = peer.read(peer.initial(1), tokens[:, :1])

        def step():
            with torch.inference_mode(), self._cast():
                made = peer.answer(memory, tokens[:, 1], new)
            self._wait()
            return made

        return step

    def peak(self) -> int | None:
        """Bytes of the accelerator's memory at most since the last call."""
        if self.device == "cpu":
            return None
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return peak

    def describe(self) -> dict[str, Any]:
        import transformers

        torch.set_num_threads(torch.get_num_threads())
        return {"torch": torch.__version__, "transformers": transformers.__version__}
