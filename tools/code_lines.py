"""How large the library is, which way its imports go, and what notebooks are made of.

    python -m tools.code_lines        # exit status 1 where a limit is passed

Code lines are lines without blank ones, comments and docstrings. Of a notebook's,
bookkeeping is what serves the report more than the lesson: statements that publish or
print sentences (`CALLS`), dictionaries and sentences that only these read, and the
further lines of a figure's caption.
"""

from __future__ import annotations

import ast
import graphlib
import json
import sys
from collections import Counter
from pathlib import Path

from fashionlib import runtime

GROUND = ("runtime", "artifacts", "catalogue", "parameters")
LEVELS = {"data": 1, "synthetic": 1, "lesson": 2, "tools": 3}  # the ground: 0
LIMITS = {"data": 800, "synthetic": 950, "lesson": 2400, "tools": 900}
MODULE_LIMIT = 350
BOOKKEEPING_LIMIT = 0.20
CALLS = ("publish", "glue", "Markdown", "display", "claims")


def code_lines(text: str) -> set[int]:
    """Numbers of the lines that hold code, from 1."""
    lines = set()
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.strip().startswith("#"):
            lines.add(number)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            lines -= _span(node.body[0])
    return lines


def _span(node: ast.AST) -> set[int]:
    return set(range(node.lineno, node.end_lineno + 1))


# --- the library ----------------------------------------------------------------------


def modules() -> dict[str, str]:
    """Source of every module of `fashionlib` and `tools`, by its dotted name."""
    root = runtime.project_root()
    files = sorted([*root.glob("fashionlib/**/*.py"), *root.glob("tools/*.py")])
    names = [".".join(path.relative_to(root).with_suffix("").parts) for path in files]
    texts = [path.read_text("utf-8") for path in files]
    return dict(zip(names, texts, strict=True))


def house(module: str) -> str:
    """The house that counts a module: data, synthetic, lesson or tools."""
    if module.startswith("fashionlib.data"):
        return "synthetic" if module.endswith("synthetic") else "data"
    return "tools" if module.startswith("tools") else "lesson"


def level(module: str) -> int:
    """A module imports from its own level and from those below."""
    return 0 if module.partition(".")[2] in GROUND else LEVELS[house(module)]


def imports(text: str, known: set[str]) -> set[str]:
    """Those of the `known` modules that a module's text imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
            names.add(node.module)
    return names & known


def sizes(sources: dict[str, str]) -> Counter[str]:
    """Code lines of each house."""
    total = Counter()
    for module, text in sources.items():
        total[house(module)] += len(code_lines(text))
    return total


def faults(sources: dict[str, str]) -> list[str]:
    """What is larger than its limit, and imports that go up or round in a circle."""
    found, graph = [], {}
    for home, lines in sizes(sources).items():
        if lines > LIMITS[home]:
            found.append(f"{home}: {lines} code lines, at most {LIMITS[home]}")
    for module, text in sources.items():
        lines, graph[module] = len(code_lines(text)), imports(text, {*sources})
        if lines > MODULE_LIMIT and house(module) != "synthetic":
            found.append(f"{module}: {lines} code lines, at most {MODULE_LIMIT}")
        for other in sorted(graph[module]):
            if level(other) > level(module):
                found.append(f"{module} imports {other}, which stands above it")
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found.append(f"imports in a circle: {' <- '.join(error.args[1])}")
    return found


# --- the notebooks --------------------------------------------------------------------


def bookkeeping(path: Path) -> tuple[int, int, Counter[str]]:
    """Code lines of a notebook's bookkeeping, all its code lines, the calls counted."""
    cells = json.loads(path.read_text("utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    text = "\n".join(sources)
    tree, lines, calls = ast.parse(text), set(), Counter()
    told = _only_told(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "plots.show":
            for caption in node.args[1:]:
                lines |= _span(caption) - {node.lineno}
        if not isinstance(node, ast.stmt) or hasattr(node, "body"):
            continue
        found = [_counted(each) for each in ast.walk(node)]
        calls.update(filter(None, found))
        if any(found) or _assigned(node) in told:
            lines |= _span(node)
    code = code_lines(text)
    return len(lines & code), len(code), calls


def _counted(node: ast.AST) -> str:
    """Which of CALLS a node is; '' for none."""
    parts = ast.unparse(node.func).split(".") if isinstance(node, ast.Call) else []
    return next((name for name in CALLS if name in parts), "")


def _assigned(node: ast.stmt) -> str:
    """The name that a statement assigns a dictionary or a sentence to, or extends."""
    made = ast.Dict | ast.DictComp | ast.JoinedStr
    if isinstance(node, ast.Assign) and isinstance(node.value, made):
        return ast.unparse(node.targets[0])
    return ast.unparse(node.target) if isinstance(node, ast.AugAssign) else ""


def _only_told(tree: ast.AST) -> set[str]:
    """Names that are read in calls of CALLS alone."""
    told, read = Counter(), _names_read(tree)
    for node in ast.walk(tree):
        if _counted(node):
            told += _names_read(node)
    return {name for name in told if told[name] >= read[name]}


def _names_read(tree: ast.AST) -> Counter[str]:
    names = (node for node in ast.walk(tree) if isinstance(node, ast.Name))
    return Counter(node.id for node in names if isinstance(node.ctx, ast.Load))


def main() -> None:
    sources = modules()
    for home, lines in sizes(sources).items():
        print(f"{home:24}{lines:5} code lines, at most {LIMITS[home]}")
    for path in sorted((runtime.project_root() / "notebooks").glob("*.ipynb")):
        lines, total, calls = bookkeeping(path)
        print(
            f"{path.stem:24}{lines:5} of {total}, {lines / total:4.0%}: {dict(calls)}"
        )
    sys.exit("\n".join(faults(sources)) or None)


if __name__ == "__main__":
    main()
