-- What `token create` made. `hash` is the SHA-256 of the token, which is nowhere; `role`, `apps` and `by` are JSON.
CREATE TABLE tokens (
    name TEXT PRIMARY KEY,
    hash BLOB NOT NULL,
    role TEXT NOT NULL,
    apps TEXT,
    by TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER
) STRICT, WITHOUT ROWID;

CREATE INDEX audit_strangers ON audit (id) WHERE by = '{"kind":"nobody"}';
