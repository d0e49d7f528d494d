"""The chart, rendered by Helm's own engine: what Kubernetes accepts and what the monitor loads."""

from __future__ import annotations

import copy
import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python as helm
import kubernetes_validate
import pytest
import yaml

from monitor.metrics import METRICS
from monitor.settings import Settings, load

CHART = Path(__file__).parents[2] / "helm"
KUBERNETES = ("1.29", "1.37")
CUSTOM = {"ServiceMonitor", "PrometheusRule", "ScaledObject"}
"""Kinds of operators; kubernetes-validate knows only Kubernetes' own."""

Values = dict[str, Any]
Manifest = dict[str, Any]

LEAST: Values = {
    "secrets": {"postgresUrl": {"existingSecret": "database"}},
    "model": {"volume": {"persistentVolumeClaim": {"claimName": "model", "readOnly": True}}},
}
EVERYTHING: Values = {
    "image": {"repository": "registry.example/monitor", "digest": "sha256:" + "a" * 64},
    "imagePullSecrets": [{"name": "registry"}],
    "split": True,
    "worker": {"replicas": 2, "resources": {"limits": {"memory": "20Gi"}}},
    "courier": {"replicas": 2},
    "gpu": {"count": 1},
    "secrets": {
        "postgresUrl": {"existingSecret": "database", "key": "uri"},
        "hashKey": {"existingSecret": "hash"},
        "kafkaPassword": {"existingSecret": "kafka"},
        "kafkaTls": {
            "existingSecret": "kafka-tls",
            "certificate": "tls.crt",
            "privateKey": "tls.key",
            "privateKeyPassword": "password",
        },
        "endpoints": {"pager": {"existingSecret": "hooks", "key": "pager"}},
    },
    "model": {"volume": {"hostPath": {"path": "/models"}}, "path": "llama"},
    "pack": {"volume": {"configMap": {"name": "pack"}}, "path": "v3"},
    "config": {
        "kafka": {
            "bootstrap_servers": "kafka:9093",
            "topics": ["prompts", "more-prompts"],
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": "SCRAM-SHA-512",
            "sasl_username": "monitor",
        },
        "ingest": {"max_record_bytes": 4_194_304, "segment_keys": ["route"], "chunk_wait": 2},
        "drift": {
            "windows": {"15m": "PT15M", "1h": 3600},
            "rules": [{"name": "all", "severities": {"critical": {"shift": 0.8}}, "for": "PT5M"}],
        },
        "alerts": {
            "endpoints": [
                {"name": "pager", "url": "https://pager.example/hook"},
                {"name": "chat", "url": "https://chat.example/hook", "format": "slack"},
            ]
        },
        "shutdown_grace": 20,
    },
    "extraEnv": [{"name": "AWS_REGION", "value": "eu-west-1"}],
    "extraInitContainers": [{"name": "fetch", "image": "fetch:1"}],
    "nodeSelector": {"gpu": "yes"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "priorityClassName": "high",
    "runtimeClassName": "nvidia",
    "podLabels": {"team": "safety"},
    "networkPolicy": {
        "ingressFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
        "kafka": {"ports": [9094], "to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]},
        "extraEgress": [{"ports": [{"protocol": "TCP", "port": 8443}]}],
    },
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "prometheusRule": {"enabled": True},
    "grafanaDashboard": {"enabled": True},
    "keda": {"enabled": True, "authenticationRef": "kafka"},
}
SIDECAR: Values = {**copy.deepcopy(EVERYTHING), "mode": "sidecar", "keda": {"enabled": False}}
SETS = {
    "least": LEAST,
    "everything": EVERYTHING,
    "together": {**copy.deepcopy(EVERYTHING), "split": False, "replicas": 2},
    "sidecar": SIDECAR,
    "bare": {
        **LEAST,
        "networkPolicy": {"enabled": False},
        "migrations": {"enabled": False},
        "serviceAccount": {"create": False, "name": "other"},
        "podDisruptionBudget": {"enabled": False},
    },
}


@pytest.fixture(scope="module")
def chart() -> Iterator[helm.Chart]:
    with helm.Chart.load(CHART) as loaded:
        yield loaded


def rendered(chart: helm.Chart, values: Values, name: str = "demo") -> list[Manifest]:
    chart.validate_schema(values)
    files = chart.render(values, name=name, namespace="prod")
    return [
        document
        for path, text in files.items()
        if path.endswith(".yaml")
        for document in yaml.safe_load_all(text)
        if document
    ]


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def named(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    (found,) = [m for m in of_kind(manifests, kind) if m["metadata"]["name"] == name]
    return found


def pods(manifests: list[Manifest]) -> list[Manifest]:
    """Every pod spec, that of the sidecar's fragment among them."""
    found = [m["spec"]["template"]["spec"] for m in manifests if m["kind"] in ("Deployment", "Job")]
    found += [m["spec"] for m in of_kind(manifests, "Pod")]
    return found


@pytest.mark.parametrize("name", SETS)
def test_lint_finds_nothing_wrong(name: str) -> None:
    findings = helm.lint(CHART, SETS[name])
    assert findings["total_charts_linted"] == 1
    assert not findings["errors"]
    # Severity 1 is advice: the chart has no icon.
    assert [m for m in findings["messages"] if m["severity"] > 1] == []


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("name", SETS)
def test_kubernetes_accepts_every_object(chart: helm.Chart, name: str, version: str) -> None:
    manifests = rendered(chart, SETS[name])
    assert manifests
    for manifest in manifests:
        if manifest["kind"] not in CUSTOM:
            kubernetes_validate.validate(manifest, version, strict=True)
    identities = [(m["kind"], m["metadata"]["name"]) for m in manifests]
    assert len(set(identities)) == len(identities)


@pytest.mark.parametrize("name", SETS)
def test_the_monitor_loads_the_rendered_configuration(
    chart: helm.Chart, name: str, tmp_path: Path
) -> None:
    maps = of_kind(rendered(chart, SETS[name]), "ConfigMap")
    holding = [m for m in maps if "monitor.yaml" in m["data"]]
    assert holding
    for number, held in enumerate(holding):
        file = tmp_path / f"{number}.yaml"
        file.write_text(held["data"]["monitor.yaml"], encoding="utf-8")
        settings = load(file)
        assert settings.web.host == "0.0.0.0"
        assert settings.postgres.url_file == Path("/etc/monitor/secrets/postgres-url")
    assert len({held["data"]["monitor.yaml"] for held in holding}) == 1


def settings_of(chart: helm.Chart, values: Values, tmp_path: Path) -> Settings:
    held = named(rendered(chart, values), "ConfigMap", "demo-persona-monitor")
    (tmp_path / "monitor.yaml").write_text(held["data"]["monitor.yaml"], encoding="utf-8")
    return load(tmp_path / "monitor.yaml")


def test_secrets_are_mounted_where_the_configuration_looks(
    chart: helm.Chart, tmp_path: Path
) -> None:
    settings = settings_of(chart, EVERYTHING, tmp_path)
    files = {
        str(file)
        for file in (
            settings.postgres.url_file,
            settings.privacy.hash_key_file,
            settings.kafka.sasl_password_file,
            settings.kafka.ssl_cafile,
            settings.kafka.ssl_certfile,
            settings.kafka.ssl_keyfile,
            settings.kafka.ssl_password_file,
            settings.alerts.endpoints[0].secret_file,
        )
    }
    for pod in pods(rendered(chart, EVERYTHING)):
        mounts = {m["name"]: m["mountPath"] for m in pod["containers"][0].get("volumeMounts", [])}
        if "monitor-secrets" not in mounts:
            continue
        (volume,) = [v for v in pod["volumes"] if v["name"] == "monitor-secrets"]
        mounted = {
            f"{mounts['monitor-secrets']}/{item['path']}"
            for source in volume["projected"]["sources"]
            for item in source["secret"]["items"]
        }
        assert mounted == files
    assert settings.alerts.endpoints[1].secret_file is None
    assert settings.replay.model == Path("/model/llama")
    assert settings.pack.path == Path("/pack/v3")
    assert settings.ingest.max_record_bytes == 4_194_304, "Helm's numbers are floats"
    assert settings.shutdown_grace.total_seconds() == 20


def test_pods_are_locked_down(chart: helm.Chart) -> None:
    for values in (LEAST, EVERYTHING):
        for pod in pods(rendered(chart, values)):
            assert pod["automountServiceAccountToken"] is False
            assert pod["enableServiceLinks"] is False
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            for container in pod["containers"]:
                assert container["securityContext"] == {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                }
                for mount in container.get("volumeMounts", []):
                    assert mount.get("readOnly") or mount["mountPath"] == "/tmp"


def test_sidecar_fragment_is_a_valid_part_of_a_serving_pod(chart: helm.Chart) -> None:
    manifests = rendered(chart, SIDECAR)
    assert {m["kind"] for m in manifests} == {"ConfigMap", "Job", "PrometheusRule"}
    held = named(manifests, "ConfigMap", "demo-persona-monitor-sidecar")
    fragment = yaml.safe_load(held["data"]["pod.yaml"])
    (sidecar,) = fragment["initContainers"]
    assert sidecar["restartPolicy"] == "Always"
    assert sidecar["args"] == ["sidecar"]
    assert sidecar["securityContext"]["runAsNonRoot"] is True
    assert sidecar["securityContext"]["runAsUser"] == 10001
    volumes = {volume["name"] for volume in fragment["volumes"]}
    assert {mount["name"] for mount in sidecar["volumeMounts"]} == volumes
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "serving"},
        "spec": {"containers": [{"name": "serving", "image": "vllm:1"}], **fragment},
    }
    kubernetes_validate.validate(pod, KUBERNETES[-1], strict=True)


def test_nothing_of_the_sidecar_fragment_can_take_serving_down(chart: helm.Chart) -> None:
    held = named(rendered(chart, SIDECAR), "ConfigMap", "demo-persona-monitor-sidecar")
    fragment = yaml.safe_load(held["data"]["pod.yaml"])
    (sidecar,) = fragment["initContainers"]
    assert [key for key in sidecar if key.endswith("Probe")] == [], (
        "readiness and startup of a native sidecar are the pod's; a restart by liveness is a pod "
        "that is not ready"
    )
    assert sidecar["args"] == ["sidecar"], "a native sidecar that is not running: pod not ready"
    volumes = {volume["name"]: volume for volume in fragment["volumes"]}
    assert volumes["monitor-config"]["configMap"]["optional"] is True, "it goes with the release"
    sources = volumes["monitor-secrets"]["projected"]["sources"]
    assert sources
    assert all(source["secret"]["optional"] is True for source in sources)


def test_outside_of_a_serving_pod_a_missing_secret_holds_the_pod_back(chart: helm.Chart) -> None:
    for pod in pods(rendered(chart, EVERYTHING)):
        for volume in pod.get("volumes", []):
            for source in volume.get("projected", {}).get("sources", []):
                assert "optional" not in source["secret"]


def test_probes_never_ask_a_dependency_whether_to_restart(chart: helm.Chart) -> None:
    for deployment in of_kind(rendered(chart, EVERYTHING), "Deployment"):
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
        assert container["startupProbe"]["httpGet"]["path"] == "/livez"
        assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_loops_apart_only_the_worker_gets_model_and_gpu(chart: helm.Chart) -> None:
    deployments = of_kind(rendered(chart, EVERYTHING), "Deployment")
    by_loop = {
        d["metadata"]["labels"]["app.kubernetes.io/component"]: d["spec"] for d in deployments
    }
    assert set(by_loop) == {"worker", "watcher", "courier", "web"}
    for loop, spec in by_loop.items():
        (container,) = spec["template"]["spec"]["containers"]
        assert container["args"] == [loop]
        mounts = {mount["name"] for mount in container["volumeMounts"]}
        assert ("monitor-model" in mounts) == (loop == "worker")
        limits = container["resources"].get("limits", {})
        assert limits.get("nvidia.com/gpu") == (1 if loop == "worker" else None)
        assert ("replicas" in spec) == (loop != "worker"), "KEDA owns the workers' replicas"
    worker = by_loop["worker"]["template"]["spec"]["containers"][0]
    assert worker["resources"]["limits"]["memory"] == "20Gi"


def test_services_select_the_pods_they_are_for(chart: helm.Chart) -> None:
    for values, face in ((LEAST, "monitor"), (EVERYTHING, "web")):
        manifests = rendered(chart, values)
        labels = [
            d["spec"]["template"]["metadata"]["labels"] for d in of_kind(manifests, "Deployment")
        ]
        labels += [j["spec"]["template"]["metadata"]["labels"] for j in of_kind(manifests, "Job")]
        labels += [p["metadata"]["labels"] for p in of_kind(manifests, "Pod")]
        chosen = {
            service["metadata"]["name"]: [
                pod["app.kubernetes.io/component"]
                for pod in labels
                if service["spec"]["selector"].items() <= pod.items()
            ]
            for service in of_kind(manifests, "Service")
        }
        assert chosen["demo-persona-monitor"] == [face]
        running = {pod["app.kubernetes.io/component"] for pod in labels} - {"migrate", "test"}
        assert set(chosen["demo-persona-monitor-metrics"]) == running


def test_network_policy_allows_what_the_monitor_needs_and_no_more(chart: helm.Chart) -> None:
    (policy,) = of_kind(rendered(chart, EVERYTHING), "NetworkPolicy")
    ports = [[port["port"] for port in rule["ports"]] for rule in policy["spec"]["egress"]]
    assert ports == [[53, 53], [9094], [5432], [443], [8443]]
    assert policy["spec"]["egress"][1]["to"] == [{"ipBlock": {"cidr": "10.0.0.0/8"}}]
    assert policy["spec"]["ingress"][0]["from"]
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]


def test_migration_runs_before_with_its_own_copy_of_the_configuration(chart: helm.Chart) -> None:
    manifests = rendered(chart, EVERYTHING)
    (job,) = of_kind(manifests, "Job")
    copy_of = named(manifests, "ConfigMap", "demo-persona-monitor-migrate")
    for hook in (job, copy_of):
        assert hook["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    weights = [int(h["metadata"]["annotations"]["helm.sh/hook-weight"]) for h in (copy_of, job)]
    assert weights == sorted(set(weights))
    pod = job["spec"]["template"]["spec"]
    assert pod["containers"][0]["args"] == ["migrate"]
    (config,) = [v for v in pod["volumes"] if v["name"] == "monitor-config"]
    assert config["configMap"]["name"] == copy_of["metadata"]["name"]
    assert "serviceAccountName" not in pod, "the release's own account does not exist yet"


def test_a_changed_setting_restarts_the_pods(chart: helm.Chart) -> None:
    def checksum(values: Values) -> str:
        (deployment,) = of_kind(rendered(chart, values), "Deployment")
        return str(deployment["spec"]["template"]["metadata"]["annotations"]["checksum/config"])

    assert checksum(LEAST) == checksum({**LEAST, "replicas": 3})
    assert checksum(LEAST) != checksum({**LEAST, "config": {"log": {"level": "debug"}}})


def test_keda_scales_the_loop_that_replays_on_every_topic(chart: helm.Chart) -> None:
    for values, target in ((EVERYTHING, "-worker"), (SETS["together"], "")):
        manifests = rendered(chart, values)
        (scaled,) = of_kind(manifests, "ScaledObject")
        name = scaled["spec"]["scaleTargetRef"]["name"]
        assert name == f"demo-persona-monitor{target}"
        assert named(manifests, "Deployment", name)
        triggers = [trigger["metadata"] for trigger in scaled["spec"]["triggers"]]
        assert [t["topic"] for t in triggers] == ["prompts", "more-prompts"]
        assert {t["consumerGroup"] for t in triggers} == {Settings().kafka.group_id}
        assert all(isinstance(value, str) for t in triggers for value in t.values())


def test_rules_and_dashboard_name_only_metrics_that_exist(chart: helm.Chart) -> None:
    manifests = rendered(chart, EVERYTHING)
    (rule,) = of_kind(manifests, "PrometheusRule")
    expressions = [r["expr"] for group in rule["spec"]["groups"] for r in group["rules"]]
    held = named(manifests, "ConfigMap", "demo-persona-monitor-dashboard")
    assert held["metadata"]["labels"]["grafana_dashboard"] == "1"
    board = json.loads(held["data"]["persona-monitor.json"])
    expressions += [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    labels = {row.name: set(row.labels) for row in METRICS.table}
    for expression in expressions:
        assert expression.count("(") == expression.count(")"), expression
        used = {name.removesuffix("_bucket") for name in re.findall(r"monitor_[a-z_]+", expression)}
        assert used
        assert used <= set(labels), expression
        for grouping in re.findall(r"by \(([^)]*)\)", expression):
            by = {label.strip() for label in grouping.split(",")} - {"le"}
            assert by <= set().union(*(labels[name] for name in used)), expression


def test_pod_disruption_budgets_only_where_there_are_several(chart: helm.Chart) -> None:
    assert of_kind(rendered(chart, LEAST), "PodDisruptionBudget") == []
    budgets = of_kind(rendered(chart, EVERYTHING), "PodDisruptionBudget")
    assert {b["metadata"]["name"] for b in budgets} == {
        *("demo-persona-monitor-worker", "demo-persona-monitor-courier"),
    }


@pytest.mark.parametrize(
    ("change", "named_key"),
    [
        ({"modee": "deployment"}, "modee"),
        ({"mode": "daemonset"}, "mode"),
        ({"image": {"tagg": "1"}}, "tagg"),
        ({"replicas": -1}, "replicas"),
        ({"config": {"kafkaa": {}}}, "kafkaa"),
        ({"config": {"kafka": {"bootstrap_server": "x"}}}, "bootstrap_server"),
        ({"config": {"ingest": {"sampling_rate": 2}}}, "sampling_rate"),
        (
            {"config": {"drift": {"rules": [{"name": "a", "severities": {"loud": {}}}]}}},
            "loud",
        ),
        ({"config": {"postgres": {"url": "postgresql://u:secret@h/d"}}}, "url"),
        ({"config": {"kafka": {"sasl_password": "secret"}}}, "sasl_password"),
        ({"config": {"privacy": {"hash_key": "secret"}}}, "hash_key"),
        (
            {
                "config": {
                    "alerts": {"endpoints": [{"name": "a", "url": "https://x", "secret": "s"}]}
                }
            },
            "secret",
        ),
        ({"secrets": {"endpoints": {"a": {"existingSecret": "s"}}}}, "key"),
    ],
)
def test_schema_refuses_and_names(chart: helm.Chart, change: Values, named_key: str) -> None:
    with pytest.raises(helm.HelmValuesError, match=named_key):
        chart.validate_schema({**LEAST, **change})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"secrets": {}}, "secrets.postgresUrl.existingSecret is needed"),
        ({"model": {}}, "model.volume is needed"),
        (
            {
                "secrets": {
                    **LEAST["secrets"],
                    "endpoints": {"ghost": {"existingSecret": "a", "key": "b"}},
                }
            },
            "no endpoint of that name",
        ),
    ],
)
def test_what_is_missing_is_said(chart: helm.Chart, change: Values, said: str) -> None:
    with pytest.raises(helm.HelmRenderError, match=said):
        chart.render({**LEAST, **change}, name="demo", namespace="prod")


def test_values_schema_is_up_to_date() -> None:
    written = (CHART / "values.schema.json").read_text(encoding="utf-8")
    assert written == runpy.run_path(str(CHART / "schema.py"))["text"](), (
        "run: python helm/schema.py"
    )


def test_notes_name_the_services_that_exist(chart: helm.Chart) -> None:
    notes = chart.render(LEAST, name="demo", namespace="prod")[
        "persona-monitor/templates/NOTES.txt"
    ]
    assert "port-forward service/demo-persona-monitor 8080" in notes
    assert "deploy/demo-persona-monitor --" in notes
