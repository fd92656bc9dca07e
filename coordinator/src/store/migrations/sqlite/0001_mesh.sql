-- Only what SQLite and PostgreSQL both take, apart from the AUTOINCREMENT: numbers of users are never given twice.

-- One row: what holds for the whole mesh.
CREATE TABLE mesh (
    id BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
    network_id TEXT NOT NULL,
    ipv4_pool TEXT NOT NULL,
    -- Offset in the pool of the first IPv4 address that was never given out.
    ipv4_next BIGINT NOT NULL,
    epoch BIGINT NOT NULL
);

CREATE TABLE users (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    created_at_ms BIGINT NOT NULL
);

CREATE TABLE auth_keys (
    prefix TEXT NOT NULL PRIMARY KEY,
    hash TEXT NOT NULL,
    user_id BIGINT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    is_reusable BIGINT NOT NULL,
    is_ephemeral BIGINT NOT NULL,
    tags TEXT NOT NULL,
    n_uses BIGINT NOT NULL DEFAULT 0,
    created_at_ms BIGINT NOT NULL,
    expires_at_ms BIGINT NOT NULL,
    is_revoked BIGINT NOT NULL DEFAULT 0
);

CREATE TABLE nodes (
    id TEXT NOT NULL PRIMARY KEY,
    machine_key TEXT NOT NULL UNIQUE,
    node_key TEXT NOT NULL UNIQUE,
    node_key_signature TEXT NOT NULL,
    name TEXT NOT NULL UNIQUE,
    user_id BIGINT NOT NULL REFERENCES users (id),
    tags TEXT NOT NULL,
    ipv4 TEXT NOT NULL UNIQUE,
    os TEXT NOT NULL,
    version TEXT NOT NULL,
    is_ephemeral BIGINT NOT NULL,
    created_at_ms BIGINT NOT NULL,
    expires_at_ms BIGINT,
    last_seen_ms BIGINT,
    was_online BIGINT NOT NULL DEFAULT 0,
    endpoints TEXT NOT NULL DEFAULT '[]',
    offers TEXT NOT NULL DEFAULT '{}'
);
CREATE INDEX nodes_by_user ON nodes (user_id);

CREATE TABLE api_keys (
    prefix TEXT NOT NULL PRIMARY KEY,
    hash TEXT NOT NULL,
    created_at_ms BIGINT NOT NULL,
    expires_at_ms BIGINT NOT NULL,
    last_used_ms BIGINT
);
