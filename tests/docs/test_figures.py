"""Figures that the pages state are those of the code: each sentence is built from the constant it tells."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest

from monitor import evaluation, subjects
from monitor.alert import health, render
from monitor.alert.rules import SEVERITIES
from monitor.alert.webhook import LONGEST_RETRY_AFTER
from monitor.drift import dependence, sequential
from monitor.drift.cause import verdict
from monitor.research.judge.page import judge_page
from monitor.score.pack import SHIPPED, load_pack
from monitor.settings import DriftSettings, Settings
from monitor.values.scores import SCORE_BIN_EDGES
from monitor.values.witnesses import Cause

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
DEFAULTS = Settings()
DRIFT = DriftSettings()


def listed(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


STATED = [
    ("drift.md", f"Shifts up to {sequential.MEAN_MARGIN} deviations"),
    ("drift.md", f"tail rates up to {sequential.TAIL_MARGIN} times the baseline's"),
    ("drift.md", f"With probability {1 - sequential.BASELINE_RISK:.0%} the bounds".replace("%", " %")),
    ("drift.md", f"in strides of {evaluation.MOST_BUCKETS_A_STEP} buckets"),
    ("drift.md", f"about {evaluation.ROWS_A_WINDOW} rows per window length"),
    ("drift.md", f"within {subjects.CANARY_INTERVALS} canary intervals"),
    ("drift.md", f"Below {dependence.FEWEST_BATCHES} batches it cannot be told"),
    ("drift.md", "batches of {}, {} and {} times the length".format(*dependence.COARSENINGS[1:])),
    ("sql.md", f"only about {evaluation.ROWS_A_WINDOW} rows per window length"),
    ("sql.md", f"counts in the {len(SCORE_BIN_EDGES) + 1} fixed score bins"),
    ("sql.md", f"| `cause` | {listed([f'`{cause}`' for cause in Cause])} |"),
    ("sql.md", f"| `severity` | {listed([f'`{name}`' for name in SEVERITIES])} |"),
    ("alerts.md", f"Shares are judged from {health.MIN_RECORDS} records on"),
    ("alerts.md", f"Every body has less than {render.BODY_LIMIT:,} bytes".replace(",", " ")),
    ("alerts.md", f"or a date, at most {'a day' if timedelta(days=1) == LONGEST_RETRY_AFTER else '?'})"),
    ("purpose.md", f"`postgres.keep_scores` ({DEFAULTS.postgres.keep_scores.days} days)"),
    ("purpose.md", f"`postgres.keep_fine_buckets` ({DEFAULTS.postgres.keep_fine_buckets.days} days)"),
    ("purpose.md", f"`postgres.keep_buckets` ({DEFAULTS.postgres.keep_buckets.days // 365} years)"),
    ("purpose.md", f"`postgres.keep_drift` ({DEFAULTS.postgres.keep_drift.days // 365} years)"),
    ("purpose.md", f"`postgres.keep_dead_letters` ({DEFAULTS.postgres.keep_dead_letters.days} days)"),
    ("deploy.md", f"`web.live_within` ({DEFAULTS.web.live_within // timedelta(minutes=1)} minutes)"),
]  # fmt: skip


@pytest.mark.parametrize(("page", "words"), STATED, ids=lambda part: part)
def test_the_page_states_what_the_code_does(page: str, words: str) -> None:
    assert words in " ".join((DOCS / page).read_text(encoding="utf-8").split())


def test_the_retry_schedule_is_told_as_it_is() -> None:
    units = {"s": 1, "min": 60, "h": 3_600}

    def told(seconds: float) -> str:
        unit = next(u for u in ("h", "min", "s") if seconds % units[u] == 0)
        return f"{seconds / units[unit]:g} {unit}"

    first, *later = (delay.total_seconds() for delay in DEFAULTS.alerts.retry_delays)
    assert first == 0
    schedule = ", ".join(told(delay) for delay in later[:-1]) + f" and {told(later[-1])}"
    page = " ".join((DOCS / "alerts.md").read_text(encoding="utf-8").split())
    assert f"Attempts are made at once, then {schedule} after the one before" in page


def test_every_verdict_has_its_line_in_the_order_of_the_rule() -> None:
    page = (DOCS / "drift.md").read_text(encoding="utf-8")
    section = page.partition("## Cause")[2].partition("\n## ")[0]
    told = re.findall(r"^\d+\. .*?`(\w+)`\.", section, flags=re.MULTILINE)
    lines = re.findall(r"^    \d+\. .*?: `Cause\.(\w+)`", verdict.__doc__ or "", flags=re.MULTILINE)
    ended = re.search(r"^    \d+\. else `Cause\.(\w+)`", verdict.__doc__ or "", flags=re.MULTILINE)
    assert ended is not None
    assert told == [line.lower() for line in (*lines, ended[1])]
    assert set(told) == set(Cause)


def test_the_report_in_docs_says_what_the_page_says_today() -> None:
    """Every paragraph of the report in docs is one that the judge writes about the same figures."""
    pack = load_pack(SHIPPED / "smollm2-135m-instruct")
    told = (DOCS / "reports" / "smollm2-135m-instruct.html").read_text(encoding="utf-8")
    today = judge_page(pack.name, pack.report["judge"])
    # The counts of texts come in another order from the pack's manifest, which sorts its keys.
    paragraph = re.compile(r"<p>(?!Texts )(.*?)</p>", re.DOTALL)
    assert set(paragraph.findall(told)) == set(paragraph.findall(today))


BOUNDED = re.compile(r"own texts|loud|by the same hands", re.IGNORECASE)


@pytest.mark.parametrize(
    "page",
    [REPOSITORY / "README.md", *DOCS.rglob("*.md"), *(REPOSITORY / "benchmarks").rglob("*.md")],
    ids=lambda page: str(page.relative_to(REPOSITORY)),
)
def test_a_perfect_separation_is_told_with_what_it_holds_for(page: Path) -> None:
    """AUC 1.00 is of loud villains; said without that it reads as a promise."""
    paragraphs = page.read_text(encoding="utf-8").split("\n\n")
    for place, paragraph in enumerate(paragraphs):
        if re.search(r"AUC[^|\n]{0,40}1\.00|1\.00[^|\n]{0,20}AUC", paragraph):
            near = " ".join(paragraphs[max(0, place - 1) : place + 2])
            assert BOUNDED.search(near), paragraph
