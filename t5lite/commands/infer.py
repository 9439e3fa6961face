"""`t5lite infer`: a file or a task in, JSON lines out; stopped at any moment, it goes on."""

import argparse
import dataclasses
import hashlib
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from t5lite.commands.examples import add_shard, check_output, is_table, lines_of, shard_of
from t5lite.commands.placement import add_model, description
from t5lite.commands.processes import add_processes
from t5lite.commands.prompts import (
    add_answering,
    given_options,
    open_generator,
    prompts_of,
    with_trained_template,
)
from t5lite.data.files.readers import Line
from t5lite.errors import InputError
from t5lite.inference.batch_job import Lines
from t5lite.inference.options import FLAGS

if TYPE_CHECKING:
    from t5lite.configuration import Configuration

_PROMPT_LENGTH = 32  # tokens that are given of a task's text without inputs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what to load, what to answer, how, and where the answers go."""
    parser.description = (
        f"{parser.description}. Each line has `line`, `input` (its row) and `output`, or `error`; "
        "a row's own `options` go before the flags'"
    )
    parser.epilog = (
        "stopped or killed, the same command goes on where it was. Examples: t5lite infer "
        "--model_dir=DIR --input_file=in.jsonl --output_file=out.jsonl; t5lite infer "
        "--gin_file=run.gin --split=validation --output_file=out.jsonl"
    )
    add_model(parser, required=False)
    parser.add_argument(
        "--input_file",
        metavar="FILE",
        help=".jsonl, .tsv, .csv or .parquet with the columns of training, `inputs` or `text`, or "
        "what --template names; or .txt, one text a line",
    )
    parser.add_argument(
        "--output_file", required=True, metavar="FILE", help="FILE.jsonl; FILE.jsonl.part meanwhile"
    )
    parser.add_argument(
        "--split",
        metavar="NAME",
        help="instead of a file, of the data of --gin_file's run (validation)",
    )
    add_shard(parser)
    add_answering(parser)
    add_processes(parser)


def run(arguments: argparse.Namespace, configuration: "Configuration") -> int:
    """Writes a JSON line for each line, in order, and says on standard error how it went."""
    check_output(arguments.output_file, [".jsonl"])
    prompts, chosen = prompts_of(arguments), given_options(arguments)
    configured = configuration.source.bindings or configuration.source.macros
    source = task_source(arguments, configuration) if configured else file_source(arguments)
    shard = shard_of(arguments.shard)

    import jax  # only now: what cannot be read is said at once

    from t5lite.inference.batching import check_count
    from t5lite.inference.defaults import options_with
    from t5lite.inference.infer import LineReader, infer
    from t5lite.inference.options import Options

    Options(**chosen)  # refuses what is out of range
    check_count("--batch_size", arguments.batch_size)
    model = source.model
    about = model.description
    options = options_with(
        about.generation, chosen, spec=model.spec, draft=arguments.draft is not None
    )
    rows = not configured and is_table(arguments.input_file)

    def open_reader() -> LineReader:
        generator = open_generator(
            arguments,
            model,  # as it was opened: a run may save another step meanwhile
            prompt=source.prompt,
            devices=jax.local_devices(),  # each process answers its own lines
        )
        generator.check(options)
        texts = prompts if configured else with_trained_template(prompts, about.inputs, rows=rows)
        return LineReader(
            generator, texts.text, options, chosen, source.ids, is_option=texts.leaves_options
        )

    flags = ("batch_size", "fill", "truncate", "draft", "draft_length")
    return infer(
        arguments.output_file,
        source.lines,
        open_reader,
        made_of={
            "model": str(model.where),
            "step": model.step,
            "examples": prompts.made_of,
            **{name: getattr(arguments, name) for name in flags},
            **{name: getattr(options, name) for name in FLAGS},
            **description(arguments),
            "prompt": arguments.prompt or source.prompt,
            "template": arguments.template or (about.inputs.template if rows else None),
        },
        shard=shard,
        batch_size=arguments.batch_size,
        overwrite=arguments.overwrite,
    )


@dataclasses.dataclass(frozen=True)
class Source:
    """What is to be answered, and by whom.

    Args:
      lines: to answer.
      model: the checkpoint that answers, as `open_model` opened it.
      prompt: what they are to it; None for what its topology is made for.
      ids: what the model reads of a line, by its number, where that is not its text.
    """

    lines: Lines
    model: Any
    prompt: str | None = None
    ids: Mapping[int, Sequence[int]] = dataclasses.field(default_factory=dict)


def file_source(arguments: argparse.Namespace) -> Source:
    """Returns the lines of `--input_file`."""
    if arguments.split is not None:
        raise InputError("--split is of a configuration's data: give --gin_file=FILE")
    for name in ("model_dir", "input_file"):
        if getattr(arguments, name) is None:
            raise InputError(f"--{name} is missing; or give a configuration, --gin_file=FILE")
    lines = lines_of(arguments.input_file)

    from t5lite.interop import open_model  # only now: a file without lines needs no JAX

    return Source(lines, open_model(arguments.model_dir))


def task_source(arguments: argparse.Namespace, configuration: "Configuration") -> Source:
    """Returns a split of a configuration's data, prepared as for evaluation, as lines.

    A line has the `inputs` that the model is given and the `targets` that are right.
    """
    if arguments.input_file is not None or arguments.template is not None:
        raise InputError(
            "a configuration says what the texts are: leave out --input_file and --template, or "
            "--gin_file and --gin.NAME"
        )

    from t5lite.commands.configured import experiment_of
    from t5lite.evaluation.rows import prompt_of, sees_both_ways
    from t5lite.experiment.prompts import as_trained
    from t5lite.interop import open_model
    from t5lite.models import Model, named_spec
    from t5lite.objectives import bind

    others = {"model_dir": arguments.model_dir} if arguments.model_dir else {}
    experiment = experiment_of(configuration, optimizer=None, **others)
    data = experiment.data
    model = open_model(arguments.model_dir or experiment.model_dir)
    spec = named_spec(experiment.model or model.spec)
    objective = as_trained(bind(experiment.objective, Model(spec)), model.description.prompts)
    vocabulary, split = data.vocabulary(), arguments.split or "validation"
    if spec.topology == "encoder" or vocabulary is None:
        raise InputError(
            "infer reads tasks of texts for models that write; "
            + ("this data has no vocabulary" if vocabulary is None else "this one is an encoder")
        )
    examples = data.examples(objective, split=split, count=sys.maxsize, seed=0)
    if not examples:
        raise InputError(f"--split={split}: has no example")
    lines, ids = [], {}
    for number, example in enumerate(examples, 1):
        given, target = prompt_of(example, prompt_length=_PROMPT_LENGTH)
        row = {"inputs": vocabulary.decode(given), "targets": vocabulary.decode(target)}
        lines.append(Line(number, 0, 0, row))
        ids[number] = given.tolist()
    prompt = None
    if spec.topology == "decoder":
        prompt = "prefix" if sees_both_ways(objective, examples[0]) else "continue"
    digest = hashlib.sha256(repr(ids).encode()).hexdigest()
    return Source(Lines(lambda: iter(lines), len(lines), digest), model, prompt, ids)
