-- When each application's configuration last changed, so that caches ask once for all that changed of late.
ALTER TABLE applications ADD COLUMN changed_at INTEGER NOT NULL DEFAULT 0;
CREATE INDEX applications_changed ON applications (changed_at);

CREATE TRIGGER applications_changed_at AFTER UPDATE OF version ON applications
BEGIN
    UPDATE applications SET changed_at = CAST(unixepoch('subsec') * 1000 AS INTEGER) WHERE id = NEW.id;
END;
