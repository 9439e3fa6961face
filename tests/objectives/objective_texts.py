"""A vocabulary by the protocol, and what an objective makes of examples."""

import numpy as np

from t5lite.data.packing import pack, pad
from t5lite.framing import Frame


class BertWords:
    """Ids as BERT's: [CLS] and a mask; every third id goes on with the word before it."""

    eos_id, unk_id, bos_id, mask_id, size, num_sentinels = 3, 4, 2, 5, 60, 2
    pad_id = 0
    frame = target_frame = Frame((2,), (3,))

    def sentinel(self, index):
        return self.size - 1 - index

    def piece(self, token_id):
        return f"##{token_id}" if token_id % 3 == 0 and token_id > 5 else f"w{token_id}"

    def decode(self, ids):
        ids = list(ids)
        ids = ids[: ids.index(self.eos_id)] if self.eos_id in ids else ids
        return " ".join(f"w{i}" for i in ids if i)


class T5Words(BertWords):
    """Neither [CLS] nor mask token; words begin at `▁`."""

    eos_id, bos_id, mask_id = 1, None, None
    frame = target_frame = Frame(after=(1,))

    def piece(self, token_id):
        return f"▁w{token_id}" if token_id % 3 else f"w{token_id}"


def prepare(objective, examples, *, lengths, vocabulary, seed=0):
    return list(
        objective.prepare(
            iter(examples), lengths=lengths, vocabulary=vocabulary, rng=np.random.default_rng(seed)
        )
    )


def batches(objective, prepared, lengths, *, fillers=2):
    """Returns the batch of prepared examples, one a row, with rows of zeros behind them."""
    rows = pad(prepared, objective.rows(lengths))
    rows = {
        k: np.concatenate([v, np.zeros_like(v, shape=(fillers, *v.shape[1:]))])
        for k, v in rows.items()
    }
    return objective.batch(rows)


def packed(objective, prepared, lengths):
    return objective.batch(pack(prepared, objective.rows(lengths)))


def random_texts(count, *, seed=0, low=6, high=58, longest=70):
    rng = np.random.default_rng(seed)
    return [
        rng.integers(low, high, rng.integers(1, longest)).astype(np.int32) for _ in range(count)
    ]
