-- Deliveries that may kill the process.

-- Deaths of the process at which the row was leased, since an outcome was last recorded.
ALTER TABLE waiting ADD COLUMN deaths integer NOT NULL DEFAULT 0;
CREATE INDEX waiting_suspects ON waiting (due_at) WHERE deaths >= 3 AND leased;

-- Runs that a worker tries alone, because they came back too often.
CREATE TABLE trials (
    delivery uuid NOT NULL,
    run bigint NOT NULL,
    at bigint NOT NULL,
    PRIMARY KEY (delivery, run)
);
CREATE INDEX trials_at ON trials (at);
