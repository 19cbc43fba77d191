#!/usr/bin/env python3
"""Asks every query of dashboards and alerts of a real Prometheus that scrapes a running Postrider.

    queries.py --scrape gateway=127.0.0.1:9464 [--scrape …]    starts Prometheus (Debian's package) on these processes
    queries.py --prometheus http://127.0.0.1:9090              uses one that runs

With --scrape, everything that the queries tell of is expected to happen meanwhile: each query must at some time show a
value above zero, and each series that an alert names must exist. With --prometheus, each query of a dashboard must
return something, but for what needs an event to exist. Either way none may be refused. Needs no package but Python's own.
"""

import argparse
import json
import re
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Series that exist once their event has happened: their labels are codes of errors.
NEED_AN_EVENT = ("postrider_gateway_messages_refused_total",)
# Gauges that are zero whenever one looks, if all goes as fast as it should.
MAY_BE_ZERO = ("postrider_queue_frames",)
SELECTOR = re.compile(r"\b(?:(?:postrider|http_server)_\w+|up)\b(?:\{[^}]*\})?")
PATIENCE_S = 120


def dashboard_queries() -> dict[str, str]:
    """Each query, and where it stands."""
    found = {}
    for file in sorted((ROOT / "deploy/grafana").glob("*.json")):
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel.get("targets", []):
                found[target["expr"]] = f"{file.name}: {panel['title']}"
    return found


def alert_queries() -> dict[str, str]:
    alerts = (ROOT / "deploy/prometheus/alerts.yml").read_text()
    block = r"- alert: (\w+)\n(?:\s*#.*\n)*\s*expr: (?:\|\n((?:\s{10}.*\n)+)|(.*)\n)"
    found = {lines or line: f"alert {name}" for name, lines, line in re.findall(block, alerts)}
    if len(found) != alerts.count("- alert:"):
        raise SystemExit("an alert's expression is written in another way than this reads")
    return found


def ask(url: str, query: str) -> list:
    data = urllib.parse.urlencode({"query": query}).encode()
    try:
        with urllib.request.urlopen(f"{url}/api/v1/query", data, timeout=10) as answer:
            return json.load(answer)["data"]["result"]
    except urllib.error.HTTPError as error:
        raise SystemExit(f"refused: {query}\n{error.read().decode()}") from None


def shows(url: str, query: str, above_zero: bool) -> bool:
    values = [float(sample["value"][1]) for sample in ask(url, query)]
    return any(value > 0 for value in values) if above_zero else bool(values)


def run(url: str, interval: str, everything_happens: bool) -> None:
    """Asks until each query has had something to show once."""
    dashboards, alerts = dashboard_queries(), alert_queries()
    for query in alerts:
        # Whether it fires is another test's business; that it can is a matter of its series.
        ask(url, query)
    missing = {}
    for query, place in dashboards.items():
        if everything_happens or not any(name in query for name in NEED_AN_EVENT):
            missing[query.replace("$__rate_interval", interval).replace("$namespace", ".*")] = (
                place,
                everything_happens and not any(name in query for name in MAY_BE_ZERO),
            )
    for query, place in alerts.items():
        for selector in SELECTOR.findall(query):
            if everything_happens:
                missing.setdefault(selector, (f"{place}: {selector}", False))
    count, deadline = len(missing), time.monotonic() + PATIENCE_S
    while True:
        missing = {query: how for query, how in missing.items() if not shows(url, query, how[1])}
        if not missing:
            print(f"{len(dashboards)} queries and {len(alerts)} alerts asked, {count} things seen")
            return
        if time.monotonic() > deadline:
            places = sorted(place for place, _ in missing.values())
            raise SystemExit("nothing to show in {} s for:\n  {}".format(PATIENCE_S, "\n  ".join(places)))
        time.sleep(1)


def scrape(targets: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [target.split("=") for target in targets]
    config = {
        "global": {"scrape_interval": "1s"},
        "rule_files": [str(ROOT / "deploy/prometheus/alerts.yml")],
        "scrape_configs": [
            {
                "job_name": "postrider",
                "static_configs": [
                    {"targets": [target], "labels": {"role": role, "namespace": "test"}} for role, target in processes
                ],
            }
        ],
    }
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "prometheus.yml")
        file.write_text(json.dumps(config))
        log = Path(directory, "log").open("w+")
        options = [f"--config.file={file}", f"--storage.tsdb.path={directory}/data", f"--web.listen-address={address}"]
        # It ends with this process, however that ends.
        tie = ["setpriv", "--pdeathsig=KILL", "--"] if shutil.which("setpriv") else []
        server = subprocess.Popen([*tie, "prometheus", *options], stdout=log, stderr=log, cwd=directory)
        try:
            wait(f"http://{address}/-/ready", server, log)
            while not shows(f"http://{address}", f"count(up == 1) == {len(targets)}", above_zero=True):
                time.sleep(0.2)
            # What happens from now on is seen; of a counter only what it gains between two scrapes is.
            print("scraping", flush=True)
            run(f"http://{address}", "20s", everything_happens=True)
        finally:
            server.terminate()
            server.wait(20)


def wait(url: str, server: subprocess.Popen, log) -> None:
    for _ in range(200):
        try:
            urllib.request.urlopen(url, timeout=1)
            return
        except OSError:
            if server.poll() is not None:
                break
            time.sleep(0.1)
    log.seek(0)
    raise SystemExit(f"Prometheus does not start:\n{log.read()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--prometheus", metavar="URL")
    which.add_argument("--scrape", action="append", metavar="ROLE=HOST:PORT")
    options = parser.parse_args()
    if options.prometheus:
        run(options.prometheus.rstrip("/"), "1m", everything_happens=False)
    else:
        scrape(options.scrape)
