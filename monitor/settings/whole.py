"""The whole configuration: every section, with the environment on top."""

from __future__ import annotations

from datetime import timedelta

from pydantic import model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from monitor.settings.drift import DriftSettings
from monitor.settings.identity import IdentitySettings
from monitor.settings.intake import (
    IngestSettings,
    KafkaSettings,
    PackSettings,
    ReplaySettings,
)
from monitor.settings.keeping import PostgresSettings
from monitor.settings.section import Duration
from monitor.settings.server_canaries import ServerCanarySettings
from monitor.settings.telling import AlertSettings, LogSettings, PrivacySettings, WebSettings
from monitor.settings.twin import TwinSettings


class Settings(BaseSettings):
    """The whole configuration."""

    model_config = SettingsConfigDict(
        env_prefix="MONITOR_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    kafka: KafkaSettings = KafkaSettings()
    ingest: IngestSettings = IngestSettings()
    replay: ReplaySettings = ReplaySettings()
    pack: PackSettings = PackSettings()
    identity: IdentitySettings = IdentitySettings()
    twin: TwinSettings = TwinSettings()
    server_canaries: ServerCanarySettings = ServerCanarySettings()
    postgres: PostgresSettings = PostgresSettings()
    drift: DriftSettings = DriftSettings()
    alerts: AlertSettings = AlertSettings()
    web: WebSettings = WebSettings()
    log: LogSettings = LogSettings()
    privacy: PrivacySettings = PrivacySettings()
    shutdown_grace: Duration = timedelta(seconds=30)

    @property
    def whole_copy(self) -> bool:
        """The copy is loaded with its later layers and its LM head: it answers, weighs answers, or is asked what
        the server should say."""
        weighs = self.identity.share > 0.0 or self.server_canaries.on
        return self.replay.answers or weighs or self.twin.share > 0.0

    @property
    def needs_torch(self) -> str:
        """What is on that only our own copy can do, as a sentence; empty when nothing is."""
        on = {
            "identity.alternatives": self.identity.share > 0.0 and self.identity.alternatives,
            "twin.share": self.twin.share > 0.0,
            "server_canaries.url": self.server_canaries.on,
        }
        names = [name for name, is_on in on.items() if is_on]
        if not names:
            return ""
        return (
            f"{' and '.join(names)} need backend torch: the copy at replay.url reads prompts and weighs answers, and "
            "neither gives answers nor holds other models beside it"
        )

    @model_validator(mode="after")
    def _of_one_backend(self) -> Settings:
        if self.replay.backend == "vllm" and self.needs_torch:
            raise ValueError(self.needs_torch)
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, init_settings
