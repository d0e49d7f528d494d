"""Where results are kept, and how long."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from pydantic import Field, SecretStr

from monitor.settings.section import Duration, Section


class PostgresSettings(Section):
    url: SecretStr = SecretStr("postgresql+psycopg://localhost/monitor")
    url_file: Path | None = None
    pool_size: int = Field(5, ge=1)
    statement_timeout: Duration = timedelta(seconds=60)
    connect_timeout: Duration = timedelta(seconds=10)
    keep_scores: Duration = timedelta(days=14)
    keep_fine_buckets: Duration = Field(
        timedelta(days=45),
        description="buckets of drift.bucket's length; hourly ones are kept longer",
    )
    keep_buckets: Duration = Field(timedelta(days=730), description="hourly buckets and counts")
    keep_dead_letters: Duration = timedelta(days=30)
    keep_drift: Duration = timedelta(days=730)
    partitions_ahead_days: int = Field(3, ge=1)
    reader_role: str | None = Field(
        "monitor_reader", description="read-only role that migrations create and grant; null: none"
    )
