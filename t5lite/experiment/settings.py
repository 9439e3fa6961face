"""Checks of settings against each other: errors, and notes before the first step."""

from collections.abc import Callable, Iterator

import jax

from t5lite.errors import InputError, check_value
from t5lite.experiment.definition import Definition
from t5lite.training import Callback
from t5lite.training.state import Optimizer, TrainState, next_learning_rate
from t5lite.training.stopping import Watch

_LARGER_IS_BETTER = ("accuracy", "exact_match", "f1", "bleu", "rouge", "recall", "precision")
_SMALLER_IS_BETTER = ("loss", "perplexity", "cross_entropy", "error", "mse")


def check_settings(run: Definition) -> None:
    """Refuses settings without effect, or that hide each other's; errors name both."""
    prefixes: dict[str, Callback] = {}
    for callback in run.callbacks:
        prefix = getattr(callback, "prefix", None)
        if isinstance(prefix, str) and prefixes.setdefault(prefix, callback) is not callback:
            names = f"{type(prefixes[prefix]).__name__} and {type(callback).__name__}"
            raise InputError(
                f"train.callbacks: {names} have the same prefix, {prefix!r}, "
                "and hide each other's metrics; give each its own",
                field="train.callbacks",
            )
    profile, steps = run.profile, run.duration.steps
    if profile is not None and steps is not None and profile.steps[0] > steps:
        raise InputError(
            f"Profile.steps = {profile.steps}: the run ends at train.steps = {steps}, before "
            "the first of them; begin earlier",
            field="Profile.steps",
        )


def check_model(run: Definition) -> None:
    """Refuses a model, data, labels and callbacks that do not fit, and would fail late or never."""
    check_value("train.log_every", run.log_every, "integer in [1, inf)")
    for callback in run.callbacks:
        every = getattr(callback, "every", None)
        if not callable(callback) or not isinstance(every, int) or every < 1:
            raise InputError(
                f"train.callbacks: {callback!r} must be callable, with `every` of at least 1",
                field="train.callbacks",
            )
    vocabulary, model = run.data.vocabulary(), run.network
    if vocabulary is not None and vocabulary.size > model.spec.vocab:
        raise InputError(
            f"the vocabulary has {vocabulary.size} ids but the model only {model.spec.vocab} "
            f'embeddings; override the model with {{"vocab": {-(-vocabulary.size // 128) * 128}}}'
        )
    model.check(run.data.batch_shapes(run.bound))
    head = model.heads.get(run.bound.head)
    num_classes = len(run.data.labels().get("labels", ()))  # the head is for these labels alone
    for field in ("num_classes", "num_labels"):
        if getattr(head, field, num_classes) < num_classes:
            raise InputError(
                f"{type(head).__name__}.{field} = {getattr(head, field)}: the data have "
                f"{num_classes} classes; set it to at least {num_classes}",
                field=f"{type(head).__name__}.{field}",
            )


def notes(run: Definition) -> Iterator[str]:
    """Yields notes on settings that are valid, but usually a mistake."""
    steps, checkpoints, update = run.steps, run.checkpoints, run.update
    for watch in run.callbacks:
        if not isinstance(watch, Watch):
            continue
        name = type(watch).__name__
        yield from _wrong_way(f"{name}.mode", watch.metric, watch.mode)
        if steps is not None and (count := -(-steps // watch.every)) <= watch.patience:
            yield (
                f"{name}.patience = {watch.patience} has no effect: every = {watch.every} gives "
                f"{count} measurements in {steps} steps, the first of which is the baseline"
            )
    if checkpoints.best is not None:
        yield from _wrong_way("Checkpoints.best_mode", checkpoints.best, checkpoints.best_mode)
    if steps is None:
        return
    if update.spike_threshold is not None and update.spike_warmup_steps >= steps:
        yield (
            f"Update.spike_threshold has no effect: spike_warmup_steps = "
            f"{update.spike_warmup_steps} of the run's {steps} steps"
        )
    yield from _schedule_notes(run.optimizer, steps)


def _wrong_way(field: str, metric: str, mode: str) -> Iterator[str]:
    name = metric.rpartition("/")[2]
    wrong = _LARGER_IS_BETTER if mode == "min" else _SMALLER_IS_BETTER
    if name.startswith(wrong) or name.endswith(wrong):
        extreme = "smallest" if mode == "min" else "largest"
        yield f"{field} = {mode!r}: the {extreme} {metric} counts as the best"


def _schedule_notes(optimizer: Optimizer, steps: int) -> Iterator[str]:
    """Yields a note if the learning rate is zero or still rising at the end of a run."""
    schedule = getattr(optimizer, "learning_rate", None)
    if not callable(schedule) or steps < 2:
        return
    with jax.numpy_dtype_promotion("standard"):
        before, last = (float(schedule(step)) for step in (steps - 2, steps - 1))
    if before == last == 0:
        yield (
            f"the learning rate is 0 before the run ends, at step {steps}: its schedule is shorter "
            "(total_steps), and the last steps change nothing"
        )
    elif last > before:
        yield (
            f"the learning rate still rises, to {last:.3g}, when the run ends, at step {steps}: "
            "its warm-up is longer"
        )


def learning_rate(optimizer: Optimizer) -> Callable[[TrainState], float | None]:
    """Returns state → learning rate of the next update; None if the optimizer has none."""

    def of_state(state: TrainState) -> float | None:
        # On the host: the arrays of a state may lie on several, its counts on each.
        counts = jax.tree.map(
            lambda leaf: jax.device_get(leaf) if leaf.ndim == 0 else leaf, state.opt_state
        )
        rate = next_learning_rate(optimizer, counts)
        return None if rate is None else float(rate)

    return of_state


def rate_change(saved: float | None, now: float | None, *, step: int) -> Iterator[str]:
    """Yields a warning if a run would resume with a different learning rate (None: unknown)."""
    if saved is None or now is None or abs(now - saved) <= 0.01 * max(abs(now), abs(saved)):
        return
    times = f", {now / saved:.3g} times that" if saved else ""
    yield (
        f"the learning rate at step {step} was {saved:.3g} and is now {now:.3g}{times}: the "
        "schedule, or its number of steps, has changed (total_steps, TRAIN_STEPS)"
    )
