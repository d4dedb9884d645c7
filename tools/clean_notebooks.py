"""What git keeps of a notebook: text, code, and the few outputs that are compared.

    python -m tools.clean_notebooks notebooks/*.ipynb    # exit status 1 if one changed

pre-commit calls it; `tests/test_notebooks.py` demands the result.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fashionlib import artifacts

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
CELL_METADATA = ("tags", "mystnb", "jupyter")  # JupyterLab and papermill add others


def cleaned(notebook: dict) -> dict:
    """The notebook without outputs and counts.

    A cell tagged `keep_output` keeps its own and counts as the first one run.
    """
    cells = []
    for cell in notebook["cells"]:
        metadata = {key: cell["metadata"].get(key) for key in CELL_METADATA}
        cell = cell | {
            "metadata": {key: each for key, each in metadata.items() if each}
        }
        if cell["cell_type"] == "code":
            kept = "keep_output" in cell["metadata"].get("tags", [])
            outputs = cell["outputs"] if kept else []
            for output in outputs:
                if "execution_count" in output:
                    output["execution_count"] = 1
            cell |= {"execution_count": 1 if outputs else None, "outputs": outputs}
        cells.append(cell)
    metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    return notebook | {"cells": cells, "metadata": metadata}


def main(arguments: list[str] | None = None) -> None:
    changed = []
    for path in map(Path, sys.argv[1:] if arguments is None else arguments):
        before = path.read_text(encoding="utf-8")
        after = json.dumps(cleaned(json.loads(before)), indent=1, ensure_ascii=False)
        if before != after + "\n":
            artifacts.write_text(path, after + "\n")
            changed.append(path.name)
    if changed:
        sys.exit(f"cleaned: {', '.join(changed)}")


if __name__ == "__main__":
    main()
