"""The tree in docs/architecture.md is the file list, and the README names every command."""

import ast
import re

from conftest import SLOWEST

from components.workspace import REPOSITORY
from flows.commands.cli import app

README = (REPOSITORY / "README.md").read_text()
ARCHITECTURE = (REPOSITORY / "docs" / "architecture.md").read_text()


def _described() -> set[str]:
    """Paths in the annotated tree; indentation by two spaces says the folder."""
    tree = ARCHITECTURE.split("```")[1]
    found: set[str] = set()
    folders: dict[int, str] = {}
    for line in tree.splitlines()[2:]:
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        path = "".join(folders[level] for level in range(depth)) + name
        if name.endswith("/"):
            folders[depth] = name
        found.add(path)
    return found


def test_the_tree_is_the_file_list() -> None:
    modules = {
        path.relative_to(REPOSITORY).as_posix()
        for room in ("components", "flows")
        for path in (REPOSITORY / room).rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py")
    }
    described = _described()
    whole_folders = tuple(path for path in described if path.endswith("/") and path.count("/") > 2)
    missing = {path for path in modules - described if not path.startswith(whole_folders)}
    assert missing == set()
    assert {path for path in described if not (REPOSITORY / path).exists()} == set()


def test_no_function_is_longer_than_fifty_lines() -> None:
    long = {
        f"{path.relative_to(REPOSITORY)}: {node.name}"
        for room in ("components", "flows")
        for path in (REPOSITORY / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= 50
    }
    assert long == set()


def test_every_command_is_described() -> None:
    names = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert names <= set(re.findall(r"tessera ([\w-]+)", README)) | {"demo"}


def test_the_files_that_make_test_starts_first_are_there() -> None:
    assert [name for name in SLOWEST if not (REPOSITORY / "tests" / f"{name}.py").exists()] == []
