"""The notebooks run from the first cell to the last, and are committed as nobody has run them."""

import ast
import math
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs the extra `notebook`")

FOLDER = Path(__file__).parent.parent / "colab"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def read(path):
    return nbformat.read(path, as_version=4)


def tagged(notebook, tag):
    found = [n for n, cell in enumerate(notebook.cells) if tag in cell.metadata.get("tags", ())]
    assert len(found) == 1, f"one cell has the tag {tag!r}"
    return found[0]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_as_nobody_has_run_it(path):
    notebook = read(path)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert "install" in code[0].metadata["tags"]
    tagged(notebook, "parameters")
    for cell in code:
        assert cell.outputs == []
        assert cell.execution_count is None
        ast.parse(cell.source)  # plain Python: no magics
    assert set(notebook.metadata) == {"kernelspec", "language_info"}


def execute(path, folder, **parameters):
    """Runs a notebook in a folder, with other parameters, and returns it with its outputs."""
    from nbclient import NotebookClient

    notebook = read(path)
    changes = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    place = tagged(notebook, "parameters")
    defined: dict = {}
    exec(notebook.cells[place].source, defined)
    assert parameters.keys() <= defined.keys()
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(changes))
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    return client.execute()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # those of Jupyter are not ours
def test_first_step(tmp_path):
    notebook = execute(FOLDER / "01_first_step.ipynb", tmp_path, STEPS=24, MODEL_DIR="run")
    outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    texts = {id: "".join(each.get("text", "") for each in found) for id, found in outputs.items()}
    assert not [each for found in outputs.values() for each in found if each.output_type == "error"]
    assert texts["data"].count("targets <extra_id_0>") == 3
    (result,) = [each for each in outputs["train"] if each.output_type == "execute_result"]
    metrics = ast.literal_eval(result.data["text/plain"])
    assert math.isfinite(metrics["held_out/loss"])
    assert 0 < metrics["held_out/loss"] < 9
    assert [each for each in outputs["plot"] if "image/png" in each.get("data", {})]
    (frame,) = [each for each in outputs["report"] if "text/html" in each.get("data", {})]
    assert "Train–validation gap" in frame.data["text/html"]
    assert (tmp_path / "run/report.html").exists()
    assert len(texts["generate"].strip().splitlines()) == 3
