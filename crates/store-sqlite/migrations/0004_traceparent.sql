-- Whether an application's receivers get a `traceparent` header.
ALTER TABLE applications ADD COLUMN propagate_traceparent INTEGER NOT NULL DEFAULT 0;
