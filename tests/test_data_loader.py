"""Folding and loading: the tail stays whole, targets are where they should be, batches are pure."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_data_simulator import Oracle

from rmt_jax.config import OFFICIAL, Config, ConfigError, Data, Facts, Model, Prompt, Stage
from rmt_jax.data import segmentation, tasks, tokenizer
from rmt_jax.data.collate import collate
from rmt_jax.data.compose import Composer
from rmt_jax.data.loader import Loader
from rmt_jax.data.segmentation import segment_bounds, sentence_ends, settled_bounds
from rmt_jax.data.story import StoryOptions

pytestmark = pytest.mark.portable

TOKENS = tokenizer.load()
TASKS = ("qa1", "qa2", "qa3", "qa4", "qa5")
FACT = re.compile(
    r"(?:Mary|John|Daniel|Sandra|Fred|Jeff|Bill) (?:moved|went|journeyed|travelled|picked|got|"
    r"grabbed|took|dropped|left|put|discarded|passed|gave|handed) [a-z ]+(?:to [A-Z]\w+)?\."
)


STAGES = (
    Stage(
        segments=1,
        steps=5,
        batch=8,
        learning_rate=1e-3,
        tasks={"qa1": 1.0, "qa2": 3.0},
        facts=(Facts(2, 5),),
        background=0.0,
        question_rates=(1.0, 0.5, 0.0),
    ),
    Stage(segments=4, steps=7, batch=8, learning_rate=1e-3, background=0.7),
)


def config(**both):
    """Two stages, with `both` set in each."""
    return Config(
        model=Model(cell="rmt", segment_tokens=64),
        prompt=Prompt(source="both", tokens=32),
        data=Data(TASKS),
        stages=tuple(dataclasses.replace(stage, **both) for stage in STAGES),
    )


@pytest.fixture(scope="module")
def loader():
    return Loader(config(), TOKENS, "train")


def same(a, b):
    leaves = (jax.tree.leaves(x) for x in (a, b))
    return all(np.array_equal(x, y) for x, y in zip(*leaves, strict=True))


# Folding ------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    context=st.integers(0, 2000),
    tail=st.integers(2, 40),
    segment=st.integers(40, 130),
    align=st.sampled_from(["left", "right"]),
)
def test_a_layout_covers_the_context_and_keeps_the_tail_whole(context, tail, segment, align):
    bounds = segment_bounds(context, tail, segment, align)
    sizes = np.diff(bounds).tolist()
    assert bounds[0] == 0 and bounds[-1] == context
    assert all(0 < size <= segment for size in sizes[:-1])
    assert sizes[-1] + tail <= segment
    least = -(-(context + tail) // segment)
    assert least <= len(sizes) <= least + 1
    if align == "right" and context >= segment:
        assert sizes[-1] + tail == segment
        assert all(size == segment for size in sizes[1:-1])


@settings(max_examples=200, deadline=None)
@given(
    sentences=st.lists(st.integers(1, 150), max_size=60),
    tail=st.integers(2, 40),
    segment=st.integers(40, 130),
)
def test_a_layout_at_ends_of_sentences_tears_none_that_fits(sentences, tail, segment):
    stops = np.cumsum([0, *sentences])[1:]
    context = int(sum(sentences))
    bounds = segment_bounds(context, tail, segment, "sentence", stops)
    sizes = np.diff(bounds).tolist()
    assert bounds[0] == 0 and bounds[-1] == context
    assert all(0 < size <= segment for size in sizes[:-1])
    assert sizes[-1] + tail <= segment
    for start, end in zip(bounds[:-2], bounds[1:-1], strict=True):
        if end not in stops:  # nowhere to cut in the segment's second half: it is full
            assert end - start == segment
            assert not ((stops > end - segment // 2) & (stops <= end)).any()
    # Read in a stream, as far as the text is known, the cuts are the same.
    for known in {0, context // 3, context}:
        early = settled_bounds(known, segment, stops[stops <= known])
        assert early.tolist() == bounds[: len(early)].tolist()


def test_sentences_end_where_they_should():
    text = 'Mary went home. "Where is she?" Mr. Poe asked! Not 3.5 miles; here'
    ids = np.array(TOKENS.encode(text))
    pieces = np.split(ids, sentence_ends(ids, TOKENS, "sentence"))
    assert [TOKENS.decode(p).strip() for p in pieces][:2] == ["Mary went home.", '"Where is she?"']
    assert sentence_ends(ids, TOKENS, "left") is None
    asked = (*TOKENS.sentence("Where is Mary?"), TOKENS.answer, *TOKENS.sentence("garden"))
    planted = np.array([*TOKENS.sentence("Mary left."), *asked, TOKENS.end, 9])
    assert sentence_ends(planted, TOKENS, "sentence").tolist() == [
        len(TOKENS.sentence("Mary left.")), len(planted) - 1,
    ]  # fmt: skip


def test_training_texts_cut_at_ends_of_sentences_end_there():
    loader = Loader(config().replace(data=Data(TASKS, align="sentence")), TOKENS)
    for step in range(3):
        batch = loader.batch_at(step)
        ids, stops = batch.tokens, TOKENS.stops
        counts = batch.mask.sum(-1)
        for i, s in zip(*np.nonzero(counts[:, :-1]), strict=True):
            last = ids[i, s, counts[i, s] - 1]
            assert stops[last] or counts[i, s] == ids.shape[-1]


@pytest.mark.parametrize("align", ["left", "right", "sentence"])
@pytest.mark.parametrize("length", ["1s", "2s", "5s", "16s"])
def test_a_length_in_segments_is_read_in_as_many(align, length):
    composer = Composer(Data(TASKS, align=align), TOKENS, segment_tokens=64)
    for index in range(8):
        s = composer.sample("qa2", length, 0, index)
        question = len(s.question_ids)
        bounds = segmentation.sample_bounds(
            s.context, question, composer.answer_room, 64, align, TOKENS
        )
        most = int(length[:-1])
        assert len(bounds) - 1 <= most
        if align == "sentence":  # an eighth of a segment less is taken as often as it must be
            assert bounds[-1] > 0.6 * most * 64 - 24
        else:
            assert bounds[-1] + question + 1 + composer.answer_room == most * 64


def test_a_tail_longer_than_a_segment():
    with pytest.raises(ValueError, match="take 41 tokens, but a segment has 40"):
        segment_bounds(10, 41, 40)


@pytest.mark.parametrize("align", ["left", "right", "sentence"])
def test_folded_text_is_the_text(align):
    composer = Composer(Data(TASKS), TOKENS, "train", segment_tokens=64)
    samples = [
        composer.sample("qa1", "0k", 0, 1),
        composer.sample("qa2", "200", 0, 2, StoryOptions(facts=(6, 9), question_rate=1.0)),
        composer.sample("qa5", "3s", 0, 3),
    ]
    room = composer.answer_room
    cut = [
        segmentation.sample_bounds(s.context, len(s.question_ids), room, 64, align, TOKENS)
        for s in samples
    ]
    segments = max(len(bounds) - 1 for bounds in cut)
    batch = collate(
        samples,
        TOKENS,
        segments=segments,
        segment_tokens=64,
        answer_room=room,
        answered_segments=segments,
        questions=6,
        tasks=tasks.create_all(Data(tasks=("qa1", "qa2", "qa5"))),
        prompt=Prompt(tokens=24),
        align=align,
    )
    for i, s in enumerate(samples):
        flat = batch.tokens[i][batch.mask[i]]
        right = [*s.question_ids, TOKENS.answer, *s.answer_ids, TOKENS.end]
        assert flat.tolist() == [*s.context.tolist(), *right]
        assert (batch.tokens[i][~batch.mask[i]] == TOKENS.pad).all()
        # Padding stands behind the tokens of a segment, empty segments in front.
        assert (np.diff(batch.mask[i].astype(int), axis=1) <= 0).all()
        used = batch.mask[i].any(axis=1)
        assert used[-1] and (np.diff(used.astype(int)) >= 0).all()
        # The whole tail is in the last segment, its target at the ANSWER token.
        at = batch.answer_start[i, -1, 0]
        assert batch.tokens[i, -1, at] == TOKENS.answer
        assert batch.answer[i, -1, 0].tolist() == [*s.answer_ids, TOKENS.end]
        assert batch.metric_row[i, -1, 0] == batch.task[i] == i
    # Every counted answer follows its ANSWER token in the text.
    counted = np.argwhere(batch.weight.sum(-1) > 0)
    assert len(counted) > len(samples)
    for i, r, q in counted:
        at, n = batch.answer_start[i, r, q], int(batch.weight[i, r, q].sum())
        segment = batch.tokens[i, segments - batch.answer_start.shape[1] + r]
        assert segment[at] == TOKENS.answer
        assert segment[at + 1 : at + n].tolist() == batch.answer[i, r, q, : n - 1].tolist()
        assert batch.answer[i, r, q, n - 1] == TOKENS.end
    assert {int(batch.metric_row[tuple(c)]) for c in counted} == {0, 1, 2, 3}


def test_a_text_too_long_for_the_batch():
    composer = Composer(Data(TASKS), TOKENS, "train", segment_tokens=64)
    with pytest.raises(ValueError, match="take 4 segments of 64, but the batch has 2"):
        collate(
            [composer.sample("qa1", "200", 0, 0)],
            TOKENS,
            segments=2,
            segment_tokens=64,
            answer_room=2,
            tasks=composer.tasks,
            prompt=Prompt(),
        )


# Loading ------------------------------------------------------------------------------------------


def test_buckets():
    stage = STAGES[0]
    for segments, lengths in ((1, (1,)), (6, (1, 2, 4, 6)), (32, (1, 2, 4, 8, 16, 32))):
        assert dataclasses.replace(stage, segments=segments).buckets == lengths


def test_a_batch_is_a_function_of_its_step(loader):
    again = Loader(config(), tokenizer.load(), "train")
    steps = list(range(loader.steps))
    first = [loader.batch_at(step) for step in steps]
    for step in reversed(steps):
        assert same(again.batch_at(step), first[step])
    assert not same(first[0], first[1])
    texts = {row.tobytes() for batch in first for row in batch.tokens}
    assert len(texts) > 0.95 * 8 * len(steps)  # no sample twice


def test_resuming_at_a_step_gives_the_batch_of_that_step(loader):
    stream = loader.stream(4, host=0, hosts=1)
    for step in (4, 5, 6):  # over the border of two stages
        assert same(next(stream), loader.batch_at(step))
    stream.close()
    assert len(list(loader.stream(10, host=0, hosts=1))) == 2


def test_four_hosts_see_what_one_sees(loader):
    for step in (0, 6):
        shares = [loader.batch_at(step, host, 4) for host in range(4)]
        whole = jax.tree.map(lambda *parts: np.concatenate(parts), *shares)
        assert same(whole, loader.batch_at(step))
    with pytest.raises(ConfigError, match="8 texts per batch cannot be shared by 3 hosts"):
        loader.batch_at(0, 0, 3)


def test_shapes_are_few_and_known_ahead(loader):
    shapes = set()
    for step in range(loader.steps):
        batch = loader.batch_at(step)
        b, s, length = batch.tokens.shape
        assert loader.tokens_at(step) == b * s * length
        assert s in loader.stages[loader.stage_at(step)].buckets
        shapes.add((batch.tokens.shape, batch.answer_start.shape, batch.answer.shape))
    assert len(shapes) <= 1 + 3


def test_a_stage_has_its_tasks_facts_and_questions(loader):
    first = [loader.batch_at(step) for step in range(5)]
    tasks = np.concatenate([batch.task for batch in first])
    assert set(tasks.tolist()) == {0, 1} and (tasks == 1).mean() > 0.5
    assert all(batch.answer_start.shape[1:] == (1, 4) for batch in first)
    dense = np.concatenate([(batch.weight.sum(-1) > 0).sum((1, 2)) for batch in first])
    assert dense.min() == 1 and dense.max() >= 3
    later = loader.batch_at(7)
    assert later.answer_start.shape[1:] == (1, 1) and later.weight[..., 0].all()


def test_ranges_of_facts_are_drawn_a_sample():
    loader = Loader(
        config(facts=(Facts(4, 4), Facts(9, 11), OFFICIAL), background=0.0), TOKENS, "train"
    )
    facts = [len(loader._sample(1, 8, i).facts) for i in range(120)]
    short, long = facts.count(4) / 120, sum(9 <= n <= 11 for n in facts) / 120
    assert short > 0.2 and long > 0.2 and max(facts) > 11


def test_a_prompt_with_the_question_has_only_this_question_on_the_way(loader):
    apart = dataclasses.replace(loader.config, prompt=Prompt(source="description", tokens=32))
    for reader, known in ((loader, True), (Loader(apart, TOKENS, "train"), False)):
        others = 0
        for index in range(40):
            story = reader._sample(0, 1, index).story
            others += sum(ask.question != story.question for ask in story.intermediate_questions)
        assert (others == 0) == known


def test_probes_are_answered_by_what_was_read():
    stages = dict(
        facts=(Facts(3, 8),),
        question_rates=(0.0, 0.5),
        probes=True,
        background=1.0,  # enough of it for idle segments, whichever text Python brings
        tasks=dict.fromkeys(("qa1", "qa2", "qa3", "qa5"), 1.0),
    )
    still = dataclasses.replace(config().optimizer, memory_drift_penalty=0.1)
    loader = Loader(config(**stages).replace(optimizer=still), TOKENS, "train")
    assert (
        Loader(config(**stages), TOKENS, "train").batch_at(6).background_only is None
    )  # nobody asks
    checked = idle = 0
    for step in range(5, 12):
        batch = loader.batch_at(step)
        if batch.probe is None:
            assert batch.tokens.shape[1] == 1
            continue
        for i, k in np.argwhere(batch.mask.any(-1)):
            here = TOKENS.decode(batch.tokens[i, k])  # a fact may be torn by a segment's end
            assert not (batch.background_only[i, k] and FACT.search(here))
        assert not batch.background_only[:, -1].any()
        idle += batch.background_only.sum()
        for i, k in np.argwhere(batch.probe.mask.any(-1)):
            read = TOKENS.decode(batch.tokens[i, : k + 1][batch.mask[i, : k + 1]])
            told = TOKENS.decode(batch.tokens[i][batch.mask[i]])
            oracle, known = Oracle(), None
            for fact in FACT.findall(read):
                oracle.read(fact)
            asked, _, answer = TOKENS.decode(batch.probe.tokens[i, k]).partition("<answer>")
            known = oracle.answer(asked.strip())
            assert told.rpartition("<answer>")[0].endswith(asked)  # the final question
            assert answer.startswith(f" {known}<end>"), (read, asked, known, answer)
            at, right = batch.answer_start[i, k, -1], batch.answer[i, k, -1]
            assert batch.probe.tokens[i, k, at] == TOKENS.answer and batch.weight[i, k, -1, 0] == 1
            assert TOKENS.decode(right).startswith(f" {known}<end>")
            checked += 1
    assert checked > 10 and idle > 1


def test_idle_segments_are_told_with_planted_questions_too():
    still = dataclasses.replace(config().optimizer, memory_drift_penalty=0.1)
    stages = dict(facts=(Facts(2, 4),), question_rates=(1.0, 0.5), background=1.0)
    loader = Loader(config(**stages).replace(optimizer=still), TOKENS, "train")
    idle = busy = 0
    for step in range(5, 12):
        batch = loader.batch_at(step)
        if batch.tokens.shape[1] == 1:
            assert batch.background_only is None  # nothing stands before the question
            continue
        assert batch.probe is None and batch.background_only.shape == batch.answer_start.shape[:2]
        for i, k in np.argwhere(batch.mask.any(-1)):
            fact = FACT.search(TOKENS.decode(batch.tokens[i, k]))
            assert not (batch.background_only[i, k] and fact)
            busy += bool(fact)
        idle += batch.background_only.sum()
    assert idle > 1 and busy > 1


def test_validation_is_another_world(loader):
    validation = Loader(config(), TOKENS, "validation")
    batches = list(validation.batches(0, 2))
    assert [b.tokens.shape for b in batches] == [(64, 1, 64)] * 2
    assert same(batches[1], list(validation.batches(0, 2))[1])
    (one,) = validation.evaluation_batches(2, 1, batch=10)
    assert one.tokens.shape == (10, 2, 64) and one.task.tolist() == [0, 1, 2, 3, 4] * 2
    assert one.mask[:, 0].all()  # full: hidden in background


def test_new_names_are_drawn_and_have_room():
    named = config()
    named = dataclasses.replace(named, data=dataclasses.replace(named.data, new_names=1.0))
    loader = Loader(named, TOKENS, "train")
    assert loader.composer.answer_room > 3
    batch = loader.batch_at(0)
    text = TOKENS.decode(batch.tokens[batch.mask])
    assert "Mary" not in text and " garden" not in text


@pytest.mark.slow
def test_worker_processes_give_the_same(loader):
    workers = config()
    workers = dataclasses.replace(workers, data=dataclasses.replace(workers.data, workers=2))
    stream = Loader(workers, TOKENS, "train").stream(3, host=0, hosts=1)
    for step in range(3, 8):
        assert same(next(stream), loader.batch_at(step))
    stream.close()
