"""One verb a file, each thin, imported by `t5lite.main` when its verb is called.

A verb's module has `add_arguments(parser)`, which declares its flags (`main` adds the gin flags and
`--debug`), and `run(arguments: argparse.Namespace, configuration: Configuration) -> int | None`,
which does the work with a `t5lite.configuration.Configuration`; None is exit code 0. Importing a
module here imports no JAX, so that `--help` answers at once: `run` imports what it needs.
"""
