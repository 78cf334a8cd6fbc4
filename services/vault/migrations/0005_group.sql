-- Consistency groups, and the points that all members of one have cut together. A group that was deleted keeps its row.

CREATE TABLE machine_group (
  name TEXT NOT NULL PRIMARY KEY,
  version BIGINT NOT NULL,
  body TEXT NOT NULL,
  deleted BIGINT NOT NULL
);

CREATE TABLE group_point (
  id TEXT NOT NULL PRIMARY KEY,
  machine_group TEXT NOT NULL REFERENCES machine_group (name),
  time_us BIGINT NOT NULL,
  machines TEXT NOT NULL
);
CREATE INDEX group_point_by_time ON group_point (machine_group, time_us);
