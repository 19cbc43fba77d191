#!/usr/bin/env python3
"""Runs every query of dashboards, alerts and chart against a real Prometheus that scrapes a running Postrider.

    queries.py --scrape 127.0.0.1:9464 [--scrape …]    starts Prometheus (Debian's package) on these and waits for data
    queries.py --prometheus http://127.0.0.1:9090      uses one that runs

Fails when a query is refused, and when a dashboard's query returns nothing. Send a few messages meanwhile. Needs no
package but Python's own.
"""

import argparse
import json
import re
import socket
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Series that exist once their event has happened.
MAY_BE_EMPTY = ("postrider_gateway_messages_refused_total",)
PATIENCE_S = 90


def queries() -> list[tuple[str, str, bool]]:
    """Where it stands, the query, and whether it must return something."""
    found = []
    for file in sorted((ROOT / "deploy/grafana").glob("*.json")):
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel.get("targets", []):
                expression = target["expr"]
                must = not any(name in expression for name in MAY_BE_EMPTY)
                found.append((f"{file.name}: {panel['title']}", expression, must))
    alerts = (ROOT / "deploy/prometheus/alerts.yml").read_text()
    block = r"- alert: (\w+)\n(?:\s*#.*\n)*\s*expr: (?:\|\n((?:\s{10}.*\n)+)|(.*)\n)"
    for name, lines, line in re.findall(block, alerts):
        found.append((f"alert {name}", lines or line, False))
    return found


def ask(url: str, query: str) -> list:
    data = urllib.parse.urlencode({"query": query}).encode()
    try:
        with urllib.request.urlopen(f"{url}/api/v1/query", data, timeout=10) as answer:
            return json.load(answer)["data"]["result"]
    except urllib.error.HTTPError as error:
        raise SystemExit(f"refused: {query}\n{error.read().decode()}") from None


def run(url: str, interval: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    every = [(place, text.replace("$__rate_interval", interval), must) for place, text, must in queries()]
    while True:
        empty = [place for place, text, must in every if not ask(url, text) and must]
        if not empty:
            print(f"{len(every)} queries run, all that must return data do")
            return
        if time.monotonic() > deadline:
            raise SystemExit("no data after {} s for:\n  {}".format(PATIENCE_S, "\n  ".join(empty)))
        time.sleep(1)


def scrape(targets: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    config = {
        "global": {"scrape_interval": "1s"},
        "rule_files": [str(ROOT / "deploy/prometheus/alerts.yml")],
        "scrape_configs": [{"job_name": "postrider", "static_configs": [{"targets": targets}]}],
    }
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "prometheus.yml")
        file.write_text(json.dumps(config))
        log = Path(directory, "log").open("w+")
        options = [f"--config.file={file}", f"--storage.tsdb.path={directory}/data", f"--web.listen-address={address}"]
        server = subprocess.Popen(["prometheus", *options], stdout=log, stderr=log, cwd=directory)
        try:
            wait(f"http://{address}/-/ready", server, log)
            run(f"http://{address}", "10s")
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
    which.add_argument("--scrape", action="append", metavar="HOST:PORT")
    options = parser.parse_args()
    if options.prometheus:
        run(options.prometheus.rstrip("/"), "1m")
    else:
        scrape(options.scrape)
