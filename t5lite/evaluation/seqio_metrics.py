"""Metrics of SeqIO tasks, computed from the model's answers and scores."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import numpy as np

from t5lite.data.tasks.metric_tasks import KNOWN_OUTPUTS, MetricTask
from t5lite.errors import InputError
from t5lite.evaluation import rows
from t5lite.inference.batching import padded
from t5lite.parallel import gather


class _Prepared(NamedTuple):
    task: MetricTask
    examples: list[dict[str, Any]]
    rows: list[rows.Example]  # of the examples, as the model reads them


@dataclasses.dataclass
class SeqioMetrics:
    """Calls the `metric_fns` and `metric_objs` of the data's SeqIO tasks on validation examples.

    Targets and greedy answers go through the task's `postprocess_fn`, and everything is called as
    `seqio.Evaluator` calls it; `scores` are log-likelihoods of the targets in nats, and
    `aux_values["scores"]` those of the answers. Returns `prefix/task/metric` for each number, for
    every task of a mixture. Data without such metrics costs nothing.

    Args:
      every: steps between two calls.
      num_examples: most examples of a task, a random sample of its whole split; None: all.
      seed: of that sample.
      prefix: of the metrics' names.
      batch_size: most examples answered or scored at once.
    """

    every: int
    num_examples: int | None = None
    seed: int = 0
    prefix: str = "seqio"
    batch_size: int = 64
    _run: Any = dataclasses.field(default=None, init=False, repr=False, compare=False)
    _prepared: list[_Prepared] = dataclasses.field(
        default_factory=list, init=False, repr=False, compare=False
    )

    def whole(self) -> Self:
        """Returns the same on the whole split."""
        return dataclasses.replace(self, num_examples=None)

    def check(self, run: Any) -> None:
        """Reads the examples and prints their number."""
        self._prepare(run)

    def metric_names(self, run: Any) -> set[str]:
        """Returns a pattern for each task, whose metric names are unknown."""
        return {f"{self.prefix}/{task.name}/*" for task in _tasks(run)}

    def __call__(self, run: Any, state: Any, *, step: int) -> dict[str, float]:
        """Returns the metrics of `state`.

        Raises: InputError if code of the task fails, or its split is empty.
        """
        if self._run is not run:
            self._prepare(run)
        params, metrics = run.params(state), {}
        for ready in self._prepared:
            outputs = self._outputs(run, params, ready)
            for name, value in ready.task.compute(ready.examples, outputs).items():
                full = f"{self.prefix}/{ready.task.name}/{name}"
                try:
                    metrics[full] = float(value)
                except (TypeError, ValueError):
                    run.say(f"{full} is {type(value).__name__}, not a number: left out")
        # User code may differ from process to process, where early stopping must not.
        return gather(metrics)[0]

    def _prepare(self, run: Any) -> None:
        self._run, self._prepared = run, []
        for task in _tasks(run):
            if unknown := task.outputs - {*KNOWN_OUTPUTS}:
                raise InputError(
                    f"SeqioMetrics: a metric of task {task.name!r} needs "
                    f"{', '.join(sorted(unknown))}, which t5lite does not compute; it has "
                    f"{', '.join(KNOWN_OUTPUTS)}"
                )
            if reason := _unfit(run, task):
                run.say(f"SeqioMetrics: the metrics of task {task.name} are left out: {reason}")
                continue
            drawn = task.examples(count=self.num_examples, seed=self.seed)
            if not drawn.examples:
                raise InputError(f"SeqioMetrics: {task.name}:{task.split} has no example; fill it")
            run.say(
                f"SeqioMetrics: {task.name} on {len(drawn.examples):,} of {drawn.total:,} examples"
                + (f", {drawn.truncated:,} of them truncated" if drawn.truncated else "")
            )
            prepared = [_row(run, task, example) for example in drawn.examples]
            self._prepared.append(_Prepared(task, drawn.examples, prepared))

    def _outputs(self, run: Any, params: Any, ready: _Prepared) -> Mapping[str, Any]:
        """Returns the model's outputs that the metrics need, by SeqIO's names."""
        outputs: dict[str, Any] = {}
        if ready.task.outputs - {"SCORE"}:
            prompts = [rows.prompt_of(row, prompt_length=0)[0] for row in ready.rows]
            length = run.data.lengths["targets"]
            answers = rows.answers(
                run,
                params,
                prompts,
                max_new_tokens=length,
                bidirectional=rows.sees_both_ways(run.objective, ready.rows[0]),
                batch_size=self.batch_size,
            )
            ids, _ = padded([answer.tokens.tolist() for answer in answers], len(answers), length)
            scores = np.array([answer.log_probability for answer in answers], np.float32)
            outputs["PREDICTION"] = ids
            outputs["PREDICTION_WITH_AUX"] = ids, {"scores": scores}
        if "SCORE" in ready.task.outputs:
            tokens = rows.target_scores(run, params, ready.rows, batch_size=self.batch_size)
            outputs["SCORE"] = np.array([row.sum() for row in tokens], np.float32)
        return outputs


def _tasks(run: Any) -> list[MetricTask]:
    return run.data.metric_tasks() if hasattr(run.data, "metric_tasks") else []


def _unfit(run: Any, task: MetricTask) -> str | None:
    objective, name = run.objective, type(run.objective).__name__
    if run.model.topology == "encoder" or (objective.head or "lm") != "lm":
        return "the model does not generate text"
    if {*objective.features} != {"inputs", "targets"} or objective.whole_texts:
        return f"{name} does not answer inputs; use Seq2Seq"
    if missing := {"inputs", "targets"} - {*task.task.output_features}:
        return f"the task has no {' and no '.join(sorted(missing))}"
    return None


def _row(run: Any, task: MetricTask, example: Mapping[str, Any]) -> rows.Example:
    """Returns an example as the model reads it; targets without a token become EOS."""
    vocabulary = run.data.vocabulary()
    features = {name: np.asarray(example[name]) for name in ("inputs", "targets")}
    eos = np.array([1 if vocabulary is None else vocabulary.eos_id], np.int32)
    for targets in (features["targets"], eos):
        examples = run.objective.prepare(
            iter([{**features, "targets": targets}]),
            lengths=run.data.lengths,
            vocabulary=vocabulary,
            rng=np.random.default_rng(0),
        )
        if len(prepared := list(examples)) == 1:
            return prepared[0]
    raise InputError(
        f"SeqioMetrics: {type(run.objective).__name__} makes {len(prepared)} examples of one of "
        f"task {task.name!r}; metrics need one"
    )
