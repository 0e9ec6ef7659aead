//! Capture of apps' output beside `writer | cat > file`, in one run: `cargo bench --bench logs`.
//!
//! The writers are the same in both worlds and tell themselves how long it took them. The worlds take
//! turns, and the median of the turns' ratios counts, so that a busy machine is busy for both.
#![allow(clippy::unwrap_used)]

mod programs;

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use nix::{
    sys::{
        signal::{Signal, kill},
        stat::Mode,
    },
    unistd::{Pid, mkfifo},
};
use programs::{Programs, folder};

/// Turns of each world.
const ROUNDS: usize = 7;
/// What one writer writes, and how much at a time; more than is kept, so that files go too.
const FLOOD: Load = Load { writers: 1, bytes: 1 << 30, chunk: 65_500, rate: 0 };
/// 100 writers of 1 MB/s in writes of 10 KB, for ten seconds.
const MANY: Load = Load { writers: 100, bytes: 10_000_000, chunk: 10_000, rate: 1_000_000 };

fn main() {
    // `cargo test --benches` only builds.
    if std::env::args().any(|arg| arg == "--test") {
        return;
    }
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let wants = |name: &str| wanted.is_empty() || wanted.iter().any(|w| name.contains(w.as_str()));
    let programs = Programs::compile(&[("writer", &["-static"])]);
    if wants("one") {
        let pairs = turns(&programs, &FLOOD, "");
        row("one writer, raw, 50 MiB a file, 10 kept: GB/s", &pairs, Cost::speed, "at least 0.9");
        row("the same: CPU seconds", &pairs, Cost::seconds, "at most 1.2");
    }
    if wants("many") {
        row("100 writers of 1 MB/s, 10 s: CPU seconds", &turns(&programs, &MANY, ""), Cost::seconds, "at most 1");
    }
    for (name, form) in [("stamp", "stamp: Rfc3339"), ("json", "format: Json")] {
        if wants(name) {
            let pairs = turns(&programs, &FLOOD, form);
            row(&format!("one writer, {form}: GB/s"), &pairs, Cost::speed, "no limit");
        }
    }
}

/// What is written.
struct Load {
    writers: usize,
    bytes: u64,
    chunk: u64,
    /// Bytes a second of each; 0: all that goes.
    rate: u64,
}

/// What it cost, in ns: the longest writer's time, and processor time of whoever captured.
struct Cost {
    bytes: f64,
    longest: f64,
    cpu: f64,
}

impl Cost {
    /// Of one writer, in GB/s.
    fn speed(&self) -> f64 {
        self.bytes / self.longest
    }

    fn seconds(&self) -> f64 {
        self.cpu / 1e9
    }
}

/// The cost of everhook and of cat, in turns.
fn turns(programs: &Programs, load: &Load, logs: &str) -> Vec<(Cost, Cost)> {
    (0..ROUNDS).map(|_| (everhook(programs, load, logs), cats(programs, load))).collect()
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// Both medians, and that of the ratios of turns.
fn row(what: &str, pairs: &[(Cost, Cost)], of: impl Fn(&Cost) -> f64, limit: &str) {
    let ours = median(pairs.iter().map(|(ours, _)| of(ours)).collect());
    let floor = median(pairs.iter().map(|(_, floor)| of(floor)).collect());
    let ratio = median(pairs.iter().map(|(ours, floor)| of(ours) / of(floor)).collect());
    println!("{what:<52} {ours:>8.3}  cat {floor:>8.3}  ratio {ratio:>5.2}  ({limit})");
}

/// The words that have a writer write.
fn words(programs: &Programs, stage: &Stage, load: &Load) -> Vec<String> {
    let path = |path: PathBuf| path.display().to_string();
    let numbers = [load.bytes, load.chunk, load.rate].map(|number| number.to_string());
    let paths = [programs.path("writer"), stage.path("gate"), stage.path("told")].map(path);
    paths.into_iter().chain(numbers).collect()
}

/// A folder with the gate at which writers wait, and a FIFO for what they tell.
struct Stage {
    dir: tempfile::TempDir,
    told: BufReader<File>,
}

impl Stage {
    fn new() -> Self {
        let dir = folder();
        for name in ["gate", "told"] {
            mkfifo(&dir.path().join(name), Mode::from_bits_truncate(0o666)).unwrap();
            fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(0o666)).unwrap();
        }
        let told = BufReader::new(File::options().read(true).write(true).open(dir.path().join("told")).unwrap());
        Self { dir, told }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Lets the writers begin; the cost when the last one has ended.
    fn run(&mut self, load: &Load, cpu: impl Fn() -> u64) -> Cost {
        let mut next = || {
            let mut line = String::new();
            self.told.read_line(&mut line).unwrap();
            line.trim().to_owned()
        };
        for _ in 0..load.writers {
            assert_eq!(next(), "here");
        }
        // Until nobody is busy.
        thread::sleep(Duration::from_secs(1));
        let before = cpu();
        let gate = File::options().read(true).write(true).open(self.dir.path().join("gate")).unwrap();
        let longest = (0..load.writers).map(|_| next().parse::<u64>().unwrap()).max().unwrap();
        drop(gate);
        // What is in the pipes still.
        thread::sleep(Duration::from_millis(200));
        Cost { bytes: load.bytes as f64, longest: longest as f64, cpu: (cpu() - before) as f64 }
    }
}

/// Processor time of all threads of a process, in ns.
fn cpu_of(pid: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let stats = tasks.filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok());
    stats.map(|stat| stat.split(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

fn cats(programs: &Programs, load: &Load) -> Cost {
    let mut stage = Stage::new();
    let words = words(programs, &stage, load);
    let mut children: Vec<(Child, Child)> = (0..load.writers)
        .map(|n| {
            let mut source =
                Command::new(&words[0]).args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
            let out = File::create(stage.path(&format!("{n}.log"))).unwrap();
            let cat = Command::new("cat").stdin(source.stdout.take().unwrap()).stdout(out).spawn().unwrap();
            (source, cat)
        })
        .collect();
    let pids: Vec<u32> = children.iter().map(|(_, cat)| cat.id()).collect();
    // One that has ended is there until it is waited for.
    let cost = stage.run(load, || pids.iter().map(|pid| cpu_of(*pid)).sum());
    for (source, cat) in &mut children {
        source.wait().unwrap();
        cat.wait().unwrap();
    }
    cost
}

fn everhook(programs: &Programs, load: &Load, logs: &str) -> Cost {
    let mut stage = Stage::new();
    let words = words(programs, &stage, load);
    let apps: String = (0..load.writers).map(|n| format!("\"a{n}\": (command: {words:?}),\n")).collect();
    let dir = stage.dir.path().display();
    let config = format!(
        "(state_dir: \"{dir}/state\", log: (level: \"error\"),\n\
         defaults: (ready: Immediate, restart: (policy: Never), logs: ({logs})), apps: {{\n{apps}}})"
    );
    fs::write(stage.path("supervisor.ron"), config).unwrap();
    let binary = env!("CARGO_BIN_EXE_everhook");
    let out = File::create(stage.path("out")).unwrap();
    let mut server = Command::new(binary);
    server.args(["run", "--config"]).arg(stage.path("supervisor.ron")).stdin(Stdio::null());
    let mut server = server.stdout(out.try_clone().unwrap()).stderr(out).spawn().unwrap();
    let logger = loop {
        let status =
            Command::new(binary).args(["status", "--json", "--config"]).arg(stage.path("supervisor.ron")).output();
        let status: serde_json::Value = serde_json::from_slice(&status.unwrap().stdout).unwrap_or_default();
        if let Some(pid) = status["supervisor"]["logger"]["pid"].as_u64() {
            break u32::try_from(pid).unwrap();
        }
        assert!(server.try_wait().unwrap().is_none(), "{}", fs::read_to_string(stage.path("out")).unwrap());
    };
    let supervisor = server.id();
    let cost = stage.run(load, || cpu_of(supervisor) + cpu_of(logger));
    kill(Pid::from_raw(supervisor.cast_signed()), Signal::SIGTERM).unwrap();
    server.wait().unwrap();
    cost
}
