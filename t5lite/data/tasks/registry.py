"""SeqIO tasks by name: those that come with t5lite, and anybody's.

The built-in tasks give token ids without EOS, which the objective adds: `Seq2Seq` to the features
with `seqio.Feature.add_eos`, objectives of texts always. Tasks written for T5X often end with
`seqio.preprocessors.append_eos`, which is as well: an objective never adds a second one.

| task | features | vocabulary |
|---|---|---|
| `python_docs` | targets | unigram of 4,096, trained on its own train split |
| `docstring_summary` | inputs, targets | the same, so that a model of `python_docs` can go on |
| `python_docs_bytes`, `docstring_summary_bytes` | as above | ByT5's bytes |
| `c4` | targets | T5's published one (`gs://`); the text from TFDS |
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from t5lite.data.demo import python_docs
from t5lite.data.demo.vocabulary import python_docs_vocabulary
from t5lite.data.importing import import_seqio, import_user_module
from t5lite.data.tasks.twins import from_seqio
from t5lite.data.vocabularies.byte_ids import Bytes
from t5lite.errors import unknown

T5_VOCABULARY = "gs://t5-data/vocabs/cc_all.32000.100extra/sentencepiece.model"


def get_task(name: str, *, module: str | Sequence[str] | None = None) -> Any:
    """Returns a SeqIO Task or Mixture by name.

    A built-in task is registered, and its vocabulary trained, when it is first asked for; a module
    whose mixture contains one calls `get_task` for it before `seqio.MixtureRegistry.add`.

    Args:
      name: a registered or built-in name. A task of the user's own wins over a built-in one.
      module: module or modules to import first, which register tasks.

    Returns:
      The `seqio.Task` or `seqio.Mixture`.

    Raises:
      InputError: if the name is unknown (says the nearest), or a module cannot be imported.
    """
    seqio = import_seqio()
    for each in [module] if isinstance(module, str) else module or ():
        import_user_module(each)
    registered = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    if name not in registered:
        if name not in _BUILT_IN:
            raise unknown("task or mixture", name, registered | _BUILT_IN.keys())
        _BUILT_IN[name](name)
    return seqio.get_mixture_or_task(name)


def describe(task: Any) -> str:
    """Returns a line or two on what a Task or Mixture holds, as far as that is known unread."""
    features = ", ".join(
        f"{name} ({_num_ids(feature.vocabulary):,} ids)"
        for name, feature in task.output_features.items()
    )
    line = f"task {task.name}: {features}"
    if _BUILT_IN.get(task.name) in (_add_python_docs, _add_docstring_summary):
        line += f"\n{python_docs.describe()}"
    return line


def _num_ids(vocabulary: Any) -> int:
    twin = from_seqio(vocabulary)
    return vocabulary.vocab_size if twin is None else twin.size


def _add_python_docs(name: str) -> None:
    def read(split: str) -> dict[str, list[str]]:
        return {"targets": python_docs.documents(split)}

    _add(name, read, {split: len(python_docs.documents(split)) for split in python_docs.SPLITS})


def _add_docstring_summary(name: str) -> None:
    def read(split: str) -> dict[str, list[str]]:
        inputs, targets = zip(*python_docs.pairs(split), strict=True)
        return {"inputs": list(inputs), "targets": list(targets)}

    _add(name, read, {split: len(python_docs.pairs(split)) for split in python_docs.SPLITS})


def _add(name: str, read: Callable[[str], dict[str, list[str]]], sizes: dict[str, int]) -> None:
    """Registers a task whose examples are lists of strings in memory."""
    seqio = import_seqio()
    import tensorflow as tf

    def dataset(split: str, shuffle_files: bool = False, seed: int | None = None) -> Any:
        del shuffle_files, seed  # one source in one order; whoever reads it shuffles
        return tf.data.Dataset.from_tensor_slices(read(split))

    vocabulary = Bytes() if name.endswith("_bytes") else python_docs_vocabulary()
    columns = read(python_docs.SPLITS[0])
    # Of a pair both sides end with EOS; how a text alone ends is the objective's to say.
    feature = seqio.Feature(vocabulary.as_seqio(), add_eos="inputs" in columns)
    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(dataset, splits=list(sizes), num_input_examples=sizes),
        preprocessors=[seqio.preprocessors.tokenize, seqio.CacheDatasetPlaceholder()],
        output_features=dict.fromkeys(columns, feature),
    )


def _add_c4(name: str) -> None:
    seqio = import_seqio()
    vocabulary = seqio.SentencePieceVocabulary(T5_VOCABULARY, extra_ids=0)  # the file has its own
    seqio.TaskRegistry.add(
        name,
        source=seqio.TfdsDataSource(tfds_name="c4/en:3.*.*"),
        preprocessors=[
            functools.partial(seqio.preprocessors.rekey, key_map={"targets": "text"}),
            seqio.preprocessors.tokenize,
            seqio.CacheDatasetPlaceholder(),
        ],
        output_features={"targets": seqio.Feature(vocabulary, add_eos=False)},
    )


_BUILT_IN: dict[str, Callable[[str], None]] = {
    "python_docs": _add_python_docs,
    "python_docs_bytes": _add_python_docs,
    "docstring_summary": _add_docstring_summary,
    "docstring_summary_bytes": _add_docstring_summary,
    "c4": _add_c4,
}
