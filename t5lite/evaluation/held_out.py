"""The objective's own loss and metrics on the validation split."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp

from t5lite.errors import InputError
from t5lite.evaluation.metrics import Means, collect
from t5lite.inference.batching import check_count
from t5lite.parallel import gather
from t5lite.training import random_streams

_TERM = "term "  # sets a term's sums apart from a metric of the same name
_MAX_EXPONENT = 700.0  # exp of more overflows


@dataclasses.dataclass
class HeldOut:
    """Evaluates the objective's loss and metrics on every validation batch, without dropout.

    Returns each metric's weighted mean over all batches, by the objective's name, and each term's
    share of the minimised loss. `prefix/loss` is the objective's metric of that name, else the sum
    of the shares. An objective with a `cross_entropy` term also has `prefix/perplexity`, exp(loss).
    Each part of a mixture also has `prefix/part/loss`, from a separate pass.

    Args:
      every: steps between two evaluations.
      max_batches: most batches, a fixed random sample of the split; None for the whole split.
      prefix: of the metrics' names.
    """

    every: int
    max_batches: int | None = None
    prefix: str = "held_out"
    _ready: "_Ready | None" = dataclasses.field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.max_batches is not None:
            check_count("HeldOut.max_batches", self.max_batches)

    def whole(self) -> Self:
        """Returns the same on the whole split."""
        return dataclasses.replace(self, max_batches=None)

    def check(self, run: Any) -> None:
        # Whole batches, whichever part of them is this process's: all must come to one verdict.
        for batch in run.data.validation_batches(run.objective, max_batches=1):
            if any(rows.any() for rows in batch.values()):
                return
        raise InputError(
            f"{self.prefix}: the validation split gave no example; "
            "fill it, or remove HeldOut from the callbacks"
        )

    def metric_names(self, run: Any) -> set[str]:
        models = run.objective.reference_models
        references = {name: models[name].shapes() for name in run.objective.references}
        batch = run.data.batch_shapes(run.objective)
        sums = run.jit(_sums(run.objective, run.model))
        sums = sums.trace(run.model.shapes(), references, batch).out_info
        parts = {f"{part}/loss" for part in run.data.validation_parts(run.objective)}
        return {f"{self.prefix}/{name}" for name in {*_summary(dict.fromkeys(sums, 0.0)), *parts}}

    def __call__(self, run: Any, state: Any, *, step: int) -> dict[str, float]:
        """Returns the held-out metrics of `state`; prints once which part of the split they cover.

        Raises: InputError for a split without a batch, or without a weighted position.
        """
        first = self._ready is None or self._ready.run is not run
        if first:
            batches = {
                part: run.data.validation_batches(
                    run.objective,
                    max_batches=self.max_batches,
                    shards=run.shards,
                    agree=lambda more: any(gather(more)),
                    part=part,
                )
                for part in [None, *run.data.validation_parts(run.objective)]
            }
            self._ready = _Ready(run, run.jit(_sums(run.objective, run.model)), batches)
        assert self._ready is not None
        ready, params, references = self._ready, run.params(state), run.references(state)
        num_batches: Counter[str | None] = Counter()

        def measured(part: str | None) -> Means:
            def dispatched() -> Iterator[Any]:
                for batch in ready.batches[part]:
                    num_batches[part] += 1
                    yield ready.sums(params, references, run.to_devices(batch))

            return collect(dispatched())

        means = measured(None)
        if first:
            self._say_size(run, ready.batches[None], num_batches[None])
        metrics = _summary(means.means())
        if not any(weight for _, weight in means.totals.values()):
            raise InputError(
                f"{self.prefix}: the validation split gave no targets; fill it, lower the batch "
                "size, or remove HeldOut from the callbacks"
            )
        for part in filter(None, ready.batches):
            metrics[f"{part}/loss"] = _summary(measured(part).means())["loss"]
        return {f"{self.prefix}/{name}": value for name, value in metrics.items()}

    def _say_size(self, run: Any, batches: Any, num_batches: int) -> None:
        """Prints the number of examples, and the share of them within `max_batches`."""
        total = getattr(batches, "num_examples", None)
        if total is None:
            run.say(f"{self.prefix}: measured on {num_batches:,} validation batches")
            return
        size = f"all {total:,} validation examples"
        if self.max_batches is not None:
            shares = gather(batches.share)
            count = round(total * math.fsum(shares) / len(shares))
            if count < total:
                size = (
                    f"{count:,} of {total:,} validation examples, the same random ones each time "
                    f"(max_batches = {self.max_batches})"
                )
        run.say(f"{self.prefix}: measured on {size}")


class _Ready(NamedTuple):
    """The compiled sums of a run, and this process's batches: of all parts (None) and of each."""

    run: Any
    sums: Callable
    batches: Mapping[str | None, Any]


def _sums(objective: Any, model: Any) -> Callable:
    """Returns `(params, references, batch) -> {name: (sum, weight)}`, coefficients applied."""

    def sums(params: Any, references: Any, batch: Any) -> dict[str, tuple[jax.Array, jax.Array]]:
        weights = objective.weights(batch)
        rngs = random_streams(objective.streams, jax.random.key(0))
        terms, metrics = objective.loss(
            model, params, batch, frozen=references, rngs=rngs, train=False
        )
        named = dict(metrics)
        for name, (total, coefficient) in terms.items():
            # A term without a weight is a batch's own value: average it over the batches.
            weight = weights.get(name, jnp.float32(1.0))
            named[_TERM + name] = (jnp.asarray(total, jnp.float32) * coefficient, weight)
        return named

    return sums


def _summary(means: Mapping[str, float]) -> dict[str, float]:
    terms = {name[len(_TERM) :]: v for name, v in means.items() if name.startswith(_TERM)}
    metrics = {name: v for name, v in means.items() if not name.startswith(_TERM)}
    if not terms:
        return metrics
    summary = {"loss": sum(terms.values()), **terms, **metrics}
    if "cross_entropy" in terms:
        nats = metrics.get("loss", terms["cross_entropy"])
        summary["perplexity"] = math.exp(min(nats, _MAX_EXPONENT))
    return summary
