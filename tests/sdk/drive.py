"""Drives a running Postrider with the public `svix` SDK, and receives what it sends.

Usage: drive.py URL KEY. Exits 0 when everything held; says what did not otherwise.
"""

import http.server
import queue
import sys
import threading
import time
import uuid
from datetime import datetime, timedelta, timezone

import standardwebhooks.webhooks
from svix.api import (
    ApplicationIn,
    ApplicationListOptions,
    EndpointIn,
    EndpointPatch,
    EndpointSecretRotateIn,
    EventTypeIn,
    MessageAttemptListByEndpointOptions,
    MessageCreateOptions,
    MessageIn,
    MessageListOptions,
    RecoverIn,
    Svix,
    SvixOptions,
)
from svix.exceptions import HTTPValidationError, HttpError
from svix.webhooks import Webhook

PATIENCE_S = 30


class Receiver:
    """An HTTP server that hands on every request and answers as it is told."""

    def __init__(self):
        self.status = 200
        self.requests = queue.Queue()
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                receiver.requests.put((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                self.send_response(receiver.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def next(self):
        return self.requests.get(timeout=PATIENCE_S)

    def drain(self):
        while not self.requests.empty():
            self.requests.get_nowait()


def wait_for(what, probe):
    """Polls until `probe` gives something true; says what it last saw otherwise."""
    end = time.monotonic() + PATIENCE_S
    seen = None
    while time.monotonic() < end:
        seen = probe()
        if seen:
            return seen
        time.sleep(0.1)
    raise AssertionError(f"{what}: not within {PATIENCE_S} s; last seen: {seen!r}")


def refused(status, code, call):
    """The call must fail with this status and, where there is one, this code."""
    try:
        call()
    except HTTPValidationError as error:
        assert status == 422, f"expected {status}, got 422: {error.to_dict()}"
        assert error.detail, "a 422 names the place"
        return
    except HttpError as error:
        found = error.to_dict()
        assert error.status_code == status, f"expected {status}, got {error.status_code}: {found}"
        if code:
            assert found.get("code") == code, f"expected {code}: {found}"
        return
    raise AssertionError(f"expected status {status}, and it was accepted")


def verifies(secret, request):
    """Both public libraries accept the request."""
    _, headers, body = request
    Webhook(secret).verify(body, headers)
    standardwebhooks.webhooks.Webhook(secret).verify(body, headers)


def main(url, key):
    svix = Svix(key, SvixOptions(server_url=url))
    receiver = Receiver()
    name = uuid.uuid4().hex[:12]

    # Applications, by id and by uid.
    app = svix.application.create(ApplicationIn(name="SDK", uid=f"app-{name}"))
    assert svix.application.get(app.id).uid == svix.application.get(f"app-{name}").uid
    assert svix.application.get_or_create(ApplicationIn(name="SDK", uid=f"app-{name}")).id == app.id
    refused(409, "conflict", lambda: svix.application.create(ApplicationIn(name="x", uid=f"app-{name}")))
    refused(404, "not_found", lambda: svix.application.get("nobody"))
    assert svix.application.list(ApplicationListOptions(limit=1)).data

    # Event types.
    event_type = f"invoice.{name}"
    svix.event_type.create(EventTypeIn(name=event_type, description="Paid"))
    assert svix.event_type.get(event_type).description == "Paid"
    refused(409, None, lambda: svix.event_type.create(EventTypeIn(name=event_type, description="again")))

    # An endpoint, a message, a delivery that both verifiers accept.
    endpoint = svix.endpoint.create(app.id, EndpointIn(url=f"{receiver.url}/hook", event_types=[event_type]))
    secret = svix.endpoint.get_secret(app.id, endpoint.id).key
    message = svix.message.create(
        app.id, MessageIn(event_type=event_type, event_id=f"ev-{name}", payload={"paid": True, "n": 10**20})
    )
    request = receiver.next()
    verifies(secret, request)
    assert request[1]["webhook-id"] == message.id
    refused(409, None, lambda: svix.message.create(
        app.id, MessageIn(event_type=event_type, event_id=f"ev-{name}", payload={})))
    refused(422, None, lambda: svix.message.create(app.id, MessageIn(event_type="not ok!", payload={})))
    assert svix.message.get(app.id, message.id).id == message.id

    # Its attempt, from both sides.
    attempts = wait_for("the attempt", lambda: svix.message_attempt.list_by_msg(app.id, message.id).data)
    assert attempts[0].response_status_code == 200 and attempts[0].endpoint_id == endpoint.id
    assert svix.message_attempt.get(app.id, message.id, attempts[0].id).id == attempts[0].id
    assert svix.message_attempt.list_by_endpoint(app.id, endpoint.id).data
    assert svix.message_attempt.list_attempted_destinations(app.id, message.id).data[0].id == endpoint.id
    assert svix.message_attempt.list_attempted_messages(app.id, endpoint.id).data[0].id == message.id
    stats = svix.endpoint.get_stats(app.id, endpoint.id)
    assert stats.success == 1, stats

    # The same idempotency key: one message. Another body under it: refused.
    options = MessageCreateOptions(idempotency_key=f"key-{name}")
    first = svix.message.create(app.id, MessageIn(event_type=event_type, payload={"a": 1}), options)
    again = svix.message.create(app.id, MessageIn(event_type=event_type, payload={"a": 1}), options)
    assert first.id == again.id
    refused(422, None, lambda: svix.message.create(
        app.id, MessageIn(event_type=event_type, payload={"a": 2}), options))
    receiver.next()

    # A resend carries the same id.
    svix.message_attempt.resend(app.id, message.id, endpoint.id)
    assert receiver.next()[1]["webhook-id"] == message.id

    # During a rotation the old and the new secret verify.
    new_secret = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
    svix.endpoint.rotate_secret(app.id, endpoint.id, EndpointSecretRotateIn(key=new_secret))
    assert svix.endpoint.get_secret(app.id, endpoint.id).key == new_secret
    svix.message.create(app.id, MessageIn(event_type=event_type, payload={"rotated": True}))
    request = receiver.next()
    verifies(secret, request)
    verifies(new_secret, request)

    # Recover: what failed comes again.
    receiver.status = 410
    since = datetime.now(timezone.utc) - timedelta(minutes=1)
    lost = svix.message.create(app.id, MessageIn(event_type=event_type, payload={"lost": True}))
    receiver.next()
    wait_for("the endpoint to be disabled by 410 Gone", lambda: svix.endpoint.get(app.id, endpoint.id).disabled)
    receiver.status = 200
    svix.endpoint.patch(app.id, endpoint.id, EndpointPatch(disabled=False))
    svix.endpoint.recover(app.id, endpoint.id, RecoverIn(since=since))
    wait_for("the lost message", lambda: receiver.next()[1]["webhook-id"] == lost.id)

    # Pages: every message once, in order, forwards.
    quiet = svix.application.create(ApplicationIn(name="Pages"))
    sent = [svix.message.create(quiet.id, MessageIn(event_type=event_type, payload={"n": n})).id for n in range(500)]
    wait_for("500 messages to be recorded", lambda: svix.message.get(quiet.id, sent[-1]))
    listed, iterator = [], None
    while True:
        page = svix.message.list(quiet.id, MessageListOptions(limit=77, iterator=iterator))
        listed += [message.id for message in page.data]
        iterator = page.iterator
        if page.done:
            break
    assert listed == sorted(sent, reverse=True), f"{len(listed)} of 500 listed"
    refused(422, None, lambda: svix.message.list(quiet.id, MessageListOptions(limit=251)))
    refused(422, None, lambda: svix.message.list(quiet.id, MessageListOptions(iterator="nonsense")))

    # Errors as documented.
    refused(401, "authentication_failed", lambda: Svix("prk_nobody", SvixOptions(server_url=url)).application.list())
    refused(422, None, lambda: svix.endpoint.create(app.id, EndpointIn(url="ftp://example.com")))
    refused(422, None, lambda: svix.endpoint.create(app.id, EndpointIn(url="http://169.254.169.254/")))
    refused(404, None, lambda: svix.message_attempt.list_by_endpoint(
        app.id, "ep_nobody", MessageAttemptListByEndpointOptions(limit=1)))
    svix.application.delete(app.id)
    refused(404, None, lambda: svix.application.get(app.id))
    print("python: all held")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
