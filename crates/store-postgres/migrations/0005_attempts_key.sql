-- One index less to each attempt: those of a message are a range of the primary key.
ALTER TABLE attempts DROP CONSTRAINT attempts_pkey;
DROP INDEX attempts_message;
ALTER TABLE attempts ADD PRIMARY KEY (message, id);
