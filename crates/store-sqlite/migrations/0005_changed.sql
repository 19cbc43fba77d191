-- The order in which applications' configurations last changed, so that caches ask once for all that changed.
ALTER TABLE applications ADD COLUMN changed INTEGER NOT NULL DEFAULT 0;
CREATE INDEX applications_changed ON applications (changed);

CREATE TRIGGER applications_changed AFTER UPDATE OF version ON applications
BEGIN
    UPDATE applications SET changed = (SELECT max(changed) + 1 FROM applications) WHERE id = NEW.id;
END;
