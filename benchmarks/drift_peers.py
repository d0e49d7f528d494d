"""Evidently's and NannyML's verdicts on windows of scores, each by its own API and its defaults.

    PYTHON_OF_THE_PEER -m benchmarks.drift_peers evidently|nannyml SCORES.npz FLAGS.json

Run by `benchmarks.detectors` with the interpreter of an environment that holds the peer; it needs numpy, pandas and
the peer alone, so that neither's requirements touch the monitor's. ``SCORES.npz`` holds ``reference`` [n] and, by
name, streams [windows, n]; what is written is, by name, whether each window was flagged, and the peer's version.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd

Values = np.ndarray[Any, Any]
COLUMN = "score"


def evidently(reference: Values, streams: Mapping[str, Values]) -> dict[str, list[bool]]:
    """The test that Evidently chooses for such a column, at that test's own threshold.

    Asked of the test itself, for a whole report takes a hundred times as long; `by_report` holds the two equal.
    """
    from evidently.legacy.calculations.stattests.registry import get_stattest

    known = pd.Series(reference)
    found: dict[str, list[bool]] = {}
    for name, windows in streams.items():
        found[name] = []
        for window in windows:
            current = pd.Series(window)
            test = get_stattest(known, current, "num", None)
            found[name].append(bool(test(known, current, "num", None).drifted))
        if found[name][0] != by_report(reference, windows[0]):
            raise RuntimeError(f"{name}: Evidently's report does not say what its test says")
    return found


def by_report(reference: Values, window: Values) -> bool:
    """What Evidently's `DataDriftPreset` says of one window."""
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    definition = DataDefinition(numerical_columns=[COLUMN])
    known, current = (
        Dataset.from_pandas(pd.DataFrame({COLUMN: values}), data_definition=definition)
        for values in (reference, window)
    )
    told = Report([DataDriftPreset()]).run(current, known).dict()
    counts = (
        metric["value"]["count"]
        for metric in told["metrics"]
        if "DriftedColumnsCount" in str(metric.get("metric_id", metric.get("metric_name")))
    )
    return bool(next(counts) > 0)


def nannyml(reference: Values, streams: Mapping[str, Values]) -> dict[str, list[bool]]:
    """`UnivariateDriftCalculator` with chunks of a window's size: its own method and thresholds."""
    from nannyml import UnivariateDriftCalculator

    size = next(iter(streams.values())).shape[1]
    calculator = UnivariateDriftCalculator(column_names=[COLUMN], chunk_size=size)
    calculator.fit(pd.DataFrame({COLUMN: reference[: len(reference) // size * size]}))
    found: dict[str, list[bool]] = {}
    for name, windows in streams.items():
        result = calculator.calculate(pd.DataFrame({COLUMN: windows.ravel()}))
        told = result.filter(period="analysis").to_df()
        flags = np.zeros(len(windows), dtype=bool)
        for column in [column for column in told.columns if column[-1] == "alert"]:
            flags |= told[column].to_numpy(dtype=bool)[: len(windows)]
        found[name] = flags.tolist()
    return found


def main() -> None:
    peer, scores, flags = sys.argv[1:]
    with np.load(scores) as kept:
        streams = {name: kept[name] for name in kept.files if name != "reference"}
        found = {"evidently": evidently, "nannyml": nannyml}[peer](kept["reference"], streams)
    with open(flags, "w", encoding="utf-8") as file:
        json.dump({"version": version(peer), "flags": found}, file)


if __name__ == "__main__":
    main()
