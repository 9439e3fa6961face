"""SeqIO tasks and mixtures as data. Imports TensorFlow."""

import dataclasses
import functools
import itertools
import json
import re
import time
from collections import Counter

import numpy as np
import pytest
from small_data import close, open_all, same, shards_of_all, take

from t5lite.data.array_data import ArrayData
from t5lite.data.batches import merge_states
from t5lite.data.importing import import_seqio
from t5lite.data.mixture import MixtureData
from t5lite.data.tasks import preprocessing as seqio_preprocessing
from t5lite.data.tasks import source as seqio_source
from t5lite.data.tasks.cache import write_seqio_cache
from t5lite.data.tasks.metric_tasks import MetricTask
from t5lite.data.tasks.source import SeqioSource
from t5lite.data.tasks.task_data import TaskData
from t5lite.data.vocabularies.byte_ids import Bytes
from t5lite.errors import InputError
from t5lite.objectives import Seq2Seq
from t5lite.rows import HostHalf, RowSpec

LENGTHS = {"inputs": 24, "targets": 12}
SIZE = {"train": 90, "validation": 21, "empty": 0}


class Plain(HostHalf):
    """Cuts examples to their lengths."""

    features = ("inputs", "targets")

    def prepare(self, examples, *, lengths, vocabulary, rng):
        for example in examples:
            yield {name: example[name][: lengths[name]] for name in self.features}

    def batch(self, rows):
        return rows


class TargetsOnly(Plain):
    """Makes both features out of one, which it must get whole."""

    def prepare(self, examples, *, lengths, vocabulary, rng):
        for example in examples:
            tokens = example["targets"]
            yield {"inputs": tokens[:3], "targets": np.array([tokens.size])}


@pytest.fixture(scope="module")
def seqio():
    return import_seqio()


@pytest.fixture(scope="module")
def tf(seqio):
    import tensorflow

    return tensorflow


@pytest.fixture
def make_task(seqio, tf):
    """Makes tasks of texts like "17 ab": examples told apart by their number, of many lengths."""

    def read(split, shuffle_files, seed=None):
        texts = [f"{i} " + "ab" * (i % 9) for i in range(SIZE[split])]
        data = {"inputs": texts, "targets": texts}
        return tf.data.Dataset.from_tensor_slices(
            {k: tf.constant(v, tf.string) for k, v in data.items()}
        )

    def make(*steps, name="made", source=None, features=("inputs", "targets"), **feature):
        return seqio.Task(
            name,
            source=source or seqio.FunctionDataSource(read, splits=list(SIZE)),
            preprocessors=[seqio.preprocessors.tokenize, *steps],
            output_features={
                item: seqio.Feature(seqio.ByteVocabulary(), **{"add_eos": False} | feature)
                for item in features
            },
        )

    return make


@pytest.fixture
def noise(seqio, tf):
    """A step that draws from SeqIO's seeds, drops some examples and repeats others."""

    @seqio.map_over_dataset(num_seeds=1)
    def replace(example, seed):
        random = tf.random.stateless_uniform([tf.size(example["inputs"])], seed, 3, 200, tf.int32)
        return {**example, "inputs": random, "copies": random[0] % 3}

    def repeat(dataset):
        return dataset.flat_map(copies)

    def copies(example):
        count = tf.cast(example["copies"], tf.int64)
        return tf.data.Dataset.from_tensors(example).repeat(count)

    return [replace, repeat]


def make_data(task, **changes):
    defaults = {"lengths": LENGTHS, "batch_size": 8, "num_shards": 4, "window": 16, "prefetch": 1}
    return TaskData(task, **(defaults | {"block_rows": 2} | changes))


def number(tokens):
    """The number at the start of a text of bytes."""
    text = bytes(int(token) - 3 for token in tokens if token > 2).decode()
    return int(text.split(" ")[0])


def examples_of(source):
    """All examples of one epoch."""
    options = {"shard": 0, "num_shards": 1, "epoch": 0, "seed": 0, "start": 0, "size": 70}
    for window in source.windows(**options):
        yield from source.examples(window, seed=0)


def first_numbers(data, count, objective=None):
    batches = data.train_batches(objective or Plain(), seed=0)
    numbers = [number(row) for _ in range(count) for row in next(batches)["inputs"]]
    batches.close()
    return np.array(numbers)


def check_continuation(data, *, seeds=3, count=20):
    """States after some batches, at any border, and with other numbers of processes."""
    whole = open_all(data, 1, Plain())
    expected = take(whole, count + 3)
    close(whole)
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        before, after = (int(rng.choice([1, 2])) for _ in range(2))
        head = int(rng.integers(0, count + 1))
        started, continued = (open_all(data, count, Plain()) for count in (before, after))
        same(take(started, head), expected[:head])
        state = json.loads(json.dumps(merge_states(item.state_dict() for item in started)))
        for item in continued:
            item.load_state_dict(state)
        same(take(continued, 3), expected[head : head + 3])
        close(started + continued)
    return expected


@pytest.mark.parametrize("pack", [True, False])
def test_a_task_continues_exactly(make_task, pack):
    check_continuation(make_data(make_task(), pack=pack))


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.slow
def test_a_task_with_random_preprocessors_continues_exactly(make_task, noise, pack):
    expected = check_continuation(make_data(make_task(*noise), pack=pack), seeds=1, count=8)
    assert len(np.unique([batch["inputs"] for batch in expected])) > 150  # noise included


def test_random_preprocessors_differ_by_shard_window_epoch_and_seed(make_task, noise):
    task = make_task(noise[0])
    batches = make_data(task, pack=False).train_batches(Plain(), seed=0)
    rows = np.concatenate([next(batches)["inputs"][:, :2] for _ in range(18)])
    assert len(np.unique(rows, axis=0)) > 0.95 * len(rows)
    another = make_data(task, pack=False).train_batches(Plain(), seed=1)
    assert (next(another)["inputs"] != rows[:8, 0, None]).any()
    close([batches, another])


def test_a_mixture_continues_exactly(seqio, make_task, noise):
    inner = seqio.Mixture("inner", [(make_task(name="a"), 2), (make_task(*noise, name="b"), 1)])
    mixture = seqio.Mixture("outer", [(inner, 1), (make_task(name="c"), 1)])
    data = make_data(mixture, num_shards=2, window=30)
    check_continuation(data, seeds=2, count=6)
    state = data.train_batches(Plain(), seed=0).state_dict()
    rates = dict(state["data"]["sources"])
    assert rates == pytest.approx({"a:train": 2 / 3, "b:train": 1 / 3, "c:train": 1})


def test_every_example_is_seen_once_in_an_epoch_and_in_another_order(make_task):
    numbers = first_numbers(make_data(make_task(), pack=False, batch_size=6, num_shards=6), 30)
    first, second = numbers[:90], numbers[90:]
    assert sorted(first) == sorted(second) == list(range(90))
    assert (first != second).any()


@pytest.mark.slow
@pytest.mark.parametrize(("files", "by_files"), [(3, False), (4, True), (9, True)])
def test_files_are_shards_if_there_are_enough(
    seqio, make_task, tmp_path, monkeypatch, files, by_files
):
    """And the split is too large to be in memory."""
    monkeypatch.setattr(seqio_source, "_MEMORY_EXAMPLES", 9)
    for i in range(files):
        lines = [f"{100 * i + j} x" for j in range(12)]
        (tmp_path / f"{i}.txt").write_text("\n".join(lines) + "\n")
    source = seqio.TextLineDataSource({"train": str(tmp_path / "*.txt")})
    steps = [seqio.preprocessors.rekey, seqio.preprocessors.tokenize]
    task = make_task().replace(
        source=source,
        preprocessors=[
            lambda dataset: dataset.map(lambda line: {"inputs": line, "targets": line}),
            steps[1],
        ],
    )
    data = make_data(task, pack=False, batch_size=4, window=5)
    numbers = first_numbers(data, files * 3).reshape(-1, 4)
    if files != 9:
        assert sorted(numbers.flat) == sorted(100 * i + j for i in range(files) for j in range(12))
    of_shard = [set(column // 100) for column in numbers.T]
    assert (not any(a & b for a, b in itertools.combinations(of_shard, 2))) == by_files
    check_continuation(data, seeds=1, count=4)


def test_files_are_no_shards_of_fewer_examples(seqio, make_task, tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.txt").write_text(f"{i} x\n" if i else "")
    files = {"train": str(tmp_path / "*.txt")}
    task = make_task().replace(
        source=seqio.TextLineDataSource(files, num_input_examples={"train": 3}),
        preprocessors=[
            lambda dataset: dataset.map(lambda line: {"inputs": line, "targets": line}),
            seqio.preprocessors.tokenize,
        ],
    )
    numbers = first_numbers(make_data(task, pack=False, batch_size=4), 3)
    assert sorted(numbers) == sorted([1, 2, 3] * 4)  # each shard has all


@pytest.mark.slow
def test_large_tasks_are_streamed(make_task, monkeypatch):
    monkeypatch.setattr(seqio_source, "_MEMORY_EXAMPLES", 50)
    data = make_data(make_task())
    check_continuation(data, seeds=3)
    ((source, *_),) = data.components("train", Plain())
    assert source._memory is None
    opened = []
    monkeypatch.setattr(
        SeqioSource,
        "_open",
        lambda self, open=SeqioSource._open, **w: opened.append(1) or open(self, **w),
    )
    first_numbers(make_data(make_task(), pack=False), 40)
    assert len(opened) <= 8  # few epochs, and not for each of four shards
    # Nobody has counted them: whole passes are.
    data = make_data(make_task(), pack=False, batch_size=6, num_shards=6, block_rows=1)
    batches = data.train_batches(Plain(), seed=0)
    rows = [number(row) for _ in range(30) for row in next(batches)["inputs"]]
    assert sorted(rows) == sorted([*range(90)] * 2)
    next(batches)
    assert (batches.epoch, type(batches.epoch)) == (2, int)
    batches.close()


@pytest.mark.slow
@pytest.mark.parametrize("num_shards", [2, 4])
def test_files_come_in_another_order_in_every_epoch(
    seqio, make_task, monkeypatch, tmp_path, num_shards
):
    """Where examples cannot; and each shard has other files."""
    monkeypatch.setattr(seqio_source, "_MEMORY_EXAMPLES", 9)
    for i in range(12):
        lines = "".join(f"{100 * i + j} x\n" for j in range(5))
        (tmp_path / f"{i:02}.txt").write_text(lines)
    task = make_task().replace(
        source=seqio.TextLineDataSource(
            {"train": f"{tmp_path}/*.txt"}, num_input_examples={"train": 60}
        ),
        preprocessors=[
            lambda dataset: dataset.map(lambda line: {"inputs": line, "targets": line}),
            seqio.preprocessors.tokenize,
        ],
    )
    data = make_data(task, pack=False, batch_size=4, num_shards=num_shards, block_rows=1)
    numbers = first_numbers(data, 30).reshape(2, -1, num_shards, 4 // num_shards)
    check_continuation(data, seeds=1, count=6)
    for epoch in numbers:
        assert sorted(epoch.flat) == [100 * i + j for i in range(12) for j in range(5)]
    for shard in range(num_shards):
        one, another = (list(dict.fromkeys(epoch[:, shard].ravel() // 100)) for epoch in numbers)
        assert one != another


def test_steps_that_need_eager_mode_or_keep_what_they_saw(seqio, tf, make_task):
    def look_up(dataset):
        keys = tf.range(300)
        table = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(keys, keys), default_value=0
        )
        return dataset.map(lambda item: {**item, "inputs": table.lookup(item["inputs"])})

    expected = first_numbers(make_data(make_task(), pack=False), 30)
    for step in (look_up, lambda dataset: dataset.cache()):
        data = make_data(make_task(step), pack=False)
        np.testing.assert_array_equal(first_numbers(data, 30), expected)


def test_steps_that_cannot_be_traced_run_eagerly_and_say_so(seqio, tf, make_task, caplog):
    def eager(dataset):
        lengths = [len(item["inputs"].numpy()) for item in dataset]
        assert all(lengths)
        return dataset

    expected = first_numbers(make_data(make_task(), pack=False), 30)
    assert not caplog.records
    data = make_data(make_task(eager), pack=False)
    np.testing.assert_array_equal(first_numbers(data, 30), expected)
    assert caplog.text.count("cannot be traced") == 1


def test_raw_examples_of_any_type_and_shape(seqio, tf, make_task):
    """Ragged, integer, scalar and empty features reach the preprocessors as they were."""

    def read(split, shuffle_files, seed=None):
        def generate():
            for i in range(20):
                ragged = tf.ragged.constant([[i] * (1 + i % 3), [], [7]], tf.int64, ragged_rank=1)
                yield {"ids": np.full(i % 4, i, np.int32), "ragged": ragged, "flag": i % 2 == 0}

        return tf.data.Dataset.from_generator(
            generate,
            output_signature={
                "ids": tf.TensorSpec([None], tf.int32),
                "ragged": tf.RaggedTensorSpec([3, None], tf.int64, ragged_rank=1),
                "flag": tf.TensorSpec([], tf.bool),
            },
        )

    @seqio.map_over_dataset
    def use(example):
        return {
            "inputs": tf.cast(example["ragged"].flat_values, tf.int32),
            "targets": tf.concat([example["ids"], [tf.cast(example["flag"], tf.int32) + 1]], 0),
        }

    task = seqio.Task(
        "raw",
        source=seqio.FunctionDataSource(read, splits=["train"]),
        preprocessors=[use],
        output_features={
            name: seqio.Feature(seqio.PassThroughVocabulary(100), add_eos=False) for name in LENGTHS
        },
    )
    source = SeqioSource(task, "train")
    actual = list(examples_of(source))
    for example in actual:
        i = example["inputs"][0]
        assert example["inputs"].tolist() == [i] * (1 + i % 3) + [7]
        assert example["targets"].tolist() == [i] * (i % 4) + [2 - i % 2]
    assert sorted(example["inputs"][0] for example in actual) == list(range(20))
    assert make_data(task).vocabulary() is None


@pytest.mark.parametrize("kind", ["bare", "eos", "renamed", "numbers", "other", "eos after trim"])
@pytest.mark.light("eos", "bare", "numbers")
def test_ids_are_seqios_wherever_the_tokenizing_is_done(seqio, tf, make_task, kind):
    """Ours where it comes last, without TensorFlow where there is nothing else."""
    append, bytes_of = seqio.preprocessors.append_eos, seqio.preprocessors.tokenize
    steps = {
        "bare": [bytes_of, seqio.CacheDatasetPlaceholder()],
        "eos": [bytes_of, append],
        "renamed": [lambda ds: ds.map(lambda item: {"inputs": item["targets"]}), bytes_of],
        "numbers": [
            lambda ds: ds.map(lambda item: {**item, "targets": tf.range(3)}),
            bytes_of,
        ],
        "other": [functools.partial(bytes_of, with_eos=True)],
        "eos after trim": [bytes_of, seqio.preprocessors.append_eos_after_trim],
    }[kind]
    task = make_task(add_eos=True)
    features = dict(task.output_features)
    if kind == "renamed":
        features["targets"] = dataclasses.replace(features["targets"], required=False)
    if kind == "numbers":
        features["targets"] = seqio.Feature(seqio.PassThroughVocabulary(5), add_eos=True)
    task = task.replace(preprocessors=steps, output_features=features)
    source = SeqioSource(task, "train")
    actual = sorted(examples_of(source), key=lambda item: item["inputs"].tolist())
    expected = [
        {name: item[name] for name in features if name in item}
        for item in task.get_dataset(None, "train", shuffle=False).as_numpy_iterator()
    ]
    same(actual, sorted(expected, key=lambda item: item["inputs"].tolist()))
    assert all(value.dtype == np.int32 for example in actual for value in example.values())
    assert source._preprocessing.traced == (kind not in ("bare", "eos"))


def test_lists_of_texts_are_refused(seqio, make_task):
    split = seqio.map_over_dataset(lambda item: {name: [item[name]] * 2 for name in LENGTHS})
    task = make_task().replace(preprocessors=[split, seqio.preprocessors.tokenize])
    with pytest.raises(InputError, match=r"'inputs' of task 'made' is int32 of shape \(2, None\)"):
        make_data(task).examples(Plain(), split="train", count=1, seed=0)


def test_lengths_reach_tasks_that_make_what_the_objective_trains_on(seqio, make_task):
    cut = seqio.preprocessors.append_eos_after_trim
    whole = make_task(cut, add_eos=True)
    shown = make_data(whole).examples(Plain(), split="train", count=90, seed=0)
    assert max(example["targets"].size for example in shown) == LENGTHS["targets"]
    assert all(example["targets"][-1] == 1 for example in shown)
    dividing = type("Dividing", (Plain,), {"whole_texts": True})()
    raw = make_data(whole).components("train", dividing)[0].source
    assert max(example["targets"].size for example in examples_of(raw)) > LENGTHS["targets"]
    text = make_task(cut, add_eos=True, features=("targets",))
    shown = make_data(text).examples(TargetsOnly(), split="train", count=90, seed=0)
    assert max(example["targets"].item() for example in shown) == len("89 ") + 2 * 8 + 1


@pytest.mark.parametrize(
    ("topology", "last"),
    [
        ("decoder", None),
        ("encoder_decoder", "append_eos"),
        ("decoder", "append_eos"),
        ("encoder_decoder", "append_eos_after_trim"),
    ],
)
@pytest.mark.light("decoder-None")
def test_features_end_as_in_seqios_converters(seqio, make_task, topology, last):
    """`add_eos` of each feature, and what is cut off: nothing is added to what the task gives."""
    task = make_task(*([getattr(seqio.preprocessors, last)] if last else []), add_eos=bool(last))
    features = dict(task.output_features)
    features["inputs"] = dataclasses.replace(features["inputs"], add_eos=False)
    task = task.replace(output_features=features)
    joined = topology == "decoder"
    objective = Seq2Seq(topology=topology, bidirectional_inputs=True)
    converter = seqio.PrefixLMFeatureConverter if joined else seqio.EncDecFeatureConverter

    def rows_of(task, split):
        """The rows that SeqIO makes, but for what a decoder reads after the last target."""
        dataset = task.get_dataset(LENGTHS, split, shuffle=False)
        dataset = converter(pack=False)(dataset, task_feature_lengths=LENGTHS)
        names = sorted({*dataset.element_spec} - {"decoder_input_tokens"})
        examples = dataset.as_numpy_iterator()
        return names, Counter(
            tuple(tuple(example[name].tolist()) for name in names) for example in examples
        )

    data = make_data(task, pack=False, num_shards=2)
    another = make_task(name="ended", add_eos=True)  # which is left to the objective
    ended = make_task(seqio.preprocessors.append_eos_after_trim, name="ended", add_eos=True)
    parts = MixtureData([data, make_data(another)], rates=[1, 1], lengths=LENGTHS, batch_size=8)
    parts = dataclasses.replace(parts, pack=False)
    assert data.add_eos() == parts.add_eos() == {"inputs": False, "targets": bool(last)}
    names, expected = rows_of(task, "validation")
    _, rest = rows_of(ended, "validation")
    for item, rows in ((data, expected), (parts, expected + rest)):
        actual = Counter(
            tuple(tuple(batch[name][row].tolist()) for name in names)
            for batch in item.validation_batches(objective)
            for row in np.flatnonzero(batch["decoder_loss_weights"].any(axis=1))
        )
        assert actual == rows


def test_a_cached_task_is_read_from_its_cache(seqio, tf, make_task, tmp_path):
    placeholder = seqio.CacheDatasetPlaceholder(required=True)
    plus_one = seqio.map_over_dataset(lambda example: {k: v + 1 for k, v in example.items()})
    task = make_task(placeholder, plus_one, name="kept")
    with pytest.raises(InputError, match="'kept' must be read from its cache: set use_cached"):
        make_data(task).train_batches(Plain(), seed=0)
    with pytest.raises(InputError, match="'kept' is not in any of SeqIO's cache folders"):
        make_data(task, use_cached=True).train_batches(Plain(), seed=0)
    folder = tmp_path / "kept"
    folder.mkdir()
    for shard in range(2):
        with tf.io.TFRecordWriter(str(folder / f"train.tfrecord-0000{shard}-of-00002")) as writer:
            for i in range(10):
                values = {name: np.array([50 + shard, i], np.int32) for name in LENGTHS}
                writer.write(seqio.dict_to_tfexample(values).SerializeToString())
    features = {name: {"shape": [None], "dtype": "int32"} for name in LENGTHS}
    info = {"num_shards": 2, "features": features, "seqio_version": "0.0.20"}
    (folder / "info.train.json").write_text(json.dumps(info))
    (folder / "stats.train.json").write_text(json.dumps({"examples": 20}))
    (folder / "COMPLETED").touch()
    try:
        seqio.add_global_cache_dirs([str(tmp_path)])
        data = make_data(task, use_cached=True, num_shards=2)
        shown = data.examples(Plain(), split="train", count=99, seed=0)
        actual = sorted(example["inputs"].tolist() for example in shown)
        assert actual == [[51 + shard, i + 1] for shard in range(2) for i in range(10)]
    finally:
        seqio.set_global_cache_dirs([])


@pytest.mark.slow
def test_caches_written_without_beam_are_read_by_seqio_and_by_us(seqio, tf, make_task, tmp_path):
    placeholder = seqio.CacheDatasetPlaceholder(required=True)
    plus_one = seqio.map_over_dataset(
        lambda example: {name: example[name] + 1 for name in ("inputs", "targets")}
    )
    labels = seqio.map_over_dataset(lambda example: {**example, "kept": tf.size(example["inputs"])})
    task = make_task(labels, placeholder, plus_one, name="group:kept")
    counts = Counter()
    write_seqio_cache(
        task, tmp_path, num_shards=5, progress=lambda split, count: counts.update({split: count})
    )
    assert counts == {"train": 90, "validation": 21}
    folder = tmp_path / "group" / "kept"
    assert (folder / "COMPLETED").exists()
    assert len(list(folder.glob("train.tfrecord-0000?-of-00005"))) == 5
    try:
        data = make_data(task, use_cached=True, cache_dirs=str(tmp_path), num_shards=2)
        expected = make_task(plus_one).get_dataset(None, "train", shuffle=False)
        by_hand = sorted(item["inputs"].tolist() for item in expected.as_numpy_iterator())
        ours = data.examples(Plain(), split="train", count=99, seed=0)
        assert sorted(item["inputs"].tolist() for item in ours) == by_hand
        stored = task.get_dataset(None, "train", use_cached=True, shuffle=False)
        assert sorted(item["inputs"].tolist() for item in stored.as_numpy_iterator()) == by_hand
        assert data.num_examples("train") == 90
        state = data.train_batches(Plain(), seed=0).state_dict()
        assert state["data"]["sources_content"] == [[90, "cached"]]
        assert task.get_cached_stats("train") == {
            "examples": 90,
            "inputs_max_tokens": 19,
            "inputs_tokens": sum(map(len, by_hand)),
            "targets_max_tokens": 19,
            "targets_tokens": sum(map(len, by_hand)),
        }
        check_continuation(data, seeds=1, count=4)
        more = dataclasses.replace(task.output_features["targets"], vocabulary=Bytes(9).as_seqio())
        another = task.replace(output_features={**task.output_features, "targets": more})
        with pytest.raises(InputError, match="made with another vocabulary for 'targets'"):
            make_data(another, use_cached=True).train_batches(Plain(), seed=0)
        path = folder / "vocabularies.json"
        for damaged in (path.read_text()[:20], "3"):
            path.write_text(damaged)
            with pytest.raises(InputError, match=r"vocabularies\.json is damaged"):
                make_data(task, use_cached=True).train_batches(Plain(), seed=0)
    finally:
        seqio.set_global_cache_dirs([])
    with pytest.raises(InputError, match="holds a cache already"):
        write_seqio_cache(task, tmp_path)
    with pytest.raises(InputError, match=r"'made' has no seqio\.CacheDatasetPlaceholder"):
        write_seqio_cache(make_task(), tmp_path)
    broken = make_task(lambda ds: ds.map(lambda _: {}["x"]), placeholder, name="broken")
    with pytest.raises(KeyError):
        write_seqio_cache(broken, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"group"}


def test_single_numbers_are_sequences_of_one(seqio, tf, make_task):
    """Labels, as SeqIO tasks have them: beside texts of another vocabulary, rank 0."""

    class Labelled(Plain):
        features = ("inputs", "labels", "score")
        packable = False

        def rows(self, lengths):
            number = RowSpec(1, (1,), kind="per_example")
            score = dataclasses.replace(number, dtype="float32")
            return {"inputs": RowSpec(lengths["inputs"]), "labels": number, "score": score}

        def prepare(self, examples, *, lengths, vocabulary, rng):
            for example in examples:
                yield {**example, "inputs": example["inputs"][: lengths["inputs"]]}

    label = seqio.map_over_dataset(
        lambda example: {
            "inputs": example["inputs"],
            "labels": tf.size(example["inputs"]),
            "score": tf.cast(tf.size(example["inputs"]), tf.float32) / 2,
        }
    )
    task = make_task(label)
    number = seqio.Feature(seqio.PassThroughVocabulary(30), add_eos=False, rank=0)
    features = {"inputs": task.output_features["inputs"], "labels": number}
    features["score"] = dataclasses.replace(number, dtype=tf.float32)
    data = make_data(task.replace(output_features=features), lengths={"inputs": 24})
    assert data.vocabulary().size == 259
    batches = data.train_batches(Labelled(), seed=0)
    batch = next(batches)
    batches.close()
    assert {"inputs", "labels", "score"} <= set(batch)  # one example a row, though pack is True
    sizes = np.count_nonzero(batch["inputs"], axis=1)
    np.testing.assert_array_equal(batch["labels"], sizes[:, None, None])
    np.testing.assert_array_equal(batch["score"], sizes[:, None, None].astype(np.float32) / 2)
    assert batch["score"].dtype == np.float32
    assert {name: item.shape for name, item in data.batch_shapes(Labelled()).items()} == {
        name: item.shape for name, item in batch.items()
    }
    string = make_task().replace(preprocessors=[], output_features={"inputs": number})
    with pytest.raises(InputError, match=r"'inputs' .* is string of shape"):
        make_data(string).examples(Labelled(), split="train", count=1, seed=0)


def test_sizes_are_known_before_reading(seqio, make_task):
    source = seqio.FunctionDataSource(
        lambda split, shuffle_files, seed=None: None,
        splits=["train", "test"],
        num_input_examples={"train": 7},
    )
    one, two = make_task(source=source, name="one"), make_task(source=source, name="two")
    assert make_data(one).num_examples("train") == 7
    assert make_data(one).num_examples("test") is None
    assert make_data(seqio.Mixture("both", [(one, 1), (two, 1)])).num_examples("train") == 14
    assert make_data(make_task()).class_counts("train") == {}


def test_a_mixture_of_any_data_continues_exactly(make_task):
    examples = [{"inputs": np.full(3, 5 + i), "targets": np.full(2, 9)} for i in range(40)]
    arrays = ArrayData(examples, lengths=LENGTHS, batch_size=8, vocab=Bytes(0))
    parts = {"task": make_data(make_task()), "arrays": arrays}
    data = MixtureData(parts, rates={"task": 1, "arrays": 1}, lengths=LENGTHS, batch_size=8)
    assert data.vocabulary().size == 259
    check_continuation(dataclasses.replace(data, window=9, num_shards=2), seeds=2, count=6)


@pytest.mark.parametrize("pack", [True, False])
def test_validation_sees_everything_once_and_again(make_task, noise, pack):
    data = make_data(make_task(), pack=pack)
    validation = data.validation_batches(Plain())
    batches = list(validation)
    same(list(validation), batches)
    segments = "targets_segment_ids" if pack else "targets"
    texts = [
        row[location == segment] if pack else row
        for batch in batches
        for row, location in zip(batch["targets"], batch[segments], strict=True)
        for segment in (np.unique(location[location > 0]) if pack else [0] * bool(row.any()))
    ]
    assert sorted(map(number, texts)) == list(range(21))
    parts = [data.validation_batches(Plain(), shards=item) for item in shards_of_all(data, 2)]
    same(take(parts, 100), batches)
    random = make_data(make_task(*noise), pack=pack)
    same(list(random.validation_batches(Plain())), list(random.validation_batches(Plain())))


def test_the_vocabulary_is_the_one_of_all_features(seqio, make_task):
    data = make_data(make_task())
    assert data.vocabulary().size == 259 + 0
    assert data.vocabulary() is data.vocabulary()
    task = make_task()
    features = {**task.output_features, "targets": seqio.Feature(seqio.ByteVocabulary(7))}
    two = task.replace(output_features=features)
    with pytest.raises(InputError, match=r"'targets' of task .* another vocabulary than 'inputs'"):
        make_data(two).vocabulary()


def test_names_and_rates_that_cannot_be_are_said(seqio, make_task):
    task = make_task()
    with pytest.raises(InputError, match="'made' has no split 'tset'; it has empty, train, valid"):
        make_data(task, split="tset").train_batches(Plain(), seed=0)
    batches = make_data(task, split="empty").train_batches(Plain(), seed=0)
    with pytest.raises(InputError, match="made:empty has no examples"):
        next(batches)
    with pytest.raises(InputError, match="made:empty has no examples"):
        list(make_data(task, validation_split="empty").validation_batches(Plain()))
    with pytest.raises(InputError, match="validation_split is None"):
        make_data(task, validation_split=None).validation_batches(Plain())
    mixture = seqio.Mixture("mixed", [(task, 1), (make_task(name="other"), 0)])
    with pytest.raises(InputError, match="'mixed' gives task 'other' the rate 0"):
        make_data(mixture).train_batches(Plain(), seed=0)
    drops = make_task(lambda dataset: dataset.map(lambda item: {"inputs": item["inputs"]}))
    with pytest.raises(InputError, match=r"'made' declares the feature 'targets' .* return inputs"):
        make_data(drops).examples(Plain(), split="train", count=1, seed=0)
    missing = task.replace(source=seqio.TextLineDataSource({"train": "/nowhere/*.txt"}))
    with pytest.raises(InputError, match=r"(?s)cannot read .* /nowhere"):
        next(make_data(missing).train_batches(Plain(), seed=0))


def error_of(data):
    """The message that training on some data ends with, at most four lines and one of the fix."""
    with pytest.raises(InputError) as failure:
        list(data.train_batches(Plain(), seed=0))
    assert len(str(failure.value).splitlines()) <= 5
    return str(failure.value)


def test_a_broken_line_is_named_with_its_file_and_the_preprocessor(seqio, tf, make_task, tmp_path):
    def parse(dataset):
        def split(line):
            parts = tf.strings.split(line, "\t")
            return {"inputs": parts[0], "targets": parts[1]}

        return dataset.map(split)

    for file in range(2):
        lines = [f"{i}\tanswer" for i in range(30)]
        if file == 1:
            lines[17] = "no tab here"
        (tmp_path / f"{file}.tsv").write_text("\n".join(lines))
    source = seqio.TextLineDataSource({"train": str(tmp_path / "*.tsv")})
    task = make_task().replace(
        source=source, preprocessors=[parse, *make_task().preprocessors[:1]], name="broken"
    )
    message = error_of(make_data(task))
    assert "task 'broken': preprocessor parse (" in message
    assert f"{__file__.rpartition('/')[2]}:" in message
    assert f"{tmp_path}/1.tsv:18, 'no tab here' failed" in message
    assert "InvalidArgumentError: slice index 1 of dimension 0 out of bounds" in message
    assert "node" not in message


def test_exceptions_of_a_tasks_own_code_say_whose(seqio, tf, make_task, tmp_path):
    """In graphs, in Python called from graphs, in a source; and nothing at all."""

    def wrong_name(example):
        return {**example, "inputs": example["input"]}

    def in_python(example):
        def shout(text):
            raise LookupError("no such text")

        ids = tf.py_function(shout, [example["inputs"]], tf.int32)
        return {**example, "inputs": tf.ensure_shape(ids, [None])}

    def read(split, shuffle_files, seed=None):
        raise OSError("the disk is on fire")

    message = error_of(make_data(make_task(lambda dataset: dataset.map(wrong_name))))
    assert "KeyError: 'input'" in message
    assert "preprocessor <lambda> (" in message
    line = wrong_name.__code__.co_firstlineno + 1
    assert f"test_pipeline.py:{line}" in message.splitlines()[-1]
    message = error_of(make_data(make_task(lambda dataset: dataset.map(in_python))))
    assert "LookupError: no such text" in message
    assert "preprocessor <lambda> (" in message
    fails = make_task(source=seqio.FunctionDataSource(read, splits=["train", "validation"]))
    message = error_of(make_data(fails))
    assert "cannot read made:train: its source failed" in message
    assert "OSError: the disk is on fire" in message
    assert f"test_pipeline.py:{read.__code__.co_firstlineno + 1}" in message
    nowhere = seqio.TextLineDataSource({"train": str(tmp_path / "no*.tsv")})
    message = error_of(make_data(make_task(source=nowhere)))
    assert "cannot read made:train" in message
    assert "no*.tsv" in message
    drops_all = make_task(lambda dataset: dataset.filter(lambda item: False))
    assert "made:train has no examples, or preprocessing left none" in error_of(
        make_data(drops_all)
    )


def test_preprocessors_without_an_end_are_refused_and_long_ones_made_as_they_are_used(
    tf, make_task, monkeypatch
):
    """A window was made whole before any of it was used, which never ended."""
    for steps in (
        [lambda dataset: dataset.repeat()],
        [lambda dataset: dataset.repeat().shuffle(4, seed=0)],
        [lambda dataset: dataset.repeat(), lambda dataset: dataset.filter(lambda item: False)],
    ):
        message = error_of(make_data(make_task(*steps)))
        assert re.search(r"preprocessor <lambda> \(.*py:\d+\) repeats its .* remove", message, re.S)
    ended = make_task(lambda dataset: dataset.repeat(), lambda dataset: dataset.take(5))
    assert len(list(examples_of(SeqioSource(ended, "validation")))) == 5

    # TensorFlow cannot tell that these never end.
    monkeypatch.setattr(seqio_preprocessing, "_AT_ONCE", 64)
    monkeypatch.setattr(seqio_preprocessing, "_MOST_EXAMPLES", 100)
    for step in (
        lambda dataset: dataset.repeat().filter(lambda item: True),
        lambda dataset: dataset.flat_map(lambda item: tf.data.Dataset.from_tensors(item).repeat()),
    ):
        batches = make_data(make_task(step)).train_batches(Plain(), seed=0)
        assert next(batches)["inputs"].shape == (8, LENGTHS["inputs"])
        batches.close()
        with pytest.raises(InputError, match="does it ever end"):
            list(examples_of(SeqioSource(make_task(step), "validation")))
    failing = make_task(
        lambda dataset: dataset.repeat(), lambda dataset: dataset.map(lambda item: item["no"])
    )
    assert "KeyError: 'no'" in error_of(make_data(failing))


def test_windows_of_very_many_examples_are_what_whole_ones_are(make_task, noise, monkeypatch):
    whole = list(examples_of(SeqioSource(make_task(*noise), "train")))
    monkeypatch.setattr(seqio_preprocessing, "_AT_ONCE", 7)
    monkeypatch.setattr(seqio_preprocessing, "_LAZILY", 3)
    lazily = list(examples_of(SeqioSource(make_task(*noise), "train")))
    assert len(lazily) > 7
    same(lazily, whole)


def test_a_source_without_an_end_is_read_as_it_is_used(seqio, tf, make_task):
    def read(split, shuffle_files, seed=None):
        texts = tf.data.Dataset.from_tensor_slices(["a", "b"]).repeat()
        return texts.map(lambda text: {"inputs": text, "targets": text})

    source = seqio.FunctionDataSource(read, splits=["train"])
    batches = make_data(make_task(source=source)).train_batches(Plain(), seed=0)
    next(batches)
    assert batches.epoch == 0
    batches.close()


def test_small_files_of_uneven_sizes_leave_no_shard_without_examples(seqio, make_task, tmp_path):
    """As many files as shards, most of them empty: known only once they are read."""
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text("one\ntwo\n" * (number == 1))
    source = seqio.TextLineDataSource({"train": str(tmp_path / "*.txt")})
    names = seqio.map_over_dataset(lambda text: {"inputs": text, "targets": text})
    task = make_task(source=source).replace(
        preprocessors=[names, seqio.preprocessors.tokenize, seqio.preprocessors.append_eos]
    )
    batches = make_data(task, num_shards=4).train_batches(Plain(), seed=0)
    rows = np.concatenate([next(batches)["inputs"] for _ in range(2)])
    assert len(rows) == 16
    assert (rows[:, 0] > 0).all()
    batches.close()


def test_random_preprocessors_are_traced_once_and_draw_what_seqio_draws(seqio, tf, make_task):
    """The seed of a window is an argument of the graph, not a constant in it."""
    traces = []

    @seqio.map_over_dataset(num_seeds=2)
    def draw(example, seeds):
        traces.append(seeds)
        drawn = [tf.random.stateless_uniform([4], seed, 3, 999, tf.int32) for seed in seeds]
        return {**example, "inputs": drawn[0], "targets": drawn[1]}

    def fixed(dataset):  # a preprocessor's own seed stays what it is
        own = tf.data.Dataset.random(seed=5)
        return tf.data.Dataset.zip((dataset, own)).map(
            lambda item, number: {
                **item,
                "targets": item["targets"] + tf.cast(number % 2, "int32"),
            }
        )

    task = make_task(draw, fixed)
    source = SeqioSource(task, "train")
    (window,) = source.windows(shard=0, num_shards=1, epoch=0, seed=0, start=0, size=100)
    actual = [list(source.examples(window, seed=seed)) for seed in (7, 2**29, 7)]
    assert len(traces) == 1
    same(actual[0], actual[2])
    assert all((a["inputs"] != b["inputs"]).any() for a, b in zip(*actual[:2], strict=True))
    texts = dict(zip(sorted(LENGTHS), window.T.tolist(), strict=True))
    raw = tf.data.Dataset.from_tensor_slices(texts)
    with seqio.utils.map_seed_manager(2**29):
        dataset = task._preprocess_dataset(raw, task.preprocessors)
    expected = [{name: item[name] for name in LENGTHS} for item in dataset.as_numpy_iterator()]
    same(actual[1], expected)


def test_many_shards_of_a_small_task_start_soon(make_task):
    data = make_data(make_task(), batch_size=32, num_shards=32, window=1024)
    data.batch_shapes(Plain())
    start = time.perf_counter()
    batches = data.train_batches(Plain(), seed=0)
    next(batches)
    assert time.perf_counter() - start < 5  # 0.5 s on an idle machine
    batches.close()


def test_text_that_is_not_utf_8_is_named_with_its_place(make_task, seqio, tf):
    def read(split, shuffle_files, seed=None):
        text = tf.constant([b"fine", b"caf\xe9 au lait"])
        return tf.data.Dataset.from_tensor_slices({"inputs": text, "targets": text})

    task = make_task(source=seqio.FunctionDataSource(read, splits=["train"]))
    batches = make_data(task, validation_split=None).train_batches(Plain(), seed=0)
    with pytest.raises(
        InputError, match=r"'inputs' of made:train, .* is not UTF-8: .* at offset 3"
    ):
        next(batches)
    batches.close()


def test_text_that_is_not_utf_8_is_named_with_its_file(make_task, seqio, tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"fine\ncaf\xe9\n")
    columns = seqio.map_over_dataset(lambda line: {"inputs": line, "targets": line})
    task = make_task(source=seqio.TextLineDataSource({"train": str(path)}))
    task = task.replace(preprocessors=[columns, *task.preprocessors])
    with pytest.raises(InputError, match=rf"'inputs' of made:train \({path}\) is not UTF-8"):
        make_data(task).examples(Plain(), split="train", count=2, seed=0)


@pytest.mark.parametrize("in_graph", [False, True])
def test_bad_texts_are_skipped_or_replaced_and_counted(make_task, seqio, tf, caplog, in_graph):
    texts = [b"fine", b"caf\xe9 au lait", *[b"good"] * 3, *[b"\xff"] * 9]

    def read(split, shuffle_files, seed=None):
        text = tf.constant(texts)
        return tf.data.Dataset.from_tensor_slices({"inputs": text, "targets": text})

    step = [seqio.map_over_dataset(lambda item: item)] if in_graph else []  # SeqIO tokenises then
    task = make_task(*step, source=seqio.FunctionDataSource(read, splits=["train"]))

    def read_all(bad_texts):
        data = make_data(task, validation_split=None, bad_texts=bad_texts)
        return data.examples(Plain(), split="train", count=99, seed=0)

    with pytest.raises(InputError, match=r'set TaskData.bad_texts to "skip" or "replace"'):
        read_all("stop")
    remaining = sorted(Bytes().decode(item["inputs"]).encode() for item in read_all("skip"))
    assert remaining == [b"fine", b"good", b"good", b"good"]
    messages = [record.message for record in caplog.records]
    assert "made:train: 1 text is not UTF-8 (bad_texts='skip')" in messages[0]
    assert "made:train: 10 texts are not UTF-8" in messages[1]
    assert len(read_all("replace")) == len(texts)
    with pytest.raises(InputError, match="did you mean skip"):
        make_data(task, bad_texts="skipp")


# Metrics


@pytest.fixture
def with_metrics(seqio, make_task):
    """A task with metrics of every kind, and what they were called with."""
    calls = []

    def postprocess(text, *, example, is_target):
        calls.append((text, example["inputs_pretokenized"], is_target))
        return f"{'target' if is_target else 'answer'} {text}"

    def share(targets, predictions):
        pairs = zip(targets, predictions, strict=True)
        return {"share": np.mean([a.split()[1:] == b.split()[1:] for a, b in pairs])}

    def likelihood(targets, scores):
        return {"mean": seqio.metrics.Scalar(float(np.mean(scores))), "count": len(targets)}

    def confidence(targets, predictions, aux_values):
        return {"confidence": float(np.sum(aux_values["scores"])), "first": predictions[0]}

    base = make_task(seqio.preprocessors.append_eos, add_eos=True)
    make = functools.partial(
        base.replace, postprocess_fn=postprocess, metric_fns=[share, likelihood, confidence]
    )
    return make, calls


def test_metrics_of_a_task_are_those_of_seqios_evaluator(seqio, with_metrics):
    make, calls = with_metrics
    task = make(name="measured")
    data = make_data(seqio.Mixture("of_both", [(task, 1), (make(name="other"), 1)]))
    assert [item.name for item in data.metric_tasks()] == ["measured", "other"]
    (ours, _) = data.metric_tasks()
    assert ours.outputs == {"PREDICTION", "SCORE", "PREDICTION_WITH_AUX"}
    actual = ours.examples(count=None, seed=0)
    assert (len(actual.examples), actual.total) == (21, 21)
    some = ours.examples(count=5, seed=0)
    assert (len(some.examples), some.total) == (5, 21)
    rng = np.random.default_rng(0)
    answers = np.stack([np.resize(item["targets"], 12) for item in actual.examples])
    answers[::3] = rng.integers(70, 90, answers[::3].shape)
    scores = rng.normal(0, 1, 21).astype(np.float32)
    outputs = {
        "PREDICTION": answers,
        "SCORE": scores,
        "PREDICTION_WITH_AUX": (answers, {"scores": scores}),
    }
    values = ours.compute(actual.examples, outputs)
    messages = list(calls)
    calls.clear()
    if "measured" not in seqio.TaskRegistry.names():
        seqio.TaskRegistry.add_provider("measured", task)
    try:
        evaluator = seqio.Evaluator(
            "measured", seqio.EncDecFeatureConverter(pack=False), sequence_length=LENGTHS
        )
        kinds = seqio.metrics.ModelOutputType
        metrics, _ = evaluator.evaluate(
            compute_metrics=True,
            model_fns={
                kinds.PREDICTION: lambda _: list(enumerate(answers)),
                kinds.SCORE: lambda _: list(enumerate(scores)),
                kinds.PREDICTION_WITH_AUX: lambda _: (
                    list(enumerate(answers)),
                    {"scores": scores.tolist()},
                ),
            },
        )
        expected = metrics.result()["measured"]
        evaluator.close()
    finally:
        seqio.TaskRegistry.remove("measured")
    expected = {name: getattr(item, "value", item) for name, item in expected.items()}
    assert values.pop("first") == expected.pop("first")
    assert values == pytest.approx(expected, rel=1e-6)
    assert 0 < values["share"] < 1
    assert {*messages} == {*calls}


def test_metrics_of_a_task_with_single_numbers_and_optional_features(seqio, tf, with_metrics):
    make, _ = with_metrics
    task = make(metric_fns=[])
    number = seqio.Feature(seqio.PassThroughVocabulary(99), dtype=tf.int32, rank=0, add_eos=False)
    optional = seqio.Feature(task.output_features["targets"].vocabulary, required=False)
    task = task.replace(
        preprocessors=[
            *task.preprocessors,
            lambda item: item.map(lambda x: x | {"label": 7}),
        ],
        output_features={**task.output_features, "label": number, "hint": optional},
    )
    lengths = {"inputs": 3, "targets": 500, "label": 1, "hint": 4}
    (example, *_), _, truncated = MetricTask(task, "validation", lengths).examples(count=5, seed=0)
    assert example["label"] == 7
    assert "hint" not in example
    assert (len(example["inputs"]), truncated) == (3, 5)


def test_failing_metrics_name_the_task_and_the_line(seqio, with_metrics):
    make, _ = with_metrics

    def broken(targets, predictions):
        return {"broken": targets[0]["answer"]}

    def odd(targets, guesses):
        return {}

    (ours,) = make_data(make(metric_fns=[broken])).metric_tasks()
    actual = ours.examples(count=2, seed=0).examples
    with pytest.raises(
        InputError, match=r"task 'made': a metric or postprocess_fn failed"
    ) as error:
        ours.compute(actual, {"PREDICTION": np.ones((2, 3), np.int32)})
    assert f"test_pipeline.py:{broken.__code__.co_firstlineno + 1}" in str(error.value)
    with pytest.raises(InputError, match=r"task 'made': metric_fns failed"):
        make_data(make(metric_fns=[odd])).metric_tasks()
    assert make_data(make(metric_fns=[], metric_objs=[])).metric_tasks() == []


def test_rates_by_numbers_of_examples_count_what_sources_do_not_know(seqio, make_task):
    tasks = [make_task(name="unknown")]
    by_size = functools.partial(seqio.mixing_rate_num_examples, maximum=60)
    inner = seqio.Mixture("by_size_inner", [tasks[0]], default_rate=by_size)
    for mixture, rate in (
        (seqio.Mixture("by_size", [tasks[0]], default_rate=seqio.mixing_rate_num_examples), 90),
        (seqio.Mixture("by_size_outer", [(inner, 2)]), 2),
    ):
        ((source, actual, *_),) = make_data(mixture).components("train", Plain())
        assert (source.name, actual) == ("unknown:train", rate)
        assert tasks[0].source.num_input_examples("train") is None
    mixture = seqio.Mixture("wrong", [tasks[0]], default_rate=lambda task: task.size)
    with pytest.raises(InputError, match="mixture 'wrong': the rate of task 'unknown' failed"):
        make_data(mixture).train_batches(Plain(), seed=0)
