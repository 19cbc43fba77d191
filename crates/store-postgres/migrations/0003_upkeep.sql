-- As many leases of the endpoint are out as may be: the end of one has it looked at again.
ALTER TABLE backlog ADD COLUMN is_full boolean NOT NULL DEFAULT false;
CREATE INDEX backlog_full ON backlog (endpoint) WHERE is_full;

-- What is parked is parked once. NULL in rows from before.
ALTER TABLE parked ADD COLUMN digest bytea;
CREATE UNIQUE INDEX parked_digest ON parked (digest);
