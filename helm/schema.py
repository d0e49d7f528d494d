"""Writes values.schema.json: the chart's own keys, and under `config` the monitor's settings.

Run `python helm/schema.py` after changing a setting or a value; a test holds the file up to date.
Secrets are left out of `config`: a ConfigMap is no place for them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from monitor.settings import Settings

HERE = Path(__file__).parent
OBJECT = {"type": "object"}
STRING = {"type": "string"}
COUNT = {"type": "integer", "minimum": 0}
OPEN_LIST = {"type": "array"}
ENUMS: dict[str, list[str]] = {
    "mode": ["deployment", "sidecar"],
    "image.pullPolicy": ["Always", "IfNotPresent", "Never"],
    "service.type": ["ClusterIP", "NodePort", "LoadBalancer"],
}
OPEN = {  # handed to Kubernetes as they are
    *("podAnnotations", "podLabels", "podSecurityContext", "securityContext", "nodeSelector"),
    *("affinity", "resources", "worker.resources", "watcher.resources", "courier.resources"),
    *("web.resources", "migrations.resources", "model.volume", "pack.volume"),
    *("serviceAccount.annotations", "serviceMonitor.labels", "prometheusRule.labels"),
    *("grafanaDashboard.labels",),
}
LEAST = {"service.port": 1, "terminationGracePeriodSeconds": 16, "startup.seconds": 5}
SECRET = {
    "type": "object",
    "additionalProperties": False,
    "required": ["existingSecret", "key"],
    "properties": {
        "existingSecret": {"type": "string", "minLength": 1},
        "key": {"type": "string", "minLength": 1},
    },
}


def schema() -> dict[str, Any]:
    values = yaml.safe_load((HERE / "values.yaml").read_text(encoding="utf-8"))
    settings = _without_secrets(Settings.model_json_schema())
    made = _closed(values, "")
    made["properties"]["config"] = {
        key: value for key, value in settings.items() if key not in ("$defs", "title")
    }
    made["properties"]["secrets"]["properties"]["endpoints"] = {
        "type": "object",
        "additionalProperties": SECRET,
    }
    # A parent chart may pass these to any chart.
    made["properties"]["global"] = OBJECT
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **made,
        "$defs": settings["$defs"],
    }


def _closed(value: Any, path: str) -> dict[str, Any]:
    """The shape of a default value: mappings know their keys, everything else its type."""
    if path in ENUMS:
        return {"enum": ENUMS[path]}
    if isinstance(value, dict):
        if path in OPEN:
            return OBJECT
        inner = {key: _closed(item, f"{path}.{key}".lstrip(".")) for key, item in value.items()}
        return {"type": "object", "additionalProperties": False, "properties": inner}
    if isinstance(value, bool):
        return {"type": "boolean"}
    if isinstance(value, int):
        return {**COUNT, "minimum": LEAST.get(path, 0)}
    return OPEN_LIST if isinstance(value, list) else STRING


def _without_secrets(node: Any) -> Any:
    if isinstance(node, list):
        return [_without_secrets(item) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("format") == "duration":  # seconds as a number are well too
        return {"type": ["string", "number"]}
    kept = {}
    for key, item in node.items():
        # A property may itself be called "title" or "default": then its shape is a mapping.
        if key in ("default", "title") and not isinstance(item, dict):
            continue
        if key == "format" and item in ("path", "password"):
            continue
        shown = item
        if key == "properties":
            shown = {name: shape for name, shape in item.items() if not _is_secret(shape)}
        kept[key] = _without_secrets(shown)
    return kept


def _is_secret(node: Any) -> bool:
    if isinstance(node, dict):
        return node.get("format") == "password" or any(map(_is_secret, node.values()))
    return isinstance(node, list) and any(map(_is_secret, node))


def text() -> str:
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    (HERE / "values.schema.json").write_text(text(), encoding="utf-8")
