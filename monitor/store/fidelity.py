"""How the replays of a window compare with what was served, by the counts that stand beside the scores."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, text

from monitor.values.fidelity import Compared, Mismatch


def replays_compared(c: Connection, start: datetime, end: datetime) -> dict[str, Compared]:
    """By pack id, the prompts of [start, end) whose records carry the server's counts; none: no entry.

    Of answers that differ beside a prompt that does, nothing is told: the prompt explains them.
    """
    rows = c.execute(
        text("""
            SELECT lineage.pack_id, found.fidelity, found.difference, sum(found.n)::bigint AS n
            FROM (
                SELECT lineage_id, fidelity,
                    CASE fidelity
                        WHEN 'prompt' THEN prompt_difference
                        WHEN 'answer' THEN answer_difference
                    END AS difference,
                    count(*) AS n
                FROM monitor_data.scores
                WHERE recorded_at >= :start AND recorded_at < :end AND fidelity IS NOT NULL
                GROUP BY 1, 2, 3
            ) AS found
            JOIN monitor_data.lineages AS lineage USING (lineage_id)
            GROUP BY 1, 2, 3
            ORDER BY n DESC, abs(found.difference)
        """),
        {"start": start, "end": end},
    )
    # Rows come with the most frequent difference first.
    totals: dict[str, int] = {}
    usual: dict[tuple[str, str], tuple[int, int]] = {}
    sums: dict[tuple[str, str], int] = {}
    for row in rows:
        totals[row.pack_id] = totals.get(row.pack_id, 0) + row.n
        if row.fidelity != "same":
            key = (row.pack_id, row.fidelity)
            usual.setdefault(key, (row.difference, row.n))
            sums[key] = sums.get(key, 0) + row.n
    return {
        pack_id: Compared(
            n=n,
            mismatches=tuple(
                Mismatch(
                    verdict="prompt" if verdict == "prompt" else "answer",
                    n=sums[pack, verdict],
                    usual=usual[pack, verdict][0],
                    usual_n=usual[pack, verdict][1],
                )
                for pack, verdict in sorted(sums, key=lambda key: -sums[key])
                if pack == pack_id
            ),
        )
        for pack_id, n in totals.items()
    }
