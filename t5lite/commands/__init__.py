"""One verb a file, each thin, imported by `t5lite.main` when its verb is called.

A command module has two functions:

- `add_arguments(parser: argparse.ArgumentParser) -> None` declares the verb's flags; `main` adds
  the gin flags and `--debug`.
- `run(arguments: argparse.Namespace, configuration: Configuration) -> int | None` does the work,
  with a `t5lite.configuration.Configuration`; None is exit code 0.
"""
