"""A model, vocabulary, data and run small enough to compute by hand."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bag_model import BagModel

from t5lite.framing import Frame
from t5lite.objectives import Seq2Seq
from t5lite.parallel import Layout, make_mesh
from t5lite.reporting import Writers

TEXT = "<pad> </s> <unk> ▁the ▁cat s ▁sat ▁on ▁a ▁mat ▁and ▁dog ▁ran . ▁red ▁hat"
WORDS = TEXT.split()


class Words:
    """Sixteen words and four sentinels, 19 to 16."""

    size, num_sentinels, pad_id, eos_id, unk_id = 20, 4, 0, 1, 2
    frame = target_frame = Frame(after=(1,))

    def sentinel(self, index):
        return 19 - index

    def piece(self, token):
        return WORDS[token] if token < 16 else f"<extra_id_{19 - token}>"

    def encode(self, text):
        return [WORDS.index(word) for word in text.split()]

    def decode(self, ids):
        ids = [int(token) for token in ids]
        ids = ids[: ids.index(1)] if 1 in ids else ids
        return "".join(self.piece(token) for token in ids if token).replace("▁", " ").strip()


@dataclasses.dataclass
class FakeData:
    batches: list = dataclasses.field(default_factory=list)
    parts: dict = dataclasses.field(default_factory=dict)
    splits: dict = dataclasses.field(default_factory=dict)
    lengths: dict = dataclasses.field(default_factory=lambda: {"inputs": 10, "targets": 8})
    batch_size: int = 8
    words: object = dataclasses.field(default_factory=Words)
    asked: list = dataclasses.field(default_factory=list)

    def vocabulary(self):
        return self.words

    def validation_batches(
        self, objective, *, max_batches=None, shards=None, agree=bool, part=None
    ):
        return self.parts.get(part, self.batches)[:max_batches]

    def validation_parts(self, objective):
        return list(self.parts)

    def examples(self, objective, *, split, count, seed):
        self.asked.append((split, count, seed))
        return self.splits[split][:count]


class FakeRun:
    shards = None  # all

    def __init__(self, data, *, objective=None, model=None):
        self.data, self.objective = data, objective or Seq2Seq()
        self.model = model or BagModel()
        self.layout = Layout()
        self.mesh = make_mesh(self.layout)
        self.said, self.written, self.traces = [], [], 0
        keeps_text = types.SimpleNamespace(text=lambda *text: self.written.append(text))
        self.writers = Writers([types.SimpleNamespace(write=None), keeps_text])

    def params(self, state):
        return state

    def references(self, state):
        return {}

    def to_devices(self, batch):
        rows = jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec("data"))
        return jax.device_put(batch, rows)

    def jit(self, fn):
        def counted(*args):
            self.traces += 1
            return fn(*args)

        return jax.jit(counted)

    def say(self, text):
        self.said.append(text)


@pytest.fixture
def words():
    return Words()


@pytest.fixture
def fake_run():
    """Returns `make(objective=None, model=None, **fields of FakeData) -> run`."""

    def make(*, objective=None, model=None, **data):
        return FakeRun(FakeData(**data), objective=objective, model=model)

    return make


@pytest.fixture
def params():
    tables = np.random.default_rng(0).normal(0, 1, (2, 20, 20)).astype(np.float32)
    return {"decoder": jnp.asarray(tables[0]), "encoder": jnp.asarray(tables[1])}
