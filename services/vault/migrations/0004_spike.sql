-- Times in which a machine's newest recoverable moment was far older than usual, with the cause.

CREATE TABLE spike (
  machine TEXT NOT NULL,
  started_us BIGINT NOT NULL,
  ended_us BIGINT NOT NULL,
  worst_ms BIGINT NOT NULL,
  hop TEXT NOT NULL,
  cause TEXT NOT NULL,
  PRIMARY KEY (machine, started_us)
);
