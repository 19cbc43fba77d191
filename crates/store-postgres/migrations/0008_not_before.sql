-- Until when an endpoint rests, for its rate, its breaker, or because it takes nothing. The recorder must not wake it for each
-- row that comes meanwhile.
ALTER TABLE backlog ADD COLUMN not_before bigint NOT NULL DEFAULT 0;
