"""Alerts, dashboards and the chart use metrics that exist; dashboards are built and parse; alerts have their runbook."""

import importlib.util
import json
import re
import subprocess
import tempfile

import yaml

from sources import ROOT, fail, metrics

METRIC = re.compile(r"\b(?:postrider|http_server)_\w+")


def expressions(dashboard: dict) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]


def concrete(expression: str) -> str:
    """Without Grafana's variables."""
    return expression.replace("$__rate_interval", "1m").replace("$__range", "1h").replace("$namespace", ".*")


build = importlib.util.spec_from_file_location("build", ROOT / "deploy/grafana/build.py")
module = importlib.util.module_from_spec(build)
build.loader.exec_module(module)
written = {file.name: file.read_text() for file in (ROOT / "deploy/grafana").glob("*.json")}
if written != module.rendered():
    fail("deploy/grafana/*.json is not what deploy/grafana/build.py writes; run it")

queries: list[str] = []
uids = set()
for name, text in written.items():
    dashboard = json.loads(text)
    ids = [panel["id"] for panel in dashboard["panels"]]
    titles = [panel["title"] for panel in dashboard["panels"]]
    if len(set(ids)) != len(ids) or len(set(titles)) != len(titles):
        fail(f"{name}: an id or a title occurs twice")
    uids.add(dashboard["uid"])
    for panel in dashboard["panels"]:
        if panel["type"] != "row" and not (panel["description"] and panel["targets"]):
            fail(f"{name}: {panel['title']} has no description or no query")
    queries += expressions(dashboard)
    if [variable["name"] for variable in dashboard["templating"]["list"] if variable.get("allValue") == ".*"] != ["namespace"]:
        fail(f"{name}: a variable for the namespace is expected, whose all includes series without one")
    everywhere = [query for query in expressions(dashboard) if len(METRIC.findall(query)) != query.count('{namespace=~"$namespace"')]
    fail(*(f"{name}: of all namespaces, whichever is chosen: {query}" for query in everywhere))
if len(uids) != 3:
    fail("three dashboards with uids of their own are expected")

# Every query parses: promtool reads them as recording rules.
rules = [{"record": f"query_{number}", "expr": concrete(query)} for number, query in enumerate(queries)]
with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
    yaml.safe_dump({"groups": [{"name": "dashboards", "rules": rules}]}, file)
    file.flush()
    checked = subprocess.run(["promtool", "check", "rules", file.name], capture_output=True, text=True)
if checked.returncode:
    fail(checked.stderr + checked.stdout)

alerts = [rule for group in yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"] for rule in group["rules"]]
chart = (ROOT / "deploy/helm/postrider/templates/autoscaling.yaml").read_text()
pages = "\n".join((ROOT / "docs" / page).read_text() for page in ("runbook.md", "operations.md"))
known = metrics()
used = {
    "dashboards": set(METRIC.findall("\n".join(queries))),
    "alerts": set(METRIC.findall("\n".join(rule["expr"] for rule in alerts))),
    "chart": set(METRIC.findall(chart)),
    # Pages may name a histogram as a whole.
    "pages": {name if name in known else f"{name}_count" for name in re.findall(r"`(postrider_\w+)`", pages)},
}
fail(*(f"{where}: no metric {name}" for where, names in used.items() for name in sorted(names - known)))

# What alerts sum up or count is of one namespace.
whole = re.compile(r"\b(?:sum|max|min|avg|count|group)\b(?! by \(namespace\b)")
fail(*(f"{rule['alert']}: it sums up what is of several namespaces" for rule in alerts if whole.search(rule["expr"])))

# Every alert says how bad it is, has a section in the runbook and is tested both ways.
runbook = re.findall(r"^### (Postrider\w+)$", (ROOT / "docs/runbook.md").read_text(), re.M)
names = {rule["alert"] for rule in alerts}
if names != set(runbook) or len(runbook) != len(names):
    fail(f"alerts and sections of docs/runbook.md differ: {names ^ set(runbook)}")
tests = yaml.safe_load((ROOT / "deploy/prometheus/alerts_test.yml").read_text())["tests"]
for rule in alerts:
    name = rule["alert"]
    if rule["labels"]["severity"] not in ("page", "ticket") or rule["annotations"]["runbook"] != f"docs/runbook.md#{name.lower()}":
        fail(f"{name}: severity or runbook is wrong")
    cases = [case for test in tests for case in test["alert_rule_test"] if case["alertname"] == name]
    if {bool(case["exp_alerts"]) for case in cases} != {True, False}:
        fail(f"{name}: alerts_test.yml must show it firing and quiet")
print(f"  {len(queries)} queries, {len(alerts)} alerts, {len(set().union(*used.values()))} of {len(known)} series used")
