-- Records are kept as the JSON that was published, so that what people read on a topic and here is the same.

CREATE TABLE definitions (
    kind     text    NOT NULL,
    name     text    NOT NULL,
    revision integer NOT NULL,
    hash     text    NOT NULL,
    record   json    NOT NULL,
    PRIMARY KEY (kind, name)
);

CREATE TABLE runs (
    run_id    text    PRIMARY KEY,
    sequence  bigint  GENERATED ALWAYS AS IDENTITY,
    pipeline  text    NOT NULL,
    -- One cause, one run.
    cause_key text    NOT NULL UNIQUE,
    record    json    NOT NULL
);
CREATE INDEX runs_by_pipeline ON runs (pipeline, sequence DESC);

CREATE TABLE versions (
    pipeline text    NOT NULL,
    version  integer NOT NULL,
    -- One run, one version.
    run_id   text    NOT NULL UNIQUE REFERENCES runs,
    stage    text    NOT NULL,
    record   json    NOT NULL,
    PRIMARY KEY (pipeline, version)
);

-- The row of a pipeline; its history lies beside it.
CREATE TABLE deployments (
    pipeline      text   PRIMARY KEY,
    record        json   NOT NULL,
    -- The rollout under way; null without a challenger.
    rollout       json,
    -- Newest event time at which evidence was weighed: the clock of changes that name none.
    event_time_us bigint NOT NULL
);

CREATE TABLE deployment_history (
    pipeline text    NOT NULL,
    revision integer NOT NULL,
    record   json    NOT NULL,
    PRIMARY KEY (pipeline, revision)
);

CREATE TABLE alias_history (
    id       bigint  GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pipeline text    NOT NULL,
    alias    text    NOT NULL,
    -- 0: the alias names no version any more.
    version  integer NOT NULL,
    at_us    bigint  NOT NULL,
    actor    text    NOT NULL,
    reason   text    NOT NULL
);
CREATE INDEX alias_history_by_pipeline ON alias_history (pipeline, alias, id);

CREATE TABLE audit (
    sequence bigint PRIMARY KEY,
    object   text   NOT NULL,
    hash     text   NOT NULL,
    record   json   NOT NULL
);
CREATE INDEX audit_by_object ON audit (object, sequence);

-- One row: locked while a transaction links its acts to the chain, so that sequences have no gap.
CREATE TABLE audit_head (
    one      boolean PRIMARY KEY DEFAULT true CHECK (one),
    sequence bigint  NOT NULL,
    hash     text    NOT NULL
);
INSERT INTO audit_head (sequence, hash)
VALUES (0, 'sha256:0000000000000000000000000000000000000000000000000000000000000000');
