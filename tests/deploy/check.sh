#!/bin/sh
# Checks all that is deployed: compose file, image, chart, alerts, dashboards, workflows. Needs python3 with venv, and
# promtool (Debian's package `prometheus`); the other tools are installed once, in pinned versions, under target/.
# Neither a container engine nor a cluster is needed. Exits with the first failure.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
cd "$root"
venv="${CARGO_TARGET_DIR:-target}/deploy-check/venv"
pins=tests/deploy/requirements.txt

command -v promtool >/dev/null || { echo "promtool is missing: apt-get install prometheus" >&2; exit 1; }
if ! cmp -s "$pins" "$venv/installed.txt"; then
    rm -rf "$venv"
    mkdir -p "$(dirname "$venv")"
    python3 -m venv "$venv" || { echo "python3 cannot make a venv: apt-get install python3-venv" >&2; exit 1; }
    "$venv/bin/pip" install --quiet --only-binary :all: --requirement "$pins"
    cp "$pins" "$venv/installed.txt"
fi
PATH="$(cd "$venv/bin" && pwd):$PATH"
export PATH PYTHONDONTWRITEBYTECODE=1

step() { echo "deploy: $1"; }

step "Dockerfile (hadolint)"
hadolint Dockerfile

step "docker-compose.yml, its variables, paths and secrets (docker compose config)"
python tests/deploy/compose.py

step "alert rules (promtool check)"
promtool check rules deploy/prometheus/alerts.yml >/dev/null
# Alone, the configuration names files as they are in the container.
promtool check config --syntax-only deploy/prometheus/prometheus.yml >/dev/null

step "alert rules (promtool test)"
promtool test rules deploy/prometheus/alerts_test.yml >/dev/null

step "metrics in alerts, dashboards and chart exist; dashboards are fresh; alerts have runbook sections"
python tests/deploy/telemetry.py

step "Helm chart: lint, schema, render, manifests"
# Helm reports each symbolic link; only a failure is worth reading.
python tests/deploy/chart.py 2>"$venv/../chart.log" || { grep -v "symbolic link" "$venv/../chart.log" >&2; exit 1; }

step "manifests of the cluster test (kubernetes-validate)"
kubernetes-validate --strict -k 1.37 tests/deploy/cluster/dependencies.yaml >/dev/null

step "workflows (zizmor)"
zizmor --offline --quiet --no-progress --pedantic .github/workflows

step "links and anchors of the operators' pages"
python tests/deploy/pages.py

echo "deploy: all checks passed"
