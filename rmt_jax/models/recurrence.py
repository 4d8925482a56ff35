"""Reading a text: `jax.lax.scan` over its segments; the carry is `Memory` and nothing else."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from rmt_jax.models import language, platform
from rmt_jax.models.cells import Memory
from rmt_jax.models.ops.positions import gather_positions
from rmt_jax.models.recurrent import RecurrentModel
from rmt_jax.types import Batch, Prompt, Segment

UNROLLED = 4  # segments on a GPU that are not worth a loop


class Outputs(NamedTuple):
    """What training looks at of a batch."""

    hidden: jax.Array  # [B, R, Q, T, D] after the final norm, where answers stand
    # f32[B, R]  how far each of the R answered segments moved the memory (`RecurrentModel.drift`);
    # zeros where the batch does not ask
    drift: jax.Array
    # f32[B, S]  cross-entropy of the tokens that follow (`language.nats`), summed over a segment;
    # None where no task models a language
    nats: jax.Array | None = None


def read(
    model: RecurrentModel,
    memory: Memory,
    tokens: jax.Array,
    mask: jax.Array,
    prompt: Prompt | None = None,
    *,
    remat: bool = False,
) -> Memory:
    """Reads tokens i32[B, S, L] with mask bool[B, S, L], keeping nothing but the memory."""
    return _read(model, memory, _segments(tokens, mask), prompt, remat)


def _read(
    model: RecurrentModel, memory: Memory, segments: Segment, prompt: Prompt | None, remat: bool
) -> Memory:
    prompt, layer_params = model.embed_prompt(prompt), model.per_layer_params()

    def body(memory: Memory, segment: Segment):
        return model.update_memory(memory, segment, prompt, layer_params), None

    return scan_or_unroll(body, memory, segments, remat)[0]


def read_some(
    model: RecurrentModel,
    memory: Memory,
    tokens: jax.Array,
    mask: jax.Array,
    prompt: Prompt | None,
    count: jax.Array,
) -> Memory:
    """Like `read`, but only the first `count` (i32[]) of the S segments: one program for any count.

    Without gradient: the loop's length is known only when it runs.
    """
    model = stop_gradient_params(model)
    model.memory.only_reads = True
    segments, prompt, layer_params = (
        _segments(tokens, mask),
        model.embed_prompt(prompt),
        model.per_layer_params(),
    )

    def body(index, memory: Memory):
        segment = jax.tree.map(lambda x: x[index], segments)
        return model.update_memory(memory, segment, prompt, layer_params)

    return jax.lax.fori_loop(0, count, body, memory)


def all_logits(
    model: RecurrentModel,
    memory: Memory,
    tokens: jax.Array,
    mask: jax.Array,
    prompt: Prompt | None = None,
) -> tuple[jax.Array, Memory]:
    """Logits f32[B, S, L, V] of every token: for small inputs, tests and inspection."""

    def body(memory: Memory, segment: Segment):
        hidden, memory = model.step(memory, segment, prompt)
        return memory, model.backbone.logits(hidden)

    memory, logits = jax.lax.scan(body, memory, _segments(tokens, mask))
    return jnp.moveaxis(logits, 0, 1), memory


def answer_logits(
    model: RecurrentModel, batch: Batch, *, bptt: int = 0, remat: bool = True
) -> jax.Array:
    """Logits f32[B, R, Q, T, V] where answers stand, and nowhere else: see `answers`."""
    return model.backbone.logits(answers(model, batch, bptt=bptt, remat=remat).hidden)


def answers(model: RecurrentModel, batch: Batch, *, bptt: int = 0, remat: bool = True) -> Outputs:
    """Reads a batch: hidden states where answers stand, and the cross-entropy of the tokens that
    are predicted all over the text.

    bptt: segments from the end that gradients flow back through (0: all). It is a real cut: what
    lies before runs outside the differentiated loop, on weights without gradient, so that nothing
    of it is stored. The R answered segments always lie behind the cut. Where a task models a
    language, all segments have targets and are differentiated: then no gradient flows through the
    memory from one stretch of `bptt` segments, counted from the end, into the one before. remat:
    run each segment again in the backward pass rather than keep its activations, if there are
    several; without it a CPU keeps what products with weights made, where a loop has several.
    """
    length, answered = batch.tokens.shape[1], batch.answer_start.shape[1]
    prompt = Prompt(batch.prompt, batch.prompt_mask, batch.task)
    at, next_token = jnp.swapaxes(jnp.asarray(batch.answer_start), 0, 1), batch.next_token
    probe, borders = batch.probe, None
    silent = length - answered
    cut = before_cut(length, answered, bptt)
    if next_token is not None:
        # Every segment has targets: room for answers in each, though only the last R have some.
        at, probe = _padded(at, silent), probe and _padded(probe, silent, axis=1)
        next_token = jnp.swapaxes(jnp.asarray(next_token), 0, 1)
        if bptt:
            borders = _borders(length, bptt)
        silent = cut = 0
    elif platform.current() == "tpu" and probe is None:
        # A second loop would keep the gradients of all layers once more (GPT-2 base: 0.34 GB).
        at, silent = _padded(at, silent - cut), cut
    memory = model.initial(batch.tokens.shape[0])
    if cut:
        memory = jax.lax.stop_gradient(
            read(
                stop_gradient_params(model),
                memory,
                batch.tokens[:, :cut],
                batch.mask[:, :cut],
                prompt,
            )
        )
    prompt = model.embed_prompt(prompt)  # not before the cut, which must know of no gradient
    # Looked up here, the gradient of the embedding table is made once; in the loop it is made and
    # added up in every segment (GPT-2's: 154 MB each). It keeps [B, L, D] a segment: little beside
    # a segment's activations, but not beside a memory.
    embed = None if remat else model.backbone.embed
    segments = _segments(batch.tokens[:, cut:], batch.mask[:, cut:], embed)
    probes = None if probe is None else _segments(probe.tokens, probe.mask, embed)
    if silent > cut:
        some = jax.tree.map(lambda x: x[: silent - cut], segments)
        memory = _read(model, memory, some, prompt, remat)

    tokens, layer_params = batch.answer.shape[-1], model.per_layer_params()  # T

    def body(memory: Memory, inputs: tuple[Segment, jax.Array, Segment | None, Any, Any]):
        segment, at, probe, following, border = inputs
        if border is not None:
            memory = jax.tree.map(lambda x: jnp.where(border, jax.lax.stop_gradient(x), x), memory)
        inside = at if probe is None else at[:, :-1]
        places = answer_places(inside, tokens, segment.tokens.shape[1])
        wanted, whole = places.reshape(len(at), -1), None
        if following is None:
            hidden, new = model.step(memory, segment, prompt, wanted, layer_params)
        else:
            whole, new = model.step(memory, segment, prompt, None, layer_params)
            hidden = gather_positions(whole, wanted)
        hidden = hidden.reshape(*places.shape, -1)
        drift = (
            jnp.zeros(at.shape[0]) if batch.background_only is None else model.drift(memory, new)
        )
        if probe is None:
            return new, (hidden, drift, whole)
        places = answer_places(at[:, -1:], tokens, probe.tokens.shape[1])
        seen = model.peek(new, probe, prompt, places[:, 0], layer_params)
        return new, (jnp.concatenate([hidden, seen[:, None]], axis=1), drift, whole)

    def cross_entropy(outputs: Any, inputs: Any):
        hidden, drift, whole = outputs
        nats = language.nats(model.backbone, whole, inputs[3]).sum(axis=1)
        return hidden, drift, nats

    segments = jax.tree.map(lambda x: x[silent - cut :], segments)
    inputs = (segments, at, probes, next_token, borders)
    # The backward pass of a text of one segment follows at once: a second run would save nothing.
    after = None if next_token is None else cross_entropy
    remat = remat and length - cut > 1
    _, (hidden, drift, nats) = scan_or_unroll(body, memory, inputs, remat, after)
    hidden, drift = jnp.moveaxis(hidden[-answered:], 0, 1), drift[-answered:].T
    return Outputs(hidden, drift, None if nats is None else nats.T)


def before_cut(length: int, answered: int, bptt: int) -> int:
    """Segments, of S = `length`, that are read without gradient; see `answer_logits`."""
    return max(0, length - max(bptt, answered)) if bptt else 0


def _borders(length: int, bptt: int) -> jax.Array:
    """bool[S]: does no gradient flow through the memory that this segment is given? The first one
    is given the model's own, which learns."""
    segment = jnp.arange(length)
    return ((length - segment) % bptt == 0) & (segment > 0)


def _padded(tree: Any, count: int, axis: int = 0) -> Any:
    """Arrays with `count` zeros in front."""
    return jax.tree.map(
        lambda x: jnp.pad(x, [(count if i == axis else 0, 0) for i in range(x.ndim)]), tree
    )


def gather(hidden: jax.Array, at: jax.Array, answer_tokens: int) -> jax.Array:
    """hidden [B, L, D] at places at + t -> [B, Q, T, D]; at i32[B, Q]."""
    return gather_positions(hidden, answer_places(at, answer_tokens, hidden.shape[1]))


def answer_places(at: jax.Array, answer_tokens: int, length: int) -> jax.Array:
    """i32[B, Q, T] of at i32[B, Q]. Past a segment's end weight 0 stands: any place will do."""
    return jnp.minimum(at[:, :, None] + jnp.arange(answer_tokens), length - 1)


def _segments(tokens: jax.Array, mask: jax.Array, embed: Any = None) -> Segment:
    """Segment first, as `scan` wants it; embedded, if `embed` is given."""
    tokens, mask = (jnp.swapaxes(jnp.asarray(x), 0, 1) for x in (tokens, mask))
    return Segment(tokens, mask, embed and embed(tokens))


def scan_or_unroll(
    body: Any, memory: Memory, inputs: Any, remat: bool, after: Any = None
) -> tuple[Memory, Any]:
    """`body(memory, inputs[s])` for every segment s: `jax.lax.scan`, except for few segments on a
    GPU. There a loop stacks what each segment keeps for the backward pass, and its zeros before and
    copies after took a quarter of GPT-2 base's train step (benchmarks/H200.md).

    after: `after(outputs, inputs[s])` takes the place of what `body` gives beside the memory. It
    decides itself what is kept of it for the backward pass, unless all is run again.
    """
    count = len(jax.tree.leaves(inputs)[0])
    if platform.current() != "gpu" or count > UNROLLED:
        if remat:
            body = _checkpointed(_followed(body, after), True, count)
        else:
            body = _followed(_checkpointed(body, False, count), after)
        return jax.lax.scan(body, memory, inputs)
    # Outside a loop the compiler would find that both runs are the same, and keep the first's.
    body, each = _followed(body, after), []
    body = jax.checkpoint(body) if remat else body
    for s in range(count):
        memory, out = body(memory, jax.tree.map(lambda x, s=s: x[s], inputs))
        each.append(out)
    return memory, jax.tree.map(lambda *outs: jnp.stack(outs), *each)


def _followed(body: Any, after: Any) -> Any:
    """`body` whose outputs `after` goes on with."""
    if after is None:
        return body

    def both(memory: Memory, inputs: Any):
        memory, outputs = body(memory, inputs)
        return memory, after(outputs, inputs)

    return both


def _checkpointed(body: Any, remat: bool, segments: int) -> Any:
    """What the loop over `segments` keeps for the backward pass."""
    if not remat and (segments == 1 or platform.current() != "cpu"):
        return body
    # What a CPU stacks over segments goes through its memory twice; attention and elementwise work
    # cost less again (GPT-2 base, 4 segments: a seventh of a train step). On a GPU running them
    # again costs more.
    policy = None if remat else jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    # Inside a scan, common subexpressions can't undo the rematerialisation.
    return jax.checkpoint(body, prevent_cse=False, policy=policy)


def stop_gradient_params(model: RecurrentModel) -> RecurrentModel:
    """The same model on weights that take no gradient, in the dtype that they are used in: inside a
    loop, every segment would cast them."""
    graph, weights = nnx.split(model)
    dtype, infos = model.backbone.dtype, model.weights()

    def fixed(path: Any, weight: jax.Array) -> jax.Array:
        name = "/".join(str(part.key) for part in path if hasattr(part, "key"))
        return jax.lax.stop_gradient(weight if infos[name].exact else weight.astype(dtype))

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(fixed, weights))
