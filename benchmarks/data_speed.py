"""How fast text becomes packed batches: SeqIO as T5 uses it, and t5lite from text and from a cache.

All cases make span-corruption batches of the same text with the same vocabulary and lengths, one
after the other in this process, in rounds, so that whatever else the machine does hits all of them.
A token is a place of `encoder_input_tokens` or `decoder_target_tokens` that is not padding.

    python benchmarks/data_speed.py --seconds 10 --json speed.json
"""

import argparse
import contextlib
import functools
import json
import logging
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from t5lite.data import PackedData, TaskData, python_docs_vocabulary
from t5lite.data.demo import python_docs
from t5lite.data.importing import import_seqio
from t5lite.data.packed.writer import write_packed
from t5lite.objectives import Seq2Seq, SpanCorruption

LENGTHS = {"inputs": 512, "targets": 114}
# 568 tokens become 512 and 114: 85 of them noise, in 28 spans, EOS on both sides.
RAW_LENGTH, NOISE_DENSITY, MEAN_SPAN = 568, 0.15, 3.0
BATCH_SIZE = 64
# So many passes that the cache is larger than those of a CPU.
_PASSES = 40
Opened = tuple[Iterator[dict[str, np.ndarray]], Callable[[], None]]


def t5_task() -> str:
    """Returns the name of a SeqIO task with T5's own recipe: tokenise, concatenate, split, corrupt.

    The preprocessors follow Raffel et al. 2020, §3.1.4, and are written with TensorFlow's
    operations, as T5's are.
    """
    seqio = import_seqio()
    import tensorflow as tf

    name = "data_speed_peer"
    vocabulary = python_docs_vocabulary().as_seqio()
    if name not in seqio.TaskRegistry.names():
        documents = python_docs.documents("train")
        seqio.TaskRegistry.add(
            name,
            source=seqio.FunctionDataSource(
                lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensor_slices(
                    {"inputs": [""] * len(documents), "targets": documents}
                ),
                splits=["train"],
            ),
            preprocessors=[
                seqio.preprocessors.tokenize,
                concatenate_and_split,
                functools.partial(corrupt, vocab_size=vocabulary.vocab_size),
                seqio.preprocessors.append_eos,
            ],
            output_features=dict.fromkeys(LENGTHS, seqio.Feature(vocabulary, add_eos=True)),
        )
    return name


def seqio_t5() -> Opened:
    """SeqIO reads T5's task, packs and batches."""
    seqio = import_seqio()
    import tensorflow as tf

    dataset = seqio.get_dataset(
        t5_task(),
        task_feature_lengths=LENGTHS,
        dataset_split="train",
        shuffle=True,
        num_epochs=None,
        feature_converter=seqio.EncDecFeatureConverter(pack=True),
        seed=0,
    )
    dataset = dataset.batch(BATCH_SIZE, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
    return dataset.as_numpy_iterator(), lambda: None


def concatenate_and_split(dataset: Any) -> Any:
    """Joins the tokens of 128 documents at a time, and cuts them into pieces of `RAW_LENGTH`."""
    import tensorflow as tf

    def split(example: Any) -> Any:
        tokens = tf.reshape(example["targets"], [-1])
        tokens = tf.boolean_mask(tokens, tf.cast(tokens, tf.bool))
        count = tf.math.floordiv(tf.size(tokens) + RAW_LENGTH - 1, RAW_LENGTH)
        padding = count * RAW_LENGTH - tf.size(tokens)
        return {"targets": tf.reshape(tf.pad(tokens, [[0, padding]]), [-1, RAW_LENGTH])}

    def trim(example: Any) -> Any:
        tokens = example["targets"]
        return {"targets": tf.boolean_mask(tokens, tf.cast(tokens, tf.bool))}

    dataset = dataset.map(lambda example: {"targets": example["targets"]}, tf.data.AUTOTUNE)
    dataset = dataset.padded_batch(128, padded_shapes={"targets": [-1]})
    dataset = dataset.map(split, tf.data.AUTOTUNE).unbatch().map(trim, tf.data.AUTOTUNE)
    return dataset.filter(lambda example: tf.size(example["targets"]) > 1)


def corrupt(dataset: Any, *, vocab_size: int) -> Any:
    """Makes inputs and targets of text: sentinels stand for noise, and for all but noise."""
    seqio = import_seqio()
    import tensorflow as tf

    @seqio.map_over_dataset(num_seeds=2)
    def map_fn(example: Any, seeds: Any) -> Any:
        tokens = example["targets"]
        noise = noise_mask(tf.size(tokens), seeds, shuffle=seqio.stateless_shuffle)
        return {
            "inputs": with_sentinels(tokens, noise, vocab_size),
            "targets": with_sentinels(tokens, tf.logical_not(noise), vocab_size),
        }

    return map_fn(dataset)


def noise_mask(length: Any, seeds: Any, *, shuffle: Callable) -> Any:
    """Returns a `[length]` mask of random spans, the first of which is not noise."""
    import tensorflow as tf

    def share(of: Any, part: float) -> Any:
        return tf.cast(tf.round(tf.cast(of, tf.float32) * part), tf.int32)

    def segmentation(num_items: Any, num_segments: Any, seed: Any) -> Any:
        starts = tf.cast(tf.range(num_items - 1) < num_segments - 1, tf.int32)
        starts = tf.pad(shuffle(starts, seed), [[1, 0]])
        return tf.math.segment_sum(tf.ones_like(starts), tf.cumsum(starts))

    num_noise = tf.clip_by_value(share(length, NOISE_DENSITY), 1, length - 1)
    num_spans = tf.maximum(share(num_noise, 1 / MEAN_SPAN), 1)
    noise = segmentation(num_noise, num_spans, seeds[0])
    kept = segmentation(length - num_noise, num_spans, seeds[1])
    sizes = tf.reshape(tf.stack([kept, noise], axis=1), [num_spans * 2])
    starts = tf.math.unsorted_segment_sum(
        tf.ones([num_spans * 2 - 1], tf.int32), tf.cumsum(sizes)[:-1], length
    )
    return tf.equal(tf.cumsum(starts) % 2, 1)


def with_sentinels(tokens: Any, mask: Any, vocab_size: int) -> Any:
    """Replaces each masked span by one sentinel, in descending order of ids."""
    import tensorflow as tf

    before = tf.pad(mask[:-1], [[1, 0]])
    first = tf.logical_and(mask, tf.logical_not(before))
    sentinels = vocab_size - tf.cumsum(tf.cast(first, tokens.dtype))
    return tf.boolean_mask(
        tf.where(first, sentinels, tokens), tf.logical_not(tf.logical_and(mask, before))
    )


def ours(data: Any, objective: Any) -> Opened:
    """t5lite's batches of any data."""
    batches = data.train_batches(objective, seed=0)
    return batches, batches.close


def task_data(task: str = "python_docs") -> Any:
    """Returns the documents as a SeqIO task."""
    return TaskData(task, lengths=LENGTHS, batch_size=BATCH_SIZE)


def text_files(folder: Path) -> Any:
    """Returns the documents as text files, a document a line; None where FileData is missing."""
    from t5lite.data import FileData

    documents = [" ".join(text.split()) for text in python_docs.documents("train")]
    for number in range(4):
        part = documents[number::4]
        (folder / f"{number}.txt").write_text("\n".join(part) + "\n", encoding="utf-8")
    return FileData(
        str(folder / "*.txt"),
        features={"targets": "{text}"},
        vocab=python_docs_vocabulary(),
        lengths=LENGTHS,
        batch_size=BATCH_SIZE,
    )


def packed(folder: Path) -> Any:
    """Returns a packed cache of the documents."""
    write_packed(task_data(), SpanCorruption(), folder / "cache", epochs=_PASSES)
    return PackedData(str(folder / "cache"), lengths=LENGTHS, batch_size=BATCH_SIZE)


def measure(opened: Opened, *, seconds: float) -> dict[str, float]:
    """Reads batches for a while, after some that are not counted.

    Returns:
      tokens, wall seconds, CPU seconds of all threads, and the share of places without a token.
    """
    batches, close = opened
    try:
        for _ in range(8):
            next(batches)
        tokens = places = 0
        wall, cpu = time.perf_counter(), time.process_time()
        while time.perf_counter() - wall < seconds:
            batch = next(batches)
            for name in ("encoder_input_tokens", "decoder_target_tokens"):
                tokens += int(np.count_nonzero(batch[name]))
                places += batch[name].size
        return {
            "tokens": tokens,
            "seconds": time.perf_counter() - wall,
            "cpu_seconds": time.process_time() - cpu,
            "padding": 1 - tokens / places,
        }
    finally:
        close()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="a case and round (5)")
    parser.add_argument("--rounds", type=int, default=3, help="of all cases (3)")
    parser.add_argument("--only", action="append", help="cases whose name contains this")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    options = parser.parse_args()
    logging.getLogger("absl").setLevel(logging.ERROR)  # SeqIO's advice on shuffling

    with tempfile.TemporaryDirectory() as folder:
        corruption = SpanCorruption()
        data = {
            # Corrupted by the task itself, as SeqIO has it, or by the objective.
            "t5lite, T5's recipe": (lambda: task_data(t5_task()), Seq2Seq()),
            "t5lite, SeqIO task": (task_data, corruption),
            "t5lite, text files": (functools.partial(text_files, Path(folder)), corruption),
            "t5lite, packed cache": (functools.partial(packed, Path(folder)), corruption),
        }
        cases: dict[str, Callable[[], Opened]] = {"SeqIO, T5's recipe": seqio_t5}
        for name, (make, objective) in data.items():
            if not options.only or any(part in name for part in options.only):
                cases[name] = functools.partial(ours, make(), objective)
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
        for _ in range(options.rounds):
            for name, begin in cases.items():
                rounds[name].append(measure(begin(), seconds=options.seconds))
    report(rounds, options.json)


def report(rounds: dict[str, list[dict[str, float]]], path: Path | None) -> None:
    """Prints the median round of each case, and how it compares with the first."""
    results: dict[str, dict[str, float]] = {}
    for name, found in rounds.items():
        rates = [each["tokens"] / each["seconds"] for each in found]
        costs = [1e6 * each["cpu_seconds"] / each["tokens"] for each in found]
        results[name] = {
            "tokens_per_second": float(np.median(rates)),
            "slowest_round": min(rates),
            "fastest_round": max(rates),
            "cpu_microseconds_per_token": float(np.median(costs)),
            "cores": float(np.median([each["cpu_seconds"] / each["seconds"] for each in found])),
            "padding": float(np.mean([each["padding"] for each in found])),
        }
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    print(f"{machine}, rows of {LENGTHS['inputs']} + {LENGTHS['targets']}, batches of {BATCH_SIZE}")
    first = next(iter(results.values()))
    print(
        f"{'':22} {'tokens/s':>12} {'':>7} {'CPU us/token':>13} {'':>7} {'cores':>6} {'padding':>8}"
    )
    for name, each in results.items():
        rate, cost = each["tokens_per_second"], each["cpu_microseconds_per_token"]
        print(
            f"{name:22} {rate:12,.0f} {rate / first['tokens_per_second']:6.2f}x {cost:13.3f} "
            f"{first['cpu_microseconds_per_token'] / cost:6.2f}x {each['cores']:6.2f} "
            f"{each['padding']:8.1%}"
        )
    if path:
        described = {"machine": machine, "lengths": LENGTHS, "batch_size": BATCH_SIZE}
        path.write_text(json.dumps(described | {"cases": results}, indent=2) + "\n")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
