"""The whole way, text to text, in one go: what each stage hands to the next."""

import json
import math

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

import t5lite
from t5lite.data import TaskData, load_vocabulary
from t5lite.data.demo import python_docs
from t5lite.data.demo.tasks import DemoTask
from t5lite.models import load_spec, override
from t5lite.objectives import SpanCorruption, merge
from t5lite.optimizers import AdamW
from t5lite.parallel import Layout
from t5lite.reporting import JsonLines
from t5lite.training import Checkpoints, TrainState

SPEC = override(
    "t5_1_1_nano",
    {
        "vocab": 384,
        "embed": 32,
        "*.num_layers": 2,
        "*.blocks.*.attention.head_dim": 8,
        "decoder.blocks.*.cross_attention.head_dim": 8,
        "*.blocks.*.mlp.hidden": 64,
    },
)
LENGTHS = {"inputs": 64, "targets": 20}
BATCH, STEPS = 16, 6
OBJECTIVE = SpanCorruption()
FAST = {"xla_cpu_use_fusion_emitters": False}  # a third less to compile


class Look:
    """A callback, which sees what is on the devices: a batch, and a state after every update."""

    every = 1

    def __init__(self, batch):
        self.batch, self.seen = batch, []

    def __call__(self, run, state, *, step):
        if step == 1:
            self.arrays = run.to_devices(self.batch)
            self.loss = run.jit(
                lambda params, batch: (
                    OBJECTIVE.loss(run.model, params, batch)[0],
                    OBJECTIVE.weights(batch),
                )
            )
        terms, weights = self.loss(run.params(state), self.arrays)
        (total, coefficient), weight = terms["cross_entropy"], weights["cross_entropy"]
        for scalar in (total, weight):
            assert (scalar.shape, scalar.dtype) == ((), np.float32)
        shape = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)
        loss = float(coefficient) * float(total) / float(weight)
        self.seen.append((shape, int(state.step), loss))
        return {"look/loss": loss}


def test_text_to_text(tmp_path, monkeypatch):
    monkeypatch.setenv("T5LITE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "run"
    data = TaskData("python_docs_bytes", lengths=LENGTHS, batch_size=BATCH, num_shards=4, window=64)
    vocabulary = data.vocabulary()
    assert vocabulary is not None

    # Text: examples of strings.
    documents = python_docs.documents("train")
    assert DemoTask(data.task).columns("train") == {"targets": documents}

    # Tokens: one dimension each, what is taken out of the inputs being in the targets.
    corpus, found = "\0".join(documents), []
    for example in data.examples(OBJECTIVE, split="train", count=16, seed=0):
        for name, tokens in example.items():
            assert (tokens.ndim, tokens.dtype) == (1, np.int32)
            assert len(tokens) <= LENGTHS[name]
            assert tokens[-1] == vocabulary.eos_id
        pieces = [
            piece.tokens for piece in merge(example["inputs"], example["targets"], vocabulary)
        ]
        whole = vocabulary.decode(np.concatenate(pieces))
        found += [whole[at : at + 8] in corpus for at in range(len(whole) - 8)]
    assert np.mean(found) > 0.9  # not all, as documents are joined

    # Batch: rows of this host, packed.
    batches = data.train_batches(OBJECTIVE, seed=0)
    given = [next(batches) for _ in range(STEPS + 1)]
    batches.close()
    batch = given[0]
    assert {name: (rows.shape, rows.dtype) for name, rows in batch.items()} == {
        name: (shape.shape, shape.dtype) for name, shape in data.batch_shapes(OBJECTIVE).items()
    }
    for name, rows in batch.items():
        assert isinstance(rows, np.ndarray)
        assert rows.shape == (BATCH, LENGTHS["inputs" if name.startswith("encoder") else "targets"])
    padding = batch["decoder_segment_ids"] == 0
    np.testing.assert_array_equal(batch["decoder_target_tokens"] == 0, padding)
    np.testing.assert_array_equal(batch["decoder_loss_weights"], 1.0 - padding)

    # Train: device arrays, loss and update are what the callback sees; checkpoints stay.
    look = Look(batch)
    trained = t5lite.train(
        str(folder),
        model=SPEC,
        objective=OBJECTIVE,
        data=data,
        optimizer=AdamW(3e-3),
        steps=STEPS,
        layout=Layout({"data": 4, "fsdp": 2}, compiler_options={"cpu": FAST}),
        checkpoints=Checkpoints(every=4),
        callbacks=[look],
        writers=[JsonLines],
        log_every=1,
        operative_config=lambda: "the operative configuration",
    )

    # Device arrays: global, each device with its rows.
    for name, array in look.arrays.items():
        assert isinstance(array.sharding, NamedSharding)
        assert array.sharding.shard_shape(array.shape) == (BATCH // 8, array.shape[1])
        np.testing.assert_array_equal(array, batch[name])

    # Loss: at first that of knowing nothing (logits of unit variance), and falling.
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert len(losses) == STEPS
    assert losses[0] == pytest.approx(math.log(SPEC.vocab) + 0.5, abs=0.3)
    _, _, seen = zip(*look.seen, strict=True)
    assert losses[0] > seen[0] > seen[-1]

    # Update: a state of the same shapes, one step further.
    assert isinstance(trained.state, TrainState)
    assert [step for _, step, _ in look.seen] == [*range(1, STEPS + 1)]
    assert all(shapes == look.seen[0][0] for shapes, _, _ in look.seen)
    assert trained.metrics == {"look/loss": seen[-1]}

    # Checkpoint: the state, the position in the data, the spec, the vocabulary, the configuration.
    with Checkpoints().open(folder) as checkpointer:
        assert checkpointer.steps() == [4, STEPS]
        restored = checkpointer.restore(trained.state)
    assert restored is not None
    jax.tree.map(np.testing.assert_array_equal, restored.state, trained.state)
    going_on = data.train_batches(OBJECTIVE, seed=0)
    going_on.load_state_dict(restored.progress["data"])
    jax.tree.map(np.testing.assert_array_equal, next(going_on), given[STEPS])
    going_on.close()
    assert load_spec(folder / "model.json") == SPEC
    assert load_vocabulary(folder / "vocabulary").fingerprint == vocabulary.fingerprint
    assert (folder / "config.gin").read_text() == "the operative configuration"

    # Text: strings again, from the folder alone.
    loaded = t5lite.load(folder, layout=Layout(compiler_options={"cpu": FAST}))
    jax.tree.map(np.testing.assert_array_equal, loaded.params, trained.state.params)
    assert loaded.description.prompts == OBJECTIVE.prompts(vocabulary)
    (answer,) = loaded.generate(["Return <extra_id_0> list."], max_new_tokens=8)
    (filled,) = loaded.generate(["Return <extra_id_0> list."], max_new_tokens=8, fill=True)
    assert isinstance(answer, str)
    assert filled.startswith("Return ")
    assert filled.endswith(" list.")
