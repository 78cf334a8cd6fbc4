-- Reports of drills and failovers, each naming the digest of the one before it. Written once, in the transaction that
-- ends their job; never changed.

CREATE TABLE report (
  seq BIGINT NOT NULL PRIMARY KEY,
  job TEXT NOT NULL,
  kind TEXT NOT NULL,
  subject TEXT NOT NULL,
  made_us BIGINT NOT NULL,
  outcome TEXT NOT NULL,
  passed BIGINT NOT NULL,
  digest TEXT NOT NULL,
  body TEXT NOT NULL
);
CREATE INDEX report_job ON report (job);
CREATE INDEX report_subject ON report (subject);
