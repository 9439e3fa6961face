"""Initial parameters of a run from another checkpoint, checked before any are read."""

import dataclasses
import math
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from t5lite.data.labels import check_labels
from t5lite.errors import InputError
from t5lite.experiment.definition import Definition, opened
from t5lite.experiment.run_folder import check_described
from t5lite.interop import Opened
from t5lite.models import Model, ModelSpec, differences
from t5lite.objectives import Prompts
from t5lite.training import Checkpoints, Program, TrainState, Tuning, frozen_of
from t5lite.training.mapping import Rule, check_mapping, match, source_of
from t5lite.training.restore import differences as misfits
from t5lite.training.restore import named, saved_steps
from t5lite.training.tuning import nest

_FIELD = "Checkpoints.restore_from"
_HEAD = re.compile(r"(\w+_head)/")
_THEIR_VOCABULARY = {  # by whether the data are a SeqIO task
    False: "leave VOCABULARY out, or set it to @t5lite.interop.vocabulary_of()",
    True: "a task whose features have it",
}


@dataclasses.dataclass(frozen=True)
class Start:
    """A checkpoint that a run starts from, with the source of each parameter.

    Args:
      sources: the run's name → the checkpoint's name, of the parameters read.
      fresh: sizes of the drawn parameters, by name.
      dropped: sizes of the checkpoint's unread parameters, by name.
      changed: differences of the run's model, except heads and dropout.
    """

    opened: Opened
    sources: Mapping[str, str]
    fresh: Mapping[str, int]
    dropped: Mapping[str, int]
    changed: Sequence[str] = ()

    def lines(self) -> Iterator[str]:
        """Yields the lines to print: read, fresh and dropped parameters."""
        yield f"parameters from {self.opened.folder}"
        for kind, sizes in (("fresh", self.fresh), ("dropped", self.dropped)):
            if sizes:
                yield f"{kind}: {_summary(sizes)}"
        if self.changed:
            more = f" and {len(self.changed) - 2} more" if len(self.changed) > 2 else ""
            yield f"note: the model differs from the folder's: {'; '.join(self.changed[:2])}{more}"

    def params(self, program: Program, *, seed: int) -> Any:
        """Returns the first parameters of a run, read straight into their shards."""
        leaves = named(program.params)
        values: dict[str, Any] = {}
        if self.fresh:
            drawn = named(program.draw(seed))
            values = {name: drawn[name] for name in self.fresh}
            del drawn  # before the folder's are read
        names: dict[str, list[str]] = {}
        for name, source in self.sources.items():
            names.setdefault(source, []).append(name)
        read = self.opened.read({source: leaves[first] for source, (first, *_) in names.items()})
        for source, (first, *copies) in names.items():
            values[first] = read[source]
            for name in copies:  # a state owns its arrays: none is in it twice
                values[name] = jax.device_put(jnp.copy(read[source]), leaves[name].sharding)
        structure = jax.tree.structure(program.params)
        return jax.tree.unflatten(structure, [values[name] for name in leaves])


def plan_start(run: Definition, *, resumes: bool = False) -> Start | None:
    """Opens the folder that a new run starts from, and checks that it fits.

    Args:
      resumes: whether the run has its own checkpoint, and the folder is not needed.

    Returns: the parameters to read; None for a run that starts from the initialisers or resumes.

    Raises: InputError for a missing folder, or names, shapes, vocabulary or labels that do not fit.
    """
    checkpoints, model = run.checkpoints, run.network
    if checkpoints.restore_from is None or resumes:
        return None
    check_mapping(checkpoints.restore_mapping)
    source = opened(checkpoints.restore_from, averaged=False, field=_FIELD)
    shapes = named(model.shapes())
    saved = source.shapes(dataclasses.replace(model, spec=source.spec))
    _check_vocabulary(source, run.data, checkpoints)
    rules = [*checkpoints.restore_mapping, *_head_rules(shapes, saved, checkpoints.restore_mapping)]
    rules += _adapter_rules(model, saved, checkpoints.restore_mapping)
    sources = match(shapes, saved, rules, label=source.folder)
    stored = {name: saved[origin] for name, origin in sources.items()}
    if lines := misfits(stored, {name: shapes[name] for name in sources}, cast=True):
        more = [f"  and {len(lines) - 2} more"] if len(lines) > 2 else []
        heading = f"{_FIELD}: the parameters of {source.folder} do not fit the model:"
        text = "\n".join([heading, *lines[:2], *more, _advice(shapes, stored)])
        raise InputError(text, field=_FIELD)
    head = model.heads.get(run.bound.head)
    if head is not None and any(name.startswith(f"{head.kind}_head/") for name in sources):
        where = f"{source.folder}, whose {head.kind} head is restored"
        check_labels(run.data.labels(), source.description.labels, where=where)
    used = set(sources.values())
    sizes = {name: math.prod(leaf.shape) for name, leaf in shapes.items()}
    return Start(
        source,
        sources,
        fresh={name: size for name, size in sizes.items() if name not in sources},
        dropped={name: math.prod(leaf.shape) for name, leaf in saved.items() if name not in used},
        changed=() if checkpoints.restore_mapping else _changed(source.spec, model.spec),
    )


def check_run_folder(run: Definition) -> bool:
    """Whether the run's folder has a checkpoint to resume; refuses that of another run."""
    if not saved_steps(run.folder / "checkpoints"):
        return False
    data = run.data
    description = check_described(
        run.folder, run.spec, data.vocabulary(), data.labels(), tuning=run.tuning
    )
    if description is not None:
        check_prompts(run.bound, description.prompts, where=f"the run in {run.folder}")
    return True


def check_prompts(objective: Any, prompts: Prompts | None, *, where: str) -> None:
    """Raises an InputError if a decoder has read inputs differently in the run so far."""
    if prompts is None or objective.topology != "decoder":
        return
    if objective.prompted(prompts) != objective:
        field = f"{type(objective).__name__}.bidirectional_inputs"
        theirs = prompts.bidirectional
        raise InputError(
            f"{field} = {not theirs}: {where} was trained with {theirs}; set {field} = {theirs} to "
            "go on, or choose another model_dir",
            field=field,
        )


def first_state(
    start: Start | None,
    program: Program,
    references: Mapping[str, Opened],
    *,
    seed: int,
    say: Callable[[str], None],
) -> TrainState:
    """Returns the state before the first step.

    Args:
      start: the source of parameters; None: they are drawn.
      references: opened checkpoints of the objective's references; the others are copies of the
        first parameters.
    """
    if start is None and not program.state.frozen["references"]:
        return program.init(seed)
    params = program.draw(seed) if start is None else start.params(program, seed=seed)
    for line in start.lines() if start else ():
        say(line)
    for name, reference in references.items():
        say(f"reference {name} from {reference.folder}")
    return program.start_from(params, seed, _references(program, references, start=params))


def referred_frozen(
    folder: str, program: Program, references: Mapping[str, Opened]
) -> dict[str, Any]:
    """Returns `TrainState.frozen` of a run whose checkpoints refer to its start, `folder`."""
    source = opened(folder, averaged=False, field=_FIELD)
    leaves = named(program.params)
    if program.state.frozen["references"].keys() <= references.keys():  # no copy of the start
        leaves = {name: leaves[name] for name in named(program.state.frozen["params"])}
    params = nest(source.read(leaves))
    _, frozen = program.tuning.split(params)
    return frozen_of(frozen, _references(program, references, start=params))


def check_referred(start: Start, tuning: Tuning, model: Model, *, field: str) -> None:
    """Refuses a frozen parameter that the folder referred to does not hold."""
    shapes = model.shapes()
    _, frozen = tuning.bind(model.axes(), shapes).split(shapes)
    if fresh := sorted(named(frozen).keys() & start.fresh.keys()):
        raise InputError(
            f"{field} = 'refer': {fresh[0]} is frozen and drawn, not read from "
            f"{start.opened.folder}; set 'save', or train it",
            field=field,
        )


def _references(
    program: Program, references: Mapping[str, Opened], *, start: Any
) -> dict[str, Any]:
    """Reads the parameters of references; those without a checkpoint copy the start's."""
    read = {}
    for name, shapes in program.state.frozen["references"].items():
        if name not in references:
            read[name] = jax.tree.map(jnp.copy, start)
            continue
        values = references[name].read(named(shapes))
        leaves = [values[path] for path in named(shapes)]
        read[name] = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
    return read


def check_references(run: Definition) -> None:
    """Refuses references that lack parameters, or whose vocabulary is not that of the data."""
    for name, reference in run.references.items():
        reference.shapes(run.reference_models[name])
        if difference := _vocabulary_difference(reference.vocabulary, run.data.vocabulary()):
            field = f"{type(run.objective).__name__}.references"
            raise InputError(
                f"{field}: the vocabulary of {name!r}, {reference.folder}, differs from that of "
                f"the data: {difference}\n  name a model of the same vocabulary",
                field=field,
            )


def _head_rules(
    shapes: Iterable[str], saved: Iterable[str], mapping: Sequence[Rule]
) -> Iterator[Rule]:
    """Yields a rule for each parameter of a new head, and each unread one of a saved head."""
    shapes = list(shapes)
    new = _heads(shapes) - _heads(saved)
    for name in shapes:
        if _head(name) in new and source_of(name, mapping) == name:
            yield re.escape(name), None
    read = {source_of(name, mapping) for name in shapes}
    dropped = [pattern for side, pattern in mapping if side is None and pattern is not None]
    for name in saved:
        ruled = name in read or any(re.fullmatch(rule, name) for rule in dropped)
        if _head(name) and not ruled:
            yield None, re.escape(name)


def _adapter_rules(model: Model, saved: Iterable[str], mapping: Sequence[Rule]) -> Iterator[Rule]:
    """Yields a rule for each parameter of a new adapter."""
    plain = dataclasses.replace(model, spec=model.spec.replace(adapters=()))
    adapters = named(model.shapes()).keys() - named(plain.shapes()).keys()
    for name in sorted(adapters.difference(saved)):
        if source_of(name, mapping) == name:
            yield re.escape(name), None


def _head(name: str) -> str:
    head = _HEAD.match(name)
    return head[1] if head else ""


def _heads(names: Iterable[str]) -> set[str]:
    return {_head(name) for name in names} - {""}


def _check_vocabulary(source: Opened, data: Any, checkpoints: Checkpoints) -> None:
    """Refuses data of a vocabulary other than that of the parameters."""
    difference = _vocabulary_difference(source.vocabulary, data.vocabulary())
    if difference and not checkpoints.other_vocabulary:
        raise InputError(
            f"{_FIELD} = {checkpoints.restore_from!r}: the vocabulary differs from the data's: "
            f"{difference}\n"
            f"  use the folder's: {_THEIR_VOCABULARY[hasattr(data, 'task')]}\n"
            "  or keep the data's: t5lite.training.Checkpoints.other_vocabulary = True",
            field=_FIELD,
        )


def _vocabulary_difference(theirs: Any, ours: Any) -> str:
    """Returns the first token id that two vocabularies read differently; "" for none."""
    if ours is None or theirs is None or ours.fingerprint == theirs.fingerprint:
        return ""
    for index in range(min(ours.size, theirs.size)):
        pair = theirs.piece(index), ours.piece(index)
        if pair[0] != pair[1]:
            return f"token {index} is {pair[0]!r} there and {pair[1]!r} here"
    return ""


def _advice(shapes: Mapping[str, Any], stored: Mapping[str, Any]) -> str:
    """Returns the fix for shapes that differ: draw a head, or take the folder's model."""
    differing = [name for name in stored if tuple(shapes[name].shape) != tuple(stored[name].shape)]
    heads = _heads(differing)
    if heads and all(map(_head, differing)):
        rules = ", ".join(f'("{head}/.*", None)' for head in sorted(heads))
        return f"initialise it: Checkpoints.restore_mapping = [{rules}]"
    return "use the folder's model: MODEL = %INITIAL_CHECKPOINT_PATH, or leave train.model out"


def _changed(theirs: ModelSpec, ours: ModelSpec) -> list[str]:
    changes = differences(theirs.replace(heads=()), ours.replace(heads=()))
    return [str(diff) for diff in changes if not diff.path.endswith(("dropout_rate", "depth_rate"))]


def _summary(sizes: Mapping[str, int]) -> str:
    parts: dict[str, list[str]] = {}
    for name in sizes:
        parts.setdefault(name.partition("/")[0], []).append(name)
    texts = []
    for names in parts.values():
        path = names[0] if len(names) == 1 else f"{posixpath.commonpath(names)}/…"
        texts.append(f"{path} ({sum(map(sizes.__getitem__, names)):,} parameters)")
    return ", ".join(texts)
