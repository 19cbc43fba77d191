#!/bin/sh
# A producer to look at: makes an application with one endpoint, then sends a message every second.
# Needs API (URL), ADMIN_KEY, SECRET (the endpoint's signing secret) and RECEIVER (URL).
set -eu

call() { # METHOD PATH BODY -> prints the status
    curl -sS -o /tmp/answer -w '%{http_code}' -X "$1" "$API/api/v1/$2" \
        -H "Authorization: Bearer $ADMIN_KEY" -H 'Content-Type: application/json' -d "$3"
}

expect() { # WHAT STATUS ALLOWED...
    what=$1 status=$2
    shift 2
    for allowed in "$@"; do [ "$status" = "$allowed" ] && return 0; done
    echo "$what: status $status: $(cat /tmp/answer)" >&2
    exit 1
}

expect application "$(call POST 'app?get_if_exists=true' '{"name":"Demo","uid":"demo"}')" 200 201
# 409: made by an earlier run.
expect endpoint "$(call POST app/demo/endpoint \
    "{\"url\":\"$RECEIVER\",\"uid\":\"demo-receiver\",\"secret\":\"$SECRET\"}")" 201 409

number=0
while true; do
    number=$((number + 1))
    status=$(call POST app/demo/msg "{\"eventType\":\"demo.tick\",\"payload\":{\"number\":$number}}") || status=none
    echo "message $number: $status"
    sleep 1
done
