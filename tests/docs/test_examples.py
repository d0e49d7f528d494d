"""Every example of README.md and docs is run: configurations are loaded, commands parsed, names looked up.

SQL is run by `tests/store/test_sql_docs.py`.
"""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from pydantic import BaseModel

from monitor.alert.selection import blind
from monitor.cli.main import app
from monitor.score.pack import load_pack
from monitor.settings import Settings, load

REPOSITORY = Path(__file__).parents[2]
PAGES = [
    REPOSITORY / "README.md",
    *sorted((REPOSITORY / "docs").rglob("*.md")),
    *sorted((REPOSITORY / "benchmarks").rglob("README.md")),
]
FENCE = re.compile(r"^```(?P<language>[\w ]*)\n(?P<body>.*?)^```", re.DOTALL | re.MULTILINE)
SECTIONS = "|".join(Settings.model_fields)


def name_of(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def told(page: Path) -> str:
    return page.read_text(encoding="utf-8")


# --- configurations ------------------------------------------------------------------------------


def blocks(page: Path, *languages: str) -> Iterator[tuple[str, str]]:
    """Place and body of the page's code blocks in these languages."""
    for block in FENCE.finditer(told(page)):
        if block["language"].strip() in languages:
            line = told(page)[: block.start()].count("\n") + 1
            yield f"{name_of(page)}:{line}", block["body"]


def configurations() -> list[Any]:
    found = []
    for page in PAGES:
        for place, body in blocks(page, "yaml", "yml"):
            content = yaml.safe_load(body)
            if isinstance(content, dict):  # else the steps of a workflow: their commands are run
                # Helm's values hold the monitor's configuration under a key of its own.
                found.append(pytest.param(content.get("config", content), id=place))
    return found


@cache
def shipped_features() -> Any:
    folder = resources.files("monitor") / "packs" / "smollm2-135m-instruct"
    return load_pack(Path(str(folder))).features


@pytest.mark.parametrize("content", configurations())
def test_a_configuration_loads_and_every_rule_of_it_can_select_something(
    content: dict[str, Any], tmp_path: Path
) -> None:
    for endpoint in content.get("alerts", {}).get("endpoints", []):
        if "secret" not in endpoint and "secret_file" not in endpoint:
            endpoint["secret_file"] = "/the/chart/sets/it"  # helm/templates: secrets.endpoints
    file = tmp_path / "monitor.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert blind(load(file), shipped_features()) == []


def test_the_readme_has_a_configuration_with_a_rule() -> None:
    assert any("rules" in param.values[0].get("drift", {}) for param in configurations())


# --- commands ------------------------------------------------------------------------------------


def fenced_commands(page: Path) -> Iterator[str]:
    for _, body in blocks(page, "", "sh", "bash", "console", "yaml"):
        for line in re.sub(r"\\\n\s*", " ", body).splitlines():
            bare = re.sub(r"^\s*(\$ )?(\w+=\S+ )*", "", line)
            if bare.startswith("monitor "):
                yield bare


def quoted_commands(text: str) -> Iterator[str]:
    """Between backquotes, in a page or in a sentence of the code."""
    without_fences = FENCE.sub("", text)
    for quoted in re.findall(r"`(monitor [^`]+)`", without_fences):
        yield " ".join(quoted.split())


def parsed(command: str) -> tuple[Any, list[str]]:
    """The command that the words name, and the rest of them; fails where there is no such command."""
    words = [word.strip("[]") for word in shlex.split(command, comments=True)[1:]]
    found: Any = typer.main.get_command(app)
    while hasattr(found, "commands") and words:
        word = words.pop(0)
        assert word in found.commands, (
            f"{command!r}: there is no {word!r} in {list(found.commands)}"
        )
        found = found.commands[word]
    return found, words


def options(found: Any) -> dict[str, Any]:
    if hasattr(found, "commands"):
        return {}
    return {
        name: param
        for param in found.params
        for name in (*param.opts, *param.secondary_opts)
        if param.param_type_name == "option"
    }


def check(command: str, *, whole: bool) -> None:
    """Command and options exist; of a whole line also that nothing required is left out or too much."""
    if "…" in command or "|" in command:
        whole = False
    found, words = parsed(command)
    known = options(found)
    positional, given = [], set()
    while words:
        word = words.pop(0)
        if not word.startswith("-") or word == "-":
            positional.append(word)
            continue
        name, _, value = word.partition("=")
        assert name in known or name in ("--help", "-h"), (
            f"{command!r}: there is no {name}; there are {sorted(known)}"
        )
        if name in known:
            given.add(known[name].name)
            if not known[name].is_flag and not value and words:
                words.pop(0)
    if not whole or hasattr(found, "commands"):
        return
    arguments = [param for param in found.params if param.param_type_name == "argument"]
    least = sum(1 for param in arguments if param.required)
    assert len(positional) >= least, f"{command!r} needs {[p.name for p in arguments]}"
    if all(param.nargs == 1 for param in arguments):
        assert len(positional) <= len(arguments), f"{command!r}: too many of {positional}"
    missing = {
        param.opts[0] for param in known.values() if param.required and param.name not in given
    }
    assert not missing, f"{command!r} leaves out {missing}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_of_a_page_exist_with_their_options(page: Path) -> None:
    for command in fenced_commands(page):
        check(command, whole=True)
    for command in quoted_commands(told(page)):
        check(command, whole=False)


@cache
def code() -> dict[str, ast.Module]:
    """Every module of the code, by its path."""
    return {
        name_of(file): ast.parse(file.read_text(encoding="utf-8"))
        for file in sorted((REPOSITORY / "monitor").rglob("*.py"))
    }


@cache
def sentences() -> tuple[tuple[str, str], ...]:
    """Every text of the code that may be told to a person: string constants, f-strings joined."""
    found = []
    for file, module in code().items():
        for node in ast.walk(module):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append((f"{file}:{node.lineno}", node.value))
            elif isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else "X" for p in node.values]
                found.append((f"{file}:{node.lineno}", "".join(map(str, parts))))
    return tuple(found)


def test_commands_in_errors_hints_and_help_exist() -> None:
    checked = 0
    for where, text in sentences():
        for command in quoted_commands(text):
            try:
                check(command, whole=False)
            except AssertionError as error:
                raise AssertionError(f"{where}: {error}") from None
            checked += 1
    assert checked > 20


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_of_a_page_imports_what_exists(page: Path) -> None:
    for place, body in blocks(page, "python"):
        for node in ast.walk(ast.parse(body)):
            if isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                missing = [name.name for name in node.names if not hasattr(module, name.name)]
                assert not missing, f"{place}: {node.module} has no {missing}"


# --- names ---------------------------------------------------------------------------------------


def known_setting(path: list[str], model: Any = Settings) -> bool:
    for step in path:
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return True  # behind a map or a list of plain values
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        if step not in fields and step not in model.model_fields:
            return False
        annotation = (fields.get(step) or model.model_fields[step]).annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        nested = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        model = nested[0] if nested else None
        if not nested and getattr(annotation, "__origin__", None) is dict:
            return True
    return True


def known_value(path: list[str]) -> bool:
    """Does the chart have this value? Its sections share names with the configuration's."""
    found = yaml.safe_load((REPOSITORY / "helm" / "values.yaml").read_text(encoding="utf-8"))
    for step in path:
        if not isinstance(found, dict) or step not in found:
            return False
        found = found[step]
    return True


NO_SETTING = re.compile(
    r"\.(md|py|json|yaml|html|svg)$"
    r"|^(drift|silence|alert)\.(detected|reminder|resolved|unwatched|announced)$"
)


def logged_events() -> set[str]:
    """Names of the events that the code logs; some begin as a section of the configuration does."""
    return {
        call.args[0].value
        for module in code().values()
        for call in ast.walk(module)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id == "log"
        and call.args
        and isinstance(call.args[0], ast.Constant)
    }


def settings_named(text: str) -> Iterator[str]:
    for found in re.findall(rf"(?<![\w./-])((?:{SECTIONS})(?:\.[a-z_]+)+)(?![\w(])", text):
        if not NO_SETTING.search(found):
            yield found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_settings_that_a_page_names_exist(page: Path) -> None:
    quoted = re.findall(r"`([^`\n]+)`", FENCE.sub("", told(page)))
    named = {name for text in quoted for name in settings_named(text)} - logged_events()
    paths = [name.split(".") for name in sorted(named)]
    wrong = [path for path in paths if not known_setting(path) and not known_value(path)]
    assert not wrong


def test_settings_that_errors_hints_and_metrics_name_exist() -> None:
    told_to_people = {"hint", "mend", "action", "help", "description"}
    checked = 0
    for file, module in code().items():
        for call in ast.walk(module):
            keywords = [k.value for k in getattr(call, "keywords", ()) if k.arg in told_to_people]
            for node in [part for keyword in keywords for part in ast.walk(keyword)]:
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    for name in settings_named(node.value):
                        where = f"{file}:{node.lineno}"
                        assert known_setting(name.split(".")), f"{where} names {name}"
                        checked += 1
    assert checked > 20


def test_options_that_hints_name_exist() -> None:
    """``--option`` in a sentence that is told to a person is one of some command."""
    everywhere = {"--help"}

    def collect(found: Any) -> None:
        everywhere.update(options(found))
        for command in getattr(found, "commands", {}).values():
            collect(command)

    collect(typer.main.get_command(app))
    wrong = [
        (where, option)
        for where, text in sentences()
        if " " in text.strip()
        and where.startswith(("monitor/cli", "monitor/research"))
        and not where.startswith("monitor/research/report.py")  # style sheets have such names
        for option in re.findall(r"(?<![\w-])(--[a-z][a-z0-9-]+)(?![\w:])", text)
        if option not in everywhere
    ]
    assert wrong == []


def test_extras_that_hints_and_pages_name_exist() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = [*sentences(), *((name_of(page), told(page)) for page in PAGES)]
    named = {
        extra
        for _, text in texts
        for extras in re.findall(r"pip install [^\n`]*?\[([\w,]+)\]", text)
        for extra in extras.split(",")
    }
    assert {"research", "gguf"} <= named <= set(project["optional-dependencies"])
    assert not any("install 'persona-monitor[" in text for _, text in texts), "it is on no index"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = FENCE.sub("", told(page))
    roots = "monitor|tests|docs|helm|benchmarks|migrations"
    named = re.findall(rf"`((?:{roots})/[\w./-]*)`", text)
    wrong = [name for name in named if not (REPOSITORY / name).exists()]
    linked = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text)
    wrong += [link for link in linked if not (page.parent / link).exists()]
    assert not wrong
