-- What an endpoint takes in the memory of gateways and workers: an application's endpoints are held all at once, so their
-- sum is bounded. An estimate for those that are there; 0 for what an older Postrider makes meanwhile.
ALTER TABLE endpoints ADD COLUMN memory_bytes bigint NOT NULL DEFAULT 0;
UPDATE endpoints SET memory_bytes = 1024 + octet_length(url) + octet_length(description) + octet_length(headers)
    + octet_length(secrets) + octet_length(metadata::text)
    + octet_length(event_types::text) + 48 * cardinality(event_types)
    + octet_length(channels::text) + 48 * cardinality(channels);
