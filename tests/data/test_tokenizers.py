"""Vocabularies of the `tokenizers` library, alone and as SeqIO's. Imports TensorFlow."""

import copy
import itertools
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest

from t5lite.data.importing import import_seqio
from t5lite.data.tasks.cache import write_seqio_cache
from t5lite.data.tasks.task_data import TaskData
from t5lite.data.tasks.twins import from_seqio
from t5lite.data.vocabularies.base import Vocabulary
from t5lite.data.vocabularies.byte_ids import Bytes
from t5lite.data.vocabularies.opening import load_vocabulary
from t5lite.data.vocabularies.tokenizer_files import HuggingFaceTokenizer, WordPiece
from t5lite.errors import InputError
from t5lite.rows import HostHalf

tokenizers = pytest.importorskip("tokenizers")

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES += ["the", "cat", "##s", "sat", "on", "mat", "."]
TEXTS = [f"The cats sat on {'the ' * (i % 5)}mat. <extra_id_1> {i}" for i in range(40)]


class Plain(HostHalf):
    """Cuts examples to their length."""

    features = ("targets",)

    def prepare(self, examples, *, lengths, vocabulary, rng):
        for example in examples:
            yield {"targets": example["targets"][: lengths["targets"]]}

    def batch(self, rows):
        return rows


@pytest.fixture
def vocab_file(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(PIECES) + "\n")
    return path


@pytest.fixture
def json_file(tmp_path):
    """Byte-level BPE, as GPT-2's: no padding, id 0 a piece of text, text comes back exactly."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=64)
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(params=["WordPiece", "HuggingFaceTokenizer"])
def vocabulary(request):
    if request.param == "WordPiece":
        return WordPiece(request.getfixturevalue("vocab_file"), num_sentinels=7)
    return HuggingFaceTokenizer(request.getfixturevalue("json_file"), num_sentinels=7, offset=1)


def test_text_comes_back_and_many_are_as_one_by_one(vocabulary):
    text = "the cats sat on the mat."
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == text
    assert vocabulary.decode([0, *ids, 0, vocabulary.eos_id, *ids]) == text
    assert vocabulary.encode_all(TEXTS) == [vocabulary.encode(item) for item in TEXTS]
    assert vocabulary.encode_all([]) == []
    assert 0 not in ids
    assert max(ids) < vocabulary.size - vocabulary.num_sentinels
    assert vocabulary.encode("") == []
    assert vocabulary.decode([]) == ""
    assert "cat" in vocabulary.decode([vocabulary.size + 7, *ids, -3])


def test_sentinels_are_the_last_ids_descending_and_read_in_text(vocabulary):
    ids = [vocabulary.sentinel(index) for index in range(7)]
    assert ids == list(range(vocabulary.size - 1, vocabulary.size - 8, -1))
    assert [vocabulary.piece(item) for item in ids] == [f"<extra_id_{n}>" for n in range(7)]
    assert vocabulary.encode("<extra_id_3>") == [vocabulary.sentinel(3)]
    assert "<extra_id_3>" in vocabulary.decode([vocabulary.sentinel(3)])
    pieces = [vocabulary.piece(np.int32(token)) for token in range(vocabulary.size)]
    assert len(set(pieces)) == vocabulary.size
    assert vocabulary.piece(vocabulary.size) == f"<id_{vocabulary.size}>"
    assert [vocabulary.id_of(piece) for piece in pieces] == [*range(vocabulary.size)]
    assert vocabulary.id_of("no such piece") is None


def test_saving_loading_copying_and_seqio_give_the_same_ids(vocabulary, tmp_path):
    vocabulary.save(tmp_path / "saved")
    twins = [
        load_vocabulary(tmp_path / "saved"),
        copy.deepcopy(vocabulary),
        pickle.loads(pickle.dumps(vocabulary)),
        from_seqio(vocabulary.as_seqio()),
    ]
    for twin in twins:
        assert isinstance(twin, Vocabulary)
        assert type(twin) is type(vocabulary)
        assert twin.fingerprint == vocabulary.fingerprint
        assert twin.encode_all(TEXTS) == vocabulary.encode_all(TEXTS)
        for name in ("size", "eos_id", "unk_id", "mask_id", "num_sentinels"):
            assert getattr(twin, name) == getattr(vocabulary, name)
    path = tmp_path / "saved" / "vocabulary.json"
    saved = json.loads(path.read_text())
    for change in ({"num_sentinels": 6}, {"options": {"nonsense": 1}}, {"options": 3}):
        path.write_text(json.dumps(saved | change))
        with pytest.raises(InputError, match="damaged"):
            load_vocabulary(tmp_path / "saved")


def test_wordpiece_follows_bert(vocab_file):
    uncased = WordPiece(vocab_file)
    assert (uncased.size, uncased.num_sentinels) == (len(PIECES), 0)
    assert (uncased.pad_id, uncased.unk_id, uncased.eos_id, uncased.mask_id) == (0, 1, 3, 4)
    pieces = [uncased.piece(token) for token in uncased.encode("The cáts [MASK] sat.Dogs")]
    assert pieces == ["the", "cat", "##s", "[MASK]", "sat", ".", "[UNK]"]
    cased = WordPiece(vocab_file, lowercase=False)
    assert cased.encode("The cats") == [1, 6, 7]
    assert cased.fingerprint != uncased.fingerprint
    assert WordPiece(vocab_file, num_sentinels=2).encode("the cats") == uncased.encode("the cats")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_only_line_feeds_end_a_piece(vocab_file, end):
    pieces = [*PIECES[:5], "\u2028", "\x1c", *PIECES[5:]]
    vocab_file.write_text(end.join(pieces) + end, newline="")
    vocabulary = WordPiece(vocab_file)
    assert [vocabulary.piece(token) for token in range(vocabulary.size)] == pieces


def test_an_offset_makes_room_for_padding(json_file):
    shifted = HuggingFaceTokenizer(json_file, offset=1)
    bare = tokenizers.Tokenizer.from_file(str(json_file))
    bare.no_padding()
    bare.no_truncation()
    for text in TEXTS:
        assert shifted.encode(text) == [token + 1 for token in bare.encode(text).ids]
        assert shifted.decode(shifted.encode(text)) == text
    assert shifted.size == bare.get_vocab_size() + 1
    assert shifted.eos_id == bare.token_to_id("<|endoftext|>") + 1
    assert shifted.encode("!") == [1]
    assert (shifted.unk_id, shifted.mask_id, shifted.piece(0)) == (-1, None, "<pad>")
    assert HuggingFaceTokenizer(json_file, offset=1, eos=".").eos_id == shifted.encode(".")[0]


def test_id_0_may_be_a_token_of_the_text(json_file, vocab_file):
    own = HuggingFaceTokenizer(json_file)
    assert (own.pad_id, own.piece(0)) == (-1, "!")
    assert own.encode("!the!")[::3][0] == 0
    for text in ["!", "!!", *TEXTS]:
        assert own.decode(own.encode(text)) == text
    twin = own.as_seqio()
    assert (twin.pad_id, twin.encode("!!"), twin.decode([0, 0])) == (-1, [0, 0], "!!")
    for vocabulary in (HuggingFaceTokenizer(json_file, offset=1), WordPiece(vocab_file)):
        assert vocabulary.pad_id == 0


@pytest.mark.parametrize(
    ("tokens", "options", "expected"),
    [
        (["<s>", "<pad>", "</s>", "<unk>"], {}, (1, 2, 0)),  # RoBERTa
        (["</s>", "<unk>", "<pad>"], {}, (2, 0, None)),  # Marian
        (["<unk>", "<s>", "</s>"], {}, (-1, 2, 1)),  # LLaMA
        (["<unk>", "<s>", "</s>"], {"pad": "<unk>"}, (-1, 2, 1)),
        (["<|endoftext|>", "<|padding|>"], {}, (1, 0, None)),  # GPT-NeoX
        (["<pad>", "</s>", "<unk>"], {}, (0, 1, None)),  # T5
        (["@", "%", "<eod>"], {"pad": "@", "eos": "<eod>", "bos": "%"}, (0, 2, 1)),
    ],
)
def test_what_pads_begins_and_ends_is_read_off_the_names(tokens, options, expected):
    model = tokenizers.models.WordLevel({token: i for i, token in enumerate(tokens)}, "<unk>")
    content = tokenizers.Tokenizer(model).to_str()
    result = HuggingFaceTokenizer.from_json(content, "names", **options)
    assert (result.pad_id, result.eos_id, result.bos_id) == expected
    assert result.unk_id == (tokens.index("<unk>") if "<unk>" in tokens else -1)


def test_frame_is_the_files_template(vocab_file, json_file):
    bert = WordPiece(vocab_file)
    assert bert.frame([7, 8]) == [2, 7, 8, 3]
    assert HuggingFaceTokenizer.from_json(bert.to_json(), "bert").frame([7, 8]) == [2, 7, 8, 3]
    assert Bytes().frame([7, 8]) == [7, 8, 1]
    bare = HuggingFaceTokenizer(json_file)
    assert bare.frame([7, 8]) == [7, 8, bare.eos_id]  # by default
    processors = tokenizers.processors
    names = ["<s>", "<pad>", "</s>", "<unk>", "a", "b"]
    model = tokenizers.models.WordLevel({name: i for i, name in enumerate(names)}, "<unk>")
    special = [("<s>", 0), ("</s>", 2)]
    for processor, expected, bos_id in (
        (processors.RobertaProcessing(("</s>", 2), ("<s>", 0)), [0, 4, 5, 2], 0),
        (processors.BertProcessing(("</s>", 2), ("<s>", 0)), [0, 4, 5, 2], 0),
        (processors.TemplateProcessing("<s> $A", None, special), [0, 4, 5], 0),
        (processors.TemplateProcessing("$A </s>", None, special), [4, 5, 2], None),
        (processors.ByteLevel(), [4, 5], 0),
    ):
        tokenizer = tokenizers.Tokenizer(model)
        tokenizer.post_processor = processor
        for offset in (0, 1):
            opened = HuggingFaceTokenizer.from_json(tokenizer.to_str(), "names", offset=offset)
            framed = opened.frame([4 + offset, 5 + offset])
            assert framed == [token + offset for token in expected]
            assert opened.bos_id == (None if bos_id is None else offset)


def test_a_file_with_sentinels_of_its_own_gets_no_others(vocab_file, tmp_path):
    vocab_file.write_text("\n".join([*PIECES, "<extra_id_1>", "<extra_id_0>"]) + "\n")
    own = WordPiece(vocab_file)
    assert (own.size, own.num_sentinels, own.sentinel(0)) == (len(PIECES) + 2, 2, len(PIECES) + 1)
    with pytest.raises(InputError, match="already has 2 sentinels"):
        WordPiece(vocab_file, num_sentinels=3)


def test_files_that_cannot_be_used_are_named(json_file, vocab_file, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"cannot read the tokenizer file .*nowhere"):
        HuggingFaceTokenizer(tmp_path / "nowhere.json")
    content = json_file.read_bytes()
    for broken in (b"", b"{}", content[:-9]):
        json_file.write_bytes(broken)
        with pytest.raises(InputError, match=r"tokenizer\.json is not a tokenizer\.json, or is"):
            HuggingFaceTokenizer(json_file)
    json_file.write_bytes(content)
    for pieces, message in (
        (PIECES[2:], r"has no \[UNK\]"),
        ([*PIECES, "cat"], "the same piece twice"),
        (PIECES[:3], r"eos token of .* '\[SEP\]'"),
    ):
        vocab_file.write_text("\n".join(pieces))
        with pytest.raises(InputError, match=message):
            WordPiece(vocab_file)
    for options, message in (
        ({"offset": 2}, "offset=2"),
        ({"num_sentinels": -1}, "num_sentinels is -1"),
        ({"offset": 1, "eos": "<|endoftex|>"}, "did you mean"),
    ):
        with pytest.raises(InputError, match=message):
            HuggingFaceTokenizer(json_file, **options)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InputError, match=r"pip install .tokenizers>=0\.21"):
        HuggingFaceTokenizer(json_file)


def test_the_file_is_free_of_tensorflow(vocab_file):
    code = (
        "import sys\n"
        "from t5lite.data import WordPiece\n"
        f"WordPiece({str(vocab_file)!r}).encode('the cat')\n"
        "assert not {'tensorflow', 'seqio', 'jax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# In SeqIO


@pytest.fixture
def task(vocabulary):
    """Texts of a task that may be cached after the tokenising, as SeqIO makes them."""
    seqio = import_seqio()
    import tensorflow as tf

    def read(split, shuffle_files, seed=None):
        return tf.data.Dataset.from_tensor_slices({"targets": TEXTS})

    return seqio.Task(
        "tokenized",
        source=seqio.FunctionDataSource(read, splits=["train"], num_input_examples={"train": 40}),
        preprocessors=[seqio.preprocessors.tokenize, seqio.CacheDatasetPlaceholder()],
        output_features={"targets": seqio.Feature(vocabulary.as_seqio(), add_eos=False)},
    )


def open_data(task, **changes):
    options = {"lengths": {"targets": 24}, "batch_size": 4, "num_shards": 2, "window": 7}
    return TaskData(task, **(options | {"validation_split": None, "block_rows": 2} | changes))


def test_graphs_give_the_ids_of_python(vocabulary):
    import_seqio()
    import tensorflow as tf

    theirs = vocabulary.as_seqio()
    assert (theirs.vocab_size, theirs.eos_id) == (vocabulary.size, vocabulary.eos_id)
    assert theirs.unk_id == (None if vocabulary.unk_id < 0 else vocabulary.unk_id)
    assert theirs == vocabulary.as_seqio() != Bytes().as_seqio()

    @tf.function
    def encode(text):
        return theirs.encode_tf(text)

    dataset = tf.data.Dataset.from_tensor_slices(TEXTS).map(encode)
    assert [ids.tolist() for ids in dataset.as_numpy_iterator()] == vocabulary.encode_all(TEXTS)
    ragged = encode(tf.constant([*TEXTS[:3], ""]))
    assert ragged.to_list() == vocabulary.encode_all([*TEXTS[:3], ""])
    ids = vocabulary.encode_all(["the cat", "on the mat."])
    padded = tf.ragged.constant(ids).to_tensor()
    assert [text.decode() for text in theirs.decode_tf(padded).numpy()] == [
        "the cat",
        "on the mat.",
    ]
    assert theirs.decode_tf(padded[0]).numpy().decode() == theirs.decode(ids[0]) == "the cat"


def test_a_task_trains_and_resumes_exactly(task, vocabulary):
    data = open_data(task)
    assert data.vocabulary() is vocabulary
    batches = data.train_batches(Plain(), seed=0)
    whole = list(itertools.islice(batches, 9))
    batches.close()
    for head in (3, 6):
        started, continued = (data.train_batches(Plain(), seed=0) for _ in range(2))
        for _ in range(head):
            next(started)
        continued.load_state_dict(json.loads(json.dumps(started.state_dict())))
        np.testing.assert_array_equal(next(continued)["targets"], whole[head]["targets"])
        started.close()
        continued.close()


def test_seqios_cache_of_it_is_read_back(task, vocabulary, tmp_path):
    write_seqio_cache(task, tmp_path, num_shards=3)
    try:
        data = open_data(task, use_cached=True, cache_dirs=[str(tmp_path)])
        shown = data.examples(Plain(), split="train", count=99, seed=0)
        cut = sorted(ids[:24] for ids in vocabulary.encode_all(TEXTS))
        assert sorted(item["targets"].tolist() for item in shown) == cut
    finally:
        import_seqio().set_global_cache_dirs([])
