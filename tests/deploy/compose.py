"""docker-compose.yml: it is valid, what it names exists, and it gives nothing away."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

from sources import ROOT, fail, routes, rust, settings

EXAMPLE = ROOT / "deploy/compose.env.example"
ROLES = ["gateway", "worker", "ledger"]
POSTRIDER = [*ROLES, "migrate", "demo-receiver"]
REQUIRED = re.compile(r"\$\{(\w+):\?")
OPTIONAL = re.compile(r"\$\{(\w+):-")
text = (ROOT / "docker-compose.yml").read_text()


def example() -> dict[str, str]:
    lines = (line.removeprefix("#") for line in EXAMPLE.read_text().splitlines() if re.match(r"#?[A-Z_]+=", line))
    return dict(line.split("=", 1) for line in lines)


def compose(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess:
    clean = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    command = ["docker-compose", "--env-file", os.devnull, "--file", "docker-compose.yml", *arguments]
    return subprocess.run(command, cwd=ROOT, env=clean | environment, capture_output=True, text=True)


# The file with the keys and passwords stays out of the repository and of images, whatever it is called.
for ignore, below in ((".gitignore", ""), (".dockerignore", "**/")):
    lines = (ROOT / ignore).read_text().splitlines()
    fail(*(f"{ignore} lets {name} through" for name in (".env", ".env.*", "*.env") if below + name not in lines))
    fail(*(f"{ignore} makes an exception: {line}" for line in lines if line.startswith("!")))

required, optional, documented = set(REQUIRED.findall(text)), set(OPTIONAL.findall(text)), example()
fail(*(f"deploy/compose.env.example does not mention {name}" for name in (required | optional) - documented.keys()))
fail(*(f"deploy/compose.env.example has {name}, which nothing reads" for name in documented.keys() - required - optional))
fail(*(f"deploy/compose.env.example has a value for {name}" for name in required if documented[name]))

filled = {name: f"value{number}" for number, name in enumerate(sorted(required))}
fail(*(
    f"it starts without {name}"
    for name in sorted(required)
    if compose({key: value for key, value in filled.items() if key != name}, "config", "-q").returncode == 0
))
found = compose(filled, "--profile", "*", "config", "--format", "json")
if found.returncode:
    sys.exit(found.stderr)
services = json.loads(found.stdout)["services"]
plain = json.loads(compose(filled, "config", "--format", "json").stdout)["services"]

problems = []
known = settings()
source = rust("crates/postrider/src")
for name, service in services.items():
    where = f"service {name}"
    environment = service.get("environment") or {}
    problems += [f"{where}: no setting {key}" for key in environment if key.startswith("POSTRIDER_") and key not in known]
    # Whatever is not from the environment is written in the file: no credential may be.
    for key, value in environment.items():
        if re.search("PASS|KEY|SECRET|AUTH(?!_ANONYMOUS)", key) and value and value not in filled.values():
            problems.append(f"{where}: {key} has a value of its own")
    if "guest" in json.dumps(service):
        problems.append(f"{where}: RabbitMQ's guest")
    for volume in service.get("volumes") or []:
        if volume["type"] == "bind" and not Path(volume["source"]).exists():
            problems.append(f"{where}: no {volume['source']}")
    for port in service.get("ports") or []:
        if name in ("prometheus", "grafana"):
            if port.get("host_ip") != "127.0.0.1":
                problems.append(f"{where}: published beyond this machine")
        elif name != "gateway":
            problems.append(f"{where}: publishes a port")
    if name in POSTRIDER and not (service.get("read_only") and service.get("cap_drop") == ["ALL"]):
        problems.append(f"{where}: not read-only or not without capabilities")
    if name in POSTRIDER:
        command, *options = service["command"]
        if not re.search(rf"\b{command.capitalize()}\b", source):
            problems.append(f"{where}: no command {command}")
        for option in (option for option in options if option.startswith("--")):
            if not re.search(rf'long = "{option[2:]}"|#\[arg\(long[^"]*\)\]\s*{option[2:].replace("-", "_")}:', source):
                problems.append(f"{where}: no option {option}")
fail(*problems)


def workers(environment: dict[str, str]) -> int:
    configured = compose(filled | environment, "config", "--format", "json")
    return json.loads(configured.stdout)["services"]["worker"]["deploy"]["replicas"]


for role in ROLES:
    if (grace := services[role].get("stop_grace_period")) != "45s":
        fail(f"{role}: stop_grace_period is {grace}")
if workers({}) != 2 or workers({"POSTRIDER_WORKERS": "4"}) != 4 or any("container_name" in service for service in services.values()):
    fail("worker: not as many as there should be, or a fixed name that keeps it from being scaled")
if any(name.startswith("demo") for name in plain) or {"rabbitmq", "redis", "postgres"} - plain.keys():
    fail("the demo belongs to its profile, the rest to none")

# Where Prometheus looks and what it loads is there.
prometheus = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
mounted = {volume["target"] for volume in services["prometheus"]["volumes"]}
fail(*(f"Prometheus loads {path}, which is not mounted" for path in prometheus["rule_files"] if path not in mounted))
for job in prometheus["scrape_configs"]:
    names = [name for sd in job.get("dns_sd_configs", []) for name in sd["names"]]
    names += [target.split(":")[0] for static in job.get("static_configs", []) for target in static["targets"]]
    fail(*(f"Prometheus scrapes {name}, which is no service" for name in names if name not in services))
    for name in names:
        if not services[name]["networks"].keys() & services["prometheus"]["networks"].keys():
            fail(f"Prometheus cannot reach {name}")
ports = {sd["port"] for job in prometheus["scrape_configs"] for sd in job.get("dns_sd_configs", [])}
listen = services["worker"]["environment"]["POSTRIDER_METRICS__LISTEN"]
if ports != {int(listen.rsplit(":", 1)[1])}:
    fail(f"Prometheus scrapes {ports}, metrics are served at {listen}")
if '"/health/ready"' not in routes():
    fail("no route /health/ready")
