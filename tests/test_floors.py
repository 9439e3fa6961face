"""Who may import whom: read from the source, so that a shortcut fails here and not in a year."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from t5lite.main import COMMANDS

ROOT = Path(__file__).parent.parent
FLOORS = {
    **dict.fromkeys(["errors", "framing", "paths", "rows", "platforms", "public_names", "text"], 0),
    **dict.fromkeys(
        ["layers", "objectives", "optimizers", "data", "parallel", "decoding", "reporting"], 1
    ),
    **dict.fromkeys(["models", "training"], 2),
    "interop": 3,
    "inference": 4,
    **dict.fromkeys(["evaluation", "planning", "tuning", "compression", "corpus", "serving"], 5),
    "experiment": 6,
    **dict.fromkeys(["commands", "configuration"], 7),
    **dict.fromkeys(["main", "__init__"], 8),
}
EVERYWHERE = {"errors", "framing", "paths", "rows", "public_names", "text"}
ONLY = {"models": {"layers"}, "training": {"parallel", "reporting"}}  # what else they may see
TENSORFLOW = {"tensorflow", "tensorflow_text", "tensorflow_datasets", "seqio", "tfds", "grain"}
TENSORFLOW_ROOMS = {"data", "objectives", "evaluation", "corpus"}
GIN_ROOMS = {"main", "configuration"}
DRAWERS = {"utils", "util", "common", "misc", "helpers", "core"}
DEPENDENCIES = {
    *("jax", "jaxlib", "flax", "optax", "orbax", "etils", "numpy", "gin", "tqdm", "tensorboardX"),
    *("tensorflow", "tensorflow_text", "tensorflow_datasets", "seqio", "sentencepiece"),
    *("tensorstore", "msgpack", "ml_dtypes", "tokenizers", "safetensors", "huggingface_hub"),
    *("torch", "transformers"),
}


def violations(root: Path) -> Iterator[str]:
    """Yields what breaks the rules in the package `root/t5lite`."""
    for path in sorted((root / "t5lite").rglob("*.py")):
        inside = path.relative_to(root / "t5lite").with_suffix("").parts
        room = inside[0]
        where = str(path.relative_to(root))
        if room not in FLOORS:
            yield f"{where}: {room} has no floor"
            continue
        for name in {*inside} & (DRAWERS | DEPENDENCIES):
            yield f"{where}: a file or folder called {name}"
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node, top_level in imports(tree):
            line = f"{where}:{node.lineno}"
            for module in modules(node, ("t5lite", *inside[:-1])):
                yield from (f"{line}: {problem}" for problem in problems(room, module, top_level))


def test_an_assertion_only_tells_the_type_checker_what_is_not_none():
    """`python -O` leaves assertions out: whatever can be wrong is refused by a raise."""
    wrong = []
    for path in sorted((ROOT / "t5lite").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Assert) and not _narrows(node.test):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
            caught = node.type if isinstance(node, ast.ExceptHandler) else None
            if caught is not None and "AssertionError" in ast.unparse(caught):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: catches assertions")
    assert not wrong


def _narrows(test: ast.expr) -> bool:
    """Whether a test is `name is not None`, or that of an attribute or an item."""
    return (
        isinstance(test, ast.Compare)
        and isinstance(test.left, ast.Name | ast.Attribute | ast.Subscript)
        and [type(each) for each in test.ops] == [ast.IsNot]
        and ast.unparse(test.comparators[0]) == "None"
    )


def imports(node: ast.AST, top_level: bool = True) -> Iterator[tuple[ast.stmt, bool]]:
    """Yields each import below `node` that may run, and whether importing the module runs it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue  # a type's name loads nothing
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, top_level
        function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from imports(child, top_level and not function)


def modules(node: ast.stmt, package: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yields the dotted names that an import may load; `package` is where it stands."""
    if isinstance(node, ast.Import):
        yield from (tuple(alias.name.split(".")) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = package[: len(package) - node.level + 1] if node.level else ()
        base += tuple(node.module.split(".")) if node.module else ()
        yield from ((*base, alias.name) for alias in node.names)


def problems(room: str, module: tuple[str, ...], top_level: bool) -> Iterator[str]:
    library = module[0]
    if library in TENSORFLOW and (top_level or room not in TENSORFLOW_ROOMS):
        yield f"{library} {'when imported' if top_level else f'in {room}'}"
    if library == "gin" and room not in GIN_ROOMS:
        yield f"gin in {room}"
    if library != "t5lite":
        return
    target = module[1] if len(module) > 1 and module[1] in FLOORS else "__init__"
    seen = {room, *EVERYWHERE} | ONLY.get(room, {name for name in FLOORS if above(room, name)})
    if target not in seen and not FLOORS[room] == FLOORS[target] == FLOORS["main"]:
        yield f"{room} imports {target}"


def above(room: str, other: str) -> bool:
    return FLOORS[room] > FLOORS[other]


def test_imports_only_go_down():
    assert list(violations(ROOT)) == []


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("layers/a.py", "from t5lite.errors import InputError", []),
        ("layers/a.py", "from t5lite.layers import masks\nimport jax", []),
        ("layers/a.py", "from t5lite.models import spec", ["layers imports models"]),
        ("layers/a.py", "from t5lite.data import packing", ["layers imports data"]),
        ("layers/a.py", "from t5lite import data", ["layers imports data"]),
        ("layers/a.py", "from ..data import packing", ["layers imports data"]),
        (
            "layers/kernels/a.py",
            "from .. import masks\nfrom ... import data",
            ["layers imports data"],
        ),
        ("layers/a.py", "import t5lite", ["layers imports __init__"]),
        ("layers/a.py", "def f():\n  import t5lite.models", ["layers imports models"]),
        ("models/a.py", "from t5lite.layers import masks", []),
        ("models/a.py", "from t5lite.parallel import mesh", ["models imports parallel"]),
        ("models/a.py", "from t5lite.training import loop", ["models imports training"]),
        ("training/a.py", "from t5lite.parallel import mesh", []),
        ("training/a.py", "from t5lite.optimizers import lion", ["training imports optimizers"]),
        ("interop/a.py", "from t5lite.training import checkpoints", []),
        ("interop/a.py", "from t5lite.evaluation import metrics", ["interop imports evaluation"]),
        ("interop/a.py", "from t5lite.inference import answer", ["interop imports inference"]),
        ("evaluation/a.py", "import t5lite.planning", ["evaluation imports planning"]),
        ("commands/a.py", "from t5lite import main", ["commands imports main"]),
        ("commands/a.py", "from t5lite.evaluation import metrics", []),
        ("commands/a.py", "from t5lite.experiment import train", []),
        ("experiment/a.py", "from t5lite import commands", ["experiment imports commands"]),
        ("planning/a.py", "import t5lite.experiment", ["planning imports experiment"]),
        ("main.py", "import t5lite\nfrom t5lite import configuration\nimport gin", []),
        ("commands/a.py", "import gin", ["gin in commands"]),
        ("commands/a.py", "from t5lite import configuration", ["commands imports configuration"]),
        ("commands/a.py", "if TYPE_CHECKING:\n  from t5lite import configuration", []),
        ("data/a.py", "def f():\n  import seqio", []),
        ("data/a.py", "import tensorflow as tf", ["tensorflow when imported"]),
        (
            "data/a.py",
            "class A:\n  try:\n    import seqio\n  except E: pass",
            ["seqio when imported"],
        ),
        ("commands/a.py", "def f():\n  from tensorflow import data", ["tensorflow in commands"]),
        ("layers/utils.py", "", ["a file or folder called utils"]),
        ("data/helpers/a.py", "", ["a file or folder called helpers"]),
        ("data/seqio.py", "", ["a file or folder called seqio"]),
        ("attic/a.py", "", ["attic has no floor"]),
    ],
)
def test_the_rules_bite(tmp_path, file, text, expected):
    path = tmp_path / "t5lite" / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert [problem.partition(": ")[2] for problem in violations(tmp_path)] == expected


def edges(root: Path) -> dict[str, set[str]]:
    """Returns the modules that each module of `root/t5lite` imports: at its top, lazily, or only
    for type checkers."""
    paths = {}
    for path in sorted((root / "t5lite").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    found: dict[str, set[str]] = {}
    for module, path in paths.items():
        package = module.split(".")[: None if path.name == "__init__.py" else -1]
        found[module] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                for name in modules(node, tuple(package)):
                    while name and ".".join(name) not in paths:  # what is imported from a module
                        name = name[:-1]
                    found[module].add(".".join(name))
        found[module] -= {module, ""}
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Returns modules that import each other in a circle, or nothing."""
    done: set[str] = set()

    def search(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for other in sorted(graph[module]):
            if found := search(other, [*path, module]):
                return found
        done.add(module)
        return []

    return next(filter(None, (search(module, []) for module in sorted(graph))), [])


def test_no_imports_go_in_a_circle():
    """Lazy imports and those for type checkers included: the first file to read is one of them."""
    assert circle(edges(ROOT)) == []


def test_no_verb_imports_another():
    graph = edges(ROOT)
    verbs = {f"t5lite.commands.{verb}" for verb in COMMANDS}
    assert {verb: graph[verb] & verbs for verb in verbs} == {verb: set() for verb in verbs}


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("from t5lite import b", "import t5lite.a", ["a", "b", "a"]),
        (
            "def f():\n  from t5lite.b import x",
            "from .a import y",
            ["a", "b", "a"],
        ),
        (
            "if TYPE_CHECKING:\n  import t5lite.b",
            "from t5lite import a",
            ["a", "b", "a"],
        ),
        ("from t5lite.b import x", "import jax", []),
    ],
)
def test_circles_are_found(tmp_path, a, b, expected):
    (tmp_path / "t5lite").mkdir()
    (tmp_path / "t5lite" / "a.py").write_text(a)
    (tmp_path / "t5lite" / "b.py").write_text(b)
    assert [name.removeprefix("t5lite.") for name in circle(edges(tmp_path))] == expected


def private_imports(root: Path) -> Iterator[str]:
    """Yields each private name that a file takes from another file of `root/t5lite`."""
    for path in sorted((root / "t5lite").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        package = path.relative_to(root).parts[:-1]
        imported: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                ours = [name for name in modules(node, package) if name[0] == "t5lite"]
                imported |= {alias.asname or alias.name for alias in node.names if ours}
                names = [part for name in ours for part in name if is_private(part)]
                yield from (f"{path.relative_to(root)}:{node.lineno}: {name}" for name in names)
        for node in ast.walk(tree):
            private = isinstance(node, ast.Attribute) and is_private(node.attr)
            if private and ast.unparse(node.value) in imported:
                yield f"{path.relative_to(root)}:{node.lineno}: {ast.unparse(node)}"


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_no_private_name_is_used_by_another_file():
    assert list(private_imports(ROOT)) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("from t5lite.b import _x", ["_x"]),
        ("from t5lite import b\nb._x()", ["b._x"]),
        ("from .b import X\nX._make", ["X._make"]),
        ("from t5lite.b import x\nimport jax\njax._src, x.y, x.__doc__", []),
    ],
)
def test_private_names_are_found(tmp_path, text, expected):
    (tmp_path / "t5lite").mkdir()
    (tmp_path / "t5lite" / "a.py").write_text(text)
    assert [line.rpartition(" ")[2] for line in private_imports(tmp_path)] == expected


SPELLING_TESTS = {"startswith", "endswith", "removeprefix", "removesuffix", "fullmatch"}
ARRAY_NAMES = re.compile(
    r"label.*|(encoder|decoder|input|target)s?_.*"
    r"|.*_(tokens|segment_ids|positions|loss_weights|lengths|labels)"
)


def spelling_guesses(tree: ast.AST) -> Iterator[int]:
    """Yields the lines where what an array of a batch is gets guessed from its name's spelling."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if node.func.attr in SPELLING_TESTS:
            parts = [inner for each in node.args for inner in ast.walk(each)]
            texts = [part.value for part in parts if isinstance(part, ast.Constant)]
            if any(isinstance(text, str) and ARRAY_NAMES.fullmatch(text) for text in texts):
                yield node.lineno


def test_no_array_is_known_by_the_spelling_of_its_name():
    """Objectives declare them: `rows`, `axes`, `token_arrays` and `limits`."""
    wrong = []
    for path in sorted((ROOT / "t5lite").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        wrong += [f"{path.relative_to(ROOT)}:{line}" for line in spelling_guesses(tree)]
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[x for name in batch\n if name.endswith('_tokens')]", [2]),
        ("name.startswith('label')", [1]),
        ("name.endswith(('_segment_ids', '_b'))", [1]),
        ("name.startswith(f'encoder_{kind}')", [1]),
        ("name.endswith('.gin') or name == 'labels' or 'labels' in batch", []),
    ],
)
def test_spelling_guesses_are_found(text, expected):
    assert [*spelling_guesses(ast.parse(text))] == expected


def test_gin_and_configs_are_no_packages():
    """A gin/ folder with an __init__.py would shadow the library."""
    found = [path for kind in ("gin", "configs") for path in (ROOT / kind).rglob("*.py")]
    assert found == []


@pytest.mark.parametrize(
    "ground",
    ["import t5lite.models, t5lite.training, t5lite.decoding", "import t5lite; t5lite.train"],
)
def test_jax_ground_is_free_of_tensorflow_and_gin(tmp_path, ground):
    absent = TENSORFLOW | {"gin"}
    code = f"import sys\n{ground}\nassert not (found := {absent} & set(sys.modules)), found"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_no_error_text_is_matched_above_the_rooms():
    """Configuration, main and commands know errors by their `field` and by structure."""
    wrong = []
    for path in sorted((ROOT / "t5lite").rglob("*.py")):
        room = path.relative_to(ROOT / "t5lite").with_suffix("").parts[0]
        if room in ("configuration", "main", "commands"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            wrong += [f"{path.relative_to(ROOT)}:{line}" for line in matched_errors(tree)]
    assert wrong == []


def matched_errors(tree: ast.AST) -> Iterator[int]:
    """Yields the lines where the text of a caught exception, or of an argument that is one, is
    searched, compared or split."""
    for function in ast.walk(tree):
        names: set[str] = set()
        if isinstance(function, ast.ExceptHandler) and function.name:
            names = {function.name}
        elif isinstance(function, ast.FunctionDef):
            arguments = [*function.args.args, *function.args.kwonlyargs]
            names = {
                each.arg
                for each in arguments
                if each.annotation is not None
                and re.search(r"Error\b|Exception", ast.unparse(each.annotation))
            }
        for node in ast.walk(function) if names else ():
            texts = {f"str({name})" for name in names} | {f"{name}.args[0]" for name in names}
            if isinstance(node, ast.Compare):
                operands = [node.left, *node.comparators]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                library = ast.unparse(node.func.value) == "re"
                if not library and node.func.attr not in (
                    "startswith",
                    "endswith",
                    "find",
                    "index",
                ):
                    continue
                operands = [*node.args, *([] if library else [node.func.value])]
            else:
                continue
            if texts & {ast.unparse(each) for each in operands}:
                yield node.lineno


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("try: f()\nexcept E as error:\n  re.search('x', str(error))", [3]),
        ("try: f()\nexcept E as error:\n  if 'x' in str(error): g()", [3]),
        ("try: f()\nexcept E as error:\n  str(error).startswith('x')", [3]),
        ("def f(error: InputError):\n  return re.match('x', str(error))", [2]),
        ("def f(error: InputError):\n  return error.field == 'x', f'{error}'", []),
    ],
)
def test_matched_errors_are_found(text, expected):
    assert [*matched_errors(ast.parse(text))] == expected
