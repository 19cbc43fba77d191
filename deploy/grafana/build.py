#!/usr/bin/env python3
"""Writes the three dashboards beside this file. Change them here, not in the JSON: a test compares.

    python3 deploy/grafana/build.py
"""

import json
import re
from pathlib import Path

HERE = Path(__file__).parent
NAMESPACE = 'namespace=~"$namespace"'
NAMESPACES = "label_values(postrider_build_info, namespace)"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH, HEIGHT = 8, 8  # three panels in a row of 24 columns
SERIES = re.compile(r"\b((?:postrider|http_server)_\w+)(?:\{([^}]*)\})?")


def scoped(query: str) -> str:
    """Of the chosen namespaces alone. All of them is `.*`, which a series without the label matches too."""
    return SERIES.sub(lambda found: f"{found[1]}{{{', '.join(filter(None, [NAMESPACE, found[2]]))}}}", query)


def rate(metric: str, by: str = "") -> str:
    group = f" by ({by})" if by else ""
    return f"sum{group} (rate({metric}[$__rate_interval]))"


def ledgers(metric: str, by: str = "") -> str:
    """What each ledger of a namespace tells of the whole: once for each namespace, not once for each ledger."""
    group, also = (f" by ({by})", f", {by}") if by else ("", "")
    return f"sum{group} (max by (namespace{also}) (sum by (namespace, instance{also}) ({metric})))"


def quantile(q: float, histogram: str, select: str = "") -> str:
    return f"histogram_quantile({q}, {rate(histogram + '_bucket' + select, 'le')})"


def quantiles(histogram: str, select: str = "") -> list[tuple[str, str]]:
    return [(quantile(q, histogram, select), f"p{round(q * 100)}") for q in (0.5, 0.95, 0.99)]


def panel(title, text, queries, unit="short", kind="timeseries", stack=False, low=None, high=None) -> dict:
    """`low` and `high` colour a value: below `low` red, or from `high` on red."""
    queries = [(queries, "")] if isinstance(queries, str) else queries
    steps = [{"color": "green", "value": None}]
    if high is not None:
        steps.append({"color": "red", "value": high})
    if low is not None:
        steps = [{"color": "red", "value": None}, {"color": "green", "value": low}]
    custom = {"fillOpacity": 20 if stack else 0, "stacking": {"mode": "normal" if stack else "none"}}
    return {
        "title": title,
        "description": text,
        "type": kind,
        "datasource": SOURCE,
        "targets": [
            {"refId": chr(ord("A") + i), "expr": scoped(expr), "legendFormat": legend or "__auto", "datasource": SOURCE}
            for i, (expr, legend) in enumerate(queries)
        ],
        "fieldConfig": {
            "defaults": {
                "unit": unit,
                "min": 0,
                "thresholds": {"mode": "absolute", "steps": steps},
                **({"custom": custom} if kind == "timeseries" else {}),
            },
            "overrides": [],
        },
    }


def stat(title, text, query, unit="short", **colours) -> dict:
    return panel(title, text, query, unit, kind="stat", **colours)


def dashboard(uid: str, title: str, text: str, rows: list[tuple[str, list[dict]]]) -> dict:
    panels, y = [], 0
    for name, members in rows:
        panels.append({"type": "row", "title": name, "collapsed": False, "gridPos": {"h": 1, "w": 24, "x": 0, "y": y}})
        y += 1
        for i, member in enumerate(members):
            place = {"h": HEIGHT, "w": WIDTH, "x": WIDTH * (i % 3), "y": y + HEIGHT * (i // 3)}
            panels.append({**member, "gridPos": place})
        y += HEIGHT * ((len(members) + 2) // 3)
    for number, member in enumerate(panels, 1):
        member["id"] = number
    return {
        "uid": uid,
        "title": title,
        "description": text,
        "tags": ["postrider"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source", "current": {}},
                {
                    "name": "namespace",
                    "type": "query",
                    "label": "Namespace",
                    "datasource": SOURCE,
                    "definition": NAMESPACES,
                    "query": {"query": NAMESPACES, "refId": "namespace"},
                    "refresh": 2,
                    "sort": 1,
                    "multi": True,
                    "includeAll": True,
                    "allValue": ".*",
                    "current": {"text": ["All"], "value": ["$__all"]},
                },
            ]
        },
        "panels": panels,
    }


OK, ALL = 'postrider_attempts_total{outcome="2xx"}', "postrider_attempts_total"
SUCCESS = f"{rate(OK)} / {rate(ALL)}"
REQUESTS = "http_server_request_duration_seconds"
API = '{job="postrider"}'
POST = '{job="postrider", http_request_method="POST", http_route=~"/api/v1/app/[^/]+/msg(/batch|/raw)?"}'

DELIVERY_HEALTH = dashboard(
    "postrider-delivery",
    "Postrider: delivery health",
    "Do messages arrive, how fast, and if not, why?",
    [
        ("Now", [
            stat("Attempts that succeed", "Share of attempts answered with 2xx.", SUCCESS, "percentunit", low=0.9),
            stat("From acceptance to success, p95", "Waiting and retries included.", quantile(0.95, "postrider_end_to_end_seconds"), "s"),
            stat("Waiting", "Deliveries that wait in the store, for whatever reason.", ledgers("postrider_deliveries_waiting")),
        ]),
        ("In and out", [
            panel("Messages accepted", "Answered 202.", rate("postrider_gateway_messages_accepted_total"), "reqps"),
            panel("Deliveries made", "One for each endpoint that a message goes to.", rate("postrider_gateway_deliveries_made_total"), "reqps"),
            panel("Attempts by outcome", "What the receivers answered, or why they did not.", [(rate(ALL, "outcome"), "{{outcome}}")], "reqps", stack=True),
        ]),
        ("Quality", [
            panel("Success rate", "2xx among all attempts.", SUCCESS, "percentunit"),
            panel("From acceptance to success", "Waiting and retries included.", quantiles("postrider_end_to_end_seconds"), "s"),
            panel("Attempt duration", "One attempt, from its start to its end.", quantiles("postrider_attempt_duration_seconds"), "s"),
        ]),
        ("What holds deliveries up", [
            panel("Waiting by reason", "retry: the last attempt failed. rate, breaker, paused: the endpoint's own limits. ours: a failure of ours.",
                  [(ledgers("postrider_deliveries_waiting", "reason"), "{{reason}}")], stack=True),
            panel("Breakers", "Endpoints that failed ten times in a row, by default: how many opened, and how many are open.",
                  [("sum(increase(postrider_breaker_opened_total[$__rate_interval]))", "opened"), (ledgers("postrider_breakers_open"), "open")]),
            panel("Answers to producers", "Answers to requests to accept a message. 5xx is our fault, 4xx the producer's.",
                  [(rate(f"{REQUESTS}_count{POST}", "http_response_status_code"), "{{http_response_status_code}}")], "reqps", stack=True),
        ]),
    ],
)

PIPELINE = dashboard(
    "postrider-pipeline",
    "Postrider: pipeline",
    "Where is it stuck? From left to right as a message goes: gateway, broker, worker, ledger.",
    [
        ("Dependencies", [
            panel("Broker reachable", "By process: 1 or 0.", [("postrider_broker_up", "{{instance}}")]),
            panel("Store reachable", "By process: 1 or 0.", [("postrider_store_up", "{{instance}}")]),
            panel("Without Redis", "1 while a process decides limits alone.", [("postrider_limits_degraded", "{{instance}}")]),
        ]),
        ("Gateway", [
            panel("Accepted and refused", "202 against everything else.",
                  [(rate(f"{REQUESTS}_count{POST}", "http_response_status_code"), "{{http_response_status_code}}")], "reqps"),
            panel("Time to answer", "All requests of the API.", quantiles(REQUESTS, API), "s"),
            panel("Refusals by code", "Refused after the first checks; what is refused before them shows as a status alone.",
                  [(rate("postrider_gateway_messages_refused_total", "code"), "{{code}}")], "reqps"),
        ]),
        ("Broker", [
            panel("Publish confirm time", "From publishing a frame to the broker's confirm.", quantiles("postrider_publish_confirm_seconds"), "s"),
            panel("Publish failures", "Frames that were not confirmed, by reason.", [(rate("postrider_publish_failures_total", "reason"), "{{reason}}")], "ops"),
            panel("Reconnects", "Connections that had to be made again.", [("sum by (service) (increase(postrider_reconnects_total[$__rate_interval]))", "{{service}}")]),
            panel("Frames in the broker", "Ready, by kind of queue. deliver: first attempts. retry: what the scheduler released. journal: what is not recorded. Trouble if they only grow.",
                  [(ledgers("postrider_queue_frames", "queue"), "{{queue}}")]),
        ]),
        ("Worker", [
            panel("In flight and waiting", "Attempts under way, and deliveries that have not started.",
                  [("sum(postrider_attempts_in_flight)", "in flight"), ("sum(postrider_deliveries_queued)", "waiting")]),
            panel("Deferred to the store", "By reason.", [(rate("postrider_deliveries_deferred_total", "reason"), "{{reason}}")], "ops", stack=True),
            panel("Our own failures", "They do not count against the endpoint.", [(rate("postrider_our_failures_total", "stage"), "{{stage}}")], "ops"),
        ]),
        ("Ledger: recorder", [
            panel("Journal lag", "Age of the journal's oldest record that is not written down, also while nothing is written.",
                  "max(postrider_journal_lag_seconds)", "s"),
            panel("Batch time", "Time to write one batch.", quantiles("postrider_recorder_batch_seconds"), "s"),
            panel("Records written", "Journal records a second.", rate("postrider_recorder_batch_records_sum"), "ops"),
        ]),
        ("Ledger: scheduler", [
            panel("Ready age", "How long the oldest ready delivery has been ready: due, and nothing of its endpoint keeps it back.", "max(postrider_ready_age_seconds)", "s"),
            panel("Lateness", "How long after its time the oldest endpoint of a round was looked at.", quantiles("postrider_scheduler_lateness_seconds"), "s"),
            panel("Released", "Deliveries handed back to the broker.", rate("postrider_scheduler_released_total"), "ops"),
        ]),
        ("Set aside", [
            stat("Parked", "Set aside now. Needs somebody to look at it.", ledgers("postrider_parked_items"), high=1),
            stat("Strays taken back, last day", "Dead-lettered or without a queue; nothing is lost.", "sum(increase(postrider_frames_stray_total[1d]))", high=1),
            panel("Repeats suppressed", "Recognised and not processed again.", [(rate("postrider_duplicates_suppressed_total", "kind"), "{{kind}}")], "ops"),
        ]),
    ],
)

CAPACITY = dashboard(
    "postrider-capacity",
    "Postrider: capacity",
    "How full is it, and what would give way first?",
    [
        ("Workers", [
            panel("Attempts in flight by worker", "The limit is delivery.max_in_flight, 4,096 by default.", [("postrider_attempts_in_flight", "{{instance}}")]),
            panel("Deliveries held by worker", "Those of envelopes that are not acknowledged. The limit is delivery.max_held, 5,000 by default.", [("postrider_deliveries_held", "{{instance}}")]),
            panel("Attempts by worker", "Are they evenly loaded?", [(rate(ALL, "instance"), "{{instance}}")], "ops"),
        ]),
        ("Envelopes", [
            panel("Deliveries in an envelope", "More under load: the broker is paid once for all of them.",
                  f"{rate('postrider_envelope_deliveries_sum')} / {rate('postrider_envelope_deliveries_count')}"),
            panel("Envelopes published", "What the broker has to do.", rate("postrider_envelope_deliveries_count"), "ops"),
            panel("Publish confirm time, p99", "Rises first when the broker is near its limit.", quantile(0.99, "postrider_publish_confirm_seconds"), "s"),
        ]),
        ("Recorder and store", [
            panel("Records in a batch", "Near recorder.batch_max_records the recorder is at its limit.",
                  f"{rate('postrider_recorder_batch_records_sum')} / {rate('postrider_recorder_batch_records_count')}"),
            panel("Recorder busy", "Share of time spent writing, all ledgers together. Near 1 per active recorder, the store is the limit.",
                  rate("postrider_recorder_batch_seconds_sum"), "percentunit"),
            panel("Rows that wait", "Estimated when there are very many.", ledgers("postrider_deliveries_waiting")),
        ]),
        ("Connections", [
            panel("Connections to the store", "Calls that wait while none is idle: raise store.read_connections or store.write_connections, or the store is slow.",
                  [("sum by (pool, state) (postrider_store_connections)", "{{pool}} {{state}}")]),
            panel("Connections to receivers", "Open in each worker, at work or idle.", [("postrider_receiver_connections", "{{instance}}")]),
            panel("Connections opened, and made again", "To receivers: far fewer than attempts when they are reused. To services: after a loss.",
                  [(rate("postrider_receiver_connections_opened_total"), "receivers"), (rate("postrider_reconnects_total", "service"), "{{service}}")], "ops"),
        ]),
        ("Caches", [
            panel("Cache hits", "By cache.",
                  [('sum by (name) (rate(postrider_cache_lookups_total{result="hit"}[$__rate_interval])) / sum by (name) (rate(postrider_cache_lookups_total[$__rate_interval]))', "{{name}}")],
                  "percentunit"),
            panel("Configuration reloads", "Each reads one application's configuration from the store.", rate("postrider_config_reloads_total"), "ops"),
            panel("Answered without Redis", "By question.", [(rate("postrider_limits_fallback_total", "what"), "{{what}}")], "ops"),
        ]),
        ("Processes", [
            panel("Running, by version", "Two versions during an upgrade.", [("count by (version) (postrider_build_info)", "{{version}}")]),
            panel("Requests by gateway", "Are they evenly loaded?", [(rate(f"{REQUESTS}_count{API}", "instance"), "{{instance}}")], "reqps"),
            panel("Time to answer, p99", "All requests of the API.", quantile(0.99, REQUESTS, API), "s"),
        ]),
    ],
)

DASHBOARDS = {
    "delivery-health.json": DELIVERY_HEALTH,
    "pipeline.json": PIPELINE,
    "capacity.json": CAPACITY,
}


def rendered() -> dict[str, str]:
    return {name: json.dumps(content, indent=2) + "\n" for name, content in DASHBOARDS.items()}


if __name__ == "__main__":
    for name, text in rendered().items():
        (HERE / name).write_text(text)
