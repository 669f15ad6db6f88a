"""Monitoring's tables in PostgreSQL: created where missing, under an advisory lock."""

from typing import Any

from tidemill_runtime.outbox import OutboxTable

OUTBOX = OutboxTable("monitoring")
_LOCK = "monitoring.schema"

_DDL = """
CREATE TABLE IF NOT EXISTS monitoring.prediction (
    pipeline text COLLATE "C" NOT NULL,
    prediction_id text COLLATE "C" NOT NULL,
    join_key text COLLATE "C" NOT NULL,
    as_of_us bigint NOT NULL,
    scores bytea NOT NULL,
    -- The PredictionRecord as it was logged; already dense, so compressing it again would only cost time.
    record bytea NOT NULL,
    PRIMARY KEY (pipeline, prediction_id)
);
ALTER TABLE monitoring.prediction ALTER COLUMN record SET STORAGE EXTERNAL;
CREATE INDEX IF NOT EXISTS prediction_key ON monitoring.prediction (pipeline, join_key);
CREATE INDEX IF NOT EXISTS prediction_as_of ON monitoring.prediction (as_of_us, prediction_id);

CREATE TABLE IF NOT EXISTS monitoring.label (
    pipeline text COLLATE "C" NOT NULL,
    join_key text COLLATE "C" NOT NULL,
    -- (source, id) of the event: the same event again is no correction, whatever its offset.
    identity text COLLATE "C" NOT NULL,
    value double precision NOT NULL,
    label_time_us bigint NOT NULL,
    ready_us bigint NOT NULL,
    -- The oldest as_of that this label may still answer.
    earliest_us bigint NOT NULL,
    arrival bigint GENERATED ALWAYS AS IDENTITY,
    PRIMARY KEY (pipeline, join_key, identity)
);
CREATE INDEX IF NOT EXISTS label_time ON monitoring.label (label_time_us);

CREATE TABLE IF NOT EXISTS monitoring.outcome (
    pipeline text COLLATE "C" NOT NULL,
    prediction_id text COLLATE "C" NOT NULL,
    revision integer NOT NULL,
    state smallint NOT NULL,
    label double precision,
    label_time_us bigint NOT NULL,
    -- The evaluation it counts in; null for later revisions, which count in none.
    tick_us bigint,
    scores bytea NOT NULL,
    -- Order of publication; one writer gives it out without gaps.
    seq bigint NOT NULL,
    PRIMARY KEY (pipeline, prediction_id, revision)
);
CREATE INDEX IF NOT EXISTS outcome_tick
    ON monitoring.outcome (tick_us, label_time_us, prediction_id) WHERE tick_us IS NOT NULL;
CREATE INDEX IF NOT EXISTS outcome_seq ON monitoring.outcome USING brin (seq) WITH (pages_per_range = 8);

CREATE TABLE IF NOT EXISTS monitoring.journal (
    seq bigint PRIMARY KEY,
    topic text NOT NULL,
    key bytea,
    value bytea NOT NULL,
    headers jsonb NOT NULL
);

CREATE TABLE IF NOT EXISTS monitoring.position (
    topic text NOT NULL,
    partition integer NOT NULL,
    next_offset bigint NOT NULL,
    newest_us bigint,
    PRIMARY KEY (topic, partition)
) WITH (fillfactor = 40);

-- The id that Kafka gave a topic, of which the positions are.
CREATE TABLE IF NOT EXISTS monitoring.topic (
    topic text PRIMARY KEY,
    id bytea NOT NULL
);

CREATE TABLE IF NOT EXISTS monitoring.published (
    topic text NOT NULL,
    partition integer NOT NULL,
    next_offset bigint NOT NULL,
    PRIMARY KEY (topic, partition)
) WITH (fillfactor = 40);

CREATE TABLE IF NOT EXISTS monitoring.writer (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    next_seq bigint NOT NULL,
    published_seq bigint NOT NULL
) WITH (fillfactor = 40);
INSERT INTO monitoring.writer (next_seq, published_seq) VALUES (1, 0) ON CONFLICT DO NOTHING;

CREATE TABLE IF NOT EXISTS monitoring.pipeline (
    pipeline text COLLATE "C" PRIMARY KEY,
    last_tick_us bigint NOT NULL,
    -- What an earlier release reads in place of swept_us, and kept as a deadline; with that instant it looks again.
    sweep_from_us bigint NOT NULL,
    predictions bigint NOT NULL,
    joined bigint NOT NULL,
    never bigint NOT NULL,
    corrected bigint NOT NULL,
    champion_since_us bigint
) WITH (fillfactor = 40);
-- Predictions asked before this have been looked at for NEVER.
ALTER TABLE monitoring.pipeline ADD COLUMN IF NOT EXISTS swept_us bigint;

-- Event times before which a pipeline's rows may be deleted.
CREATE TABLE IF NOT EXISTS monitoring.retention (
    pipeline text COLLATE "C" PRIMARY KEY,
    predictions_us bigint NOT NULL,
    labels_us bigint NOT NULL,
    outcomes_us bigint NOT NULL
);

CREATE TABLE IF NOT EXISTS monitoring.snapshot (
    pipeline text COLLATE "C" PRIMARY KEY,
    tick_us bigint NOT NULL,
    state jsonb NOT NULL
);

CREATE TABLE IF NOT EXISTS monitoring.metric (
    pipeline text COLLATE "C" NOT NULL,
    model_version integer NOT NULL,
    kind text NOT NULL,
    window_end_us bigint NOT NULL,
    record bytea NOT NULL,
    PRIMARY KEY (pipeline, window_end_us, kind, model_version)
);

CREATE TABLE IF NOT EXISTS monitoring.incident (
    incident_id text PRIMARY KEY,
    pipeline text COLLATE "C" NOT NULL,
    status text NOT NULL,
    detected_us bigint NOT NULL,
    record bytea NOT NULL
);
CREATE INDEX IF NOT EXISTS incident_time ON monitoring.incident (pipeline, detected_us);

CREATE TABLE IF NOT EXISTS monitoring.decision (
    cause_key text PRIMARY KEY,
    pipeline text COLLATE "C" NOT NULL,
    cause_kind text NOT NULL,
    cause_id text NOT NULL,
    outcome text NOT NULL,
    event_time_us bigint NOT NULL,
    due_us bigint NOT NULL,
    reason text NOT NULL,
    -- The RetrainRequest, where the outcome is one.
    record bytea
);
CREATE INDEX IF NOT EXISTS decision_time ON monitoring.decision (pipeline, event_time_us);
"""


async def create_tables(connection: Any) -> None:
    """Create the schema where it is missing; replicas that start together do it one after the other."""
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", _LOCK)
        await connection.execute("CREATE SCHEMA IF NOT EXISTS monitoring")
        await connection.execute(_DDL)
        await connection.execute(OUTBOX.ddl())
