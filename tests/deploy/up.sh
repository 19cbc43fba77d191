#!/bin/sh
# Brings up docker-compose.yml with its demo on a container engine, and looks whether messages arrive and dashboards have
# data. For continuous integration: it makes passwords, an .env file, containers and volumes.
set -eu
cd "$(dirname -- "$0")/../.."

[ ! -e .env ] || { echo ".env is here already; this is for a fresh checkout" >&2; exit 1; }
password() { openssl rand -hex 24; }
umask 077
cat > .env <<END
RABBITMQ_PASSWORD=$(password)
REDIS_PASSWORD=$(password)
POSTGRES_PASSWORD=$(password)
GRAFANA_PASSWORD=$(password)
POSTRIDER_ADMIN_KEY=prk_$(openssl rand -base64 32 | tr '+/' '-_' | tr -d '=')
POSTRIDER_SECRETS_KEY=psk_$(openssl rand -base64 32)
POSTRIDER_DEMO_SECRET=whsec_$(openssl rand -base64 32)
POSTRIDER_EGRESS_ALLOW=172.30.0.250/32
END

compose() { docker compose --profile demo "$@"; }
compose up --detach --wait --build
echo POSTRIDER_WORKERS=4 >> .env
compose up --detach --wait
# As in an upgrade; it leaves them as many as they are.
compose up --detach --wait worker

until_found() { # WHAT SECONDS COMMAND...
    what=$1 left=$2
    shift 2
    until "$@"; do
        left=$((left - 1))
        [ "$left" -gt 0 ] || { echo "not seen in time: $what" >&2; exit 1; }
        sleep 1
    done
    echo "seen: $what"
}
received() { compose logs --no-log-prefix demo-receiver | grep -c '"number":' | grep -qvx '[0-4]'; }
workers() {
    curl -fsS http://127.0.0.1:9090/api/v1/query --data-urlencode 'query=count(up{job="postrider",role="worker"} == 1)' |
        grep -q '"4"\]'
}
dashboards() {
    curl -fsS -u "admin:$(sed -n 's/^GRAFANA_PASSWORD=//p' .env)" 'http://127.0.0.1:3000/api/search?tag=postrider' |
        grep -o '"uid":"postrider-[a-z]*"' | sort -u | wc -l | grep -qx ' *3'
}
until_found "five messages at the receiver" 120 received
until_found "four workers in Prometheus" 120 workers
until_found "three dashboards in Grafana" 60 dashboards
python3 tests/deploy/queries.py --prometheus http://127.0.0.1:9090
