-- Retention removes counters by their time, which would read all of them.
CREATE INDEX counters_bucket ON counters (bucket);
