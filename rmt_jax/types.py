"""The legend: one letter, one dimension, everywhere; and the arrays that travel between rooms.

| letter | dimension                                                        |
|--------|------------------------------------------------------------------|
| B      | batch                                                            |
| S      | segments of a text                                               |
| L      | tokens per segment                                               |
| M      | memory tokens                                                    |
| P      | prompt tokens (the task prompt)                                  |
| D      | model width                                                      |
| H      | attention heads                                                  |
| V      | vocabulary                                                       |
| R      | answered segments: questions stand in the last R of S segments   |
| Q      | questions per answered segment                                   |
| T      | tokens per answer, the end token included                        |
| N      | tokens per probe: the question asked of a memory, with an answer |
| K      | rows of an associative memory (ARMT, delta)                      |

Only `numpy` is needed here, so that data workers start without JAX. A `NamedTuple` is a JAX
pytree already.
"""

from typing import Any, NamedTuple

# numpy.ndarray on a host, jax.Array on a device: both index and add alike.
Array = Any


class Batch(NamedTuple):
    """One batch of texts in segments: the only handshake between `data/` and `models/`.

    Targets are shifted once, by `data.collate`: `answer_start[b, r, q]` is the place in its segment
    of the token after which the first token of answer q must follow (the ANSWER token in our
    layout), and answer token t is predicted at place `answer_start + t`. Answer tokens also stand
    in `tokens` (teacher forcing).

    Worked example, B = 1, S = 2, L = 8, R = 1, Q = 1, T = 2; ids: 5 'Mary', 6 ' moved', 7 ' to',
    8 ' the', 9 ' garden', 10 '.', 11 ' Where', 12 ' is', 13 ' Mary', 14 '?', 1 ANSWER, 2 END,
    0 PAD:

        tokens       [[[5, 6, 7, 8, 9, 10, 0, 0], [11, 12, 13, 14, 1, 9, 2, 0]]]
        mask         [[[1, 1, 1, 1, 1,  1, 0, 0], [ 1,  1,  1,  1, 1, 1, 1, 0]]]
        answer_start [[[4]]]           the ANSWER token of the last segment
        answer       [[[[9, 2]]]]      ' garden', END: predicted at places 4 and 5
        weight       [[[[1., 1.]]]]
        metric_row   [[[0]]]           counted in row 0 of the metrics (the first task)

    With `probe`, the question is also asked of the memory after each answered segment, apart from
    the text (what it reads changes no memory): its answer is the last of the Q of that segment, and
    its `answer_start` is a place in `probe`.

    Of a passage, which a language is modelled on, every token is predicted at the place of the one
    before it, also over the end of a segment, whose last place predicts the first token of the next
    segment: with L = 4 the passage 5 6 7 8 9 10 11 is

        tokens     [[[5, 6, 7, 8], [ 9, 10,  0,  0]]]
        next_token [[[6, 7, 8, 9], [10, 11, -1, -1]]]
    """

    tokens: Array  # i32[B, S, L]
    mask: Array  # bool[B, S, L]  False: padding, which must change nothing
    prompt: Array  # i32[B, P]     the task prompt, right-padded
    prompt_mask: Array  # bool[B, P]
    task: Array  # i32[B]         index into config.data.tasks (picks a learned prompt)
    answer_start: Array  # i32[B, R, Q]
    answer: Array  # i32[B, R, Q, T]
    weight: Array  # f32[B, R, Q, T]  loss weight; 0 where no answer token stands
    metric_row: Array  # i32[B, R, Q]  task index, or len(tasks) for an auxiliary question
    probe: "Segment | None" = None  # tokens i32[B, R, N], mask bool[B, R, N]
    # bool[B, R]  segments of background alone, after a segment with facts; None: not needed (there
    # is no penalty on memory drift)
    background_only: Array | None = None
    # i32[B, S, L]  the token that is predicted at each place, -1 for none; None: no task of the run
    # models a language
    next_token: Array | None = None


class Segment(NamedTuple):
    """What one step of the recurrence reads."""

    tokens: Array  # i32[B, L]
    mask: Array  # bool[B, L]
    embedded: Array | None = None  # [B, L, D] of `tokens`, where it is known before the loop


class Prompt(NamedTuple):
    """The task prompt as the model sees it."""

    tokens: Array  # i32[B, P]
    mask: Array  # bool[B, P]
    task: Array  # i32[B]
    embedded: Array | None = None  # [B, P, D], where it is known before the loop over segments


class Sums(NamedTuple):
    """Metric sums, one row a task and a last one for auxiliary questions. They add up across
    microbatches, hosts and steps; means are made when printed. A task that models a language has
    its tokens' cross-entropy and their number, and no questions."""

    loss: Array  # f32[rows]  sum of weight * cross-entropy (nats)
    weight: Array  # f32[rows]  sum of weights
    right: Array  # f32[rows]  questions with every answer token right (argmax, teacher-forced)
    count: Array  # f32[rows]  questions
    texts: Array | None = None  # f32[rows]  texts; None: no task of the run models a language


class WeightInfo(NamedTuple):
    """What a backbone, a memory cell and the prompt say of each weight, for sharding, the optimiser
    and the compute dtype.

    Attributes:
      axes: a logical name per axis of the array, None for one that is never split:
        'layers', 'vocab', 'table_features' (of embeddings), 'embed' (the model width), 'heads',
        'mlp', 'memory_keys', 'memory_values'. `runtime.mesh.AXES_OF` maps them to axes of the mesh.
      kind: 'matrix' (maps a width to a width: Muon's, and decayed), 'embedding' (decayed),
        'convolution' (has a learning rate of its own) or 'vector'.
      exact: used in float32 whatever the compute dtype is.
    """

    axes: tuple[str | None, ...]
    kind: str = "vector"
    exact: bool = False
