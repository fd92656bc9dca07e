-- Models that users would like somebody to share.
CREATE TABLE wants (
    user_id INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    model TEXT NOT NULL,
    asked_at_ms BIGINT NOT NULL,
    PRIMARY KEY (user_id, model)
);
