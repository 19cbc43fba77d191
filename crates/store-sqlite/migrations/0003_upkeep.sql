-- As many leases of the endpoint are out as may be: the end of one has it looked at again.
ALTER TABLE backlog ADD COLUMN is_full INTEGER NOT NULL DEFAULT 0;
CREATE INDEX backlog_full ON backlog (endpoint) WHERE is_full = 1;

-- Hours with deliveries that have not ended: few, however much waits.
CREATE INDEX counters_open ON counters (endpoint) WHERE pending + retrying > 0;

-- What is parked is parked once. NULL in rows from before.
ALTER TABLE parked ADD COLUMN digest BLOB;
CREATE UNIQUE INDEX parked_digest ON parked (digest) WHERE digest IS NOT NULL;
