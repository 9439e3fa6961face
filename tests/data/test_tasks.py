"""SeqIO tasks by name, and vocabularies beside SeqIO's. The one file here that needs TensorFlow."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import t5lite
from t5lite import configuration
from t5lite.data import TaskData
from t5lite.data.demo import python_docs
from t5lite.data.demo import tasks as demo_tasks
from t5lite.data.demo.tasks import DemoTask
from t5lite.data.importing import import_seqio
from t5lite.data.tasks import registry as tasks
from t5lite.data.tasks import task_data
from t5lite.data.tasks.registry import get_task
from t5lite.data.tasks.twins import from_seqio
from t5lite.data.vocabularies.byte_ids import Bytes
from t5lite.data.vocabularies.sentence_pieces import SentencePiece
from t5lite.errors import InputError
from t5lite.objectives import Seq2Seq, SpanCorruption

ROOT = Path(__file__).parents[2]
TEXTS = [
    "Thank you <extra_id_0> me to your party <extra_id_1> week.",
    "def f(x):\n    return {x: '~'}",
    "<extra_id_99>",
    "naïve 東京 🙂 ﬁ",
    "",
]


@pytest.fixture(scope="module")
def seqio(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("T5LITE_CACHE", str(tmp_path_factory.mktemp("cache")))
        python_docs.load.cache_clear()
        demo_tasks.python_docs_vocabulary.cache_clear()
        yield import_seqio()
        python_docs.load.cache_clear()
        demo_tasks.python_docs_vocabulary.cache_clear()


def examples(task, split, count=None):
    dataset = task.get_dataset(sequence_length=None, split=split, shuffle=False)
    return list((dataset if count is None else dataset.take(count)).as_numpy_iterator())


# Vocabularies


@pytest.fixture(params=["SentencePiece", "Bytes", "Bytes of ByT5's first release"])
def vocabulary(request, seqio):
    if request.param == "SentencePiece":
        return demo_tasks.python_docs_vocabulary()
    return Bytes() if request.param == "Bytes" else Bytes(0)


def test_ids_are_those_of_seqio(vocabulary):
    theirs = vocabulary.as_seqio()
    assert theirs.vocab_size == vocabulary.size
    assert theirs.extra_ids == vocabulary.num_sentinels
    for name in ("pad_id", "eos_id", "unk_id"):
        assert getattr(theirs, name) == getattr(vocabulary, name)
    for text in TEXTS:
        ids = vocabulary.encode(text)
        assert list(theirs.encode(text)) == ids
        assert theirs.encode_tf(text).numpy().tolist() == ids
        if "<extra_id" not in text:
            assert vocabulary.decode([*ids, 1, 5]) == theirs.decode([*ids, 1, 5])


def test_there_and_back_is_the_identity(vocabulary):
    twin = from_seqio(vocabulary.as_seqio())
    assert type(twin) is type(vocabulary)
    assert twin.fingerprint == vocabulary.fingerprint
    assert twin.as_seqio() == vocabulary.as_seqio()


def test_the_sentinels_written_out_have_t5s_ids(seqio):
    theirs = demo_tasks.python_docs_vocabulary().as_seqio()
    for index in (0, 1, 50, 99):
        (token,) = theirs.encode(f"<extra_id_{index}>")
        assert token == demo_tasks.python_docs_vocabulary().sentinel(index) == 4095 - index


@pytest.fixture
def own_sentinels(seqio, tmp_path):
    """A model file with sentinels inside, as T5's 32000.100extra and mT5's."""
    path = tmp_path / "own.model"
    path.write_bytes(demo_tasks.python_docs_vocabulary()._processor.serialized_model_proto())
    return str(path)


def test_a_file_with_sentinels_of_its_own(seqio, own_sentinels):
    twin = from_seqio(seqio.SentencePieceVocabulary(own_sentinels, extra_ids=0))
    assert (twin.size, twin.num_sentinels, twin.sentinel(0)) == (4096, 100, 4095)
    assert twin.as_seqio().vocab_size == 4096


def test_what_seqio_refuses_is_refused(seqio, own_sentinels):
    twice = seqio.SentencePieceVocabulary(own_sentinels, extra_ids=100)
    with pytest.raises(RuntimeError, match="already defined"):
        _ = twice.vocab_size
    with pytest.raises(InputError, match=r"already has 100 sentinels.*extra_ids=0"):
        from_seqio(twice)


def test_vocabularies_without_text_or_twin(seqio):
    assert from_seqio(seqio.PassThroughVocabulary(size=10)) is None
    with pytest.raises(InputError, match="FullCodepointVocabulary is not supported"):
        from_seqio(seqio.FullCodepointVocabulary())
    path = demo_tasks.python_docs_vocabulary().model_file
    with pytest.raises(InputError, match="reverse_extra_ids"):
        from_seqio(seqio.SentencePieceVocabulary(path, 100, reverse_extra_ids=False))
    with pytest.raises(InputError, match="cannot read"):
        from_seqio(seqio.SentencePieceVocabulary("/nowhere/to.model", 100))


def test_tensorflow_sees_no_accelerator(seqio):
    import tensorflow as tf

    assert tf.config.get_visible_devices("GPU") == []


# Tasks


@pytest.mark.parametrize("suffix", ["", "_bytes"])
def test_python_docs_gives_its_documents_as_ids_without_eos(seqio, suffix):
    task = get_task(f"python_docs{suffix}")
    vocabulary = from_seqio(task.output_features["targets"].vocabulary)
    assert type(vocabulary) is (Bytes if suffix else SentencePiece)
    assert not task.output_features["targets"].add_eos
    for split in python_docs.SPLITS:
        assert task.num_input_examples(split) == len(python_docs.documents(split))
    texts = python_docs.documents("validation")
    for example, text in zip(examples(task, "validation", 50), texts, strict=False):
        assert example["targets"].dtype == np.int32
        assert example["targets"].tolist() == vocabulary.encode(text)
        assert example["targets_pretokenized"].decode() == text
    assert len(examples(task, "validation")) == len(texts)


def test_the_default_vocabulary_has_4096_ids_and_knows_its_text(seqio):
    vocabulary = demo_tasks.python_docs_vocabulary()
    assert (vocabulary.size, vocabulary.num_sentinels) == (4096, 100)
    ids = [
        token for text in python_docs.documents("validation") for token in vocabulary.encode(text)
    ]
    assert ids.count(vocabulary.unk_id) < 1e-3 * len(ids)
    characters = sum(map(len, python_docs.documents("validation")))
    assert characters / len(ids) > 3  # characters per token


def test_docstring_summary_shares_the_vocabulary_of_python_docs(seqio):
    task = get_task("docstring_summary")
    pretrained = get_task("python_docs").output_features["targets"]
    assert list(task.output_features) == ["inputs", "targets"]
    for feature in task.output_features.values():  # whose file another test may have put elsewhere
        assert feature.vocabulary.sp_model == pretrained.vocabulary.sp_model
        assert feature.vocabulary.extra_ids == pretrained.vocabulary.extra_ids
    first, *_ = examples(task, "validation", 3)
    source, summary = python_docs.pairs("validation")[0]
    vocabulary = demo_tasks.python_docs_vocabulary()
    assert first["inputs"].tolist() == vocabulary.encode(source)
    assert first["targets"].tolist() == vocabulary.encode(summary)
    by_byte = examples(get_task("docstring_summary_bytes"), "validation", 1)[0]
    assert by_byte["inputs"].tolist() == Bytes().encode(source)


def test_only_what_is_asked_for_is_trained(seqio, monkeypatch):
    monkeypatch.setattr(demo_tasks, "train_sentencepiece", None)  # would fail if called
    demo_tasks.python_docs_vocabulary.cache_clear()
    for name in ("python_docs_bytes", "docstring_summary_bytes", "c4"):
        assert get_task(name).name == name


def test_c4_is_registered_without_a_network(seqio):
    task = get_task("c4")
    assert task is get_task("c4")
    vocabulary = task.output_features["targets"].vocabulary
    assert vocabulary.sentencepiece_model_file == tasks.T5_VOCABULARY


def test_configs_on_c4_describe_their_data(seqio, own_sentinels, monkeypatch):
    """With a file of the kind of T5's, which has its sentinels inside."""
    monkeypatch.setattr(tasks, "T5_VOCABULARY", own_sentinels)
    configs = [path for path in (ROOT / "configs").glob("*.gin") if '= "c4"' in path.read_text()]
    assert len(configs) == 7
    seqio.TaskRegistry.remove("c4")
    try:
        for config in configs:
            data = configuration.parse([str(config)]).bindings_of(t5lite.train)["data"]
            assert "task c4: targets (4,096 ids)" in data.describe()
            assert data.vocabulary().num_sentinels == 100
        assert get_task("c4").output_features["targets"].vocabulary.vocab_size == 4096
    finally:
        seqio.TaskRegistry.remove("c4")


def test_mixtures_of_built_in_tasks_and_modules_of_the_user(seqio, tmp_path, monkeypatch):
    (tmp_path / "tasks_of_a_test.py").write_text(
        "import seqio\n"
        "from t5lite.data import get_task\n"
        "get_task('python_docs_bytes')\n"
        "seqio.MixtureRegistry.add('mixture_of_a_test', [('python_docs_bytes', 1.0)])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    mixture = get_task("mixture_of_a_test", module=["tasks_of_a_test"])
    assert isinstance(mixture, seqio.Mixture)
    assert get_task("mixture_of_a_test", module="tasks_of_a_test") is mixture
    with pytest.raises(InputError, match="did you mean mixture_of_a_test"):
        get_task("mixture_of_a_tset")


def test_a_task_of_the_users_own_wins(seqio, monkeypatch):
    monkeypatch.setattr(tasks, "_BUILT_IN", {"mine": None, **tasks._BUILT_IN})
    seqio.TaskRegistry.add(
        "mine", source=get_task("c4").source, preprocessors=[], output_features={}
    )
    assert get_task("mine").name == "mine"


def test_misspelt_names_get_the_nearest(seqio):
    with pytest.raises(InputError, match=r"did you mean .*python_docs"):
        get_task("python_doc")


def test_modules_that_cannot_be_imported_are_named(seqio, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"'no_such_module_here'.*; add its folder to PYTHONPATH"):
        get_task("c4", module="no_such_module_here")
    (tmp_path / "broken_module_here.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"(?s)'broken_module_here' failed.*ZeroDivision.*:1$"):
        get_task("c4", module="broken_module_here")
    assert "broken_module_here" not in sys.modules
    (tmp_path / "needing_module_here.py").write_text("import a_package_not_here\n")
    with pytest.raises(InputError, match=r"'needing_module_here'.*; install a_package_not_here"):
        get_task("c4", module="needing_module_here")
    (tmp_path / "ending_module_here.py").write_text("raise SystemExit\n")
    with pytest.raises(InputError, match="'ending_module_here' ends the program"):
        get_task("c4", module="ending_module_here")


def test_a_missing_seqio_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "seqio", None)
    with pytest.raises(InputError, match="need seqio, which is not installed"):
        get_task("c4")


@pytest.mark.parametrize("name", ["python_docs_bytes", "docstring_summary"])
def test_the_embedded_corpus_is_read_alike_with_and_without_seqio(seqio, monkeypatch, name):
    lengths, batch = {"inputs": 256, "targets": 64}, {"batch_size": 8, "window": 50}
    ours = TaskData(name, lengths=lengths, **batch)
    monkeypatch.setattr(task_data, "demo_task", DemoTask)
    assert isinstance(ours.provider, DemoTask)
    theirs = TaskData(get_task(name), lengths=lengths, **batch)
    objective = Seq2Seq() if name.startswith("docstring") else SpanCorruption()
    assert ours.vocabulary().fingerprint == theirs.vocabulary().fingerprint
    assert ours.add_eos() == theirs.add_eos()
    assert ours.describe() == theirs.describe()
    for split in ("train", "validation"):
        assert ours.num_examples(split) == theirs.num_examples(split)
    one, second = (data.train_batches(objective, seed=3) for data in (ours, theirs))
    for _ in range(5):
        expected = next(second)
        for name, values in next(one).items():
            np.testing.assert_array_equal(values, expected[name])
    assert one.state_dict() == second.state_dict()
    for batches in (one, second):
        batches.close()


def test_the_embedded_corpus_imports_no_tensorflow():
    code = (
        "import sys\n"
        "from t5lite.data import TaskData\n"
        "from t5lite.objectives import SpanCorruption\n"
        "lengths = {'inputs': 64, 'targets': 32}\n"
        "data = TaskData('python_docs_bytes', lengths=lengths, batch_size=8, window=50)\n"
        "data.describe(), data.metric_tasks(), data.num_examples('train')\n"
        "batches = data.train_batches(SpanCorruption(), seed=0)\n"
        "next(batches)\n"
        "batches.close()\n"
        "assert not {'tensorflow', 'seqio', 'tensorflow_datasets'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
