-- The vault's state. One text for both databases: written as PostgreSQL reads it, and turned into STRICT
-- tables for SQLite when it is applied (see src/store/schema.rs). Times are microseconds of UTC, ids and
-- JSON are TEXT, truth is 0 or 1. A migration that was released is never edited.

CREATE TABLE meta (
  name TEXT NOT NULL PRIMARY KEY,
  value TEXT NOT NULL
);

CREATE TABLE site (
  id TEXT NOT NULL PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  fabric TEXT NOT NULL,
  recovery BIGINT NOT NULL
);

-- Agents stand here, too, under the id of their machine. Certificates issued up to denied_until_us are refused.
CREATE TABLE server (
  id TEXT NOT NULL PRIMARY KEY,
  role TEXT NOT NULL,
  name TEXT NOT NULL,
  site TEXT NOT NULL REFERENCES site (id),
  version TEXT NOT NULL,
  address TEXT NOT NULL,
  enrolled_us BIGINT NOT NULL,
  last_seen_us BIGINT,
  certificate_expires_us BIGINT NOT NULL,
  revoked BIGINT NOT NULL,
  denied_until_us BIGINT,
  UNIQUE (role, name)
);

CREATE TABLE policy (
  id TEXT NOT NULL PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  body TEXT NOT NULL
);

-- The epoch never goes back, whatever becomes of protections.
CREATE TABLE machine (
  id TEXT NOT NULL PRIMARY KEY,
  version BIGINT NOT NULL,
  name TEXT NOT NULL UNIQUE,
  site TEXT NOT NULL REFERENCES site (id),
  fabric TEXT NOT NULL,
  guest TEXT NOT NULL,
  epoch BIGINT NOT NULL,
  last_drill_us BIGINT,
  last_drill_passed BIGINT NOT NULL
);

CREATE TABLE disk (
  id TEXT NOT NULL PRIMARY KEY,
  machine TEXT NOT NULL REFERENCES machine (id),
  place BIGINT NOT NULL,
  name TEXT NOT NULL,
  size_bytes BIGINT NOT NULL,
  UNIQUE (machine, place)
);

-- state repeats the name in body, for queries.
CREATE TABLE protection (
  machine TEXT NOT NULL PRIMARY KEY REFERENCES machine (id),
  state TEXT NOT NULL,
  body TEXT NOT NULL
);

CREATE TABLE point (
  machine TEXT NOT NULL REFERENCES machine (id),
  id TEXT NOT NULL,
  time_us BIGINT NOT NULL,
  position BIGINT NOT NULL,
  kind TEXT NOT NULL,
  name TEXT NOT NULL,
  pinned BIGINT NOT NULL,
  booted BIGINT,
  probed BIGINT,
  digest_equal BIGINT,
  PRIMARY KEY (machine, id)
);
CREATE INDEX point_by_time ON point (machine, time_us);

CREATE TABLE job (
  id TEXT NOT NULL PRIMARY KEY,
  version BIGINT NOT NULL,
  plan BIGINT NOT NULL,
  kind TEXT NOT NULL,
  machine TEXT,
  machine_name TEXT NOT NULL,
  state TEXT NOT NULL,
  actor TEXT NOT NULL,
  detail TEXT NOT NULL,
  params TEXT NOT NULL,
  facts TEXT NOT NULL,
  fault TEXT,
  attempt BIGINT NOT NULL,
  cancel BIGINT NOT NULL,
  created_us BIGINT NOT NULL,
  started_us BIGINT,
  ended_us BIGINT
);
CREATE INDEX job_by_state ON job (state);

CREATE TABLE step (
  job TEXT NOT NULL REFERENCES job (id),
  place BIGINT NOT NULL,
  name TEXT NOT NULL,
  state TEXT NOT NULL,
  started_us BIGINT,
  ended_us BIGINT,
  detail TEXT NOT NULL,
  PRIMARY KEY (job, place)
);

CREATE TABLE alert (
  id TEXT NOT NULL PRIMARY KEY,
  severity TEXT NOT NULL,
  code TEXT NOT NULL,
  object_kind TEXT NOT NULL,
  object TEXT NOT NULL,
  object_id TEXT NOT NULL,
  opened_us BIGINT NOT NULL,
  cleared_us BIGINT,
  what TEXT NOT NULL,
  cause TEXT NOT NULL,
  remedy TEXT NOT NULL,
  acknowledged BIGINT NOT NULL
);

CREATE TABLE event (
  id BIGINT NOT NULL PRIMARY KEY,
  time_us BIGINT NOT NULL,
  kind TEXT NOT NULL,
  object TEXT NOT NULL,
  object_id TEXT NOT NULL,
  what TEXT NOT NULL,
  actor TEXT NOT NULL
);

-- Only the SHA-256 of a token's secret.
CREATE TABLE token (
  hash TEXT NOT NULL PRIMARY KEY,
  role TEXT NOT NULL,
  site TEXT NOT NULL,
  machine TEXT NOT NULL,
  made_by TEXT NOT NULL,
  made_us BIGINT NOT NULL,
  expires_us BIGINT NOT NULL,
  used_us BIGINT,
  used_by TEXT
);

-- The same key gives the same job; body is the digest of the order, so that a key is not used for another.
CREATE TABLE order_key (
  key TEXT NOT NULL PRIMARY KEY,
  job TEXT NOT NULL,
  body TEXT NOT NULL,
  made_us BIGINT NOT NULL
);

CREATE TABLE operator (
  name TEXT NOT NULL PRIMARY KEY,
  role TEXT NOT NULL,
  made_us BIGINT NOT NULL,
  revoked BIGINT NOT NULL,
  denied_until_us BIGINT
);

-- Append-only: each line holds the hash of the one before it.
CREATE TABLE audit (
  seq BIGINT NOT NULL PRIMARY KEY,
  time_us BIGINT NOT NULL,
  actor TEXT NOT NULL,
  act TEXT NOT NULL,
  object TEXT NOT NULL,
  outcome TEXT NOT NULL,
  detail TEXT NOT NULL,
  hash TEXT NOT NULL
);
