-- A scheduler's look counts what it handed out (`run` is at least 1), among deliveries that are sent as they come.
CREATE INDEX waiting_handed_out ON waiting (endpoint, due_at) WHERE leased = 1 AND run > 0;
