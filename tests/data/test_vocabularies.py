"""Vocabularies: round trips, T5's sentinels, saving, and training once. No TensorFlow here."""

import copy
import json
import os
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest

from t5lite.data import paths
from t5lite.data.vocabularies import training
from t5lite.data.vocabularies.base import Vocabulary
from t5lite.data.vocabularies.byte_ids import Bytes
from t5lite.data.vocabularies.opening import load_vocabulary
from t5lite.data.vocabularies.sentence_pieces import SentencePiece
from t5lite.data.vocabularies.training import train_sentencepiece
from t5lite.errors import InputError

SIZE = 400


def some_texts(seed=0):
    rng = random.Random(seed)
    syllables = [a + b for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u", "an", "er")]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(500)]
    return [
        "\n".join(" ".join(rng.choices(words, k=9)) + "." for _ in range(12)) for _ in range(40)
    ]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def sentencepiece(cache):
    return train_sentencepiece(some_texts(), SIZE, cache_folder=cache)


@pytest.fixture(params=["sentencepiece", "bytes"])
def vocabulary(request):
    return Bytes() if request.param == "bytes" else request.getfixturevalue("sentencepiece")


# Properties of every vocabulary


def test_text_survives_encoding_and_decoding(vocabulary):
    for text in some_texts(seed=1)[0].splitlines():
        ids = vocabulary.encode(text)
        assert vocabulary.decode(ids) == text
        assert min(ids) > vocabulary.unk_id
        assert max(ids) < vocabulary.size - vocabulary.num_sentinels
        assert vocabulary.eos_id not in ids


def test_decoding_stops_at_eos_and_drops_padding(vocabulary):
    ids = vocabulary.encode("banana kera")
    tail = vocabulary.encode("dota")
    padded = np.array([0, *ids, 0, vocabulary.eos_id, *tail, 0], np.int32)
    assert vocabulary.decode(padded) == "banana kera"
    assert vocabulary.decode([]) == ""
    assert vocabulary.decode(iter([vocabulary.eos_id, *tail])) == ""


def test_sentinels_are_the_last_ids_descending(vocabulary):
    count = vocabulary.num_sentinels
    ids = [vocabulary.sentinel(index) for index in range(count)]
    assert ids == list(range(vocabulary.size - 1, vocabulary.size - 1 - count, -1))
    assert [vocabulary.decode([item]) for item in ids] == [f"<extra_id_{n}>" for n in range(count)]
    for index in (-1, count):
        with pytest.raises(InputError, match=f"sentinel {index} .* has {count}"):
            vocabulary.sentinel(index)


def test_every_id_has_a_piece_and_ids_beyond_the_vocabulary_do_no_harm(vocabulary):
    pieces = [vocabulary.piece(np.int32(token)) for token in range(vocabulary.size)]
    assert len(set(pieces)) == vocabulary.size
    assert pieces[:3] == ["<pad>", "</s>", "<unk>"]
    assert vocabulary.piece(vocabulary.size) == f"<id_{vocabulary.size}>"
    assert [vocabulary.id_of(piece) for piece in pieces] == [*range(vocabulary.size)]
    for piece in ("no such piece", vocabulary.piece(vocabulary.size), ""):
        assert vocabulary.id_of(piece) is None
    assert "banana" in vocabulary.decode([vocabulary.size + 27, *vocabulary.encode("banana")])


def test_saving_and_loading_is_the_identity(vocabulary, tmp_path):
    vocabulary.save(tmp_path / "new" / "folder")
    loaded = load_vocabulary(tmp_path / "new" / "folder")
    assert type(loaded) is type(vocabulary)
    assert loaded.fingerprint == vocabulary.fingerprint
    assert (loaded.size, loaded.num_sentinels) == (vocabulary.size, vocabulary.num_sentinels)
    text = "banana <extra_id_3> kera"
    assert loaded.encode(text) == vocabulary.encode(text)
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} <= {
        "vocabulary.json",
        "sentencepiece.model",
    }


def test_copies_and_pickles_give_the_same_ids(vocabulary):  # gin copies what it binds
    for twin in (copy.deepcopy(vocabulary), pickle.loads(pickle.dumps(vocabulary))):
        assert twin.encode("banana kera") == vocabulary.encode("banana kera")
        assert twin.fingerprint == vocabulary.fingerprint


def test_all_are_vocabularies(vocabulary):
    assert isinstance(vocabulary, Vocabulary)


# Each kind


def test_bytes_keep_any_unicode_and_show_sentinels_where_they_stand():
    vocabulary = Bytes()
    assert vocabulary.size == 384  # the published ByT5's
    text = "naïve 東京 🙂\n\ttab"
    ids = vocabulary.encode(text)
    assert ids == [byte + 3 for byte in text.encode()]
    assert vocabulary.decode(ids) == text
    mixed = [*vocabulary.encode("a"), vocabulary.sentinel(1), *vocabulary.encode("b")]
    assert vocabulary.decode(mixed) == "a<extra_id_1>b"
    assert vocabulary.decode(ids[:3]) == "na"  # half a character vanishes
    assert Bytes(7).fingerprint != Bytes(8).fingerprint


def test_sentencepiece_follows_t5(sentencepiece):
    assert sentencepiece.size == SIZE
    assert (sentencepiece.pad_id, sentencepiece.eos_id, sentencepiece.unk_id) == (0, 1, 2)
    ids = sentencepiece.encode("banana <extra_id_0> kera <extra_id_1>")
    assert ids.count(SIZE - 1) == ids.count(SIZE - 2) == 1
    assert sentencepiece.decode(ids) == "banana <extra_id_0> kera <extra_id_1>"
    assert sentencepiece.encode("banana\n\n  kera") == sentencepiece.encode("banana kera")
    assert sentencepiece.unk_id in sentencepiece.encode("東")
    assert sentencepiece.unk_id not in sentencepiece.encode("{Z} ~ `0`")  # ASCII is always there


def test_the_number_of_sentinels_moves_only_the_sentinels(sentencepiece):
    fewer = SentencePiece(sentencepiece.model_file, num_sentinels=7)
    assert fewer.size == SIZE - 93
    assert fewer.encode("banana kera") == sentencepiece.encode("banana kera")
    assert fewer.fingerprint != sentencepiece.fingerprint
    none = SentencePiece(sentencepiece.model_file, num_sentinels=0)
    assert none.size == SIZE - 100
    with pytest.raises(InputError, match="has 0"):
        none.sentinel(0)


def test_a_file_with_sentinels_of_its_own_gets_no_others(sentencepiece, tmp_path):  # as mT5's
    path = tmp_path / "own.model"
    path.write_bytes(sentencepiece._processor.serialized_model_proto())
    for requested in (0, 100):
        own = SentencePiece(path, num_sentinels=requested)
        assert (own.size, own.num_sentinels, own.sentinel(0)) == (SIZE, 100, SIZE - 1)
    with pytest.raises(InputError, match="already has 100 sentinels"):
        SentencePiece(path, num_sentinels=101)


# Training


def test_training_is_deterministic_and_done_once(sentencepiece, cache, tmp_path, monkeypatch):
    again = train_sentencepiece(iter(some_texts()), SIZE, cache_folder=tmp_path)
    assert again.model_file != sentencepiece.model_file
    assert again.fingerprint == sentencepiece.fingerprint

    monkeypatch.setattr(training, "_train", None)  # would fail if called
    cached = train_sentencepiece(some_texts(), SIZE, cache_folder=cache)
    assert cached.model_file == sentencepiece.model_file
    as_bytes = [text.encode() for text in some_texts()]
    assert train_sentencepiece(as_bytes, SIZE, cache_folder=cache).model_file == cached.model_file


def test_other_text_size_or_sentinels_train_anew(sentencepiece, cache):
    other_text = train_sentencepiece(some_texts()[1:], SIZE, cache_folder=cache)
    other_size = train_sentencepiece(some_texts(), SIZE - 50, cache_folder=cache)
    fewer = train_sentencepiece(some_texts(), SIZE - 50, num_sentinels=50, cache_folder=cache)
    assert other_size.size == fewer.size == SIZE - 50
    assert fewer.num_sentinels == 50
    model = {item.model_file for item in (sentencepiece, other_text, other_size, fewer)}
    assert len(model) == 4


def test_where_texts_are_cut_matters_to_the_key(cache):
    texts = [" ".join(some_texts()[:20]), " ".join(some_texts()[20:])]
    moved = [texts[0][:-5], texts[0][-5:] + texts[1]]
    first = train_sentencepiece(texts, SIZE, cache_folder=cache)
    assert train_sentencepiece(moved, SIZE, cache_folder=cache).model_file != first.model_file


def test_training_says_nothing(tmp_path, capfd):
    train_sentencepiece(some_texts(), SIZE, cache_folder=tmp_path)
    assert capfd.readouterr() == ("", "")


def test_processes_that_train_at_once_agree(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_vocabularies import some_texts\n"
        "from t5lite.data.vocabularies.training import train_sentencepiece\n"
        "print(train_sentencepiece(some_texts(3), 300, cache_folder=sys.argv[2]).fingerprint)"
    )
    command = [sys.executable, "-c", code, str(paths.Path(__file__).parent), str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    printed = {process.communicate(timeout=60)[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(printed) == 1
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1


def test_the_default_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("T5LITE_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    model = train_sentencepiece(some_texts(), 250)
    assert model.model_file.startswith(str(tmp_path / "own" / "vocabularies"))
    monkeypatch.delenv("T5LITE_CACHE")
    assert paths.cache_folder() == tmp_path / "xdg" / "t5lite"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert paths.cache_folder() == tmp_path / "home" / ".cache" / "t5lite"


# Bad input


@pytest.mark.parametrize(
    ("texts", "size", "message"),
    [
        ([], SIZE, "no text"),
        (["  \n "], SIZE, "no text"),
        (["a short text"], 5000, "size=5000"),
        (["a short text"], 103, "size=103 leaves no pieces"),
        ([b"good", b"caf\xe9 au lait"], SIZE, "text 1 .* not UTF-8: byte 0xe9 at offset 3"),
    ],
)
def test_text_that_cannot_be_trained_on(texts, size, message, tmp_path):
    with pytest.raises(InputError, match=message) as caught:
        train_sentencepiece(texts, size, cache_folder=tmp_path)
    assert len(str(caught.value).splitlines()) <= 4
    assert not list(tmp_path.rglob("*"))  # nothing half-made is left


def test_missing_and_damaged_model_files(sentencepiece, tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*nowhere\.model"):
        SentencePiece(tmp_path / "nowhere.model")
    for content in (b"", b"not a model", paths.Path(sentencepiece.model_file).read_bytes()[:-9]):
        (tmp_path / "bad.model").write_bytes(content)
        with pytest.raises(InputError, match=r"bad\.model is not a SentencePiece model"):
            SentencePiece(tmp_path / "bad.model")
    with pytest.raises(InputError, match="num_sentinels is -1"):
        SentencePiece(sentencepiece.model_file, num_sentinels=-1)
    with pytest.raises(InputError, match="num_sentinels is -1"):
        Bytes(-1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "os.system"}, "unknown vocabulary kind 'os.system'"),
        ({"kind": "Byte"}, "did you mean Bytes"),
        ({"format": 2}, "format 2"),
        ({"num_sentinels": None}, "damaged"),
        ({"num_sentinels": "many"}, "damaged"),
        ({"num_sentinels": 99}, "damaged"),
    ],
)
def test_descriptions_that_do_not_fit(sentencepiece, tmp_path, change, message):
    sentencepiece.save(tmp_path)
    path = tmp_path / "vocabulary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message):
        load_vocabulary(tmp_path)


def test_folders_that_hold_no_vocabulary(sentencepiece, tmp_path):
    with pytest.raises(InputError, match=r"cannot read the vocabulary .*vocabulary\.json"):
        load_vocabulary(tmp_path)
    (tmp_path / "vocabulary.json").write_text('{"format": 1, ')
    with pytest.raises(InputError, match="damaged"):
        load_vocabulary(tmp_path)
    sentencepiece.save(tmp_path)
    train_sentencepiece(some_texts(5), SIZE, cache_folder=tmp_path / "other").save(tmp_path / "b")
    (tmp_path / "b" / "sentencepiece.model").replace(tmp_path / "sentencepiece.model")
    with pytest.raises(InputError, match="damaged"):
        load_vocabulary(tmp_path)
    (tmp_path / "sentencepiece.model").unlink()
    with pytest.raises(InputError, match=r"cannot read .*sentencepiece\.model"):
        load_vocabulary(tmp_path)


def test_a_place_that_cannot_be_written_is_named(sentencepiece, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*file"):
        sentencepiece.save(tmp_path / "file")
    with pytest.raises(InputError, match="T5LITE_CACHE"):
        train_sentencepiece(some_texts(), SIZE, cache_folder=tmp_path / "file")


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "kept"
    paths.write_whole(path, b"old")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(paths.os, "replace", full_disk)
    with pytest.raises(InputError, match="No space left on device"):
        paths.write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("kept")
    for path, message in [
        (tmp_path, "it is a folder"),
        (tmp_path / "file" / "below" / "new", f"{tmp_path}/file is not a folder"),
    ]:
        with pytest.raises(InputError, match=f"cannot write {path}: {message}"):
            paths.require_writable(path)
    for path in tmp_path / "file", tmp_path / "new" / "folder" / "file":
        paths.require_writable(path)
    assert [*tmp_path.iterdir()] == [tmp_path / "file"]
    assert (tmp_path / "file").read_text() == "kept"


def test_decode_text_names_the_place_and_the_offset():
    assert paths.decode_text("naïve".encode(), where="x") == "naïve"
    with pytest.raises(InputError, match=r"notes\.txt is not UTF-8: byte 0xff at offset 4"):
        paths.decode_text(b"abcd\xff", where="notes.txt")


def test_the_room_is_light_and_free_of_tensorflow(tmp_path):
    code = (
        "import sys, t5lite.data\n"
        "assert not {'tensorflow', 'seqio', 'numpy', 'sentencepiece', 'jax'} & set(sys.modules)\n"
        "assert 'TaskData' in dir(t5lite.data)\n"
        "try: t5lite.data.nonsense\n"
        "except AttributeError as error: assert 'nonsense' in str(error)\n"
        "from t5lite.data import Bytes, from_seqio, get_task, train_sentencepiece\n"
        "train_sentencepiece([' '.join(sys.modules)], 250)\n"
        "assert not {'tensorflow', 'seqio', 'jax'} & set(sys.modules)"
    )
    environment = os.environ | {"T5LITE_CACHE": str(tmp_path)}
    command = [sys.executable, "-W", "error", "-c", code]
    subprocess.run(command, check=True, timeout=60, env=environment)
