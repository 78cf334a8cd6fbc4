-- What a vault knows. The same text for SQLite and PostgreSQL: TEXT and BIGINT only, times in microseconds
-- of UTC, ids as text, structures as JSON.
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE site (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, fabric TEXT NOT NULL, recovery BIGINT NOT NULL);
CREATE TABLE server (id TEXT PRIMARY KEY, name TEXT NOT NULL, role TEXT NOT NULL, site TEXT NOT NULL, created_us BIGINT NOT NULL);
CREATE TABLE policy (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, body TEXT NOT NULL);
CREATE TABLE machine (id TEXT PRIMARY KEY, name TEXT NOT NULL, version BIGINT NOT NULL, body TEXT NOT NULL);
CREATE TABLE job (id TEXT PRIMARY KEY, order_key TEXT NOT NULL UNIQUE, state TEXT NOT NULL, created_us BIGINT NOT NULL, body TEXT NOT NULL);
CREATE TABLE alert (id TEXT PRIMARY KEY, cleared_us BIGINT, body TEXT NOT NULL);
CREATE TABLE event (id BIGINT PRIMARY KEY, time_us BIGINT NOT NULL, body TEXT NOT NULL);
CREATE TABLE token (hash TEXT PRIMARY KEY, role TEXT NOT NULL, site TEXT NOT NULL, machine TEXT NOT NULL, expires_us BIGINT NOT NULL, used_us BIGINT);
CREATE TABLE audit (number BIGINT PRIMARY KEY, time_us BIGINT NOT NULL, by_whom TEXT NOT NULL, text TEXT NOT NULL, digest TEXT NOT NULL);
CREATE INDEX job_created ON job (created_us);
CREATE INDEX event_time ON event (time_us);
