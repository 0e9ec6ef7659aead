-- What waits to be told to a forge, as JSON: the newest word about each commit.
CREATE TABLE outbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    app TEXT NOT NULL,
    "commit" TEXT NOT NULL,
    status TEXT NOT NULL,
    -- How long it was put off after failures.
    waited_s INTEGER NOT NULL,
    UNIQUE (app, "commit")
) STRICT;
