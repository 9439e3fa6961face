"""Initial parameters of a run from another checkpoint, checked before any are read."""

import dataclasses
import math
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from t5lite.data.labels import check_labels
from t5lite.errors import InputError
from t5lite.experiment.run_folder import check_described
from t5lite.interop import Opened, open_model
from t5lite.models import Model, ModelSpec, differences, load_spec, named_spec
from t5lite.objectives import Prompts
from t5lite.training import Checkpoints, Program, TrainState, Tuning, frozen_of
from t5lite.training.mapping import Rule, check_mapping, match, source_of
from t5lite.training.restore import absolute, named, saved_steps
from t5lite.training.restore import differences as misfits
from t5lite.training.tuning import nest

_FIELD = "Checkpoints.restore_from"
_HEAD = re.compile(r"(\w+_head)/")
_THEIR_VOCABULARY = {  # by whether the data are a SeqIO task
    False: "leave VOCABULARY out, or set it to @t5lite.interop.vocabulary_of()",
    True: "a task whose features have it",
}


def spec_of(
    model: str | ModelSpec | None, checkpoints: Checkpoints, model_dir: epath.PathLike
) -> ModelSpec:
    """Returns the architecture of a run: by default that of what it resumes or starts from.

    Raises:
      InputError: if there is none.
    """
    if model is not None:
        return named_spec(model)
    described = absolute(model_dir) / "model.json"
    if saved_steps(absolute(model_dir) / "checkpoints") and described.exists():
        return load_spec(described)
    if checkpoints.restore_from is not None:
        return _opened(checkpoints.restore_from, averaged=False, field=_FIELD).spec
    raise InputError(
        "train needs 'model', which no file or flag binds: a preset's name, a folder or a spec; or "
        f"{_FIELD}, whose model is then taken",
        field="model",
    )


@dataclasses.dataclass(frozen=True)
class Start:
    """A checkpoint that a run starts from, with the source of each parameter.

    Args:
      opened: the checkpoint in the folder.
      sources: the run's name → the folder's name, of all that are read.
      fresh: size of each parameter that is drawn, by name.
      dropped: size of each parameter of the folder that is left out, by name.
      changed: in what the run's model differs, but for heads and dropout.
    """

    opened: Opened
    sources: Mapping[str, str]
    fresh: Mapping[str, int]
    dropped: Mapping[str, int]
    changed: Sequence[str] = ()

    def lines(self) -> Iterator[str]:
        """Yields the lines to print: read, fresh and dropped parameters."""
        yield f"parameters from {self.opened.where}"
        for what, sizes in (("fresh", self.fresh), ("dropped", self.dropped)):
            if sizes:
                yield f"{what}: {_summary(sizes)}"
        if self.changed:
            more = f" and {len(self.changed) - 2} more" if len(self.changed) > 2 else ""
            yield f"note: the model is not that of the folder: {'; '.join(self.changed[:2])}{more}"

    def params(self, program: Program, *, seed: int) -> Any:
        """Returns the first parameters of a run, read straight into their shards."""
        wanted = named(program.params)
        values: dict[str, Any] = {}
        if self.fresh:
            drawn = named(program.draw(seed))
            values = {name: drawn[name] for name in self.fresh}
            del drawn  # before the folder's are read
        values |= self._read(wanted)
        structure = jax.tree.structure(program.params)
        return jax.tree.unflatten(structure, [values[name] for name in wanted])

    def _read(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Reads parameters straight into the run's shards."""
        names: dict[str, list[str]] = {}
        for name, source in self.sources.items():
            names.setdefault(source, []).append(name)
        read = self.opened.read({source: wanted[first] for source, (first, *_) in names.items()})
        values = {}
        for source, (first, *others) in names.items():
            values[first] = read[source]
            for name in others:  # a state owns its arrays: none is in it twice
                values[name] = jax.device_put(jnp.copy(read[source]), wanted[name].sharding)
        return values


def plan_start(
    checkpoints: Checkpoints, model: Model, objective: Any, *, data: Any, resumes: bool = False
) -> Start | None:
    """Opens the folder that a new run starts from, and checks that it fits.

    Args:
      checkpoints: `restore_from` names the folder.
      model: the run's.
      objective: whose head must have the data's labels, if it is read.
      data: gives vocabulary and labels.
      resumes: whether the run has a checkpoint of its own, and the folder is not needed.

    Returns:
      What to read; None for a run that starts from the initialisers or resumes.

    Raises:
      InputError: if there is no such folder, or names, shapes, vocabulary or labels do not fit.
    """
    if checkpoints.restore_from is None or resumes:
        return None
    check_mapping(checkpoints.restore_mapping)
    opened = _opened(checkpoints.restore_from, averaged=False, field=_FIELD)
    wanted = named(model.shapes())
    saved = opened.shapes(dataclasses.replace(model, spec=opened.spec))
    _check_vocabulary(opened, data, checkpoints)
    rules = [*checkpoints.restore_mapping, *_of_heads(wanted, saved, checkpoints.restore_mapping)]
    sources = match(wanted, saved, rules, where=opened.where)
    theirs = {name: saved[source] for name, source in sources.items()}
    if lines := misfits(theirs, {name: wanted[name] for name in sources}, cast=True):
        more = [f"  and {len(lines) - 2} more"] if len(lines) > 2 else []
        heading = f"{_FIELD}: the parameters of {opened.where} do not fit the model:"
        text = "\n".join([heading, *lines[:2], *more, _advice(wanted, theirs)])
        raise InputError(text, field=_FIELD)
    head = model.heads.get(objective.head)
    if head is not None and any(name.startswith(f"{head.kind}_head/") for name in sources):
        where = f"{opened.where}, whose {head.kind} head is restored"
        check_labels(data.labels(), opened.description.labels, where=where)
    used = set(sources.values())
    return Start(
        opened,
        sources,
        fresh={name: math.prod(leaf.shape) for name, leaf in wanted.items() if name not in sources},
        dropped={name: math.prod(leaf.shape) for name, leaf in saved.items() if name not in used},
        changed=() if checkpoints.restore_mapping else _changed(opened.spec, model.spec),
    )


def check_folder_of_run(
    folder: epath.Path, spec: ModelSpec, *, objective: Any, data: Any, tuning: Tuning
) -> bool:
    """Refuses to resume the run in a folder as another one; returns whether there is one.

    A run without a checkpoint may begin anew as another one.
    """
    if not saved_steps(folder / "checkpoints"):
        return False
    known = check_described(folder, spec, data.vocabulary(), data.labels(), tuning=tuning)
    prompts = known.prompts if known else None
    check_prompts(objective, prompts, where=f"the run in {folder}")
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
      start: the checkpoint that parameters are read from; None: they are drawn.
      program: of the run.
      references: the checkpoints of the objective's references; those that it has no checkpoint of
        are the run's own first parameters.
      seed: of what is drawn.
      say: prints what was read.
    """
    wanted = program.state.frozen["references"]
    if start is None and not wanted:
        return program.init(seed)
    params = program.draw(seed) if start is None else start.params(program, seed=seed)
    for line in start.lines() if start else ():
        say(line)
    for name, opened in references.items():
        say(f"reference {name} from {opened.where}")
    return program.start_from(params, seed, _references(program, references, start=params))


def referred_frozen(
    folder: str, program: Program, references: Mapping[str, Opened]
) -> dict[str, Any]:
    """Returns `TrainState.frozen` of a run whose checkpoints refer to where it started.

    Args:
      folder: that it started from.
      program: of the run.
      references: see `first_state`.

    Raises:
      InputError: if the folder lacks a parameter, or cannot be opened.
    """
    opened = _opened(folder, averaged=False, field=_FIELD)
    wanted = named(program.params)
    if program.state.frozen["references"].keys() <= references.keys():  # no copy of the start
        wanted = {name: wanted[name] for name in named(program.state.frozen["params"])}
    params = nest(opened.read(wanted))
    _, frozen = program.tuning.split(params)
    return frozen_of(frozen, _references(program, references, start=params))


def check_referred(start: Start, tuning: Tuning, model: Model, *, field: str) -> None:
    """Raises an InputError if a frozen parameter is not in the folder that is to be read again."""
    shapes = model.shapes()
    _, frozen = tuning.bind(model.axes(), shapes).split(shapes)
    if fresh := sorted(named(frozen).keys() & start.fresh.keys()):
        raise InputError(
            f"{field} = 'refer': {fresh[0]} is frozen and drawn, not read from "
            f"{start.opened.where}; set 'save', or train it",
            field=field,
        )


def _references(
    program: Program, references: Mapping[str, Opened], *, start: Any
) -> dict[str, Any]:
    """Reads the parameters of references; those without a checkpoint are a copy of the start's."""
    read = {}
    for name, shapes in program.state.frozen["references"].items():
        if name not in references:
            read[name] = jax.tree.map(jnp.copy, start)
            continue
        values = references[name].read(named(shapes))
        leaves = [values[path] for path in named(shapes)]
        read[name] = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
    return read


def open_references(objective: Any) -> dict[str, Opened]:
    """Opens the checkpoints of an objective's references, those named "start" left out.

    Raises:
      InputError: no such checkpoint.
    """
    field = f"{type(objective).__name__}.references"
    return {
        name: _opened(where, averaged=True, field=field)
        for name, where in getattr(objective, "references", {}).items()
        if where != "start"
    }


def check_references(
    references: Mapping[str, Opened], models: Mapping[str, Model], *, objective: Any, data: Any
) -> None:
    """Raises an InputError unless references have all parameters and the vocabulary of the data.

    Args:
      references: by name.
      models: likewise.
      objective: that compares with them.
      data: gives the vocabulary.
    """
    field = f"{type(objective).__name__}.references"
    for name, opened in references.items():
        opened.shapes(models[name])
        if difference := _vocabulary_difference(opened.vocabulary, data.vocabulary()):
            raise InputError(
                f"{field}: the vocabulary of {name!r}, {opened.where}, differs from that of the "
                f"data: {difference}\n  name a model of the same vocabulary",
                field=field,
            )


def _opened(where: Any, *, averaged: bool, field: str) -> Opened:
    try:
        return open_model(str(where), averaged=averaged)
    except InputError as error:
        raise InputError(str(error), field=field) from error


def _of_heads(
    wanted: Iterable[str], saved: Iterable[str], mapping: Sequence[Rule]
) -> Iterator[Rule]:
    """Yields a rule for each parameter of a new head, and for each of the folder's unread ones."""
    wanted, saved = list(wanted), list(saved)
    ours, theirs = _heads(wanted), _heads(saved)
    for name in wanted:
        if _head(name) in ours - theirs and source_of(name, mapping) == name:
            yield re.escape(name), None
    read = {source_of(name, mapping) for name in wanted}
    ruled = [pattern for side, pattern in mapping if side is None and pattern is not None]
    for name in saved:
        unasked = name not in read and not any(re.fullmatch(rule, name) for rule in ruled)
        if _head(name) and unasked:
            yield None, re.escape(name)


def _head(name: str) -> str:
    found = _HEAD.match(name)
    return found[1] if found else ""


def _heads(names: Iterable[str]) -> set[str]:
    return {_head(name) for name in names} - {""}


def _check_vocabulary(opened: Opened, data: Any, checkpoints: Checkpoints) -> None:
    """Refuses data whose token ids mean something else to the parameters."""
    difference = _vocabulary_difference(opened.vocabulary, data.vocabulary())
    if difference and not checkpoints.other_vocabulary:
        raise InputError(
            f"{_FIELD} = {checkpoints.restore_from!r}: another vocabulary than the data's: "
            f"{difference}\n"
            f"  use the folder's: {_THEIR_VOCABULARY[hasattr(data, 'task')]}\n"
            "  or the data's all the same: t5lite.training.Checkpoints.other_vocabulary = True",
            field=_FIELD,
        )


def _vocabulary_difference(theirs: Any, ours: Any) -> str:
    """Returns the first token id that means something else to two vocabularies; "" for none."""
    if ours is None or theirs is None or ours.fingerprint == theirs.fingerprint:
        return ""
    for index in range(min(ours.size, theirs.size)):
        if (piece := ours.piece(index)) != (known := theirs.piece(index)):
            return f"token {index} is {known!r} there and {piece!r} here"
    return ""


def _advice(wanted: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Returns what to do about shapes that differ: a head may be new, a body is another model's."""
    differing = [name for name in theirs if tuple(wanted[name].shape) != tuple(theirs[name].shape)]
    heads = _heads(differing)
    if heads and all(map(_head, differing)):
        rules = ", ".join(f'("{head}/.*", None)' for head in sorted(heads))
        return f"draw it anew: Checkpoints.restore_mapping = [{rules}]"
    return "take the folder's own model: MODEL = %INITIAL_CHECKPOINT_PATH, or leave train.model out"


def _changed(theirs: ModelSpec, ours: ModelSpec) -> list[str]:
    changes = differences(theirs.replace(heads=()), ours.replace(heads=()))
    return [str(each) for each in changes if not each.path.endswith(("dropout_rate", "depth_rate"))]


def _summary(sizes: Mapping[str, int]) -> str:
    """Returns parameters by the part they belong to: `classification_head/… (1,538 parameters)`."""
    parts: dict[str, list[str]] = {}
    for name in sizes:
        parts.setdefault(name.partition("/")[0], []).append(name)
    shown = []
    for names in parts.values():
        path = names[0] if len(names) == 1 else f"{posixpath.commonpath(names)}/…"
        shown.append(f"{path} ({sum(map(sizes.__getitem__, names)):,} parameters)")
    return ", ".join(shown)
