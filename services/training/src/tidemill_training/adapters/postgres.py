"""Training's schema in PostgreSQL."""

from typing import Any

SCHEMA = "training"
# Any constant that is nobody else's.
_LOCK_SCHEMA = 0x7469646574726101
_DDL = f"""
CREATE SCHEMA IF NOT EXISTS {SCHEMA};
-- One row per record of the topic that was accepted: a redelivery changes nothing.
CREATE TABLE IF NOT EXISTS {SCHEMA}.requests (
    topic     text    NOT NULL,
    partition integer NOT NULL,
    "offset"  bigint  NOT NULL,
    cause_key text    NOT NULL,
    PRIMARY KEY (topic, partition, "offset")
);
-- One row per cause: what is to be done, and where it stands.
CREATE TABLE IF NOT EXISTS {SCHEMA}.runs (
    cause_key     text    PRIMARY KEY,
    sequence      bigint  GENERATED ALWAYS AS IDENTITY,
    pipeline      text    NOT NULL,
    request       json    NOT NULL,
    -- The request's positions are complete: every attempt reads the same records.
    fixed         boolean NOT NULL DEFAULT false,
    run_id        text    UNIQUE,
    attempts      integer NOT NULL DEFAULT 0,
    cancel_reason text,
    -- "open", then "succeeded", "failed" or "cancelled".
    state         text    NOT NULL DEFAULT 'open',
    -- The newest RunRecord.
    record        json
);
-- How the last attempt ended early; absent where nobody saw it.
ALTER TABLE {SCHEMA}.runs ADD COLUMN IF NOT EXISTS early_end text;
-- The line by which the run's process answered, until the run has ended.
ALTER TABLE {SCHEMA}.runs ADD COLUMN IF NOT EXISTS answer bytea;
CREATE INDEX IF NOT EXISTS open_runs ON {SCHEMA}.runs (sequence) WHERE state = 'open';
"""


async def create_tables(connection: Any) -> None:
    """Make the schema where it is missing."""
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK_SCHEMA)
        await connection.execute(_DDL)
