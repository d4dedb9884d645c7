"""What git keeps of a notebook: its text and code, and the few outputs that a test compares.

    python -m tools.clean_notebooks notebooks/*.ipynb     # cleans them; exit status 1 where one had to be changed

pre-commit calls it; `tests/test_notebooks.py` demands the result.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
CELL_METADATA = (
    "tags",
    "mystnb",
)  # JupyterLab and papermill add times, widths and more


def cleaned(notebook: dict) -> dict:
    """The notebook without outputs and counts, but for cells tagged `keep_output`, which count as the first one run."""
    cells = []
    for cell in notebook["cells"]:
        cell = cell | {
            "metadata": {
                key: value
                for key, value in cell["metadata"].items()
                if key in CELL_METADATA
            }
        }
        if cell["cell_type"] == "code":
            kept = "keep_output" in cell["metadata"].get("tags", [])
            count = 1 if kept and cell["outputs"] else None
            outputs = [
                output | ({"execution_count": 1} if "execution_count" in output else {})
                for output in cell["outputs"]
            ]
            cell |= {"execution_count": count, "outputs": outputs if kept else []}
        cells.append(cell)
    metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    return notebook | {"cells": cells, "metadata": metadata}


def main() -> None:
    changed = []
    for path in map(Path, sys.argv[1:]):
        text = path.read_text()
        after = (
            json.dumps(cleaned(json.loads(text)), indent=1, ensure_ascii=False) + "\n"
        )
        if after != text:
            path.write_text(after)
            changed.append(path.name)
    if changed:
        sys.exit(f"cleaned: {', '.join(changed)}")


if __name__ == "__main__":
    main()
