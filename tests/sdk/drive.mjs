// Drives a running Postrider with the public `svix` SDK for JavaScript, and receives what it sends.
//
// Usage: node drive.mjs URL KEY. Exits 0 when everything held; says what did not otherwise.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { createServer } from "node:http";
import { setTimeout as sleep } from "node:timers/promises";

import { Webhook as StandardWebhook } from "standardwebhooks";
import { Svix, Webhook } from "svix";

const PATIENCE_MS = 30_000;
const [url, key] = process.argv.slice(2);
const name = randomUUID().slice(0, 8);

/** An HTTP server that keeps every request. */
const requests = [];
let status = 200;
const server = createServer((request, response) => {
  const chunks = [];
  request.on("data", (chunk) => chunks.push(chunk));
  request.on("end", () => {
    requests.push({ headers: request.headers, body: Buffer.concat(chunks) });
    response.writeHead(status).end();
  });
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const hook = `http://127.0.0.1:${server.address().port}/hook`;

/** Polls until `probe` gives something true; says what it last saw otherwise. */
async function waitFor(what, probe) {
  const end = Date.now() + PATIENCE_MS;
  let seen;
  while (Date.now() < end) {
    seen = await probe();
    if (seen) return seen;
    await sleep(100);
  }
  assert.fail(`${what}: not within ${PATIENCE_MS} ms; last seen: ${JSON.stringify(seen)}`);
}

/** The next request with this webhook-id. */
const received = (id) => waitFor(`message ${id}`, () => {
  const index = requests.findIndex((request) => request.headers["webhook-id"] === id);
  return index >= 0 && requests.splice(index, 1)[0];
});

/** The call must fail with this status and, where there is one, this code. */
async function refused(code, word, call) {
  let error;
  try {
    await call();
  } catch (caught) {
    error = caught;
  }
  assert.ok(error, `expected status ${code}, and it was accepted`);
  assert.equal(error.code, code, `expected ${code}: ${error.message}`);
  if (word) assert.equal(error.body.code, word);
}

function verifies(secret, request) {
  new Webhook(secret).verify(request.body, request.headers);
  new StandardWebhook(secret).verify(request.body, request.headers);
}

const svix = new Svix(key, { serverUrl: url });

// Applications and event types.
const app = await svix.application.create({ name: "SDK", uid: `js-${name}` });
assert.equal((await svix.application.get(`js-${name}`)).id, app.id);
await refused(409, "conflict", () => svix.application.create({ name: "x", uid: `js-${name}` }));
await refused(404, "not_found", () => svix.application.get("nobody"));
const eventType = `order.${name}`;
await svix.eventType.create({ name: eventType, description: "Placed" });

// An endpoint, a message, a delivery that both verifiers accept.
const endpoint = await svix.endpoint.create(app.id, { url: hook, eventTypes: [eventType] });
const secret = (await svix.endpoint.getSecret(app.id, endpoint.id)).key;
const message = await svix.message.create(app.id, { eventType, payload: { placed: true } });
verifies(secret, await received(message.id));
const attempts = await waitFor("the attempt", async () => {
  const page = await svix.messageAttempt.listByMsg(app.id, message.id);
  return page.data.length > 0 && page.data;
});
assert.equal(attempts[0].responseStatusCode, 200);
assert.equal((await svix.messageAttempt.listByEndpoint(app.id, endpoint.id)).data.length, 1);

// The same idempotency key: one message.
const options = { idempotencyKey: `key-${name}` };
const first = await svix.message.create(app.id, { eventType, payload: { a: 1 } }, options);
const again = await svix.message.create(app.id, { eventType, payload: { a: 1 } }, options);
assert.equal(first.id, again.id);
await refused(422, null, () => svix.message.create(app.id, { eventType, payload: { a: 2 } }, options));

// A resend carries the same id.
await svix.messageAttempt.resend(app.id, message.id, endpoint.id);
await received(message.id);

// During a rotation the old and the new secret verify.
const newSecret = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
await svix.endpoint.rotateSecret(app.id, endpoint.id, { key: newSecret });
const rotated = await svix.message.create(app.id, { eventType, payload: { rotated: true } });
const request = await received(rotated.id);
verifies(secret, request);
verifies(newSecret, request);

// Recover: what failed comes again.
status = 410;
const since = new Date(Date.now() - 60_000);
const lost = await svix.message.create(app.id, { eventType, payload: { lost: true } });
await received(lost.id);
await waitFor("the endpoint to be disabled", async () => (await svix.endpoint.get(app.id, endpoint.id)).disabled);
status = 200;
await svix.endpoint.patch(app.id, endpoint.id, { disabled: false });
await svix.endpoint.recover(app.id, endpoint.id, { since });
await received(lost.id);

// Pages: every message once, newest first.
const quiet = await svix.application.create({ name: "Pages" });
const sent = [];
for (let n = 0; n < 500; n += 1) sent.push((await svix.message.create(quiet.id, { eventType, payload: { n } })).id);
// A list shows what is on record; a message that is asked for by its id is waited for.
await svix.message.get(quiet.id, sent.at(-1));
const listed = [];
let iterator;
for (;;) {
  const page = await svix.message.list(quiet.id, { limit: 91, iterator });
  listed.push(...page.data.map((found) => found.id));
  iterator = page.iterator;
  if (page.done) break;
}
assert.deepEqual(listed, sent.toSorted().reverse());
await refused(422, null, () => svix.message.list(quiet.id, { limit: 251 }));

// Errors as documented.
await refused(401, "authentication_failed", () => new Svix("prk_nobody", { serverUrl: url }).application.list());
await refused(422, null, () => svix.endpoint.create(app.id, { url: "http://169.254.169.254/" }));
await svix.application.delete(app.id);
await refused(404, null, () => svix.application.get(app.id));
console.log("javascript: all held");
server.close();
