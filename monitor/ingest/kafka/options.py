"""Settings → options of the client library: addresses, TLS, SASL, and what each client needs.

Everything that can be wrong without a broker (missing files, wrong passphrases, missing packages,
unknown options) is found here, before a connection is tried. Secrets and certificates are read anew
each time options are built, so a client that is made again after a refusal uses the rotated ones.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Final

from kafka import KafkaConsumer
from kafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from kafka.errors import (
    AuthorizationError,
    GroupAuthorizationFailedError,
    IllegalSaslStateError,
    InvalidTopicError,
    KafkaConfigurationError,
    KafkaError,
    KafkaTimeoutError,
    SaslAuthenticationFailedError,
    TopicAuthorizationFailedError,
    UnsupportedCodecError,
    UnsupportedSaslMechanismError,
)

from monitor.errors import BrokerUnavailable, ConfigurationError
from monitor.ingest.kafka.codecs import INSTALL
from monitor.ingest.kafka.tokens import ClientCredentials, FileToken
from monitor.settings import KafkaSettings, secret

CLIENT_ID: Final = "persona-monitor"
METADATA_MS: Final = 30_000
FETCH_WAIT_MS: Final = 1_000

FIXED: Final = frozenset(
    {
        *("group_id", "enable_auto_commit", "auto_offset_reset", "key_deserializer"),
        *("value_deserializer", "consumer_timeout_ms", "kafka_client", "max_poll_records"),
        "allow_auto_create_topics",
    }
)
"""Consumer options that ``kafka.client_options`` must not change: exactly-once rests on them."""


def client_options(settings: KafkaSettings) -> dict[str, Any]:
    """What consumer and producer have in common: addresses, timeouts, security.

    Raises `ConfigurationError` naming the field when a file cannot be used or a package is missing.
    """
    return {
        "bootstrap_servers": [
            server.strip() for server in settings.bootstrap_servers.split(",") if server.strip()
        ],
        "client_id": CLIENT_ID,
        "request_timeout_ms": settings.request_timeout_ms,
        # Half a minute, the library's own limit, is long for a broker that has come back.
        "reconnect_backoff_max_ms": 5_000,
        "security_protocol": settings.security_protocol,
        **_tls(settings),
        **_sasl(settings),
    }


def consumer_options(settings: KafkaSettings) -> dict[str, Any]:
    """Options of the consumer: manual commits, and no offset reset behind our back."""
    for name in settings.client_options:
        if name in FIXED:
            raise ConfigurationError(f"kafka.client_options.{name} cannot be changed")
        if name not in KafkaConsumer.DEFAULT_CONFIG:
            raise ConfigurationError(
                f"kafka.client_options.{name} is no option of the client library",
                hint="The names are those of kafka-python's KafkaConsumer.",
            )
    return {
        **client_options(settings),
        "session_timeout_ms": settings.session_timeout_ms,
        "heartbeat_interval_ms": settings.heartbeat_interval_ms,
        "max_poll_interval_ms": settings.max_poll_interval_ms,
        "max_partition_fetch_bytes": settings.max_partition_fetch_bytes,
        # A fetch names every partition: idle ones should not be asked about twice a second. Records that
        # come are answered at once.
        "fetch_max_wait_ms": min(FETCH_WAIT_MS, settings.request_timeout_ms // 2),
        # Partitions that are added are noticed within this time; the library's own five minutes are long.
        "metadata_max_age_ms": METADATA_MS,
        # Records of aborted transactions were never sent, as far as their producer is concerned.
        "isolation_level": "read_committed",
        # Spreads several topics evenly. Not the library's cooperative-sticky one: when a member
        # lost its generation, partitions were left without an owner until the next rebalance.
        "partition_assignment_strategy": [RoundRobinPartitionAssignor],
        **settings.client_options,
        "group_id": settings.group_id,
        "enable_auto_commit": False,
        "auto_offset_reset": "none",
        "allow_auto_create_topics": False,
    }


def refusal(error: BaseException, settings: KafkaSettings) -> ConfigurationError | None:
    """The library's error as a `ConfigurationError`, when only a person can mend its cause."""
    message = f"Kafka at {settings.bootstrap_servers}: {error}"
    who = principal(settings)
    match error:
        case ConfigurationError():
            return error
        case SaslAuthenticationFailedError():
            hint = f"Check the credentials of kafka.sasl_mechanism {settings.sasl_mechanism}."
        case UnsupportedSaslMechanismError() | IllegalSaslStateError():
            hint = (
                f"Check kafka.sasl_mechanism ({settings.sasl_mechanism}) and "
                "kafka.security_protocol against the listener."
            )
        case GroupAuthorizationFailedError():
            message = f"{message}: {who} may not READ the group {settings.group_id!r}"
            hint = "Allow READ of it, or mend kafka.group_id."
        case TopicAuthorizationFailedError():
            message = f"{message}: {who} may not READ the topics {', '.join(settings.topics)}"
            hint = "Allow READ of them, or mend kafka.topics."
        case AuthorizationError():
            message = f"{message}: {who} lacks a right"
            hint = "docs/deploy.md lists the rights that the monitor needs; `monitor doctor` tells which are there."
        case InvalidTopicError():
            hint = "Check kafka.topics."
        case UnsupportedCodecError():
            hint = INSTALL
        case KafkaConfigurationError():
            hint = "Check kafka.client_options and the timeouts beside them."
        case _ if "CERTIFICATE_VERIFY_FAILED" in str(error):
            hint = "Check kafka.ssl_cafile, and the broker's name against its certificate."
        case _:
            return None
    return ConfigurationError(message, hint=hint)


def failure(error: KafkaError, settings: KafkaSettings) -> ConfigurationError | BrokerUnavailable:
    """The library's error as ours: a `refusal`, else a broker that may answer later."""
    said = str(error)
    if isinstance(error, KafkaTimeoutError) and not any(error.args):
        said = "no answer in time"
    return refusal(error, settings) or BrokerUnavailable(
        f"Kafka at {settings.bootstrap_servers}: {said}"
    )


def principal(settings: KafkaSettings) -> str:
    """Who we are to the brokers, as far as that can be known here: they do not say."""
    if settings.sasl_mechanism in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"):
        return f"User:{settings.sasl_username}"
    if settings.sasl_mechanism == "OAUTHBEARER" and settings.oauth_client_id:
        return f"the client {settings.oauth_client_id}"
    if settings.sasl_mechanism:
        return f"this principal ({settings.sasl_mechanism})"
    if settings.security_protocol == "SSL" and settings.ssl_certfile:
        return f"the owner of the certificate {settings.ssl_certfile}"
    return "User:ANONYMOUS"


def _tls(settings: KafkaSettings) -> dict[str, Any]:
    if not settings.security_protocol.endswith("SSL"):
        return {}
    options: dict[str, Any] = {
        "ssl_check_hostname": settings.ssl_check_hostname,
        "ssl_cafile": str(settings.ssl_cafile) if settings.ssl_cafile else None,
        "ssl_certfile": str(settings.ssl_certfile) if settings.ssl_certfile else None,
        "ssl_keyfile": str(settings.ssl_keyfile) if settings.ssl_keyfile else None,
        "ssl_crlfile": str(settings.ssl_crlfile) if settings.ssl_crlfile else None,
        "ssl_password": secret(
            settings.ssl_password, settings.ssl_password_file, "kafka.ssl_password"
        ),
        "ssl_ciphers": settings.ssl_ciphers,
    }
    _try_tls(options)
    return options


def _try_tls(options: dict[str, Any]) -> None:
    """Use every file once, as the library will at each connection, to name the one that is wrong."""
    context = ssl.create_default_context()
    # Without a callback of ours OpenSSL would ask for a missing passphrase on the terminal.
    passphrase = options["ssl_password"]
    attempts: dict[str, Callable[[], object]] = {
        "ssl_cafile": lambda: context.load_verify_locations(options["ssl_cafile"]),
        "ssl_crlfile": lambda: context.load_verify_locations(options["ssl_crlfile"]),
        "ssl_certfile": lambda: context.load_cert_chain(
            options["ssl_certfile"], options["ssl_keyfile"], lambda: passphrase or ""
        ),
        "ssl_ciphers": lambda: context.set_ciphers(options["ssl_ciphers"]),
    }
    for name, attempt in attempts.items():
        if options[name] is None:
            continue
        try:
            attempt()
        except (OSError, ValueError) as error:
            beside = " (with ssl_keyfile, ssl_password)" if name == "ssl_certfile" else ""
            raise ConfigurationError(
                f"kafka.{name}{beside}: cannot use {options[name]}: {error}"
            ) from None
    if options["ssl_keyfile"] and not options["ssl_certfile"]:
        raise ConfigurationError("kafka.ssl_keyfile is given without kafka.ssl_certfile")


def _sasl(settings: KafkaSettings) -> dict[str, Any]:
    mechanism = settings.sasl_mechanism
    options: dict[str, Any] = {"sasl_mechanism": mechanism}
    match mechanism:
        case None:
            return {}
        case "PLAIN" | "SCRAM-SHA-256" | "SCRAM-SHA-512":
            options["sasl_plain_username"] = settings.sasl_username
            options["sasl_plain_password"] = secret(
                settings.sasl_password, settings.sasl_password_file, "kafka.sasl_password"
            )
        case "OAUTHBEARER":
            options["sasl_oauth_token_provider"] = _token_provider(settings)
        case "GSSAPI":
            _require_package("gssapi", "pip install gssapi (it needs the Kerberos libraries)")
            options["sasl_kerberos_service_name"] = settings.sasl_kerberos_service_name
            options["sasl_kerberos_domain_name"] = settings.sasl_kerberos_domain_name
        case "AWS_MSK_IAM":
            _require_package("botocore", "pip install '.[msk]' in a checkout of the monitor")
            if settings.security_protocol != "SASL_SSL":
                raise ConfigurationError(
                    "kafka.security_protocol must be SASL_SSL with sasl_mechanism AWS_MSK_IAM"
                )
    return options


def _token_provider(settings: KafkaSettings) -> FileToken | ClientCredentials:
    if settings.oauth_token_file:
        return FileToken(settings.oauth_token_file)
    if settings.oauth_token_endpoint and settings.oauth_client_id:
        return ClientCredentials(
            settings.oauth_token_endpoint,
            settings.oauth_client_id,
            lambda: secret(
                settings.oauth_client_secret,
                settings.oauth_client_secret_file,
                "kafka.oauth_client_secret",
            ),
            scope=settings.oauth_scope,
        )
    raise ConfigurationError(
        "OAUTHBEARER needs kafka.oauth_token_file, or oauth_token_endpoint with oauth_client_id"
    )


def _require_package(name: str, hint: str) -> None:
    if find_spec(name) is None:
        raise ConfigurationError(
            f"kafka.sasl_mechanism needs the package {name}, which is not installed", hint=hint
        )
