"""Files as data: split, order, resume, classes, few-shot, and every way to get them wrong."""

import csv
import dataclasses
import itertools
import json

import numpy as np
import pytest
from small_data import close, open_all, same, take

import t5lite
from t5lite.data import Answer, Class, FileData, MixtureData, Number, Tags
from t5lite.data.batches import merge_states
from t5lite.data.files import file_data
from t5lite.data.vocabularies.byte_ids import Bytes
from t5lite.errors import InputError
from t5lite.rows import HostHalf

LENGTHS = {"inputs": 32, "targets": 8, "labels": 1}


class Objective(HostHalf):
    """Examples as they are, cut to their lengths."""

    def __init__(self, *features, chance=False):
        self.features, self.chance = features or ("inputs", "targets"), chance

    def prepare(self, examples, *, lengths, vocabulary, rng):
        for example in examples:
            cut = {name: example[name][: lengths[name]] for name in self.features}
            if not self.chance or rng.random() < 0.8:
                yield cut

    def batch(self, rows):
        return rows


def rows(count, first=0):
    return [
        {"question": f"what is {i}?", "answer": f"{i}", "kind": "abc"[i % 3]}
        for i in range(first, first + count)
    ]


def write(path, content):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(content[0]))
        writer.writeheader()
        writer.writerows(content)
    return str(path)


def write_json(path, content):
    path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return str(path)


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "data.csv", rows(300))


def make(files, **changes):
    defaults = {
        "features": {"inputs": "{question}", "targets": "{answer}"},
        "vocab": Bytes(),
        "lengths": LENGTHS,
        "batch_size": 8,
        "num_shards": 4,
        "window": 16,
        "block_rows": 2,
        "validation_share": 0.2,
    }
    return FileData(files, **(defaults | changes))


def texts(data, split, objective=None, feature="inputs"):
    result = data.examples(objective or Objective(), split=split, count=10**6, seed=0)
    return [data.vocabulary().decode(example[feature]) for example in result]


def test_every_row_is_in_one_split(file):
    data = make(file)
    train, validation = texts(data, "train"), texts(data, "validation")
    assert sorted(train + validation) == sorted(row["question"] for row in rows(300))
    assert 30 < len(validation) < 90
    assert data.num_examples("train") == len(train)
    assert data.num_examples("validation") == len(validation)


def test_the_split_depends_on_the_row_alone(tmp_path, file):
    validation = set(texts(make(file), "validation"))
    order = np.random.default_rng(0).permutation(300)
    mixed = [rows(300)[i] for i in order]
    changed = make(write(tmp_path / "mixed.csv", mixed + rows(100, 300)))
    assert {text for text in texts(changed, "validation") if int(text[8:-1]) < 300} == validation
    as_json = make(write_json(tmp_path / "data.jsonl", rows(300)))
    assert set(texts(as_json, "validation")) == validation


def test_duplicates_and_rows_that_share_a_key_stay_together(tmp_path):
    double = make(write(tmp_path / "double.csv", rows(100) + rows(100)))
    train, validation = texts(double, "train"), texts(double, "validation")
    assert not set(train) & set(validation)
    assert len(train) + len(validation) == 200
    content = [row | {"question": f"{row['question']} {i}"} for row in rows(40) for i in range(3)]
    together = make(write(tmp_path / "key.csv", content), split_by="answer")
    sides = [
        {text.split("?")[0] for text in texts(together, side)} for side in ("train", "validation")
    ]
    assert not sides[0] & sides[1]


def test_validation_files_are_the_validation_split(tmp_path, file):
    second = write(tmp_path / "other.csv", rows(10, 295))
    data = make(file, validation_files=second)
    assert sorted(texts(data, "train")) == sorted(row["question"] for row in rows(300))
    assert sorted(texts(data, "validation")) == sorted(row["question"] for row in rows(10, 295))
    assert "5 of the rows to test are also trained on" in data.describe()
    both = str(tmp_path / "*.csv")
    with pytest.raises(InputError, match=r"validation_files has .*other\.csv', which is also"):
        make(both, validation_files=second).describe()


def test_a_number_of_its_own_does_not_hide_that_a_row_is_trained_on(tmp_path):
    content = [row | {"id": i} for i, row in enumerate(rows(50) * 4)]
    data = make(write(tmp_path / "data.csv", content))
    train = set(texts(data, "train"))
    shared = sum(text in train for text in texts(data, "validation"))
    line = f"{shared} of the rows to test are also trained on, but for columns that no feature"
    assert f"{line} reads; set split_by = ['answer', 'question']" in data.describe()
    split = make(write(tmp_path / "data.csv", content), split_by=["answer", "question"])
    assert "also trained on" not in split.describe()


def test_columns_to_split_by_must_be_there(tmp_path, file):
    with pytest.raises(InputError, match=r"split_by = 'anwser': .*'anwser'; did you mean answer"):
        make(file, split_by="anwser").describe()
    with pytest.raises(InputError, match=r"split_by = \[\]: name a column"):
        make(file, split_by=[])
    broken = [{"question": "q", "answer": "1", "kind": None}, {"question": "q", "answer": "2"}]
    path = write_json(tmp_path / "data.jsonl", [*rows(9), *broken])
    with pytest.raises(InputError, match=r"(?s)2 of 11 .*:10: .*'kind' is null.*:11: .*is missing"):
        make(path, split_by=["kind"]).describe()
    assert make(path, split_by=["kind"], bad_lines="skip").num_examples("train") <= 9


def test_rows_sorted_by_class_are_mixed(tmp_path):
    content = sorted(rows(600), key=lambda row: row["kind"])
    data = make(
        write(tmp_path / "sorted.csv", content),
        features={"inputs": "{question}", "labels": Class("kind")},
        pack=False,
        batch_size=64,
    )
    batches = data.train_batches(Objective("inputs", "labels"), seed=0)
    assert np.bincount(next(batches)["labels"][:, 0]).min() > 8
    batches.close()


@pytest.mark.parametrize("process_count", [2, 4])
@pytest.mark.parametrize("pack", [True, False])
def test_processes_share_the_batches_of_one(file, process_count, pack):
    data = make(file, pack=pack)
    whole, parts = open_all(data, 1, Objective()), open_all(data, process_count, Objective())
    same(take(whole, 20), take(parts, 20))
    close(whole + parts)


@pytest.mark.parametrize("pack", [True, False])
def test_training_continues_exactly(file, pack):
    data = make(file, pack=pack)
    whole = open_all(data, 1, Objective(chance=True))
    expected = take(whole, 48)  # more than an epoch
    assert whole[0].epoch >= 1
    close(whole)
    for head, before, after in [(3, 1, 2), (17, 2, 1), (40, 4, 4)]:
        started = open_all(data, before, Objective(chance=True))
        same(take(started, head), expected[:head])
        state = json.loads(json.dumps(merge_states(item.state_dict() for item in started)))
        continued = open_all(make(file, pack=pack), after, Objective(chance=True))
        for item in continued:
            item.load_state_dict(state)
        same(take(continued, 3), expected[head : head + 3])
        close(started + continued)


@pytest.mark.parametrize(
    "change",
    [{"features": {"inputs": "{question}!", "targets": "{answer}"}}, {"validation_share": 0.1}, {}],
)
def test_other_data_does_not_continue(file, change):
    started = make(file).train_batches(Objective(), seed=0)
    state = started.state_dict()
    if not change:  # the file itself
        with open(file, "a", encoding="utf-8") as opened:
            opened.write("more,1,a\n")
    continued = make(file, **change).train_batches(Objective(), seed=0)
    with pytest.raises(InputError, match="cannot resume the data position: `sources"):
        continued.load_state_dict(state)
    close([started, continued])


def test_a_moved_file_continues(tmp_path, file):
    state = make(file).train_batches(Objective(), seed=0).state_dict()
    (tmp_path / "moved").mkdir()
    moved = write(tmp_path / "moved" / "data.csv", rows(300))
    make(moved).train_batches(Objective(), seed=0).load_state_dict(state)


def test_a_file_that_changes_under_a_job_stops_it(file):
    batches = make(file, prefetch=1).train_batches(Objective(), seed=0)
    next(batches)
    with open(file, "a", encoding="utf-8") as opened:
        opened.write("more,1,a\n")
    with pytest.raises(InputError, match=r"data\.csv has changed since this job began"):
        list(itertools.islice(batches, 100))
    batches.close()


def test_validation_is_read_once(file):
    data = make(file, pack=False)
    batches = data.validation_batches(Objective())
    result = np.concatenate([batch["inputs"] for batch in batches])
    numbers = [int(data.vocabulary().decode(row)[8:-1]) for row in result if row.any()]
    assert len(set(numbers)) == len(numbers) == data.num_examples("validation")
    same(list(batches), list(batches))


def test_shots_are_other_training_rows_and_depend_on_the_row_alone(tmp_path, file):
    options = {
        "features": {"inputs": "{shots}\n\n{question}", "targets": "{answer}"},
        "shots": 3,
        "shot": "{question} {answer}",
        "lengths": LENGTHS | {"inputs": 200},
    }
    data = make(file, **options)
    train = {f"{text} {text[8:-1]}" for text in texts(make(file), "train")}
    chosen = {}
    for split in ("train", "validation"):
        for text in texts(data, split):
            *shots, question = text.split("\n\n")
            assert len(set(shots)) == 3
            assert set(shots) <= train
            assert not any(shot.startswith(question) for shot in shots)
            chosen[question] = shots
    mixed = make(write(tmp_path / "mixed.csv", rows(300)[::-1]), **options)
    for text in texts(mixed, "train"):
        *shots, question = text.split("\n\n")
        assert chosen[question] == shots
    assert len({shot for shots in chosen.values() for shot in shots}) > 100


@pytest.mark.parametrize("split_by", [None, "page"])
def test_shots_tell_nothing_of_the_row_or_its_group(tmp_path, split_by):
    content = [
        {"id": f"{i}", "page": f"{i % 4}", "question": f"{i % 20}?", "answer": f"{i % 20}"}
        for i in range(60)
    ]
    data = make(
        write(tmp_path / "data.csv", content),
        features={"inputs": "{shots}\n\n{question}", "targets": "{answer}"},
        shots=10,
        shot="{page} {question}",
        split_by=split_by,
        validation_share=0.0,
        lengths=LENGTHS | {"inputs": 200},
    )
    for text in texts(data, "train"):
        *shots, question = text.split("\n\n")
        shown = [shot.split(" ")[1] for shot in shots]
        assert len(set(shown)) == 10
        assert question not in shown
        page = str(int(question[:-1]) % 4)
        assert split_by is None or not any(shot.startswith(page) for shot in shots)
    # 20 different ones, without the row's own, or without its page's five.
    with pytest.raises(InputError, match=f"must be at most {19 if split_by is None else 15}"):
        dataclasses.replace(data, shots=20).describe()


def test_classes_are_counted_and_described(file):
    data = make(file, features={"inputs": "{question}", "labels": Class("kind")})
    train, validation = data.class_counts("train"), data.class_counts("validation")
    assert list(train) == ["labels"]
    assert list(train["labels"]) == ["a", "b", "c"]
    for name in "abc":
        assert train["labels"][name] + validation["labels"][name] == 100
    assert "labels: 3 classes: " in data.describe()
    assert make(file).class_counts("train") == {}


def test_labels_of_every_kind_reach_the_batch(tmp_path):
    content = [
        {
            "text": f"a cat {i}",
            "start": 2,
            "answer": "cat",
            "words": ["a", "cat"],
            "tags": ["O", "X"],
        }
        for i in range(40)
    ]
    path = write_json(tmp_path / "data.jsonl", content)
    for features, expected in (
        ({"inputs": Tags("words", "tags")}, [0, 1, -1, -1, -1]),  # "a", " cat" in bytes
        ({"inputs": Answer("text", "answer", start="start")}, [2, 4]),
        ({"inputs": "{text}", "labels": Number("start")}, [2.0]),
    ):
        data = make(path, features=features, lengths={"inputs": 16, "labels": 16})
        example = data.examples(Objective("inputs", "labels"), split="train", count=1, seed=0)[0]
        assert list(example) == ["inputs", "labels"]
        assert example["labels"].tolist() == expected
    data = make(path, features={"inputs": Answer("text", "answer")}, lengths={"inputs": 5})
    assert (
        f"{data.num_examples('train')} answers of the first 1,000 rows are past" in data.describe()
    )


def test_a_class_that_training_lacks_is_refused(tmp_path, file):
    second = write(tmp_path / "other.csv", [*rows(4), rows(1)[0] | {"kind": "d"}])
    features = {"inputs": "{question}", "labels": Class("kind")}
    with pytest.raises(
        InputError, match=r"other.csv:6: unknown class of 'labels' 'd'(.|\n)*in none of"
    ):
        make(file, features=features, validation_files=second).class_counts("train")
    features["labels"] = Class("kind", classes=["a", "b"])
    with pytest.raises(InputError, match=r"data.csv:\d+: unknown class of 'labels' 'c'"):
        make(file, features=features).train_batches(Objective("inputs", "labels"), seed=0)


def test_broken_lines_stop_or_are_skipped_and_said(tmp_path):
    path = tmp_path / "data.csv"
    good = "".join(f"q{i},{i}\n" for i in range(30))
    path.write_text(f'question,answer\n{good}one\n{good}"x"y,2\n{good}' + "1,2,3\n" * 9)
    with pytest.raises(InputError) as raised:
        make(str(path)).describe()
    assert "11 of 101 rows are broken:" in str(raised.value)
    assert "data.csv:32: 1 fields instead of 2" in str(raised.value)
    assert "data.csv:63: unbalanced quotes" in str(raised.value)
    assert "and 6 more" in str(raised.value)
    assert "bad_lines = 'skip'" in str(raised.value)
    data = make(str(path), bad_lines="skip")
    assert len(texts(data, "train") + texts(data, "validation")) == 90
    assert "skipped: 11 of 101 rows are broken:" in data.describe()


def test_a_null_is_a_broken_row(tmp_path):
    path = write_json(tmp_path / "data.jsonl", [*rows(9), {"question": None, "answer": "1"}])
    with pytest.raises(InputError, match=r"data.jsonl:10: column 'question' is null"):
        make(path).describe()


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        (Number("x"), ["", None], "column 'x' is (empty|null)"),
        (Class("x"), ["", None], "column 'x' is (empty|null)"),
        (Number("x"), ["NA", "nan", "1_000", "0x1"], "column 'x' is '?(NA|nan|1_000|0x1)'?, not"),
    ],
)
def test_a_missing_label_is_a_broken_line(tmp_path, name, column, values, words):
    for value in values:
        content = [{"t": f"text {i}", "x": "1"} for i in range(20)]
        content[4]["x"] = value
        path = (write if name == "a.csv" else write_json)(tmp_path / name, content)
        features = {"inputs": "{t}", "labels": column}
        number = 5 + (name == "a.csv")  # of the line, after that of names
        with pytest.raises(InputError, match=rf"{name}:{number}: {words}"):
            make(path, features=features).describe()
        data = make(path, features=features, bad_lines="skip")
        assert data.num_examples("train") + data.num_examples("validation") == 19


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "", "a.csv is empty: its first line must name the columns"),
        ("a.csv", "question,answer\n", "no rows in split 'train': the files hold no rows"),
        ("a.jsonl", "", "no rows in split 'train': the files hold no rows"),
        ("a.jsonl", "[]", "no rows in split 'train': the files hold no rows"),
        ("a.jsonl", "\n\n", "no rows in split 'train': the files hold no rows"),
    ],
)
def test_files_without_rows_say_so(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=words):
        make(str(tmp_path / name)).train_batches(Objective(), seed=0)


def test_a_file_named_twice_is_read_once_and_said(tmp_path, file):
    (tmp_path / "link.csv").symlink_to(file)
    data = make([file, f"{tmp_path}/*.csv", f"{tmp_path}/./data.csv"])
    assert data.num_examples("train") + data.num_examples("validation") == 300
    assert f"named twice, read once: {tmp_path}/link.csv (as {file}) and 1 more" in data.describe()


def test_what_a_vocabulary_may_be(tmp_path, file):
    Bytes(7).save(tmp_path / "saved")
    for vocab in (Bytes(7), lambda: Bytes(7), str(tmp_path / "saved")):
        assert make(file, vocab=vocab).vocabulary().fingerprint == Bytes(7).fingerprint
    with pytest.raises(InputError, match="vocab = None: must be a vocabulary"):
        make(file, vocab=None).vocabulary()
    with pytest.raises(InputError, match="SentencePiece model file"):
        make(file, vocab=str(tmp_path / "none.model")).vocabulary()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"features": {"inputs": "{qestion}"}},
            "data.csv, feature 'inputs'.*did you mean question",
        ),
        (
            {"features": {"inputs": "{question}"}},
            "lacks what Objective reads: unknown feature 'targ",
        ),
        ({"features": {"kind": "{kind}"}}, "lacks what Objective reads: unknown feature 'inputs'"),
        ({"features": {"inputs": "{question} {shots}"}}, "unknown column 'shots'"),
        ({"features": {}}, "features = {}: name at least one"),
        ({"features": {"inputs": Tags("a", "b"), "labels": Class("kind")}}, "both make 'labels'"),
        ({"shots": 2}, "set both"),
        ({"shots": 2, "shot": "{answer}"}, "no template has the slot {shots}"),
        ({"shots": -1, "shot": "x"}, "shots is -1; it must be an integer of at least 0"),
        (
            {"shots": 999, "shot": "{answer}", "features": {"inputs": "{shots}", "targets": "x"}},
            "shots = 999: must be at most 0",
        ),
        ({"validation_share": 1.0}, "validation_share = 1.0: must be"),
        ({"bad_lines": "skp"}, "did you mean skip"),
        ({"format": "cvs"}, "did you mean csv"),
        ({"files": "nothing*.csv"}, "FileData.files = 'nothing.*no file matches"),
        ({"validation_files": "no.csv"}, "FileData.validation_files = 'no.csv'"),
        ({"lengths": {"inputs": 4}}, "TASK_FEATURE_LENGTHS has no 'targets'"),
    ],
)
def test_mistakes_are_told_before_any_batch(file, change, words):
    with pytest.raises(InputError, match=words):
        make(change.pop("files", file), **change).train_batches(Objective(), seed=0)


def test_an_empty_split_is_told(tmp_path, file):
    with pytest.raises(InputError, match=r"validation_share 0.0 of 300 rows left none; raise it"):
        make(file, validation_share=0.0).validation_batches(Objective())
    empty = tmp_path / "empty.csv"
    empty.write_text("question,answer\n")
    with pytest.raises(InputError, match="no rows in split 'train': the files hold no rows"):
        make(str(empty)).train_batches(Objective(), seed=0)
    with pytest.raises(InputError, match="unknown split of FileData 'test'"):
        make(file).num_examples("test")


def test_a_part_of_a_mixture(tmp_path, file):
    second = write(tmp_path / "other.csv", rows(100, 1000))
    data = MixtureData(
        {"one": make(file), "two": make(second)}, lengths=LENGTHS, batch_size=8, num_shards=4
    )
    assert data.num_examples("train") == sum(
        make(item).num_examples("train") for item in (file, second)
    )
    batches = data.train_batches(Objective(), seed=0)
    assert next(batches)["inputs"].shape == (8, 32)
    batches.close()


def test_gin_alone_is_enough(file):
    gin = pytest.importorskip("gin")
    gin.clear_config()
    try:
        gin.parse_config(
            f"""
            from __gin__ import dynamic_registration
            import t5lite
            t5lite.data.FileData:
              files = "{file}"
              features = {{"inputs": "{{question}}", "labels": @t5lite.data.Class()}}
              vocab = @t5lite.data.Bytes()
              lengths = {{"inputs": 32, "labels": 1}}
              batch_size = 8
            t5lite.data.Class.column = "kind"
            """
        )
        data = gin.get_configurable(t5lite.data.FileData)()
        assert data.class_counts("train")["labels"].keys() == {"a", "b", "c"}
    finally:
        gin.clear_config()


def test_more_than_files_are_meant_for_is_said_and_much_more_refused(file, monkeypatch):
    monkeypatch.setattr(file_data, "_MEANT_GB", 1e-9)
    assert "FileData is meant for 1e-09: write the rows once with t5lite.data.write_shards" in (
        make(file).describe()
    )
    monkeypatch.setattr(file_data, "_MOST_GB", 1e-9)
    monkeypatch.setattr(file_data, "cached_index", None)  # nothing is read
    with pytest.raises(InputError, match="train on them with ShardedData") as error:
        make(file).describe()
    assert error.value.field == "FileData.files"
