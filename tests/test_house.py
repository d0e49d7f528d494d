"""The rules of the house that no linter knows: no test imports another, modules and functions are short."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINES_OF_A_MODULE = 400
LINES_OF_A_FUNCTION = 60
ARGUED = {
    "monitor/store/tables.py": "because a schema is one idea",
    "monitor/metrics.py": "because it is that table",
    "monitor/metrics.py: Metrics.__init__": "because it is that table",
}
"""What is longer, and the reason: words of the docstring that its module begins with."""


def imported_tests(tree: ast.Module) -> Iterator[str]:
    """The tests that a file imports: as modules, or names out of them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [one.name for one in node.names]
        elif isinstance(node, ast.ImportFrom) and (
            node.level or (node.module or "").split(".")[0] == "tests"
        ):
            names = [f"{node.module or ''}.{one.name}" for one in node.names]
        else:
            continue
        yield from (
            name for name in names if any(part.startswith("test_") for part in name.split("."))
        )


def functions(node: ast.AST, inside: str = "") -> Iterator[tuple[str, int]]:
    """Every function below ``node`` by its qualified name, and its lines from ``def`` to the end."""
    for child in ast.iter_child_nodes(node):
        name = inside
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{inside}.{child.name}".lstrip(".")
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            assert child.end_lineno is not None
            yield name, child.end_lineno - child.lineno + 1
        yield from functions(child, name)


def too_long(name: str, source: str) -> Iterator[str]:
    """The module, if it is too long, and those of its functions that are."""
    if len(source.splitlines()) > LINES_OF_A_MODULE:
        yield name
    for function, lines in functions(ast.parse(source)):
        if lines > LINES_OF_A_FUNCTION:
            yield f"{name}: {function}"


def sources(folder: str) -> dict[str, str]:
    """The text of every Python file below ``folder``, by its path in the repository."""
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in files}


def test_no_test_imports_another() -> None:
    found = {
        name: imported
        for name, source in sources("tests").items()
        if (imported := list(imported_tests(ast.parse(source))))
    }
    assert not found, "move what they share into a module beside them that is no test"


def test_what_is_long_says_why_and_nothing_else_is_long() -> None:
    modules = sources("monitor")
    found = {one for name, source in modules.items() for one in too_long(name, source)}
    assert found == set(ARGUED)
    for one, reason in ARGUED.items():
        said = ast.get_docstring(ast.parse(modules[one.partition(":")[0]])) or ""
        assert reason in " ".join(said.split()), one


@pytest.mark.parametrize(
    "line",
    [
        "from tests.alert.test_render import alert",
        "from tests.alert import drifts, test_render",
        "from .test_render import alert",
        "from . import test_render",
        "import tests.alert.test_render as render",
        "def late():\n    from tests.alert.test_render import alert",
    ],
)
def test_every_way_of_importing_a_test_is_seen(line: str) -> None:
    assert len(list(imported_tests(ast.parse(line)))) == 1


def test_modules_that_are_no_tests_may_be_imported() -> None:
    allowed = "from tests.alert.drifts import rule\nfrom monitor.drift.tests import compare\n"
    assert list(imported_tests(ast.parse(allowed))) == []


def test_length_is_counted_to_the_line() -> None:
    def method(lines: int) -> str:
        return "class A:\n    async def b(self):\n" + "        pass\n" * (lines - 1)

    assert list(too_long("m.py", method(60))) == []
    assert list(too_long("m.py", method(61))) == ["m.py: A.b"]
    assert list(too_long("m.py", "\n" * 400)) == []
    assert list(too_long("m.py", "\n" * 401)) == ["m.py"]
