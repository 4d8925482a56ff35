"""The benchmark compares like with like: the peer in PyTorch does what our train step does."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
import tiny
from flax import nnx

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks/ is no part of the installed package

from benchmarks import page, run, variants  # noqa: E402
from benchmarks.cases import SIZES, Case, Size, cases, texts  # noqa: E402
from benchmarks.ours import batch_of, config_of  # noqa: E402
from rmt_jax import api, config, models  # noqa: E402
from rmt_jax.models import recurrence  # noqa: E402
from rmt_jax.models.backbones import BACKBONES  # noqa: E402
from rmt_jax.models.cells import CELLS  # noqa: E402
from rmt_jax.models.io import names, weights  # noqa: E402
from rmt_jax.training import step as steps  # noqa: E402

SIZE = Size(
    layers=2, width=16, heads=2, vocab=37, positions=32, segment=8, memory=3, batch=2, large=2
)

LLAMA = dataclasses.replace(SIZE, width=24, heads=4, kv_heads=2, mlp=40)
BOTH = pytest.mark.parametrize("size", (SIZE, LLAMA), ids=("gpt2", "llama"))


def drawn(size: Size):
    """Weights large enough for every path to matter."""
    ours = config_of(size)
    built = nnx.eval_shape(
        lambda: models.build(ours.model, ours.prompt, size.vocab, 5, nnx.Rngs(0))
    )
    static, shapes = models.split(built)
    rng = np.random.default_rng(0)
    draw = lambda x: 0.3 * rng.standard_normal(x.shape).astype(np.float32)  # noqa: E731
    return ours, static, jax.tree.map(draw, shapes)


def in_their_names(size: Size, flat):
    return names.to_theirs(flat, BACKBONES[config_of(size).model.backbone], CELLS["rmt"])


def theirs(size: Size, params, published: bool):
    torch = pytest.importorskip("torch", reason="pip install -e '.[bench]' brings torch")
    from benchmarks.peer import Peer

    peer = Peer(size, published)
    flat = {name: np.asarray(value) for name, value in weights.flatten(params).items()}
    state = {n: torch.tensor(value) for n, value in in_their_names(size, flat).items()}
    peer.load_state_dict(state)
    made = texts(size, 3, 2)
    return peer, *(torch.from_numpy(x).long() for x in made)


@pytest.mark.torch
@BOTH
def test_the_peer_has_our_loss_and_our_gradients(size):
    _, static, params = drawn(size)
    keep = optax.GradientTransformation(lambda p: p, lambda g, s, p: (g, g))
    step = steps.make_train_step(static, keep, 6, bptt=0, remat=False)
    state, sums = jax.jit(step)(steps.init_state(params, keep), batch_of(size, 3, 2))
    loss = float(sums.loss.sum() / sums.weight.sum())
    flat = {name: np.asarray(g) for name, g in weights.flatten(state.opt).items()}
    found = in_their_names(size, flat)

    for published in (False, True):
        peer, tokens, answer = theirs(size, params, published)
        wanted = peer.loss(tokens, answer)
        wanted.backward()
        assert loss == pytest.approx(wanted.item(), rel=1e-5)
        for name, weight in peer.named_parameters():
            grad = weight.grad.numpy()
            assert np.abs(found[name] - grad).max() <= 1e-4 * np.abs(grad).max(), name


@pytest.mark.torch
@BOTH
def test_the_peer_reads_and_answers_as_we_do(size):
    ours, _, params = drawn(size)
    peer, tokens, _ = theirs(size, params, published=False)
    model = api.Model(ours, params)
    memory = model.read(model.initial_memory(2), tokens[:, :2].numpy())
    wanted = peer.read(peer.initial(2), tokens[:, :2])
    np.testing.assert_allclose(memory.state, wanted.detach().numpy(), atol=2e-5)
    if size.kv_heads:
        return  # no answers of this size are measured
    made = model.generate_from(memory, tokens[:, 2].numpy(), max_new_tokens=4, end=-2)
    assert np.array_equal(made, peer.answer(wanted, tokens[:, 2], 4).numpy())


@pytest.mark.parametrize(
    "cell", ("none", "rmt", *(pytest.param(c, marks=pytest.mark.slow) for c in ("prmt", "armt")))
)
def test_a_last_layer_that_leaves_out_places_changes_nothing(cell):
    """Unrolled layers leave out what nobody looks at; layers in one compiled loop make it all."""
    batch, found = tiny.batch(segments=3, answered=2), []
    told = config.Prompt("description", "every", tiny.WORDS)
    for scanned in (False, True):
        graph, params = tiny.model(
            told, cell=cell, positions="alibi", conv_width=3, scan_layers=scanned
        )
        logits = jax.jit(lambda p, g=graph: recurrence.answer_logits(models.merge(g, p), batch))
        found.append(logits(params))
    np.testing.assert_allclose(*found, atol=1e-5)


class Scripted:
    """A contender that answers at once, and a diary of whose turn it was."""

    def __init__(self, name, diary, seconds, fails=""):
        self.name, self.diary, self.took, self.fails = name, diary, seconds, fails
        self.answers = []

    def tell(self, **order):
        self.answers.append(self.ask(**order))

    def hear(self):
        return self.answers.pop(0)

    def ask(self, **order):
        if self.fails and self.fails in order:
            return {"error": "no room"}
        if "compile" in order:
            return {}
        if "prepare" in order:
            return {"batch": order["prepare"].batches[0], "seconds": self.took}
        self.diary.append(self.name)
        return {"seconds": [self.took] * order["repeat"], "peak": 2**30}


def test_contenders_take_turns_and_each_starts_in_turn():
    diary = []
    sides = {n: Scripted(n, diary, s) for n, s in (("ours", 0.2), ("best", 0.4))}
    case = Case("train/tiny/1", "train", "tiny", 1, (8,), ("ours", "best"))
    found = run.measure(case, sides, rounds=3)["contenders"]
    assert diary == ["ours", "best", "best", "ours", "ours", "best"]
    assert found["ours"]["seconds"] == [0.2] * 3 and found["ours"]["tokens"] == 8 * 32
    assert found["ours"]["repeat"] == 5 and found["best"]["repeat"] == 3
    sides["ours"].took = 6.0
    found = run.measure(case, sides, rounds=1)["contenders"]
    assert found["ours"]["repeat"] == 1


@pytest.mark.parametrize("together", (False, True))
@pytest.mark.parametrize("order", ("compile", "prepare"))
def test_a_contender_that_cannot_run_is_named_and_the_others_go_on(order, together):
    sides = {"ours": Scripted("ours", [], 0.2), "best": Scripted("best", [], 0.4, fails=order)}
    case = Case("train/tiny/1", "train", "tiny", 1, (8,), ("ours", "best"))
    found = run.measure(case, sides, rounds=2, together=together)
    assert list(found["contenders"]) == ["ours"] and found["left_out"] == {"best": "no room"}


@pytest.mark.parametrize("device", ("cpu", "cuda"))
def test_on_a_gpu_every_case_has_processes_of_its_own(device, tmp_path, monkeypatch):
    """JAX's peak of a GPU's memory is of the process; a CPU's is set back before each turn."""
    open_now, opened = set(), []

    class Hired(Scripted):
        def __init__(self, name, *_):
            super().__init__(name, [], 0.5)
            open_now.add(self)
            opened.append(name)
            assert len(open_now) <= 3, "the last case's are still there"

        def ask(self, **order):
            return {"jax": "1"} if "describe" in order else super().ask(**order)

        def close(self):
            open_now.remove(self)

    monkeypatch.setattr(run, "Child", Hired)
    monkeypatch.setattr(run, "_device", lambda _: device)
    run.main(["--only", "train/tiny/*", "--rounds", "1", "--out", str(tmp_path)])
    assert not open_now and len(opened) == (9 if device == "cuda" else 3)
    written = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert list(written["cases"]) == ["train/tiny/1", "train/tiny/4", "train/tiny/16"]


def test_the_page_says_who_is_faster_and_keeps_what_was_written_by_hand(tmp_path):
    entry = {"batch": 8, "repeat": 1, "seconds": [1.0, 2.0, 4.0], "peak": 2**30, "tokens": 512}
    sides = {"ours": entry, "best": entry | {"seconds": [3.0, 3.0, 3.0]}}
    machine = run.machine("cpu", "wall", {"jax": "1", "torch": "2"})
    results = {
        "machine": machine,
        "cases": {
            "train/tiny/4": {"contenders": sides, "left_out": {"published": "no room"}},
            "read/small/4k": {"contenders": sides, "left_out": {}},
            "read/small/32k": {"contenders": sides, "left_out": {}},
        },
    }
    page.write(results, tmp_path)
    file = tmp_path / "RESULTS.md"
    file.write_text(file.read_text() + "\nWhat helped: nothing.\n")
    page.write(results, tmp_path)
    text = file.read_text()
    assert text.endswith("What helped: nothing.\n")
    assert "| tiny/4 | 8 | 3 | 2.00 (1.00–4.00) | 3.00 (3.00–3.00) | left out | 1.50 |" in text
    assert "no room" in text and (tmp_path / "images" / "reading.png").stat().st_size > 1000


def test_cases_are_named_once_and_know_their_sizes():
    for accelerator in (False, True):
        names = [case.name for case in cases(accelerator)]
        assert len(set(names)) == len(names)
        for case in cases(accelerator):
            assert case.name.split("/")[:2] == [case.kind, case.size] and case.size in SIZES
    assert dataclasses.asdict(SIZES["base"])["vocab"] == 50257


@pytest.mark.slow
@pytest.mark.torch
def test_the_command(tmp_path):
    """Compiles with PyTorch's own compiler, which takes a minute."""
    command = [sys.executable, "-m", "benchmarks.run", "--quick", "--rounds", "2"]
    subprocess.run([*command, "--out", str(tmp_path)], check=True, cwd=ROOT)
    found = json.loads((tmp_path / "results.json").read_text())["cases"]["train/tiny/1"]
    assert set(found["contenders"]) == {"ours", "best", "published"}
    assert all(len(entry["seconds"]) == 2 for entry in found["contenders"].values())


@pytest.mark.slow
def test_variants_of_our_step_are_timed_and_a_wrong_setting_is_named(monkeypatch, capsys):
    monkeypatch.setitem(variants.SIZES, "tiny", SIZE)
    monkeypatch.setattr(variants, "ROUNDS", 1)
    monkeypatch.setattr(variants, "SEGMENTS", 3)
    steps_ = ["texts=2,segments=2,remat=true", "texts=1,segments=1,tokens=5,kernels=false"]
    variants.main(["--size", "tiny", "--read", "1", *steps_])
    said = capsys.readouterr().out
    assert all(re.search(rf"\| {name} \| [\d.]+ \| [\d,]+ \|", said) for name in steps_)
    assert re.search(r"\| 1 \| [\d.]+ \| [\d.]+ \|", said)
    with pytest.raises(SystemExit, match="no field 'model.atention'. Did you mean"):
        variants.main(["--size", "tiny", "atention=xla"])
    with pytest.raises(SystemExit, match="texts=many: texts, segments, tokens are whole numbers"):
        variants.main(["--size", "tiny", "texts=many"])
    with pytest.raises(SystemExit, match="tokens=999: tokens must be 1 to"):
        variants.main(["--size", "tiny", "tokens=999"])
