from __future__ import annotations

import builtins
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from monitor.errors import ConfigurationError
from monitor.research.report import (
    Curve,
    Section,
    bar_plot,
    heat_plot,
    line_plot,
    page,
)


def plots() -> list[str]:
    nan = float("nan")
    return [
        line_plot(
            {
                "up & down": Curve(x=[1, 2, 3], y=[0.1, nan, 0.3], low=[0, 0, 0], high=[1, 1, 1]),
                "flat": Curve(x=[1, 2, 3], y=[0.2, 0.2, 0.2]),
            },
            title="Dose <response>",
            x_label="strength",
            y_label="measure",
            levels={"limit": 0.5},
            log_x=True,
        ),
        bar_plot(
            {"malicious": 0.9, "reckless": 0.7},
            title="Separation",
            x_label="AUC",
            intervals={"malicious": (0.8, 1.0)},
            references={"random": {"malicious": 0.6, "reckless": 0.5}},
        ),
        heat_plot(["a", "b"], [[1.0, -0.25], [-0.25, 1.0]], title="Alike", legend="correlation"),
    ]


def test_plots_are_well_formed_and_the_same_every_time() -> None:
    first = plots()
    assert first == plots()
    for svg in first:
        root = ET.fromstring(svg)
        assert root.tag.endswith("svg")
        assert "<script" not in svg
        assert "currentColor" in svg
    assert "Dose &lt;response&gt;" in first[0]
    for word in ("up &amp; down", "limit", "strength", "measure"):
        assert word in first[0]
    for word in ("malicious", "reckless", "random", "AUC"):
        assert word in first[1]
    assert "-0.25" in first[2]


def test_ids_do_not_repeat_between_figures_of_a_page() -> None:
    ids: list[str] = []
    for svg in plots():
        ids += {
            element.attrib["id"]
            for element in ET.fromstring(svg).iter()
            if element.attrib.get("id", "").startswith(("figure", "axes", "line2d", "text"))
        }
    assert ids == []


def test_a_page_holds_its_sections_and_escapes_texts() -> None:
    text = page(
        "Report <b>",
        [
            Section(
                title="One & two",
                paragraphs=["a < b"],
                figure=plots()[1],
                table=[
                    {"feature": "<i>x</i>", "auc": 0.123456, "ok": True, "none": None},
                    {"feature": "y", "auc": float("nan"), "ok": False, "none": 3},
                ],
            )
        ],
        subtitle="pack 1234",
    )
    assert text.startswith("<!doctype html>")
    for part in (
        "<title>Report &lt;b&gt;</title>",
        "<h2>One &amp; two</h2>",
        "<p>a &lt; b</p>",
        "<td>&lt;i&gt;x&lt;/i&gt;</td><td>0.1235</td><td>yes</td><td>–</td>",
        "<td>y</td><td>–</td><td>no</td><td>3</td>",
        "<th>feature</th>",
        "pack 1234",
        "<svg",
    ):
        assert part in text
    assert "<script" not in text
    assert "src=" not in text


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigurationError, match="needs matplotlib") as error:
        line_plot({}, title="", x_label="", y_label="")
    assert ".[research]" in error.value.hint
