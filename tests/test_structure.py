"""How the code is laid out: no import circle, files and functions of readable size, shapes of tensors."""

import ast
import re
from pathlib import Path
from statistics import median

import pytest
from test_imports import ROOT, imported

PRODUCT = sorted(path for folder in ("audioldm2_pl", "data", "evaluation") for path in (ROOT / folder).rglob("*.py"))
TENSOR = re.compile(r"\bTensor\b|\bCondition\b")
SHAPE = re.compile(
    r"\([^()]*\b[A-Z1-9][\w ·/']*,[^()]*\)|\(B,\)|\(T,\)|\(L,\)|\(F,\)|\([A-Z]\)|\(num_\w+,\)|\(.*×.*\)|scalar"
)
MAX_LINES, MAX_PARAMETERS = 350, 7


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def functions() -> list[tuple[str, ast.FunctionDef]]:
    found = []
    for path in PRODUCT:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found.append((f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node))
    return found


def arguments_of(node: ast.FunctionDef) -> list[ast.arg]:
    a = node.args
    stars = [arg for arg in (a.vararg, a.kwarg) if arg]
    return [arg for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs, *stars) if arg.arg not in ("self", "cls")]


def num_lines(node: ast.FunctionDef) -> int:
    """Lines of the body, without the docstring."""
    first = node.body[1] if ast.get_docstring(node) is not None and len(node.body) > 1 else node.body[0]
    return (node.end_lineno or 0) - first.lineno + 1


def test_imports_make_no_circle():
    modules = {module_name(path): path for path in PRODUCT}
    graph = {name: (imported(path) & modules.keys()) - {name, "audioldm2_pl"} for name, path in modules.items()}
    while leaves := [name for name, below in graph.items() if not below & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert not graph, {name: sorted(below & graph.keys()) for name, below in graph.items()}


@pytest.mark.parametrize("path", PRODUCT, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_read_in_one_sitting(path):
    assert len(path.read_text().splitlines()) <= MAX_LINES


def test_functions_are_short_and_take_few_parameters():
    found = functions()
    lines = sorted(num_lines(node) for _, node in found)
    assert median(lines) <= 8 and lines[int(0.9 * len(lines))] <= 20
    many = {name: len(arguments_of(node)) for name, node in found if len(arguments_of(node)) > MAX_PARAMETERS}
    assert not many


def with_shapes(path: Path) -> tuple[list[str], list[str]]:
    """Functions with tensors that give shapes in the docstring, a comment, or the class's for `forward`; and others."""
    given, missing, lines = [], [], path.read_text().splitlines()
    tree = ast.parse(path.read_text())
    classes = {f: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for f in node.body}
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("__"):
            continue
        annotations = [arg.annotation for arg in arguments_of(node)] + [node.returns]
        if any(a is not None and TENSOR.search(ast.unparse(a)) for a in annotations):
            owner = ast.get_docstring(classes[node]) if node.name == "forward" and node in classes else None
            text = "\n".join([*lines[node.lineno - 1 : node.end_lineno], owner or ""])
            (given if SHAPE.search(text) else missing).append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    return given, missing


def test_functions_with_tensors_give_their_shapes():
    found = [with_shapes(path) for path in PRODUCT]
    given, missing = ([name for names in found for name in names[k]] for k in (0, 1))
    assert len(given) / (len(given) + len(missing)) >= 0.95, missing
