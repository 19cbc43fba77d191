#!/bin/sh
# Installs the chart into a kind cluster with plain RabbitMQ, Redis and Postgres, sends one message, and upgrades under
# the eyes of a producer. For continuous integration: it makes a cluster and leaves it. kind's own network plugin
# enforces NetworkPolicies since v0.24.
set -eu
cd "$(dirname -- "$0")/../../.."

kind create cluster --wait 180s
docker build --tag postrider:test .
kind load docker-image postrider:test

password=$(openssl rand -hex 24)
admin_key=prk_$(openssl rand -base64 32 | tr '+/' '-_' | tr -d '=')
kubectl create secret generic dependencies --from-literal "password=$password"
kubectl create secret generic postrider \
    --from-literal "broker-url=amqp://postrider:$password@rabbitmq:5672/%2f" \
    --from-literal "redis-url=redis://:$password@redis:6379/0" \
    --from-literal "store-url=postgres://postrider:$password@postgres:5432/postrider" \
    --from-literal "admin-key=$admin_key" \
    --from-literal "secrets-key=psk_$(openssl rand -base64 32)"
kubectl apply --filename tests/deploy/cluster/dependencies.yaml
kubectl wait --for condition=Available --timeout 300s deployment/rabbitmq deployment/redis deployment/postgres

install() {
    helm upgrade --install postrider deploy/helm/postrider --wait --timeout 5m \
        --set image.repository=postrider --set image.tag=test --set image.pullPolicy=Never "$@"
}
install
kubectl port-forward service/postrider 8080:80 >/dev/null &
forward=$!
trap 'kill "$forward" 2>/dev/null || true' EXIT

call() { # PATH BODY
    curl -fsS --retry 10 --retry-delay 2 --retry-connrefused "http://127.0.0.1:8080/api/v1/$1" \
        -H "Authorization: Bearer $admin_key" -H 'Content-Type: application/json' -d "$2"
}
call app '{"name":"Cluster","uid":"cluster"}'
call app/cluster/msg '{"eventType":"cluster.test","payload":{"number":1}}'

# Every pod is replaced, one role after the other; each waits until it is ready.
for role in ledger worker gateway; do
    install --set "$role.podAnnotations.step=second" --reuse-values
done
kubectl get pods
