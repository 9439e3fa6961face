"""Writer of any dataset's token ids as a sharded corpus."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from t5lite.data.dataset import Dataset
from t5lite.data.packed.writer import use_gin
from t5lite.data.sharded.manifest import Manifest, corpus_path
from t5lite.data.sharded.writer import write_shards
from t5lite.data.sources import NoSplit
from t5lite.data.streams.examples import Stream
from t5lite.errors import InputError
from t5lite.rows import Examples, HostHalf, Lengths, Prepared


class _Unprepared(HostHalf):
    """Passes on the token ids of some features."""

    def __init__(self, features: Sequence[str]):
        self._names = tuple(features)

    def prepare(
        self, examples: Examples, *, lengths: Lengths, vocabulary: Any, rng: np.random.Generator
    ) -> Prepared:
        for example in examples:
            yield {name: example[name] for name in self._names if name in example}


def write_tokens(
    data: Dataset,
    objective: HostHalf,
    folder: str | os.PathLike,
    *,
    seed: int = 0,
    progress: Callable[[str, int], None] = lambda split, records: None,
) -> Manifest:
    """Writes both splits of a dataset, tokenised, for `ShardedData`, and a `use.gin`.

    Args:
      data: every example of its splits is read once, in random order.
      objective: names the features; examples are written before it prepares them.
      folder, progress: see `write_shards`.
      seed: of the order.
    Raises: InputError if the data, the folder or a feature cannot be written.
    """
    for name, ends in data.add_eos().items():
        if not ends:
            raise InputError(
                f"format = shards: feature {name!r} ends without EOS (add_eos = False), which a "
                "sharded corpus does not record; use --format=packed",
                field="format",
            )
    splits: dict[str, Stream] = {}
    for split in ("train", "validation"):
        try:
            components = data.components(data.split_of(split), objective)
        except NoSplit:
            if split == "train":
                raise
            continue
        raw = [c._replace(objective=_Unprepared(c.objective.features)) for c in components]
        splits[split] = data.stream(raw, seed=seed, repeat=False)
    manifest = write_shards(splits, folder, vocabulary=data.vocabulary(), progress=progress)
    text = use_gin("ShardedData", str(corpus_path(folder)), pack=data.pack)
    (corpus_path(folder) / "use.gin").write_text(text)
    return manifest
