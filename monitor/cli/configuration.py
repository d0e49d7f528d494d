"""The configuration in force, and its schema."""

from __future__ import annotations

import json
import sys

import typer

from monitor.cli.arguments import ConfigOption, JsonOption
from monitor.settings import Settings, load, shown

config = typer.Typer(help="Show the configuration in force, or its schema.")


@config.command("show")
def config_show(config_file: ConfigOption = None, as_json: JsonOption = False) -> None:
    """The configuration in force, secrets hidden."""
    import yaml

    content = shown(load(config_file))
    sys.stdout.write(
        json.dumps(content, indent=2) + "\n"
        if as_json
        else yaml.safe_dump(content, sort_keys=False)
    )


@config.command("schema")
def config_schema() -> None:
    """JSON Schema of the configuration file: every key, its meaning and default."""
    sys.stdout.write(json.dumps(Settings.model_json_schema(), indent=2) + "\n")
