-- Times are milliseconds since the Unix epoch, ids the 16 bytes of their UUID. States, reasons and kinds are the
-- numbers of the model's enums. Lists and maps are JSON. There are no foreign keys: rows may come before their parents.

CREATE TABLE applications (
    id            BLOB    NOT NULL PRIMARY KEY,
    uid           TEXT,
    name          TEXT    NOT NULL,
    throttle_rate INTEGER,
    metadata      TEXT    NOT NULL,
    version       INTEGER NOT NULL,
    created_at    INTEGER NOT NULL,
    updated_at    INTEGER NOT NULL,
    deleted_at    INTEGER
) WITHOUT ROWID;
CREATE UNIQUE INDEX applications_uid ON applications (uid) WHERE uid IS NOT NULL AND deleted_at IS NULL;

CREATE TABLE endpoints (
    id             BLOB    NOT NULL PRIMARY KEY,
    app            BLOB    NOT NULL,
    uid            TEXT,
    url            TEXT    NOT NULL,
    description    TEXT    NOT NULL,
    event_types    TEXT    NOT NULL,
    channels       TEXT    NOT NULL,
    disabled       INTEGER NOT NULL,
    paused         INTEGER NOT NULL,
    throttle_rate  INTEGER,
    ordered        INTEGER NOT NULL,
    on_exhausted   INTEGER NOT NULL, -- 0 skip, 1 pause
    header_names   INTEGER NOT NULL, -- 0 standard, 1 svix
    timeout_ms     INTEGER,
    retry_schedule TEXT,             -- delays in milliseconds
    headers        BLOB    NOT NULL, -- sealed
    secrets        BLOB    NOT NULL, -- sealed
    metadata       TEXT    NOT NULL,
    failing_since  INTEGER,
    created_at     INTEGER NOT NULL,
    updated_at     INTEGER NOT NULL,
    deleted_at     INTEGER
) WITHOUT ROWID;
CREATE INDEX endpoints_app ON endpoints (app, id) WHERE deleted_at IS NULL;
CREATE UNIQUE INDEX endpoints_uid ON endpoints (app, uid) WHERE uid IS NOT NULL AND deleted_at IS NULL;

CREATE TABLE event_types (
    name         TEXT    NOT NULL PRIMARY KEY,
    id           BLOB    NOT NULL,
    description  TEXT    NOT NULL,
    archived     INTEGER NOT NULL,
    deprecated   INTEGER NOT NULL,
    feature_flag TEXT,
    schemas      TEXT,
    created_at   INTEGER NOT NULL,
    updated_at   INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE api_keys (
    id         BLOB    NOT NULL PRIMARY KEY,
    hash       BLOB    NOT NULL UNIQUE,
    scope      TEXT    NOT NULL,
    name       TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    revoked_at INTEGER
) WITHOUT ROWID;

-- The payload is in `bodies`, so that it can go first; `body` is its number there, NULL once it is gone.
CREATE TABLE messages (
    id             BLOB    NOT NULL PRIMARY KEY,
    app            BLOB    NOT NULL,
    event_type     TEXT    NOT NULL,
    event_id       TEXT,
    channels       TEXT,             -- NULL when there are none
    content_type   TEXT    NOT NULL,
    accepted_at    INTEGER NOT NULL,
    retention_days INTEGER,
    traceparent    TEXT,
    body           INTEGER
) WITHOUT ROWID;
CREATE INDEX messages_app ON messages (app, id);
CREATE INDEX messages_event_id ON messages (app, event_id, id) WHERE event_id IS NOT NULL;

-- Numbered by `progress.last_body`, never twice, so that retention can walk them once in the order in which they came.
CREATE TABLE bodies (
    n          INTEGER NOT NULL PRIMARY KEY,
    message    BLOB    NOT NULL,
    expires_at INTEGER,              -- only of messages with a retention of their own
    sealed     BLOB    NOT NULL
);
CREATE INDEX bodies_expiry ON bodies (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE deliveries (
    message   BLOB    NOT NULL,
    endpoint  BLOB    NOT NULL,
    id        BLOB    NOT NULL,
    state     INTEGER NOT NULL,
    attempts  INTEGER NOT NULL,
    origin    INTEGER NOT NULL,      -- the model's Trigger
    cancelled INTEGER,
    PRIMARY KEY (message, endpoint, id)
) WITHOUT ROWID;
CREATE INDEX deliveries_endpoint ON deliveries (endpoint, message, id);

CREATE TABLE attempts (
    message     BLOB    NOT NULL,
    id          BLOB    NOT NULL,
    endpoint    BLOB    NOT NULL,
    app         BLOB    NOT NULL,
    delivery    BLOB    NOT NULL,
    origin      INTEGER NOT NULL,
    started_at  INTEGER NOT NULL,
    duration_ms INTEGER NOT NULL,
    class       INTEGER NOT NULL,
    status      INTEGER NOT NULL,
    response    BLOB    NOT NULL,
    url         TEXT    NOT NULL,
    PRIMARY KEY (message, id)
) WITHOUT ROWID;
CREATE INDEX attempts_endpoint ON attempts (endpoint, id);

CREATE TABLE waiting (
    delivery  BLOB    NOT NULL PRIMARY KEY,
    endpoint  BLOB    NOT NULL,
    app       BLOB    NOT NULL,
    message   BLOB    NOT NULL,
    origin    INTEGER NOT NULL,
    due_at    INTEGER NOT NULL,
    reason    INTEGER NOT NULL,
    run       INTEGER NOT NULL,
    attempts  INTEGER NOT NULL,
    leased    INTEGER NOT NULL,
    leased_at INTEGER,
    expired   INTEGER NOT NULL DEFAULT 0, -- leases that ended without word
    orphan    INTEGER NOT NULL DEFAULT 0, -- its message was missing when it was due
    seq       INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX waiting_due ON waiting (endpoint, leased, due_at, seq);
CREATE INDEX waiting_seq ON waiting (endpoint, seq) WHERE seq > 0;
CREATE INDEX waiting_orphans ON waiting (delivery) WHERE orphan = 1;

-- How many rows of `waiting` have each reason; moved with them.
CREATE TABLE waiting_totals (
    reason INTEGER NOT NULL PRIMARY KEY,
    n      INTEGER NOT NULL
);

-- One row for each endpoint with waiting rows, and for some without: a look at it finds that out.
CREATE TABLE backlog (
    endpoint   BLOB    NOT NULL PRIMARY KEY,
    app        BLOB    NOT NULL,
    next_due   INTEGER NOT NULL,
    not_before INTEGER NOT NULL,
    doomed     INTEGER NOT NULL      -- disabled or deleted: its rows are to be cancelled
) WITHOUT ROWID;
CREATE INDEX backlog_due ON backlog (next_due);
CREATE INDEX backlog_doomed ON backlog (endpoint) WHERE doomed = 1;

CREATE TABLE counters (
    endpoint  BLOB    NOT NULL,
    hour      INTEGER NOT NULL,      -- its start
    pending   INTEGER NOT NULL,
    retrying  INTEGER NOT NULL,
    delivered INTEGER NOT NULL,
    exhausted INTEGER NOT NULL,
    cancelled INTEGER NOT NULL,
    PRIMARY KEY (endpoint, hour)
) WITHOUT ROWID;
CREATE INDEX counters_hour ON counters (hour);

CREATE TABLE claims (
    key         BLOB    NOT NULL PRIMARY KEY,
    resource    BLOB    NOT NULL,
    fingerprint BLOB    NOT NULL,
    expires_at  INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX claims_expiry ON claims (expires_at);

CREATE TABLE progress (
    one         INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    last_seq    INTEGER NOT NULL,    -- of `ordered` deliveries
    last_body   INTEGER NOT NULL,
    body_mark   INTEGER NOT NULL     -- retention is done with the bodies up to this number
);
INSERT INTO progress VALUES (1, 0, 0, 0);

CREATE TABLE tasks (
    id         BLOB    NOT NULL PRIMARY KEY,
    kind       INTEGER NOT NULL,
    app        BLOB    NOT NULL,
    endpoint   BLOB    NOT NULL,
    since      INTEGER NOT NULL,
    until      INTEGER NOT NULL,
    cursor     BLOB,
    state      INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX tasks_running ON tasks (id) WHERE state = 0;

CREATE TABLE parked (
    id     INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    kind   TEXT    NOT NULL,
    reason TEXT    NOT NULL,
    bytes  BLOB    NOT NULL,         -- sealed: they may hold payloads
    at     INTEGER NOT NULL
);
