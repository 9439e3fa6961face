"""The names that `import t5lite` offers, and the modules that they load from."""

FUNCTIONS = {"train": "t5lite.experiment", "load": "t5lite.inference", "infer": "t5lite.inference"}
ROOMS = (
    "data",
    "decoding",
    "errors",
    "evaluation",
    "experiment",
    "inference",
    "interop",
    "layers",
    "models",
    "objectives",
    "optimizers",
    "parallel",
    "planning",
    "reporting",
    "training",
)
PUBLIC = ("__version__", *FUNCTIONS, *ROOMS)
