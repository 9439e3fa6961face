"""Makes `references/`: small random models, inputs, and what transformers says and generates.

pip install -e '.[test,parity]' && python tests/interop/make_references.py [CASE ...]
"""

import json
import pathlib
import sys

import numpy as np
import torch
import transformers

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from generation_parity import GENERATIVE, generated, without_drops
from parity import reference
from parity_cases import CASES, REFERENCED

FOLDER = pathlib.Path(__file__).parent / "references"


def answers(name: str) -> dict[str, np.ndarray]:
    """Returns what the model of a reference generates."""
    model = getattr(transformers, CASES[name]["architectures"][0]).from_pretrained(
        FOLDER / name,
        dtype=torch.float32,
        attn_implementation="eager",
        **without_drops(CASES[name]),
    )
    for module in model.modules():  # tables that are computed, saved in less than float32
        if hasattr(module, "create_weight"):
            module.weight.data = module.create_weight()
    return generated(model.eval(), seed=1)


def main(names: list[str]) -> None:
    for name in names or REFERENCED:
        folder = FOLDER / name
        model, batch, said = reference(CASES[name], seed=1, rounded=True)
        model.to(torch.bfloat16).save_pretrained(folder)
        for path in folder.iterdir():
            if path.name not in ("config.json", "model.safetensors"):
                path.unlink()
        arrays = {f"input_{key}": array.astype(np.int16) for key, array in batch.items()}
        arrays |= {f"output_{key}": array for key, array in said.items()}
        np.savez_compressed(folder / "expected.npz", **arrays)
        if name in GENERATIVE:
            np.savez_compressed(folder / "generated.npz", **answers(name))
        print(f"{name}: {sum(path.stat().st_size for path in folder.iterdir()):,} bytes")
    total = sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file())
    (FOLDER / "made_with.json").write_text(
        json.dumps({"transformers": transformers.__version__, "torch": torch.__version__}) + "\n"
    )
    print(f"all: {total:,} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
