-- What an endpoint takes in memory: an application's endpoints are held all at once, so their sum is bounded. An estimate
-- for those that are there; 0 for what an older Postrider makes meanwhile.
ALTER TABLE endpoints ADD COLUMN memory_bytes INTEGER NOT NULL DEFAULT 0;
UPDATE endpoints SET memory_bytes = 1024 + length(url) + length(description) + length(headers) + length(secrets)
    + length(metadata) + length(event_types) + 48 * json_array_length(event_types)
    + length(channels) + 48 * json_array_length(channels);
