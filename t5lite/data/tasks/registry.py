"""SeqIO tasks by name: users' own, those of `demo.tasks`, and `c4`.

Built-in tasks yield token ids without EOS, which the objective adds: `Seq2Seq` to features with
`seqio.Feature.add_eos`, text objectives always. After `seqio.preprocessors.append_eos`, as in tasks
for T5X, an objective adds no second one.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

from t5lite.data.demo import python_docs
from t5lite.data.demo.tasks import NAMES, DemoTask
from t5lite.data.importing import import_seqio, import_user_module
from t5lite.data.tasks.twins import from_seqio
from t5lite.errors import unknown

T5_VOCABULARY = "gs://t5-data/vocabs/cc_all.32000.100extra/sentencepiece.model"


def get_task(name: str, *, module: str | Sequence[str] | None = None) -> Any:
    """Returns a SeqIO Task or Mixture by name.

    A built-in task is registered, and its vocabulary trained, at its first use; a module whose
    mixture contains one calls `get_task` before `seqio.MixtureRegistry.add`.

    Args:
      name: a registered or built-in name; a registered task wins over a built-in one.
      module: module or modules to import first, which register tasks.
    Raises: InputError if the name is unknown, with the nearest, or a module cannot be imported.
    """
    seqio = import_seqio()
    for user_module in [module] if isinstance(module, str) else module or ():
        import_user_module(user_module)
    registered = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    if name not in registered:
        if name not in _BUILT_IN:
            raise unknown("task or mixture", name, {*registered, *_BUILT_IN}, field="TaskData.task")
        _BUILT_IN[name](name)
    return seqio.get_mixture_or_task(name)


def demo_task(name: str) -> DemoTask | None:
    """Returns a task of the embedded corpus, unless SeqIO was imported and has one of that name."""
    seqio = sys.modules.get("seqio")
    if name not in NAMES or (seqio and name in seqio.TaskRegistry.names()):
        return None
    return DemoTask(name)


def describe(task: Any) -> str:
    """Returns a line or two on a Task or Mixture, without reading it."""
    features = ", ".join(
        f"{name} ({_num_ids(feature.vocabulary):,} ids)"
        for name, feature in task.output_features.items()
    )
    line = f"task {task.name}: {features}"
    if task.name in NAMES:
        line += f"\n{python_docs.describe()}"
    return line


def _num_ids(vocabulary: Any) -> int:
    twin = from_seqio(vocabulary)
    return vocabulary.vocab_size if twin is None else twin.size


def _add_demo(name: str) -> None:
    seqio = import_seqio()
    import tensorflow as tf

    task = DemoTask(name)

    def dataset(split: str, shuffle_files: bool = False, seed: int | None = None) -> Any:
        del shuffle_files, seed  # in a fixed order; readers shuffle
        return tf.data.Dataset.from_tensor_slices(task.columns(split))

    sizes = {split: len(task.columns(split)["targets"]) for split in task.splits}
    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(dataset, splits=list(sizes), num_input_examples=sizes),
        preprocessors=[seqio.preprocessors.tokenize, seqio.CacheDatasetPlaceholder()],
        output_features={
            name: seqio.Feature(feature.vocabulary.as_seqio(), add_eos=feature.add_eos)
            for name, feature in task.output_features.items()
        },
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


_BUILT_IN: dict[str, Callable[[str], None]] = {**dict.fromkeys(NAMES, _add_demo), "c4": _add_c4}
