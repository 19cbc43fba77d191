-- When each application's configuration last changed, so that caches ask once for all that changed of late. A trigger, so that
-- no statement forgets it, one of an older program included.
ALTER TABLE applications ADD COLUMN changed_at bigint NOT NULL DEFAULT 0;
CREATE INDEX applications_changed ON applications (changed_at);

CREATE FUNCTION set_changed_at() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.changed_at := now_ms();
    RETURN NEW;
END
$$;
CREATE TRIGGER applications_changed_at BEFORE UPDATE OF version ON applications
    FOR EACH ROW EXECUTE FUNCTION set_changed_at();
