"""Sharded corpora: any place at once, one order for any number of hosts, and clear errors."""

import dataclasses
import json
import pickle
import sys
from collections import Counter

import numpy as np
import pytest
from small_data import Plain, as_one, close, open_all, same, take

from t5lite.data import Bytes, ShardedData, write_shards
from t5lite.data.batches import merge_states
from t5lite.data.sharded.manifest import Manifest, decoded, encoded
from t5lite.errors import InputError
from t5lite.objectives import Seq2Seq, SpanCorruption

LENGTHS = {"inputs": 16, "targets": 9}
COUNT = 203


def examples(count=COUNT, first=0):
    return [
        {"inputs": np.full(1 + i % 13, first + i + 1), "targets": np.full(1 + i % 7, 3)}
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded") / "corpus"
    splits = {"train": examples(), "validation": examples(45, 1000)}
    write_shards(splits, folder, num_shards=5, group=4, recipe={"from": "a test"})
    return folder


def data(folder, **changes):
    options = {"lengths": LENGTHS, "batch_size": 16, "num_shards": 8, "window": 10, "pack": False}
    return ShardedData(str(folder), **(options | changes))


def test_a_record_comes_back_as_it_was():
    features = {"a": "text", "b": "uint16", "c": "uint32"}
    example = {"a": "naïve ✓", "b": np.array([1, 65535]), "c": np.array([], int)}
    back = decoded(encoded(example, features), features)
    assert back["a"] == example["a"]
    for name in ("b", "c"):
        assert back[name].dtype == np.int32
        assert back[name].tolist() == example[name].tolist()


def test_the_manifest_says_what_the_shards_hold(corpus):
    manifest = Manifest.load(corpus)
    train = manifest.splits["train"]
    assert [shard.records for shard in train] == [41, 41, 41, 40, 40]
    total = sum(each["inputs"].size + each["targets"].size for each in examples())
    assert sum(shard.tokens for shard in train) == total
    assert all(shard.bytes == (corpus / shard.file).stat().st_size for shard in train)
    assert len(manifest.recipe) == 64
    described = data(corpus).describe()
    assert f"train of {corpus}: 203 records, {total:,} tokens" in described
    assert data(corpus).num_examples("validation") == 45


@pytest.mark.parametrize("num_shards", [1, 3, 8, 64])
@pytest.mark.parametrize("group", [1, 4, 300])
def test_each_epoch_is_a_permutation_of_its_own_dealt_to_the_shards(tmp_path, num_shards, group):
    write_shards({"train": examples()}, tmp_path / "c", num_shards=5, group=group)
    ((source, *_),) = data(tmp_path / "c").components("train", Plain())
    orders = []
    for epoch in range(3):
        order = [
            number
            for shard in range(num_shards)
            for window in source.windows(
                shard=shard, num_shards=num_shards, epoch=epoch, seed=1, start=0, size=10
            )
            for number in window.tolist()
        ]
        assert sorted(order) == list(range(COUNT))
        orders.append(order)
    assert orders[0] != orders[1]
    which = {"shard": 0, "num_shards": num_shards, "epoch": 0, "seed": 1, "size": 10}
    windows = list(source.windows(start=0, **which))
    for start in range(len(windows)):  # any place, at once
        for one, other in zip(source.windows(start=start, **which), windows[start:], strict=True):
            np.testing.assert_array_equal(one, other)


def test_an_epoch_has_every_record_once(corpus):
    batches = data(corpus, num_shards=1, batch_size=1).train_batches(Plain(), seed=3)
    seen = [int(next(batches)["model_inputs"][0, 0]) for _ in range(2 * COUNT)]
    batches.close()
    assert set(Counter(seen[:COUNT]).values()) == {1}
    assert seen[:COUNT] != seen[COUNT:]
    assert sorted(seen[:COUNT]) == sorted(seen[COUNT:])


def test_one_host_reads_what_eight_do_and_a_run_continues_with_another_number(corpus):
    for pack in (False, True):
        whole, started = (open_all(data(corpus, pack=pack), count) for count in (1, 8))
        same(take(started, 30), take(whole, 30))
        state = json.loads(json.dumps(merge_states(each.state_dict() for each in started)))
        continued = open_all(data(corpus, pack=pack), 2)
        for each in continued:
            each.load_state_dict(state)
        same(take(continued, 12), take(whole, 12))
        close(whole + started + continued)


def test_validation_is_all_of_the_split(corpus):
    seen = [
        int(row[0])
        for batch in data(corpus).validation_batches(Plain())
        for row in batch["model_inputs"]
        if row[0]
    ]
    assert sorted(seen) == [1001 + i for i in range(45)]


def test_texts_are_encoded_when_read(tmp_path):
    texts = ["naïve", "", "three words here"]
    write_shards({"train": [{"text": text} for text in texts]}, tmp_path / "c", num_shards=2)
    options = {"lengths": {"targets": 32}, "batch_size": 1, "features": {"targets": "text"}}
    given = ShardedData(str(tmp_path / "c"), vocab=Bytes(), **options)
    ((source, *_),) = given.components("train", type("One", (Plain,), {"features": ("targets",)})())
    read = [each["targets"].tolist() for each in source.examples(np.arange(3), seed=0)]
    assert sorted(read) == sorted(Bytes().encode(text) for text in texts)
    with pytest.raises(InputError, match="holds texts, which need a vocabulary"):
        ShardedData(str(tmp_path / "c"), **options).vocabulary()


def test_ids_keep_their_vocabulary(tmp_path):
    ids = [{"targets": Bytes().encode("a text")}]
    manifest = write_shards({"train": ids}, tmp_path / "c", vocabulary=Bytes(), num_shards=1)
    assert manifest.features == {"targets": "uint16"}
    assert data(tmp_path / "c").vocabulary().fingerprint == Bytes().fingerprint
    with pytest.raises(InputError, match="are of another vocabulary"):
        data(tmp_path / "c", vocab=Bytes(7)).vocabulary()
    with pytest.raises(InputError, match=r"has ids from 5 to 384, beyond the vocabulary's 384"):
        write_shards({"train": [{"targets": [5, 384]}]}, tmp_path / "d", vocabulary=Bytes())
    assert not (tmp_path / "d" / "manifest.json").exists()


def copied(corpus, folder):
    folder.mkdir()
    for path in corpus.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def changed(corpus, folder, change):
    change(copied(corpus, folder))
    batches = data(folder, num_shards=1).train_batches(Plain(), seed=0)
    try:
        for _ in range(20):
            next(batches)
    finally:
        batches.close()


SHARD = "train-00001-of-00005.array_record"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / SHARD).unlink(), f"{SHARD} is missing: copy the shard again"),
        (
            lambda folder: (folder / SHARD).write_bytes((folder / SHARD).read_bytes()[:-9]),
            "bytes instead of",
        ),
        (
            lambda folder: (folder / SHARD).write_bytes(b"\xff" * (folder / SHARD).stat().st_size),
            "has changed: 0 records instead of 41",
        ),
        (
            lambda folder: (folder / SHARD).write_bytes(
                (raw := (folder / SHARD).read_bytes())[:70] + b"\xff" * 20 + raw[90:]
            ),
            f"cannot read .*{SHARD}: Corrupted .*; copy the shard again",
        ),
        (lambda folder: (folder / "manifest.json").unlink(), "has no manifest.json; write the"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json is damaged"),
        (
            lambda folder: (folder / "manifest.json").write_text('{"format": 9, "splits": {}}'),
            "format 9; this t5lite reads 1",
        ),
    ],
)
def test_what_is_missing_or_changed_is_named(corpus, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        changed(corpus, tmp_path / "copy", change)


def test_a_shard_of_another_number_of_records_is_refused(corpus, tmp_path):
    folder = copied(corpus, tmp_path / "copy")
    manifest = Manifest.load(folder)
    first, *rest = manifest.splits["train"]
    splits = {"train": (dataclasses.replace(first, records=40), *rest)}
    dataclasses.replace(manifest, splits=splits).save(folder)
    ((source, *_),) = data(folder).components("train", Plain())
    with pytest.raises(InputError, match="has changed: 41 records instead of 40"):
        list(source.examples(np.arange(3), seed=0))


def test_a_position_belongs_to_a_corpus(corpus, tmp_path):
    state = data(corpus).train_batches(Plain(), seed=0).state_dict()
    write_shards({"train": examples(COUNT, 7)}, tmp_path / "corpus", num_shards=5, group=4)
    other = data(tmp_path / "corpus").train_batches(Plain(), seed=0)
    with pytest.raises(InputError, match="cannot resume the data position"):
        other.load_state_dict(state)


@pytest.mark.parametrize(("num_shards", "num_batches"), [(1, 51), (16, 4)])
def test_shards_are_about_as_large_as_one_another(tmp_path, num_shards, num_batches):
    """A few large groups would leave most rows of a validation batch empty."""
    write_shards({"train": examples(9), "validation": examples(51)}, tmp_path / "c", num_shards=2)
    small = data(tmp_path / "c", num_shards=num_shards, batch_size=num_shards)
    assert len(list(small.validation_batches(Plain()))) == num_batches


def test_large_corpora_are_read_in_groups(corpus):
    ((source, *_),) = data(corpus).components("train", Plain())
    key = {"shard": 0, "epoch": 0, "seed": 0, "start": 0, "size": 8}
    for num_shards in (3, 4):  # of 53 groups, of which some are smaller
        first = next(source.windows(num_shards=num_shards, **key))
        groups = np.diff(first.reshape(2, 4)) if len(first) == 8 else np.zeros(1)
        assert (groups == 1).all() == (num_shards == 3)


def test_a_failure_in_a_later_split_leaves_no_shards(tmp_path):
    def failing():
        yield {"a": "x"}
        raise RuntimeError("a reader of a user's own")

    with pytest.raises(RuntimeError, match="a reader"):
        write_shards({"train": [{"a": "x"}], "validation": failing()}, tmp_path / "c")
    write_shards({"train": [{"a": "x"}]}, tmp_path / "c")


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ([{"a": "x"}], "splits is list: must be a mapping"),
        ({"train": ["x"]}, "an example is str: must be a mapping"),
        ({"train": [{"a": "x"}, "x"]}, "example 1 of 'train' is str"),
        ({"train": []}, "split 'train' has no examples"),
        ({"train": [{"a": "x"}, {"b": "x"}]}, r"example 1 of 'train' has the features \['b'\]"),
        ({"train": [{"a": "x"}, {"a": [1]}]}, "'a' is list, and not as before"),
        ({"train": [{"a": [[1]]}]}, "must be token ids in one dimension"),
        ({"train": [{"a": [-1]}]}, "has ids from -1 to -1"),
    ],
)
def test_examples_that_cannot_be_written_leave_no_corpus(tmp_path, splits, message):
    with pytest.raises(InputError, match=message):
        write_shards(splits, tmp_path / "c", num_shards=2)
    left = list((tmp_path / "c").iterdir()) if (tmp_path / "c").exists() else []
    assert left == []
    (tmp_path / "c").mkdir(exist_ok=True)
    (tmp_path / "c" / "x").touch()
    with pytest.raises(InputError, match="holds files"):
        write_shards(splits, tmp_path / "c")


def test_a_source_goes_to_another_process(corpus):
    ((source, *_),) = data(corpus).components("train", Plain())
    list(source.examples(np.arange(9), seed=0))  # open readers stay behind
    again = pickle.loads(pickle.dumps(source))
    window = np.arange(0, COUNT, 7)
    for one, other in zip(
        source.examples(window, seed=0), again.examples(window, seed=0), strict=True
    ):
        same([one], [other])


def test_scattered_rows_of_processes_are_the_same(corpus):
    rows = ((0, 1, 14, 15), (2, 3, 4, 5), (6, 7, 12, 13), (8, 9, 10, 11))
    (whole,) = open_all(data(corpus), 1, Plain())
    started = [
        data(corpus).train_batches(Plain(), seed=5, shards=data(corpus).shards_of(each))
        for each in rows
    ]
    for _ in range(5):
        same([as_one(data(corpus), rows, map(next, started))], [next(whole)])
    close([whole, *started])


def test_no_tensorflow(corpus):
    import subprocess

    code = (
        "import sys\nfrom t5lite.data import ShardedData\n"
        f"ShardedData({str(corpus)!r}, lengths={{'inputs': 16}}, batch_size=8).describe()\n"
        "assert not {'tensorflow', 'jax', 'seqio'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_an_objective_makes_the_features_that_it_can_and_others_are_refused(tmp_path):
    texts = [{"targets": Bytes().encode("a text of some length")}] * 4
    write_shards({"train": texts}, tmp_path / "c", vocabulary=Bytes(), num_shards=1)
    given = data(tmp_path / "c", num_shards=1)
    batches = given.train_batches(SpanCorruption(), seed=0)
    assert (next(batches)["encoder_input_tokens"] > 0).any()
    batches.close()
    with pytest.raises(InputError, match=r"unknown feature of .*/c 'inputs'; known: targets"):
        given.train_batches(Seq2Seq(), seed=0)


@pytest.mark.parametrize("folder", ["s3://bucket/corpus", "hdfs://host/corpus", "ftp://a/b"])
def test_object_stores_that_shards_cannot_be_read_from_are_named(folder):
    scheme = folder.partition("://")[0]
    with pytest.raises(InputError, match=rf"shards lie on a local disk or gs://, not {scheme}://"):
        data(folder).describe()
    with pytest.raises(InputError, match=rf"not {scheme}://"):
        write_shards({"train": examples(1)}, folder)
