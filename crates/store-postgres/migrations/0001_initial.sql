-- Times are Unix milliseconds by this server's clock; ids are uuids whose first 48 bits are Unix milliseconds.
-- The log's tables are partitioned by day of the id; the program makes and drops the partitions.

CREATE FUNCTION now_ms() RETURNS bigint LANGUAGE sql VOLATILE AS
    'SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint';

-- Configuration -------------------------------------------------------------------------------------------------

CREATE TABLE applications (
    id uuid PRIMARY KEY,
    uid text,
    name text NOT NULL,
    throttle_rate bigint,
    metadata jsonb NOT NULL,
    version bigint NOT NULL DEFAULT 1,
    created_at bigint NOT NULL,
    updated_at bigint NOT NULL,
    deleted_at bigint
);
CREATE UNIQUE INDEX applications_uid ON applications (uid) WHERE deleted_at IS NULL;

CREATE TABLE endpoints (
    id uuid PRIMARY KEY,
    app uuid NOT NULL,
    uid text,
    url text NOT NULL,
    description text NOT NULL,
    event_types text[] NOT NULL,
    channels text[] NOT NULL,
    disabled boolean NOT NULL,
    paused boolean NOT NULL,
    throttle_rate bigint,
    ordered boolean NOT NULL,
    pause_when_exhausted boolean NOT NULL,
    svix_header_names boolean NOT NULL,
    timeout_ms bigint,
    retry_schedule_ms bigint[],
    headers bytea NOT NULL,
    secrets bytea NOT NULL,
    metadata jsonb NOT NULL,
    created_at bigint NOT NULL,
    updated_at bigint NOT NULL,
    deleted_at bigint
);
CREATE INDEX endpoints_app ON endpoints (app, id) WHERE deleted_at IS NULL;
CREATE UNIQUE INDEX endpoints_uid ON endpoints (app, uid) WHERE deleted_at IS NULL;

CREATE TABLE event_types (
    name text COLLATE "C" PRIMARY KEY,
    id uuid NOT NULL,
    description text NOT NULL,
    archived boolean NOT NULL,
    deprecated boolean NOT NULL,
    feature_flag text,
    schemas text,
    created_at bigint NOT NULL,
    updated_at bigint NOT NULL
);
CREATE UNIQUE INDEX event_types_id ON event_types (id);

CREATE TABLE api_keys (
    id uuid PRIMARY KEY,
    hash bytea NOT NULL,
    scope text NOT NULL,
    name text NOT NULL,
    created_at bigint NOT NULL,
    revoked_at bigint
);
CREATE UNIQUE INDEX api_keys_hash ON api_keys (hash);

-- The log, by day -----------------------------------------------------------------------------------------------

CREATE TABLE messages (
    id uuid NOT NULL,
    app uuid NOT NULL,
    accepted_at bigint NOT NULL,
    retention_days integer,
    event_type text NOT NULL,
    content_type text NOT NULL,
    event_id text,
    channels jsonb,
    traceparent text,
    PRIMARY KEY (id)
) PARTITION BY RANGE (id);
CREATE INDEX messages_app ON messages (app, id);
CREATE INDEX messages_event_id ON messages (app, event_id, id) WHERE event_id IS NOT NULL;

-- Apart from their messages, so that the retention of payloads drops whole partitions.
CREATE TABLE bodies (
    id uuid NOT NULL,
    sealed bytea NOT NULL,
    PRIMARY KEY (id)
) PARTITION BY RANGE (id);
ALTER TABLE bodies ALTER COLUMN sealed SET STORAGE EXTERNAL;

-- Bodies whose message names its own retention: removed one by one.
CREATE TABLE bodies_kept (
    id uuid PRIMARY KEY,
    expires_at bigint NOT NULL,
    sealed bytea NOT NULL
);
ALTER TABLE bodies_kept ALTER COLUMN sealed SET STORAGE EXTERNAL;
CREATE INDEX bodies_kept_expires_at ON bodies_kept (expires_at);

-- A delivery's id has the milliseconds of its message's, so a message's deliveries are a range of the primary key.
CREATE TABLE deliveries (
    id uuid NOT NULL,
    message uuid NOT NULL,
    endpoint uuid NOT NULL,
    app uuid NOT NULL,
    attempts bigint NOT NULL,
    state smallint NOT NULL,
    trigger smallint NOT NULL,
    cancelled smallint,
    PRIMARY KEY (id)
) PARTITION BY RANGE (id);
CREATE INDEX deliveries_endpoint ON deliveries (endpoint, message);

CREATE TABLE attempts (
    id uuid NOT NULL,
    delivery uuid NOT NULL,
    message uuid NOT NULL,
    endpoint uuid NOT NULL,
    app uuid NOT NULL,
    started_at bigint NOT NULL,
    duration_ms bigint NOT NULL,
    status integer NOT NULL,
    class smallint NOT NULL,
    trigger smallint NOT NULL,
    response bytea NOT NULL,
    url text NOT NULL,
    PRIMARY KEY (id)
) PARTITION BY RANGE (id);
CREATE INDEX attempts_endpoint ON attempts (endpoint, id);
CREATE INDEX attempts_message ON attempts (message, id);

-- What waits ----------------------------------------------------------------------------------------------------

-- Rows come and go all the time: room on each page, and a vacuum that does not wait for a fifth of the table to die.
CREATE TABLE waiting (
    delivery uuid PRIMARY KEY,
    endpoint uuid NOT NULL,
    app uuid NOT NULL,
    message uuid NOT NULL,
    due_at bigint NOT NULL,
    leased_at bigint,
    seq bigint NOT NULL,
    run bigint NOT NULL,
    attempts bigint NOT NULL,
    lease_count integer NOT NULL DEFAULT 0,
    reason smallint NOT NULL,
    trigger smallint NOT NULL,
    leased boolean NOT NULL
) WITH (
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 1000,
    autovacuum_analyze_scale_factor = 0.05,
    autovacuum_vacuum_cost_delay = 0
);
-- `seq` is 0 unless the endpoint is ordered, so this is both the order of due times and the order of a sequence.
CREATE INDEX waiting_order ON waiting (endpoint, seq, due_at);
CREATE INDEX waiting_leased ON waiting (endpoint, due_at) WHERE leased;

CREATE TABLE backlog (
    endpoint uuid PRIMARY KEY,
    app uuid NOT NULL,
    next_due bigint NOT NULL,
    sweep boolean NOT NULL DEFAULT false
) WITH (
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 500,
    autovacuum_vacuum_cost_delay = 0
);
CREATE INDEX backlog_next_due ON backlog (next_due);
CREATE INDEX backlog_sweep ON backlog (endpoint) WHERE sweep;

CREATE TABLE sequence (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    last_seq bigint NOT NULL
);
INSERT INTO sequence (last_seq) VALUES (0);

-- State that outlives days --------------------------------------------------------------------------------------

CREATE TABLE counters (
    endpoint uuid NOT NULL,
    bucket bigint NOT NULL,
    pending bigint NOT NULL,
    retrying bigint NOT NULL,
    delivered bigint NOT NULL,
    exhausted bigint NOT NULL,
    cancelled bigint NOT NULL,
    PRIMARY KEY (endpoint, bucket)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

CREATE TABLE endpoint_health (
    endpoint uuid PRIMARY KEY,
    failing_since bigint
) WITH (fillfactor = 50);

CREATE TABLE claims (
    key bytea PRIMARY KEY,
    resource bytea NOT NULL,
    fingerprint bytea NOT NULL,
    expires_at bigint NOT NULL
);
CREATE INDEX claims_expires_at ON claims (expires_at);

CREATE TABLE tasks (
    id uuid PRIMARY KEY,
    kind smallint NOT NULL,
    app uuid NOT NULL,
    endpoint uuid NOT NULL,
    since bigint NOT NULL,
    until bigint NOT NULL,
    cursor uuid,
    state smallint NOT NULL,
    updated_at bigint NOT NULL
);
CREATE INDEX tasks_running ON tasks (updated_at) WHERE state = 0;

CREATE TABLE parked (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text NOT NULL,
    reason text NOT NULL,
    bytes bytea NOT NULL,
    at bigint NOT NULL
);
