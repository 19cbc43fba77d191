-- Claims of messages in the order in which they came, until they are merged into `claims`.
CREATE TABLE recent_claims (
    n           INTEGER NOT NULL PRIMARY KEY,
    key         BLOB    NOT NULL,
    resource    BLOB    NOT NULL,
    fingerprint BLOB    NOT NULL,
    expires_at  INTEGER NOT NULL
);

-- When the last claim ends. The index by that time cost as much as the claims; those that ended are found by a walk.
ALTER TABLE progress ADD COLUMN claims_end INTEGER NOT NULL DEFAULT 0;
UPDATE progress SET claims_end = coalesce((SELECT max(expires_at) FROM claims), 0);
DROP INDEX claims_expiry;
