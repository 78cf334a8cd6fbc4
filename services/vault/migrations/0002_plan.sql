-- Recovery plans, as their YAML was applied. A plan that was deleted keeps its row: its runs name it.

CREATE TABLE plan (
  name TEXT NOT NULL PRIMARY KEY,
  version BIGINT NOT NULL,
  body TEXT NOT NULL,
  deleted BIGINT NOT NULL,
  last_drill_us BIGINT,
  last_drill_passed BIGINT NOT NULL,
  last_drill_took_us BIGINT
);
