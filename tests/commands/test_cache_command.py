"""`t5lite cache`: rows that train as the data would have, and SeqIO's own cache.

Gin files here say `import test_cache_command`.
"""

import itertools
import os
import sys
import textwrap

import numpy as np
import pytest

from t5lite import configuration, main, train
from t5lite.commands.cache import cache_tasks
from t5lite.data import ArrayData, Bytes, PackedData, ShardedData, TaskData
from t5lite.data.importing import import_seqio
from t5lite.objectives import Seq2Seq
from t5lite.training.claims import claimed

LENGTHS = {"inputs": 12, "targets": 8}


def pairs(lengths, batch_size):
    """Pairs that are told apart by their first token."""
    examples = [
        {"inputs": np.full(1 + i % 9, 3 + i), "targets": np.full(1 + i % 5, 3 + i)}
        for i in range(60)
    ]
    return ArrayData(
        examples, examples[:7], lengths=lengths, batch_size=batch_size, num_shards=2, vocab=Bytes()
    )


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "run.gin"
    path.write_text(
        textwrap.dedent("""\
            from __gin__ import dynamic_registration
            import t5lite
            import test_cache_command

            TASK_FEATURE_LENGTHS = {"inputs": 12, "targets": 8}
            BATCH_SIZE = 4
            t5lite.train:
              model_dir = "unused"
              model = "t5_1_1_nano"
              objective = @t5lite.objectives.Seq2Seq()
              data = @test_cache_command.pairs()
              seed = 3
            test_cache_command.pairs:
              lengths = %TASK_FEATURE_LENGTHS
              batch_size = %BATCH_SIZE
        """)
    )
    return path


def run(*arguments):
    return main.main(["cache", *map(str, arguments)])


@pytest.mark.parametrize("form", ["packed", "shards", "seqio"])
def test_a_second_writer_and_no_folder_are_refused_at_once(config, tmp_path, capsys, form):
    flags = [f"--gin_file={config}", f"--format={form}"]
    with claimed(tmp_path / ".cache.claims", name="cache"):
        assert run(*flags, f"--output={tmp_path}/cache") == 2
    assert f"cache is being written by process {os.getpid()} on " in capsys.readouterr().err
    assert run(*flags, "--output=") == 2
    assert "--output = '' is empty" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == [config]


def test_a_run_is_cached_and_its_configuration_trains_on_the_cache(
    config, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    folder = tmp_path / "cache"
    assert run(f"--gin_file={config}", f"--output={folder}", "--epochs=2") == 0
    printed = capsys.readouterr()
    assert f"t5lite train --gin_file={config} --gin_file={folder}/use.gin" in printed.out
    assert printed.out.count("of 60 examples") == 2
    assert "validation: " in printed.out
    assert "train" in printed.err  # the bars

    given = configuration.parse([str(config), str(folder / "use.gin")]).bindings_of(train)
    data, original = given["data"], pairs(LENGTHS, 4)
    assert isinstance(data, PackedData)
    assert data.describe().startswith("packed cache")
    assert data.vocabulary().fingerprint == original.vocabulary().fingerprint
    objective = Seq2Seq()
    assert data.batch_shapes(objective) == original.batch_shapes(objective)
    ours, theirs = (
        np.concatenate([each["encoder_input_tokens"].ravel() for each in batches])
        for batches in (data.validation_batches(objective), original.validation_batches(objective))
    )
    assert sorted(ours[ours > 0]) == sorted(theirs[theirs > 0])
    batches = data.train_batches(objective, seed=0)
    rows = data._description["passes"]["train"][0]["rows"]
    seen = np.concatenate(
        [each["encoder_input_tokens"] for each in itertools.islice(batches, -(-rows // 4))]
    )
    batches.close()
    assert set(seen.ravel()) >= set(range(3, 63))


def test_what_cannot_be_cached_is_said_and_leaves_nothing(config, tmp_path, capsys):
    folder = tmp_path / "cache"
    assert run(f"--gin_file={config}", f"--output={folder}", "--format=seqio") == 2
    assert "ArrayData reads no SeqIO task" in capsys.readouterr().err
    assert run(f"--gin_file={config}") == 2
    assert "--output" in capsys.readouterr().err
    longer = "--gin.TASK_FEATURE_LENGTHS={'inputs': 12}"
    assert run(f"--gin_file={config}", f"--output={folder}", longer) == 2
    assert "targets" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"run.gin"}
    folder.mkdir()
    (folder / "mine").touch()
    assert run(f"--gin_file={config}", f"--output={folder}") == 2
    assert "exists; delete it first" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["mine"]


@pytest.mark.slow
def test_every_task_of_a_mixture_is_cached_for_seqio(tmp_path, capsys):
    seqio = import_seqio()
    import tensorflow as tf

    def read(split, shuffle_files, seed=None):
        return tf.data.Dataset.from_tensor_slices({"targets": ["a cat", "a dog"]})

    tasks = [
        seqio.Task(
            name,
            source=seqio.FunctionDataSource(read, splits=["train"]),
            preprocessors=[seqio.preprocessors.tokenize, seqio.CacheDatasetPlaceholder()],
            output_features={"targets": seqio.Feature(seqio.ByteVocabulary(), add_eos=False)},
        )
        for name in ("cached_a", "cached_b")
    ]
    mixture = seqio.Mixture("cached_both", [(task, 1.0) for task in tasks])
    data = TaskData(mixture, lengths={"targets": 8}, batch_size=2, validation_split=None)
    cache_tasks(data, str(tmp_path))
    assert capsys.readouterr().out.count(": train\n") == 2
    for task in tasks:
        assert (tmp_path / task.name / "COMPLETED").exists()


def test_shards_hold_every_example_and_train(config, tmp_path):
    folder = tmp_path / "shards"
    assert run(f"--gin_file={config}", f"--output={folder}", "--format=shards") == 0
    data = ShardedData(str(folder), lengths=LENGTHS, batch_size=4, num_shards=2)
    assert data.num_examples("train") == 60
    assert data.num_examples("validation") == 7
    assert data.vocabulary().fingerprint == Bytes().fingerprint

    def firsts(dataset):
        ((source, *_),) = dataset.components("train", Seq2Seq())
        examples = source.examples(np.arange(60), seed=0)
        return sorted((e["inputs"].tolist(), e["targets"].tolist()) for e in examples)

    assert firsts(data) == firsts(pairs(LENGTHS, 4))
    bound = configuration.parse([str(config), str(folder / "use.gin")]).bindings_of(train)["data"]
    assert isinstance(bound, ShardedData)
    batches = bound.train_batches(Seq2Seq(), seed=0)
    assert next(batches)["encoder_input_tokens"].any()
    batches.close()
