"""Apache Kafka itself, as a context manager: one or three brokers in KRaft mode, without Docker or root.

``MONITOR_TEST_KAFKA_HOME`` names a folder with ``libs/*.jar``: an unpacked distribution is one. Java 17
or newer runs them. Every broker has the same listeners:

| listener | who comes | its principal |
|---|---|---|
| `PLAINTEXT` | anyone; may do all | `User:ANONYMOUS` |
| `SASL_PLAINTEXT` | by password: SCRAM-SHA-256, SCRAM-SHA-512, PLAIN | `User:name` |
| `SASL_SSL` | the same, over TLS | `User:name` |
| `SSL` | with a certificate of `Cluster.authority` | `User:CN=name` |
| `EXPIRED` | as `SASL_SSL`, but the broker's certificate has expired | |
| `ASTRAY` | as `PLAINTEXT`, but the broker tells clients to come to `ASTRAY_HOST`, which is nowhere | `User:ANONYMOUS` |

ACLs are on: but for the plaintext listener nobody may do what no ACL allows. The certificates are made out
to ``localhost``, not to 127.0.0.1.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Final, Self

from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from monitor.demo.server import Server
from monitor.demo.services import free_port
from monitor.errors import ConfigurationError, RefuseToStart
from tests.kafka.authority import Authority

HOME: Final = "MONITOR_TEST_KAFKA_HOME"
START_SECONDS: Final = 300.0
"""A few are enough; not where many other processes share the cores."""
HEAP: Final = "320m"
LISTENERS: Final = (
    *("PLAINTEXT", "SASL_PLAINTEXT", "SASL_SSL", "SSL", "EXPIRED", "ASTRAY", "CONTROLLER"),
)
ASTRAY_HOST: Final = "nowhere.invalid"
PROTOCOLS: Final = "EXPIRED:SASL_SSL,ASTRAY:PLAINTEXT,CONTROLLER:PLAINTEXT," + ",".join(
    f"{name}:{name}" for name in ("PLAINTEXT", "SASL_PLAINTEXT", "SASL_SSL", "SSL")
)
USERS: Final[Mapping[str, str]] = MappingProxyType({"monitor": "monitor-secret"})
"""Who may log in by SCRAM and PLAIN, with which password. What they may do is for ACLs to say."""

_LOG4J: Final = """\
rootLogger.level = warn
rootLogger.appenderRef.out.ref = out
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = [%d] %p %m (%c)%n
"""
_TOOL_JVM: Final = ("-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")


def kafka_home() -> Path | None:
    """The folder that `HOME` names, or None; `ConfigurationError` when it holds no broker."""
    named = os.environ.get(HOME)
    if not named:
        return None
    if not list(Path(named).glob("libs/kafka_*.jar")):
        raise ConfigurationError(f"{HOME}: {named} has no libs/kafka_*.jar")
    return Path(named).resolve()


class Node:
    """One broker of a `Cluster`; it is its controller, too."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        self.number = number
        self.ports = {name: free_port() for name in LISTENERS}
        self.folder = cluster.folder / f"node-{number}"
        self._cluster = cluster
        self._server = Server(
            "kafka",
            self.folder,
            self._answers,
            start_seconds=START_SECONDS,
            tells=signal.SIGTERM,
        )

    def address(self, listener: str = "PLAINTEXT") -> str:
        """``host:port`` of one of `LISTENERS`."""
        host = "localhost" if listener in {"SASL_SSL", "SSL", "EXPIRED"} else "127.0.0.1"
        return f"{host}:{self.ports[listener]}"

    @property
    def running(self) -> bool:
        return self._server.running

    @property
    def log(self) -> Path:
        return self._server.log

    def start(self) -> None:
        """Start the broker on its data and wait until it answers: of three, two must run for that."""
        self.launch()
        self.wait_until_ready()

    def launch(self) -> None:
        """Begin to start, and wait for nothing."""
        self._server.launch(
            [
                *(_java(), f"-Xmx{HEAP}", f"-Xms{HEAP}", "-XX:+UseSerialGC"),
                "-XX:TieredStopAtLevel=1",  # a test is over before the better compiler pays
                f"-Dlog4j2.configurationFile={self._cluster.folder / 'log4j2.properties'}",
                *("-cp", self._cluster.classes, "kafka.Kafka"),
                str(self.folder / "server.properties"),
            ],
            user=None,
        )

    def wait_until_ready(self) -> None:
        self._server.wait_until_ready()

    def stop(self) -> None:
        """Hand leaderships over and end in order; the data is kept."""
        self._server.stop(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: what was acknowledged is kept."""
        self._server.stop(signal.SIGKILL)

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers, until `resume`."""
        self._server.send(signal.SIGSTOP)

    def resume(self) -> None:
        self._server.send(signal.SIGCONT)

    def _answers(self) -> bool:
        try:
            admin = KafkaAdminClient(
                bootstrap_servers=self.address(),
                bootstrap_timeout_ms=1_000,
                request_timeout_ms=2_000,
            )
        except (KafkaError, OSError):
            return False
        try:
            return any(
                one["broker_id"] == self.number for one in admin.describe_cluster()["brokers"]
            )
        except (KafkaError, OSError):
            return False
        finally:
            admin.close()


class Cluster:
    """One or three brokers, made new in ``folder``; a context manager.

    ``options`` are added to every ``server.properties``.
    """

    def __init__(
        self,
        folder: Path,
        home: Path,
        *,
        nodes: int = 1,
        options: Mapping[str, str] = MappingProxyType({}),
        users: Mapping[str, str] = USERS,
    ) -> None:
        self.folder = folder.resolve()
        self.classes = str(home / "libs" / "*")  # Java expands it
        self.users = users
        self.authority = Authority(self.folder / "certificates")
        self.nodes = tuple(Node(self, number) for number in range(1, nodes + 1))
        self._options = options

    @property
    def bootstrap(self) -> str:
        """Addresses of the plaintext listener."""
        return self.addresses("PLAINTEXT")

    def addresses(self, listener: str) -> str:
        """``host:port,…`` of one of `LISTENERS`."""
        return ",".join(node.address(listener) for node in self.nodes)

    def start(self) -> None:
        """Start every broker that does not run, and wait until each answers."""
        if not (self.folder / "log4j2.properties").exists():
            self._make()
        starting = [node for node in self.nodes if not node.running]
        try:
            for node in starting:
                node.launch()
            for node in starting:
                node.wait_until_ready()
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """End in order, one after another; the last ones may have nobody left to hand over to."""
        for node in self.nodes:
            node.resume()
            node.stop()

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()

    def create_topic(self, name: str, *, partitions: int = 1, **configs: str) -> None:
        """Create a topic with a replica on every broker, and wait until all know it."""
        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap)
        try:
            made = {"num_partitions": partitions, "replication_factor": -1, "configs": configs}
            admin.create_topics({name: made})
            admin.wait_for_topics([name])
        finally:
            admin.close()

    def tool(self, name: str, *arguments: str) -> str:
        """Run one of Kafka's own commands, by its class, against the plaintext listener; its output."""
        return self._run(name, "--bootstrap-server", self.bootstrap, *arguments)

    def allow(self, principal: str, *operations: str, on: Sequence[str]) -> None:
        """Kafka's own ``--add`` of ACLs: ``allow("User:x", "Read", on=("--topic", "prompts"))``."""
        self._acl("--add", principal, operations, on)

    def take_away(self, principal: str, *operations: str, on: Sequence[str]) -> None:
        """The counterpart of `allow`."""
        self._acl("--remove", principal, operations, on)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()  # nobody reads the data again, and ending in order takes seconds for each

    def _acl(
        self, action: str, principal: str, operations: Sequence[str], on: Sequence[str]
    ) -> None:
        named = [part for one in operations for part in ("--operation", one)]
        force = ["--force"] if action == "--remove" else []
        who = ["--allow-principal", principal]
        self.tool("org.apache.kafka.tools.AclCommand", action, *force, *who, *named, *on)

    def _make(self) -> None:
        """Format one node with Kafka's own tool; the others differ in their number alone."""
        self.folder.mkdir(parents=True, exist_ok=True)
        broker = self.authority.issue("broker", ["localhost"])
        expired = self.authority.issue("broker", ["localhost"], expired=True)
        for node in self.nodes:
            node.folder.mkdir()
            text = self._properties(node, broker, expired)
            (node.folder / "server.properties").write_text(text, encoding="utf-8")
        first = self.nodes[0].folder
        scram = [
            f"{mechanism}=[name={name},password={password}]"
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
            for name, password in self.users.items()
        ]
        self._run(
            "kafka.tools.StorageTool",
            *("format", "-t", _identifier(), "-c", str(first / "server.properties")),
            *(part for one in scram for part in ("--add-scram", one)),
        )
        formatted = (first / "data" / "meta.properties").read_text(encoding="utf-8")
        for node in self.nodes[1:]:
            shutil.copytree(first / "data", node.folder / "data")
            own = re.sub(r"(?m)^node\.id=.*$", f"node.id={node.number}", formatted)
            own = re.sub(r"(?m)^directory\.id=.*$", f"directory.id={_identifier()}", own)
            (node.folder / "data" / "meta.properties").write_text(own, encoding="utf-8")
        (self.folder / "log4j2.properties").write_text(_LOG4J, encoding="utf-8")

    def _properties(self, node: Node, certificate: Path, expired: Path) -> str:
        voters = ",".join(f"{one.number}@127.0.0.1:{one.ports['CONTROLLER']}" for one in self.nodes)
        listeners = {name: f"{name}://{node.address(name)}" for name in LISTENERS}
        told = listeners | {"ASTRAY": f"ASTRAY://{ASTRAY_HOST}:{node.ports['ASTRAY']}"}
        advertised = [told[name] for name in LISTENERS if name != "CONTROLLER"]
        count = len(self.nodes)
        settings = {
            "process.roles": "broker,controller",
            "node.id": str(node.number),
            "controller.quorum.voters": voters,
            "controller.listener.names": "CONTROLLER",
            "listeners": ",".join(listeners.values()),
            "advertised.listeners": ",".join(advertised),
            "listener.security.protocol.map": PROTOCOLS,
            "inter.broker.listener.name": "PLAINTEXT",
            "log.dirs": str(node.folder / "data"),
            # Both follow the number of brokers, so that one of three may be away.
            "default.replication.factor": str(count),
            "min.insync.replicas": str(count // 2 + 1),
            "offsets.topic.replication.factor": str(count),
            "transaction.state.log.replication.factor": str(count),
            "transaction.state.log.min.isr": str(count // 2 + 1),
            # Small and quick: topics of a test hold little, and tests wait for joins.
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.num.partitions": "4",
            "share.coordinator.state.topic.replication.factor": str(count),
            "share.coordinator.state.topic.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            "group.min.session.timeout.ms": "1000",
            "broker.session.timeout.ms": "4000",
            "broker.heartbeat.interval.ms": "1000",
            "log.cleaner.dedupe.buffer.size": str(4 * 2**20),
            "auto.create.topics.enable": "false",
            "message.max.bytes": str(16 * 2**20),
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
            "allow.everyone.if.no.acl.found": "false",
            "sasl.enabled.mechanisms": "SCRAM-SHA-256,SCRAM-SHA-512,PLAIN",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(certificate),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.authority.certificate),
            "listener.name.ssl.ssl.client.auth": "required",
            "listener.name.expired.ssl.keystore.type": "PEM",
            "listener.name.expired.ssl.keystore.location": str(expired),
            **self._logins(),
            **self._options,
        }
        return "".join(f"{key}={value}\n" for key, value in settings.items())

    def _logins(self) -> dict[str, str]:
        package = "org.apache.kafka.common.security"
        known = " ".join(f'user_{name}="{password}"' for name, password in self.users.items())
        logins = {
            "plain": f"{package}.plain.PlainLoginModule required {known};",
            "scram-sha-256": f"{package}.scram.ScramLoginModule required;",
            "scram-sha-512": f"{package}.scram.ScramLoginModule required;",
        }
        return {
            f"listener.name.{listener}.{mechanism}.sasl.jaas.config": login
            for listener in ("sasl_ssl", "sasl_plaintext", "expired")
            for mechanism, login in logins.items()
        }

    def _run(self, name: str, *arguments: str) -> str:
        done = subprocess.run(
            [_java(), *_TOOL_JVM, "-cp", self.classes, name, *arguments],
            cwd=self.folder,
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RefuseToStart(f"{name} failed:\n{done.stdout}{done.stderr}")
        return done.stdout


def _identifier() -> str:
    """A random id as Kafka writes it: 16 bytes in 22 letters, and none of its reserved ones."""
    return "M" + secrets.token_urlsafe(16)[1:21] + "A"


def _java() -> str:
    found = shutil.which("java")
    if found is None:
        raise ConfigurationError("no `java` on the PATH", hint="Install a Java runtime >= 17.")
    return found
