"""The Helm chart: lints, refuses wrong values, renders valid manifests that keep their promises."""

import ipaddress
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import helm_python
import yaml

from sources import ROOT, fail, routes, settings

CHART = ROOT / "deploy/helm/postrider"
ROLES = ["gateway", "worker", "ledger"]
# Schemas of these do not come with Kubernetes.
FOREIGN = {"ServiceMonitor", "PrometheusRule", "ScaledObject"}
PRODUCTION = yaml.safe_load((CHART / "ci/production-values.yaml").read_text())

WRONG = {
    "a grace period shorter than the drain": {"worker": {"terminationGracePeriodSeconds": 30}},
    "an unknown key": {"workers": {}},
    "an unknown key of a role": {"worker": {"replica": 3}},
    "a password in the values": {"config": {"broker": {"url": "amqp://u:p@h"}}},
    "a key in the values": {"config": {"auth": {"admin_key": "prk_x"}}},
    "a secret without its key": {"secrets": {"adminKey": {"key": ""}}},
    "a digest that is none": {"image": {"digest": "latest"}},
    "both bounds of a disruption budget": {"worker": {"podDisruptionBudget": {"minAvailable": 1}}},
    "no peer for Postgres": {"networkPolicy": {"postgres": {"to": []}}},
    "a collector's Secret without its key": {"secrets": {"tracesEndpoint": {"name": "traces", "key": ""}}},
    "a port that is none": {"networkPolicy": {"workerEgress": {"ports": [70000]}}},
}


# What only the templates can refuse, and what they say.
REFUSED = {
    "secrets.tracesEndpoint": [
        {"config": {"traces": {"endpoint": "https://user:password@collector:4318"}}},
        {"worker": {"config": {"traces": {"endpoint": "https://user@collector:4318"}}}},
    ],
    "leave one of them out": [
        {"config": {"traces": {"endpoint": "http://collector:4318"}}, "secrets": {"tracesEndpoint": {"name": "traces"}}},
    ],
}


def render(values: dict, of=None) -> list[dict]:
    files = (of or chart).render(values, name="test", namespace="hooks")
    documents = [doc for name, text in sorted(files.items()) if name.endswith(".yaml") for doc in yaml.safe_load_all(text)]
    return [document for document in documents if document]


def one(documents: list[dict], kind: str, name: str) -> dict:
    found = [doc for doc in documents if doc["kind"] == kind and doc["metadata"]["name"] == name]
    if len(found) != 1:
        fail(f"{len(found)} of {kind} {name}")
    return found[0]


def check_kinds(documents: list[dict]) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump_all([doc for doc in documents if doc["kind"] not in FOREIGN], file)
        file.flush()
        checked = subprocess.run(["kubernetes-validate", "--strict", "-k", "1.37", file.name], capture_output=True, text=True)
    if checked.returncode:
        fail(checked.stdout + checked.stderr)


def check_pod(name: str, pod: dict) -> None:
    [container] = pod["containers"]
    security, own = pod["securityContext"], container["securityContext"]
    if not (security["runAsNonRoot"] and own["readOnlyRootFilesystem"] and own["capabilities"] == {"drop": ["ALL"]}):
        fail(f"{name}: root, writable or with capabilities")
    if own["allowPrivilegeEscalation"] or pod["automountServiceAccountToken"] or pod["enableServiceLinks"]:
        fail(f"{name}: more rights than it needs")
    known = settings()
    for variable in container["env"]:
        if variable["name"] not in known:
            fail(f"{name}: no setting {variable['name']}")
        if re.search("URL|KEY", variable["name"]) and "secretKeyRef" not in variable.get("valueFrom", {}):
            fail(f"{name}: {variable['name']} is not from a Secret")
        if "@" in variable.get("value", ""):
            fail(f"{name}: {variable['name']} has a password")
    variables = [variable["name"] for variable in container["env"]]
    if len(set(variables)) != len(variables):
        fail(f"{name}: a variable is set twice")


def check_role(documents: list[dict], role: str) -> None:
    name = f"test-postrider-{role}"
    deployment = one(documents, "Deployment", name)
    pod = deployment["spec"]["template"]["spec"]
    check_pod(name, pod)
    if pod["terminationGracePeriodSeconds"] < 45:
        fail(f"{name}: it is killed before it has drained")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    [container] = pod["containers"]
    paths = {container[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
    fail(*(f"{name}: no route {path}" for path in paths if f'"{path}"' not in routes()))
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    variables = {variable["name"]: variable.get("value") for variable in container["env"]}
    if variables["POSTRIDER_METRICS__LISTEN"] != f"0.0.0.0:{ports['metrics']}" or f"0.0.0.0:{ports['http']}" not in container["args"]:
        fail(f"{name}: the ports are not those that it listens on")
    for kind, path in (("PodDisruptionBudget", ("selector", "matchLabels")), ("NetworkPolicy", ("podSelector", "matchLabels"))):
        selector = one(documents, kind, name)["spec"][path[0]][path[1]]
        if not selector.items() <= labels.items():
            fail(f"{kind} {name} selects other pods")
    service = one(documents, "Service", f"{name}-metrics")["spec"]
    if not service["selector"].items() <= labels.items():
        fail(f"{name}-metrics selects other pods")


def reachable(rule: dict, address: str) -> bool:
    """Whether a rule of a NetworkPolicy lets through to an address by its blocks."""
    ip = ipaddress.ip_address(address)
    for block in (peer["ipBlock"] for peer in rule["to"] if "ipBlock" in peer):
        inside = [ipaddress.ip_network(cidr) for cidr in block.get("except", [])]
        if ip in ipaddress.ip_network(block["cidr"]) and not any(ip in network for network in inside):
            return True
    return False


def check_network(documents: list[dict], allowed: list[str]) -> None:
    private = ["10.0.0.1", "172.16.5.5", "172.31.255.255", "192.168.1.1", "127.0.0.1", "169.254.169.254", "100.64.0.1",
               "192.0.0.170", "198.18.0.1", "224.0.0.1", "255.255.255.255", "0.0.0.0", "::1", "fd00::1", "fe80::1",
               "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::", "2001:db8::1"]
    public = ["1.1.1.1", "8.8.8.8", "172.32.0.1", "2606:4700::1111"]
    for role in ROLES:
        rules = one(documents, "NetworkPolicy", f"test-postrider-{role}")["spec"]["egress"]
        open_to = lambda address: any(reachable(rule, address) for rule in rules)  # noqa: E731
        fail(*(f"{role} may reach {address}" for address in private if open_to(address)))
        fail(*(f"{role} may reach {address}" for address in public if role != "worker" and open_to(address)))
        fail(*(f"{role} may not reach {address}" for address in public + allowed if role == "worker" and not open_to(address)))
        named = {port["port"] for rule in rules for port in rule.get("ports", [])}
        fail(*(f"{role}: port {port} is closed" for port in (53, 5432, 6379) if port not in named))
        if not named & {5671, 5672}:
            fail(f"{role}: RabbitMQ is closed")
        if any("to" not in rule for rule in rules):
            fail(f"{role}: a rule to anywhere")


def check_all(values: dict, allowed: list[str]) -> list[dict]:
    report = helm_python.lint(CHART, values, strict=True)
    messages = [str(message) for message in report.get("messages", []) if "icon is recommended" not in str(message)]
    fail(*messages)
    documents = render(values)
    check_kinds(documents)
    for role in ROLES:
        check_role(documents, role)
    job = one(documents, "Job", "test-postrider-migrate")
    check_pod("migrate", job["spec"]["template"]["spec"])
    if job["metadata"]["annotations"]["helm.sh/hook"] != "pre-install,pre-upgrade":
        fail("the migration does not come first")
    check_network(documents, allowed)
    return documents


def check_production(documents: list[dict]) -> None:
    scaled = one(documents, "ScaledObject", "test-postrider-worker")["spec"]
    queries = [trigger["metadata"]["query"] for trigger in scaled["triggers"]]
    if not all(part in "\n".join(queries) for part in ("postrider_ready_age_seconds", "postrider_attempts_in_flight", "/ 8192")):
        fail("workers do not scale on ready age and in-flight use")
    rules = [{"record": f"query_{number}", "expr": query} for number, query in enumerate(queries)]
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
        yaml.safe_dump({"groups": [{"name": "scaling", "rules": rules}]}, file)
        file.flush()
        checked = subprocess.run(["promtool", "check", "rules", file.name], capture_output=True, text=True)
    if checked.returncode:
        fail(checked.stdout + checked.stderr)
    for role in ("gateway", "worker"):
        if "replicas" in one(documents, "Deployment", f"test-postrider-{role}")["spec"]:
            fail(f"{role}: a number of replicas fights its scaler")
    monitor = one(documents, "ServiceMonitor", "test-postrider")["spec"]
    service = one(documents, "Service", "test-postrider-ledger-metrics")
    if not monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items():
        fail("the ServiceMonitor selects no Service")
    if monitor["endpoints"][0]["port"] != service["spec"]["ports"][0]["name"]:
        fail("the ServiceMonitor names no port")
    alerts = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())
    if one(documents, "PrometheusRule", "test-postrider")["spec"] != alerts:
        fail("the PrometheusRule is not deploy/prometheus/alerts.yml")
    for name in ("delivery-health", "pipeline", "capacity"):
        data = one(documents, "ConfigMap", f"test-postrider-dashboard-{name}")["data"]
        written = (ROOT / f"deploy/grafana/{name}.json").read_text()
        if data[f"postrider-{name}.json"].rstrip() != written.rstrip():
            fail(f"the ConfigMap of {name} is not deploy/grafana/{name}.json")


def check_settings(documents: list[dict]) -> None:
    """Numbers keep their value, and files that settings name can be there."""
    pods = [one(documents, "Deployment", f"test-postrider-{role}")["spec"]["template"]["spec"] for role in ROLES]
    env = {variable["name"]: variable.get("value") for variable in pods[1]["containers"][0]["env"]}
    wanted = {"POSTRIDER_TRACES__SAMPLE_RATIO": "0.05", "POSTRIDER_DELIVERY__MAX_IN_FLIGHT": "8192"}
    if not wanted.items() <= env.items():
        fail(f"settings of the worker: {env}")
    pods.append(one(documents, "Job", "test-postrider-migrate")["spec"]["template"]["spec"])
    for pod in pods:
        [mount] = pod["containers"][0]["volumeMounts"]
        if mount["name"] != pod["volumes"][0]["name"] or not PRODUCTION["config"]["broker"]["ca_file"].startswith(mount["mountPath"]):
            fail("a file that a setting names is not mounted")


def check_traces() -> None:
    for words, wrong in REFUSED.items():
        for values in wrong:
            try:
                chart.validate_schema(values)
                render(values)
            except helm_python.HelmError as error:
                if words not in str(error):
                    fail(f"refused, but not for what is wrong: {error}")
            else:
                fail(f"the templates let through {values}")
    documents = check_all({"secrets": {"tracesEndpoint": {"name": "collector", "key": "url"}}}, allowed=[])
    wanted = {"name": "POSTRIDER_TRACES__ENDPOINT", "valueFrom": {"secretKeyRef": {"name": "collector", "key": "url"}}}
    for role in ROLES:
        [container] = one(documents, "Deployment", f"test-postrider-{role}")["spec"]["template"]["spec"]["containers"]
        if wanted not in container["env"]:
            fail(f"{role}: the collector's address is not from its Secret")


def check_images() -> None:
    def image(values: dict, role: str) -> str:
        return one(render(values), "Deployment", f"test-postrider-{role}")["spec"]["template"]["spec"]["containers"][0]["image"]

    # The steps of an upgrade: one role after the other.
    step = {"image": {"tag": "1.0.0"}, "ledger": {"image": {"tag": "1.1.0"}}}
    if not (image(step, "ledger").endswith(":1.1.0") and image(step, "gateway").endswith(":1.0.0")):
        fail("a role cannot have an image of its own")
    digest = "sha256:" + "0" * 64
    pinned = {"image": {"digest": digest}, "ledger": {"image": {"tag": "1.1.0"}}}
    if not (image(pinned, "worker").endswith(f"@{digest}") and image(pinned, "ledger").endswith(":1.1.0")):
        fail("a digest does not win, or wins over a role's own tag")


def check_upgrade() -> None:
    """Each step of an upgrade replaces the pods of one role, with a newer chart too."""
    digest, newer = "sha256:" + "0" * 64, "sha256:" + "1" * 64
    # What was set before; what the first step sets beside it, and each step for its role.
    ways = [
        ({}, {"image": {"tag": metadata["appVersion"]}}, {"tag": "99.0.0"}),
        ({"image": {"tag": "1.0.0"}}, {"image": {"tag": "1.0.0"}}, {"tag": "99.0.0"}),
        ({"image": {"digest": digest}}, {"image": {"digest": digest}}, {"digest": newer}),
    ]

    def pods(values: dict, of=None) -> dict[str, dict]:
        documents = render(values, of)
        return {role: one(documents, "Deployment", f"test-postrider-{role}")["spec"]["template"] for role in ROLES}

    with tempfile.TemporaryDirectory() as directory:
        later = Path(directory, "postrider")
        shutil.copytree(CHART, later)
        file = later / "Chart.yaml"
        file.write_text(file.read_text().replace(metadata["version"], "99.0.0"))
        upgraded = helm_python.Chart.load(later)
        for before, values, image in ways:
            running = pods(before)
            for role in ("ledger", "worker", "gateway"):
                values = values | {role: {"image": image}}
                now = pods(values, upgraded)
                changed = [name for name in ROLES if now[name] != running[name]]
                if changed != [role]:
                    fail(f"the upgrade's step for {role} replaces {changed}")
                running = now
            end = {"image": {"tag": "", "digest": ""} | image}
            if pods(end, upgraded) != running:
                fail("the last step of an upgrade replaces pods again")


chart = helm_python.Chart.load(CHART)
chart.validate_schema({})
chart.validate_schema(PRODUCTION)
for what, values in WRONG.items():
    try:
        chart.validate_schema(values)
    except helm_python.HelmValuesError:
        continue
    fail(f"the schema lets through {what}")
check_all({}, allowed=[])
production = check_all(PRODUCTION, allowed=["10.20.1.1"])
check_production(production)
check_settings(production)
check_traces()
check_images()
metadata = yaml.safe_load((CHART / "Chart.yaml").read_text())
check_upgrade()
version = re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.M)[1]
if metadata["appVersion"] != version or metadata["version"] != version:
    fail(f"Chart.yaml is not at {version}")
