"""Command line of the data tools: `audioldm2-data NAME …` or `python -m data NAME …`; without a name a list of them."""

import ast
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from audioldm2_pl.errors import UserError, run_tool
from audioldm2_pl.fields import nearest

FOLDER = Path(__file__).parent
HELP = """usage: audioldm2-data NAME …      the same as python -m data.NAME …

`audioldm2-data NAME --help` says what a corpus holds, and where it comes from.
"""


def tools() -> dict[str, str]:
    """Name -> first line of the docstring, of each file here that has a command line."""
    trees = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("[!_]*.py"))}
    return {
        name: (ast.get_docstring(tree) or "").partition("\n")[0] for name, tree in trees.items() if has_main(tree.body)
    }


def has_main(body: Sequence[ast.stmt]) -> bool:
    defined = {node.name for node in body if isinstance(node, ast.FunctionDef)}
    targets = [target for node in body if isinstance(node, ast.Assign) for target in node.targets]
    assigned = {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}
    return "main" in defined | assigned


def list_tools() -> None:
    found = tools()
    print(HELP)
    for name, line in found.items():
        print(f"  {name:{max(map(len, found))}}  {line}")


def check_name(name: str) -> None:
    if name not in tools():
        raise UserError(f"{name}: no such corpus or tool; {nearest(name, list(tools()))}")


def main(arguments: Sequence[str] | None = None) -> int:
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        return run_tool(list_tools)
    if code := run_tool(lambda: check_name(name)):
        return code
    module = import_module(f"{__package__}.{name}")
    sys.argv[0] = f"audioldm2-data {name}"  # argparse's name of the command
    return module.main(rest)


if __name__ == "__main__":
    sys.exit(main())
