"""One verb a file, each thin, imported by `t5lite.main` when its verb is called.

A command module has `run(arguments: argparse.Namespace, configuration: Configuration) -> int |
None`, which does the work with a `t5lite.configuration.Configuration`; None is exit code 0. The
verb's flags are a function of its name in `flags.py`; `main` adds the gin flags and `--debug`.
"""
