-- The transaction that last changed each application's configuration, so that caches ask once for all that changed. Its number, not
-- its time: a snapshot says which numbers it has seen, whatever takes how long. A trigger, so that no statement forgets it, one
-- of an older program included.
ALTER TABLE applications ADD COLUMN changed bigint NOT NULL DEFAULT 0;
CREATE INDEX applications_changed ON applications (changed);

CREATE FUNCTION set_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.changed := pg_current_xact_id()::text::bigint;
    RETURN NEW;
END
$$;
CREATE TRIGGER applications_changed BEFORE UPDATE OF version ON applications
    FOR EACH ROW EXECUTE FUNCTION set_changed();
