"""k8s/: manifests that the API would take, of commands, settings and probes that Shoal has.

They were never applied to a cluster; tests/ray/test_pods.py starts the same pods on one machine.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import typer
import yaml
from typer.testing import CliRunner

from cluster.admin import AdminServer
from cluster.cli import app
from cluster.environment import HEAD, SETTINGS
from cluster.hosts import seat_for
from cluster.spec import ShoalSpec
from tests.pods import K8S, MANIFEST, OVERLAYS, Container, Pod, environment_of, of_kind, pods_of, rendered
from tests.prometheus_operator import KINDS
from tests.unit.app_server import Served
from tests.unit.test_admin import KEY, Still

ROOT = K8S.parent
CRDS = Path(os.environ.get("SHOAL_CRDS") or ROOT.parent / "shared" / "crds")
RELEASE = {"laptop": "current", "gpu-node": "current", "multi-node": "current", "next": "next"}
PARTS = ("ingress", "attention", "expert")
OF_OPERATORS = {"RayCluster", "PodMonitor", "ScrapeConfig", "PrometheusRule"}
SECRETS = {
    "shoal-ray-token": {"auth_token": "t"},
    "shoal-admin": {"key": "k"},
    "shoal-redis": {"password": "p"},
    "shoal-hugging-face": {"token": "h"},
}
manifests_of = cache(rendered)


def cluster_of(overlay: str) -> MANIFEST:
    [cluster] = of_kind(manifests_of(overlay), "RayCluster")
    return cluster


def pods(overlay: str) -> list[Pod]:
    return list(pods_of(cluster_of(overlay), "10.0.0.1"))


def containers(overlay: str) -> Iterator[tuple[Pod, Container]]:
    for pod in pods(overlay):
        for container in pod.containers:
            yield pod, container


def config_of(overlay: str) -> ShoalSpec:
    maps = {m["metadata"]["name"]: m["data"] for m in of_kind(manifests_of(overlay), "ConfigMap")}
    [volume] = [v for v in pods(overlay)[0].spec["volumes"] if v["name"] == "config"]
    fields = yaml.safe_load(maps[volume["configMap"]["name"]]["shoal.yaml"])
    flags = {"address": "10.0.0.1:6379", "api_keys": _flag(overlay, "--api-keys")}
    return ShoalSpec.from_sources(None, {**fields, **flags})


def _flag(overlay: str, name: str) -> str:
    """Of `shoal serve`, which runs beside the head."""
    [found] = [word for word in pods(overlay)[0].containers[0].command if word.startswith(f"{name}=")]
    return found.partition("=")[2]


def strict(schema: Any) -> Any:
    """The CRD's schema, made to refuse the unknown fields that the API server would drop."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(part) for key, part in schema.items() if key not in ("default", "description")}
    if "properties" in found and not schema.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        found["type"] = ["integer", "string"]
    return found


def validator_of(group: str, plural: str, name: str = "v1") -> jsonschema.Draft202012Validator:
    file = CRDS / f"{group}_{plural}.yaml"
    if not file.exists():
        pytest.skip(f"{file} is missing: set SHOAL_CRDS to a folder with the operator's CRDs")
    crd = yaml.load(file.read_text(encoding="utf-8"), yaml.CSafeLoader)
    [version] = [version for version in crd["spec"]["versions"] if version["name"] == name]
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(schema)


@pytest.fixture(scope="module")
def ray_cluster() -> jsonschema.Draft202012Validator:
    return validator_of("ray.io", "rayclusters")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kuberay_knows_every_field(ray_cluster: jsonschema.Draft202012Validator, overlay: str) -> None:
    found = [
        f"{error.json_path}: {error.message[:200]}" for error in ray_cluster.iter_errors(cluster_of(overlay))
    ]
    assert not found


def test_a_field_that_kuberay_does_not_know_is_found(ray_cluster: jsonschema.Draft202012Validator) -> None:
    for text, wrong in (("maxReplicas", "maxReplica"), ("restartPolicy", "restartPolicies")):
        spoiled = yaml.safe_load(yaml.safe_dump(cluster_of("laptop")).replace(text, wrong))
        assert not ray_cluster.is_valid(spoiled), wrong


@pytest.mark.parametrize(
    ("kind", "plural", "version"),
    [
        ("PodMonitor", "podmonitors", "v1"),
        ("ScrapeConfig", "scrapeconfigs", "v1alpha1"),
        ("PrometheusRule", "prometheusrules", "v1"),
    ],
)
def test_the_prometheus_operator_knows_every_field(kind: str, plural: str, version: str) -> None:
    validator = validator_of("monitoring.coreos.com", plural, version)
    for manifest in of_kind(manifests_of("multi-node"), kind):
        assert not [f"{error.json_path}: {error.message[:200]}" for error in validator.iter_errors(manifest)]


@pytest.mark.parametrize("kind", KINDS)
def test_fields_for_the_prometheus_operator_are_of_those_that_are_known_to_be_its_own(kind: str) -> None:
    """Also where its definitions are not at hand: less than them, by what its reference says of these."""
    validator = jsonschema.Draft202012Validator(KINDS[kind])
    [manifest] = of_kind(manifests_of("multi-node"), kind)
    assert not [f"{error.json_path}: {error.message[:200]}" for error in validator.iter_errors(manifest)]
    text = yaml.safe_dump(manifest)
    for field in ("podMetricsEndpoints", "refreshInterval", "credentials", "expr", "relabelings"):
        if f"{field}:" in text:
            assert not validator.is_valid(yaml.safe_load(text.replace(f"{field}:", f"{field}s:"))), field


SELECTORS = {
    "Service": ("selector",),
    "NetworkPolicy": ("podSelector", "matchLabels"),
    "PodDisruptionBudget": ("selector", "matchLabels"),
    "PodMonitor": ("selector", "matchLabels"),
}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_whatever_selects_pods_selects_some(overlay: str) -> None:
    """One that selects none is a mistake that nobody is told of."""
    labels = [pod.labels for pod in pods(overlay)]
    for manifest in manifests_of(overlay):
        if manifest["kind"] in ("StatefulSet", "Job"):
            labels.append(manifest["spec"]["template"]["metadata"]["labels"])
    for manifest in manifests_of(overlay):
        if manifest["kind"] in SELECTORS:
            selected = manifest["spec"]
            for key in SELECTORS[manifest["kind"]]:
                selected = selected.get(key, {})
            found = any(selected.items() <= own.items() for own in labels)
            assert found, (manifest["kind"], manifest["metadata"]["name"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_kuberay_checks_beyond_its_schema_holds(overlay: str) -> None:
    """ray-operator/controllers/ray/utils/validation.go, where it applies here."""
    cluster = cluster_of(overlay)
    spec, name = cluster["spec"], cluster["metadata"]["name"]
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,48}[a-z0-9])?", name)
    assert spec["rayVersion"] == re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.M)[1]  # type: ignore[index]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        parameters = group["rayStartParams"]
        assert not {"num-cpus", "num-gpus", "memory", "resources", "labels"} & parameters.keys()
        template = group["template"]["spec"]
        assert template.get("restartPolicy", "Never") == "Never", "the autoscaler's second version wants it"
        environment = {entry["name"] for entry in template["containers"][0].get("env", ())}
        assert not environment & {"REDIS_PASSWORD", "RAY_REDIS_ADDRESS", "RAY_enable_autoscaler_v2"}
    for group in spec["workerGroupSpecs"]:
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_knows_every_field_of_the_rest(overlay: str) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="pip install -e '.[k8s]'")
    for manifest in manifests_of(overlay):
        if manifest["kind"] not in OF_OPERATORS:
            validate.validate(manifest, "1.31", strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_command_of_a_pod_is_one_of_ours_with_flags_that_it_has(overlay: str) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    seen = set()
    for _, container in containers(overlay):
        hooks = container.own.get("lifecycle", {}).values()
        for words in (container.command, *(hook["exec"]["command"] for hook in hooks)):
            if words[0] == "shoal":
                commands[words[1]].make_context(words[1], list(words[2:]))
                seen.add(words[1])
    assert seen == {"serve", "linger"}
    with pytest.raises(Exception, match="admin-prt"):
        commands["serve"].make_context("serve", ["--admin-prt=8001"])


def test_every_probe_of_ours_is_answered(served: Served) -> None:
    """Those of a Ray node are asked in tests/ray/test_pods.py."""
    admin = AdminServer(Still(), "127.0.0.1", 0, KEY)
    address = {"admin": admin.url, "http": str(served.http.base_url).rstrip("/")}
    try:
        asked = set()
        for _, container in containers("laptop"):
            for probe in ("livenessProbe", "readinessProbe"):
                get = container.own[probe]["httpGet"]
                if get["port"] in address:
                    assert httpx.get(address[get["port"]] + get["path"]).status_code == 200
                    asked.add((get["port"], get["path"]))
    finally:
        admin.close()
    assert asked == {("admin", "/health"), ("admin", "/ready"), ("http", "/ready")}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_gives_ray_the_settings_that_shoal_wants_of_it(overlay: str) -> None:
    for _, container in containers(overlay):
        found = environment_of(container, manifests_of(overlay), SECRETS, "10.0.0.2")
        assert {name: found.get(name) for name in SETTINGS} == SETTINGS


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_heads_pod_notices_lost_nodes_as_soon_as_shoal_up_does(overlay: str) -> None:
    head, ray = next((pod, ray) for pod, ray in containers(overlay) if ray is pod.ray)
    found = environment_of(ray, manifests_of(overlay), SECRETS, "10.0.0.2")
    assert head.group == "head" and {name: found.get(name) for name in HEAD} == HEAD


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_who_asks_for_a_key_finds_the_file_of_keys_in_its_pod(overlay: str) -> None:
    file = Path(_flag(overlay, "--api-keys"))
    for pod in pods(overlay):
        volumes = {v["name"]: v for v in pod.spec["volumes"]}
        for container in pod.containers:
            mounted = {m["mountPath"]: volumes[m["name"]] for m in container.own["volumeMounts"]}
            asks = container.name == "shoal" or pod.group == "ingress"
            assert (str(file.parent) in mounted) == asks, (pod.group, container.name)
            if asks:
                assert mounted[str(file.parent)]["secret"] == {"secretName": "shoal-api-keys"}
    assert not config_of(overlay).serve_without_keys


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_there_is_a_seat_for_every_process_that_the_config_asks_for(overlay: str) -> None:
    spec = config_of(overlay)
    wanted = {"ingress": spec.ingress, "attention": spec.attention, "expert": spec.experts}
    for group in cluster_of(overlay)["spec"]["workerGroupSpecs"]:
        name = group["groupName"]
        assert group["resources"] == {"CPU": "0", seat_for(name): "1"}
        assert group["minReplicas"] == wanted.pop(name)
    assert not wanted
    assert not (spec.standbys or spec.data_host != "node")
    if spec.model is not None:
        for _, container in containers(overlay):
            if container.name == "shoal" or container is not pods(overlay)[0].ray:
                paths = [mount["mountPath"] for mount in container.own["volumeMounts"]]
                assert any(spec.model.startswith(path) for path in paths) or "head" in container.command[-1]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_container_runs_as_root_or_with_more_than_it_needs(overlay: str) -> None:
    found = [container.own for _, container in containers(overlay)]
    for kind in ("Job", "StatefulSet"):
        for manifest in of_kind(manifests_of(overlay), kind):
            found += manifest["spec"]["template"]["spec"]["containers"]
    for own in found:
        security = own["securityContext"]
        assert security["runAsNonRoot"] and security["runAsUser"] and not security["allowPrivilegeEscalation"]
        assert security["capabilities"]["drop"] == ["ALL"]
        assert own["resources"]["requests"] and own["resources"]["limits"]["memory"]


def test_an_ingress_has_longer_to_end_than_it_lingers() -> None:
    [ingress] = [pod for pod in pods("laptop") if pod.group == "ingress"]
    words = ingress.ray.own["lifecycle"]["preStop"]["exec"]["command"]
    assert ingress.spec["terminationGracePeriodSeconds"] > int(words[words.index("--seconds") + 1]) + 10


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_service_leads_to_the_ingresses_of_one_release_alone(overlay: str) -> None:
    [service] = [s for s in of_kind(manifests_of("laptop"), "Service") if s["metadata"]["name"] == "shoal"]
    selector = {**service["spec"]["selector"], "release": RELEASE[overlay]}
    led_to = [pod for pod in pods(overlay) if selector.items() <= pod.labels.items()]
    assert [pod.group for pod in led_to] == ["ingress"]
    assert (service["spec"]["selector"] == selector) == (overlay != "next")
    [port] = service["spec"]["ports"]
    assert port["targetPort"] in [port["name"] for port in led_to[0].ray.own["ports"]]


def test_the_next_release_is_a_second_cluster_and_touches_nothing_of_the_first() -> None:
    named = lambda overlay: {(m["kind"], m["metadata"]["name"]) for m in manifests_of(overlay)}  # noqa: E731
    assert {kind for kind, _ in named("next")} == {"RayCluster", "ConfigMap"}
    assert not named("next") & named("laptop")


def allowed(overlay: str, pod: Pod) -> list[MANIFEST]:
    """The ingress rules that hold for a pod."""
    policies = [p["spec"] for p in of_kind(manifests_of(overlay), "NetworkPolicy")]
    own = [p for p in policies if p["podSelector"]["matchLabels"].items() <= pod.labels.items()]
    assert any("Ingress" in p["policyTypes"] for p in own), "without one, everything may come in"
    return [rule for p in own for rule in p.get("ingress", ())]


@pytest.mark.parametrize("overlay", [o for o in OVERLAYS if o != "next"])
def test_whoever_is_not_of_the_cluster_reaches_the_ingress_and_nothing_else(overlay: str) -> None:
    for pod in pods(overlay):
        from_anywhere = [rule["ports"] for rule in allowed(overlay, pod) if "from" not in rule]
        wanted = [[{"protocol": "TCP", "port": 8000}]] if pod.group == "ingress" else []
        assert from_anywhere == wanted, pod.group


def test_a_drained_node_takes_one_pod_of_a_kind_at_a_time() -> None:
    budgets = {
        b["metadata"]["name"]: b["spec"] for b in of_kind(manifests_of("laptop"), "PodDisruptionBudget")
    }
    for pod in pods("laptop"):
        if pod.group in PARTS:
            budget = budgets[f"shoal-{pod.group}"]
            assert budget["selector"]["matchLabels"].items() <= pod.labels.items()
            assert budget["maxUnavailable"] == 1


def test_boards_and_rules_are_those_of_the_command(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["dashboards", "write", "--kubernetes", str(tmp_path)])
    assert done.exit_code == 0, done.output
    component = K8S / "components" / "monitoring"
    written = {file.relative_to(tmp_path): file.read_text() for file in tmp_path.rglob("*") if file.is_file()}
    remedy = "shoal dashboards write --kubernetes k8s/components/monitoring"
    assert {name: (component / name).read_text() for name in written} == written, remedy
    listed = yaml.safe_load((component / "kustomization.yaml").read_text())["configMapGenerator"][0]["files"]
    assert {Path(file) for file in listed} == {name for name in written if name.suffix == ".json"}


def test_operations_says_how_to_make_every_secret() -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    text = "\n".join(file.read_text() for file in K8S.rglob("*.yaml"))
    for name in set(re.findall(r"(?:secretKeyRef: \{name|credentials: \{name|secretName): ([a-z-]+)", text)):
        assert f"create secret generic {name} " in page, name


def test_the_image_holds_every_package_and_nobody_is_root_in_it() -> None:
    text = (K8S / "Dockerfile").read_text()
    packages = set(
        re.search(r"^packages = \[(.+)\]$", (ROOT / "pyproject.toml").read_text(), re.M)[1]
        .replace('"', "")
        .split(", ")
    )  # type: ignore[index]
    stages = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM|\Z)", text, re.M | re.S))
    let_in = set(re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.M))
    copies = re.findall(r"^COPY (.+) \S+$", stages["wheel"], re.M)
    copied = {source for line in copies for source in line.split()}
    assert packages <= copied <= let_in
    assert all((ROOT / source).exists() for source in copied)
    for target in ("cpu", "cuda"):
        assert "pip install -c constraints.txt /wheels/*.whl" in stages[target]
        assert "USER 1000" in stages[target]
