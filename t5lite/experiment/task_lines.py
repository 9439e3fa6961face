"""Examples of a run's data as lines to answer, for `t5lite infer`."""

import hashlib
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from t5lite.data.files.readers import Line
from t5lite.errors import InputError
from t5lite.evaluation.rows import prompt_of, sees_both_ways
from t5lite.experiment.definition import Definition
from t5lite.inference.batch_job import Lines
from t5lite.interop import Opened
from t5lite.models import Model, named_spec
from t5lite.objectives import bind

_PROMPT_LENGTH = 32  # prompt tokens of a text without inputs


class TaskLines(NamedTuple):
    """Lines with `inputs` and `targets`, and how a model reads them.

    Args:
      prompt: their role, see `Loaded.generate`; None: by the topology.
      ids: the prompt of each line, by its number.
    """

    lines: Lines
    prompt: str | None
    ids: Mapping[int, Sequence[int]]


def task_lines(run: Definition, opened: Opened, *, split: str) -> TaskLines:
    """Returns a split of a run's data as lines for `t5lite infer`, prepared as for evaluation.

    Raises: InputError for an encoder, data without a vocabulary, or an empty split.
    """
    spec = named_spec(run.model or opened.spec)
    objective = bind(run.objective, Model(spec)).prompted(opened.description.prompts)
    vocabulary = run.data.vocabulary()
    if spec.topology == "encoder":
        raise InputError("infer generates text, and this model is an encoder; see t5lite predict")
    if vocabulary is None:
        raise InputError("infer reads tasks of texts, and this data has no vocabulary")
    examples = run.data.examples(objective, split=split, count=sys.maxsize, seed=0)
    if not examples:
        raise InputError(f"--split={split}: has no example", field="split")
    lines, ids = [], {}
    for number, example in enumerate(examples, 1):
        prompt, target = prompt_of(example, prompt_length=_PROMPT_LENGTH)
        row = {"inputs": vocabulary.decode(prompt), "targets": vocabulary.decode(target)}
        lines.append(Line(number, 0, 0, row))
        ids[number] = prompt.tolist()
    role = None
    if spec.topology == "decoder":
        role = "prefix" if sees_both_ways(objective, examples[0]) else "continue"
    digest = hashlib.sha256(repr(ids).encode()).hexdigest()
    return TaskLines(Lines(lambda: iter(lines), len(lines), digest), role, ids)
