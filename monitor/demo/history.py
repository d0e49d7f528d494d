"""Drift, alerts and progress as a user of the database reads them: SQL on the documented views."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import dict_row

from monitor.demo.screen import FeatureLine

PROGRESS = """
    SELECT coalesce(sum(n) FILTER (WHERE outcome = 'scored'), 0) AS scored,
           coalesce(sum(n), 0) AS seen
    FROM monitor.ingest_counts
"""

DRIFT = """
    SELECT drift.feature, feature.sign, array_agg(drift.shift ORDER BY drift.window_end) AS shifts,
           (array_agg(drift.shift_low ORDER BY drift.window_end DESC))[1] AS low,
           (array_agg(drift.shift_high ORDER BY drift.window_end DESC))[1] AS high,
           (array_agg(drift.tail_ratio ORDER BY drift.window_end DESC))[1] AS tail_ratio,
           (array_agg(drift.n ORDER BY drift.window_end DESC))[1] AS n
    FROM monitor.drift_history AS drift JOIN monitor.features AS feature USING (feature, pack_id)
    WHERE drift.segment = 'all'
    GROUP BY drift.feature, feature.sign, feature.ordinal
    ORDER BY feature.ordinal
"""

ALERTS = """
    SELECT state, severity, summary FROM monitor.alerts ORDER BY pending_since DESC LIMIT 5
"""

PROMPTS_ALONE = """
    SELECT
        (SELECT count(DISTINCT (topic, partition, record_offset)) FROM monitor.feature_scores
         WHERE response_tokens = 0 AND score IS NOT NULL) AS read,
        (SELECT count(DISTINCT (topic, partition, record_offset)) FROM monitor.feature_scores
         WHERE generated) AS answered,
        (SELECT coalesce(sum(n), 0)::bigint FROM monitor.ingest_counts
         WHERE outcome = 'skipped' AND reason = 'no_answer') AS skipped
"""

WHAT_HAPPENED = """
SELECT feature, severity, state, fired_at::time(0) AS fired, resolved_at::time(0) AS resolved,
       round((details #>> '{shift,value}')::numeric, 2) AS shift, coalesce(details #>> '{when_fired,cause}', '-') AS cause
FROM monitor.alerts
ORDER BY fired_at
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """Prompts without a logged answer: ``read`` on the prompt side alone, ``answered`` by the copy, or skipped."""

    read: int
    answered: int
    skipped: int

    @property
    def told(self) -> str:
        parts = [
            f"{self.answered} answered by the copy itself and scored apart (segment generated)"
        ]
        if self.read:
            parts.append(f"{self.read} scored by the features that read prompts")
        if self.skipped:
            parts.append(f"{self.skipped} skipped as no_answer, since the pack reads answers alone")
        return f"Prompts without an answer: {', '.join(parts)}."


class History:
    """One read-only connection; every question is one query."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True, row_factory=dict_row)
        self._connection.read_only = True

    def close(self) -> None:
        self._connection.close()

    def rows(self, query: str) -> list[dict[str, Any]]:
        return self._connection.execute(query).fetchall()

    def seen(self) -> int:
        """Records of any outcome that are stored."""
        return int(self.rows(PROGRESS)[0]["seen"])

    def scored(self) -> int:
        return int(self.rows(PROGRESS)[0]["scored"])

    def alone(self) -> Alone:
        """What became of prompts whose answer was not logged."""
        return Alone(**self.rows(PROMPTS_ALONE)[0])

    def features(self) -> list[FeatureLine]:
        return [
            FeatureLine(
                name=row["feature"],
                sign=row["sign"],
                shifts=row["shifts"],
                low=row["low"],
                high=row["high"],
                tail_ratio=row["tail_ratio"],
                n=row["n"],
            )
            for row in self.rows(DRIFT)
        ]

    def alerts(self) -> list[tuple[str, str, str]]:
        return [(row["state"], row["severity"], row["summary"]) for row in self.rows(ALERTS)]
