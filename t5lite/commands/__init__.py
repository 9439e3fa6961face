"""Verbs of the command line, one a file, imported by `t5lite.main` when called.

A verb has `add_arguments(parser)`, which declares its flags (`main` adds the gin flags and
`--debug`), and `run(arguments, configuration) -> int | None`, which returns the exit code; None is
0. Modules here import JAX only inside `run`, so that `--help` answers at once.
"""
