#!/usr/bin/env python3
"""The README's table of everhook beside others, made from a run of a benchmark and never typed.

  table.py take RUN.json NAME=VERSION…   keep a run's result in run.json, with date, kernel and processors
  table.py write                         write the table of run.json into the README
  table.py check                         does the README have exactly that?

RUN.json holds, for each name, what was measured; `ROWS` says under which keys."""
import datetime
import difflib
import json
import os
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
RUN = HERE / "run.json"
README = HERE.parent.parent / "README.md"
BEGIN, END = "<!-- made by benches/peers/table.py -->\n", "<!-- end of what table.py makes -->\n"

# In this order; who was not measured has no column.
NAMES = {"floor": "floor", "everhook": "everhook", "s6": "s6", "runit": "runit", "supervisord": "supervisord",
         "pm2": "PM2", "forever": "forever"}
APPS = (1, 100, 1000)
# What stands in a row, the key of it, with {n} for so many apps, and by what it is divided.
ROWS = [
    ("start until all run, {apps} (s)", "start_s_{n}", 1),
    ("memory of its own processes, {apps} (PSS, MiB)", "pss_kib_{n}", 1024),
    ("kill to the next process running, {apps}, median (ms)", "restart_ms_{n}.p50", 1),
    ("the same, {apps}, 99th percentile (ms)", "restart_ms_{n}.p99", 1),
    ("the same of an app that was restarted just now, {apps}, median (ms)", "restart_again_at_once_ms_p50_{n}", 1),
    ("processor time while idle, {apps} (s in 10 s)", "idle_cpu_s_per_10s_{n}", 1),
    ("log capture of one writer (MB/s)", "log_mb_s", 1),
    ("processor time of that, the logger's side (s per GiB)", "log_cpu_s_per_gib", 1),
]


def take(path, versions):
    results = json.loads(pathlib.Path(path).read_text())
    wrong = sorted(set(results) - set(NAMES)) + [f"{name}'s {key}: {value}" for name, result in results.items()
                                                 for key, value in result.items() if key.startswith("error")]
    if wrong:
        raise SystemExit(f"table.py: cannot be told of: {', '.join(wrong)}")
    named = dict(version.split("=", 1) for version in versions)
    if set(named) != set(results) - {"floor"}:
        raise SystemExit(f"table.py: a version for each of {', '.join(results)} but the floor, and nobody else")
    run = {"date": datetime.date.today().isoformat(), "kernel": os.uname().release.split("-")[0], "processors": os.cpu_count(),
           "versions": named, "results": results}
    RUN.write_text(json.dumps(run, indent=1, sort_keys=True) + "\n")


def found(result, key):
    for part in key.split("."):
        result = result.get(part) if isinstance(result, dict) else None
    return result


def shown(value):
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table():
    run = json.loads(RUN.read_text())
    names = [name for name in NAMES if name in run["results"]]
    lines = ["| | " + " | ".join(NAMES[name] for name in names) + " |", "|---" * (len(names) + 1) + "|"]
    for label, key, divisor in ROWS:
        for n in APPS if "{n}" in key else APPS[:1]:
            values = [found(run["results"][name], key.format(n=n)) for name in names]
            if any(value is not None for value in values):
                label_n = label.format(apps=f"{n:,} app{'s' if n > 1 else ''}")
                cells = [shown(None if value is None else value / divisor) for value in values]
                lines.append(f"| {label_n} | " + " | ".join(cells) + " |")
    versions = ", ".join(f"{NAMES[name]} {run['versions'][name]}" for name in names if name in run["versions"])
    made = f"Measured on {run['date']}, Linux {run['kernel']}, {run['processors']} processors: {versions}."
    return "\n".join(lines) + f"\n\n{made}\n"


def written(readme):
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"table.py: {README} has no place for the table, between {BEGIN.strip()} and {END.strip()}")
    return before + begin + table() + end + after


def main(verb="", *rest):
    if verb == "take" and rest:
        return take(rest[0], rest[1:])
    if verb not in ("write", "check") or rest:
        raise SystemExit(__doc__)
    readme = README.read_text()
    new = written(readme)
    if verb == "write":
        README.write_text(new)
    elif new != readme:
        sys.stdout.writelines(difflib.unified_diff(readme.splitlines(True), new.splitlines(True), "README.md", "run.json"))
        raise SystemExit("table.py: the table of the README is not that of run.json: run `benches/peers/table.py write`")


main(*sys.argv[1:])
