"""All configuration: one YAML file, `MONITOR_*` environment on top, secrets from environment or files.

Environment names nest with two underscores: ``MONITOR_KAFKA__BOOTSTRAP_SERVERS``. Every secret field
``x`` has a sibling ``x_file`` naming a file that is read when the process starts (webhook secret
files are read again at every delivery, so a rotated secret needs no restart).
The environment is read in this folder alone.
"""

from monitor.settings.drift import DriftRule, DriftSettings, SilenceRule, Thresholds
from monitor.settings.identity import (
    AlternativeSettings,
    IdentityRule,
    IdentitySettings,
    SteerSettings,
)
from monitor.settings.intake import (
    IngestSettings,
    JoinSettings,
    KafkaSettings,
    PackSettings,
    RegistrySettings,
    ReplaySettings,
)
from monitor.settings.keeping import PostgresSettings
from monitor.settings.loading import laid_over, load
from monitor.settings.secrets import judge_key, secret, server_key
from monitor.settings.section import Duration, Section
from monitor.settings.server_canaries import ServerCanarySettings, ServerRule
from monitor.settings.showing import shown
from monitor.settings.telling import (
    AlertSettings,
    Endpoint,
    LogSettings,
    PrivacySettings,
    WebSettings,
)
from monitor.settings.twin import TwinSettings
from monitor.settings.whole import Settings

__all__ = [
    "AlertSettings",
    "AlternativeSettings",
    "DriftRule",
    "DriftSettings",
    "Duration",
    "Endpoint",
    "IdentityRule",
    "IdentitySettings",
    "IngestSettings",
    "JoinSettings",
    "KafkaSettings",
    "LogSettings",
    "PackSettings",
    "PostgresSettings",
    "PrivacySettings",
    "RegistrySettings",
    "ReplaySettings",
    "Section",
    "ServerCanarySettings",
    "ServerRule",
    "Settings",
    "SilenceRule",
    "SteerSettings",
    "Thresholds",
    "TwinSettings",
    "WebSettings",
    "judge_key",
    "laid_over",
    "load",
    "secret",
    "server_key",
    "shown",
]
