-- Whether an application's receivers get a `traceparent` header.
ALTER TABLE applications ADD COLUMN propagate_traceparent boolean NOT NULL DEFAULT false;
