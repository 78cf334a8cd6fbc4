-- Versions of policies and plans: who changed them, when, to what (YAML; empty: deleted). Beside them, what lists of
-- operators and tokens tell, and what waits for the agreement of a second person.

CREATE TABLE version (
  kind TEXT NOT NULL,
  object TEXT NOT NULL,
  version BIGINT NOT NULL,
  name TEXT NOT NULL,
  body TEXT NOT NULL,
  actor TEXT NOT NULL,
  at_us BIGINT NOT NULL,
  PRIMARY KEY (kind, object, version)
);

ALTER TABLE policy ADD COLUMN version BIGINT NOT NULL DEFAULT 1;

ALTER TABLE operator ADD COLUMN certificate_expires_us BIGINT;

ALTER TABLE token ADD COLUMN operator_role TEXT NOT NULL DEFAULT '';

ALTER TABLE token ADD COLUMN revoked BIGINT NOT NULL DEFAULT 0;
