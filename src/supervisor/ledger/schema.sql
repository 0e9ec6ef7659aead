-- Moments are milliseconds since 1970 UTC, states the words of SURFACE.md section 3.

CREATE TABLE deliveries (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    sender_id TEXT,
    at INTEGER NOT NULL,
    app TEXT,
    dialect TEXT,
    event TEXT,
    ref TEXT,
    "commit" TEXT,
    sender TEXT,
    address TEXT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT,
    duplicate_of INTEGER
) STRICT;
CREATE INDEX deliveries_refused ON deliveries (id) WHERE state = 'refused';
CREATE INDEX deliveries_sender ON deliveries (sender_id) WHERE state = 'accepted';

-- The apps that a delivery is about.
CREATE TABLE delivery_apps (
    delivery INTEGER NOT NULL REFERENCES deliveries (id) ON DELETE CASCADE,
    app TEXT NOT NULL,
    PRIMARY KEY (delivery, app)
) STRICT, WITHOUT ROWID;

-- The exact bytes of accepted deliveries.
CREATE TABLE bodies (
    delivery INTEGER PRIMARY KEY REFERENCES deliveries (id) ON DELETE CASCADE,
    body BLOB NOT NULL
) STRICT;
CREATE INDEX bodies_large ON bodies (delivery) WHERE length(body) > 65536;

CREATE TABLE deploys (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    app TEXT NOT NULL,
    state TEXT NOT NULL,
    step TEXT,
    reason TEXT,
    "commit" TEXT,
    previous_commit TEXT,
    ref TEXT,
    rev TEXT,
    subject TEXT,
    author TEXT,
    by TEXT NOT NULL,
    -- Where `by` is a delivery; deliveries may be gone before their deploys.
    delivery INTEGER,
    release TEXT,
    superseded_by INTEGER,
    queued_at INTEGER NOT NULL,
    started_at INTEGER,
    ended_at INTEGER,
    attempts INTEGER NOT NULL
) STRICT;
CREATE INDEX deploys_app ON deploys (app, id);
CREATE INDEX deploys_delivery ON deploys (delivery) WHERE delivery IS NOT NULL;
CREATE INDEX deploys_unfinished ON deploys (id)
    WHERE state NOT IN ('live', 'failed', 'rolled_back', 'superseded', 'cancelled', 'skipped');

CREATE TABLE steps (
    deploy INTEGER NOT NULL REFERENCES deploys (id) ON DELETE CASCADE,
    number INTEGER NOT NULL,
    name TEXT NOT NULL,
    command TEXT,
    state TEXT NOT NULL,
    duration_s REAL,
    exited INTEGER NOT NULL,
    code INTEGER,
    signal INTEGER,
    PRIMARY KEY (deploy, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    app TEXT,
    instance TEXT,
    kind TEXT NOT NULL,
    "from" TEXT,
    "to" TEXT,
    cause TEXT,
    detail TEXT
) STRICT;
CREATE INDEX events_app ON events (app, id);

CREATE TABLE audit (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    by TEXT NOT NULL,
    address TEXT,
    action TEXT NOT NULL,
    app TEXT,
    outcome TEXT NOT NULL,
    reason TEXT
) STRICT;
