"""`t5lite infer`: a file or a task in, JSON lines out; resumable."""

import argparse
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from t5lite.commands.flags import MODEL, add_processes, add_shared, description, shard_of
from t5lite.commands.lines import check_output, counted_lines, is_table
from t5lite.commands.prompts import (
    add_generation,
    chosen_options,
    open_reader,
    texts_of,
    with_trained_template,
)
from t5lite.errors import InputError
from t5lite.inference.batch_job import Lines
from t5lite.inference.options import FLAGS

if TYPE_CHECKING:
    from t5lite.configuration import Configuration


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        f"{parser.description}. Each output line has `line`, `input` (its row) and `output`, or "
        "`error`; a row's own `options` override the flags"
    )
    parser.epilog = (
        "interrupted, the same command resumes. Examples: t5lite infer --model_dir=DIR "
        "--input_file=in.jsonl --output_file=out.jsonl; t5lite infer --gin_file=run.gin "
        "--split=validation --output_file=out.jsonl"
    )
    add_shared(parser, *MODEL)
    parser.add_argument(
        "--input_file",
        metavar="FILE",
        help=".jsonl, .tsv, .csv or .parquet with the columns of training, `inputs` or `text`, or "
        "the columns of --template; or .txt, one text a line",
    )
    parser.add_argument(
        "--output_file",
        required=True,
        metavar="FILE",
        help="FILE.jsonl; FILE.jsonl.part until it is complete",
    )
    parser.add_argument(
        "--split",
        metavar="NAME",
        help="in place of a file: split of the data in --gin_file (validation)",
    )
    add_shared(parser, "--shard", "--overwrite")
    add_generation(parser)
    add_processes(parser)


class Source(NamedTuple):
    """Lines to answer, and the opened checkpoint that answers them; see `TaskLines`."""

    lines: Lines
    model: Any
    prompt: str | None = None
    ids: Mapping[int, Sequence[int]] = {}


def run(arguments: argparse.Namespace, configuration: "Configuration") -> int:
    check_output(arguments.output_file, [".jsonl"])
    texts, chosen = texts_of(arguments), chosen_options(arguments)
    configured = bool(configuration.source.statements)
    source = task_source(arguments, configuration) if configured else file_source(arguments)
    shard = shard_of(arguments.shard)

    import jax  # only now: unreadable input is refused at once

    from t5lite.inference.batching import check_count
    from t5lite.inference.defaults import options_with
    from t5lite.inference.line_job import LineReader, infer
    from t5lite.inference.options import Options

    Options(**chosen)  # refuses values out of range
    check_count("--batch_size", arguments.batch_size)
    model = source.model
    about = model.description
    options = options_with(
        about.generation, chosen, spec=model.spec, draft=arguments.draft is not None
    )
    rows = not configured and is_table(arguments.input_file)

    def open_lines() -> LineReader:
        loaded, reader, draft = open_reader(
            arguments,
            model,  # as opened: a run may save another step meanwhile
            prompt=source.prompt,
            devices=jax.local_devices(),  # each process answers its own lines
        )
        reader.check(options)
        answer = functools.partial(
            loaded.engine.outcomes,
            loaded.decoding_params,
            batch_size=arguments.batch_size,
            **draft,
        )
        read = texts if configured else with_trained_template(texts, about.inputs, rows=rows)
        return LineReader(
            reader, answer, read.text, options, chosen, source.ids, is_option=read.leaves_options
        )

    flags = ("batch_size", "fill", "truncate", "draft", "draft_length")
    return infer(
        arguments.output_file,
        source.lines,
        open_lines,
        made_of={
            "model": model.folder,
            "step": model.step,
            "examples": texts.made_of,
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


def file_source(arguments: argparse.Namespace) -> Source:
    if arguments.split is not None:
        raise InputError(
            "--split is of a configuration's data: give --gin_file=FILE", field="split"
        )
    for name in ("model_dir", "input_file"):
        if getattr(arguments, name) is None:
            raise InputError(
                f"--{name} is missing; or give a configuration, --gin_file=FILE", field=name
            )
    lines = counted_lines(arguments.input_file)

    from t5lite.interop import open_model  # only now: a file without lines needs no JAX

    return Source(lines, open_model(arguments.model_dir))


def task_source(arguments: argparse.Namespace, configuration: "Configuration") -> Source:
    """Returns a split of a configuration's data, prepared as for evaluation."""
    if arguments.input_file is not None or arguments.template is not None:
        raise InputError(
            "a configuration says what the texts are: leave out --input_file and --template, or "
            "--gin_file and --gin.NAME"
        )

    from t5lite.commands.configured import experiment_of
    from t5lite.experiment.task_lines import task_lines
    from t5lite.interop import open_model

    unbound = {"model_dir": arguments.model_dir} if arguments.model_dir else {}
    experiment = experiment_of(configuration, optimizer=None, **unbound)
    model = open_model(arguments.model_dir or experiment.model_dir)
    lines, prompt, ids = task_lines(experiment, model, split=arguments.split or "validation")
    return Source(lines, model, prompt, ids)
