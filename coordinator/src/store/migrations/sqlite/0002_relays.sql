-- Relays that stand alone. Until it has come by its key, a relay has no machine key and is in nobody's map.
CREATE TABLE relays (
    name TEXT NOT NULL PRIMARY KEY,
    machine_key TEXT UNIQUE,
    urls TEXT NOT NULL DEFAULT '[]',
    stun TEXT NOT NULL DEFAULT '[]',
    created_at_ms BIGINT NOT NULL,
    -- The key by which it may come, emptied when it has.
    key_prefix TEXT UNIQUE,
    key_hash TEXT,
    key_expires_at_ms BIGINT
);
