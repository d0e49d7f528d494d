"""The configuration in force, and its schema."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import typer

from monitor.cli.arguments import ConfigOption, JsonOption
from monitor.settings import Settings, load

config = typer.Typer(help="Show the configuration in force, or its schema.")


@config.command("show")
def config_show(config_file: ConfigOption = None, as_json: JsonOption = False) -> None:
    """The configuration in force, secrets hidden."""
    import yaml

    content = _without_secrets(load(config_file).model_dump(mode="json", by_alias=True))
    sys.stdout.write(
        json.dumps(content, indent=2) + "\n"
        if as_json
        else yaml.safe_dump(content, sort_keys=False)
    )


@config.command("schema")
def config_schema() -> None:
    """JSON Schema of the configuration file: every key, its meaning and default."""
    sys.stdout.write(json.dumps(Settings.model_json_schema(), indent=2) + "\n")


def _without_secrets(content: dict[str, Any]) -> dict[str, Any]:
    """Secret fields are hidden by their type; these two may hold one in plain text."""
    options = content["kafka"]["client_options"]
    content["kafka"]["client_options"] = {
        name: "**********" if re.search("pass|secret|token|key", name) else value
        for name, value in options.items()
    }
    for endpoint in content["alerts"]["endpoints"]:
        scheme, _, rest = endpoint["url"].partition("://")
        host, slash, _ = rest.rpartition("@")[2].partition("/")
        endpoint["url"] = f"{scheme}://{host}{slash}{'**********' if slash else ''}"
    return content
