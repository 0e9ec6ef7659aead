//! Restarts, starts and memory beside the floor of the machine, in one run: `cargo bench --bench supervision`.
//!
//! The floor is a loop of posix_spawn and wait that does only that. Both worlds stand side by side and
//! take turns, so that a busy machine is busy for both.
#![allow(clippy::unwrap_used)]

mod programs;

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::{
        signal::{Signal, kill},
        stat::Mode,
    },
    unistd::{Pid, mkfifo},
};
use programs::{Programs, folder, now};

fn main() {
    // `cargo test --benches` only builds.
    if std::env::args().any(|arg| arg == "--test") {
        return;
    }
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let wants = |name: &str| wanted.is_empty() || wanted.iter().any(|w| name.contains(w.as_str()));
    let programs = Programs::compile(&[("probe", &["-static"]), ("floor", &["-static"])]);
    for count in [1, 100, 1000] {
        if wants("kill") {
            kill_to_running(&programs, count);
        }
    }
    if wants("start") {
        start(&programs, 1000);
    }
    if wants("memory") {
        memory(&programs);
    }
    if wants("flood") {
        beside_a_flood(&programs);
    }
    if wants("crash") {
        crash_loop(&programs);
    }
}

/// A supervisor with its programs.
struct World {
    dir: tempfile::TempDir,
    child: Child,
    lines: BufReader<File>,
    pids: HashMap<String, i32>,
    begun: u64,
}

impl World {
    fn floor(programs: &Programs, count: usize) -> Self {
        Self::new(|dir| {
            let mut command = Command::new(programs.path("floor"));
            command.arg(count.to_string()).arg(programs.path("probe")).arg(dir.join("told"));
            command
        })
    }

    /// `more`: apps of another kind, as in the config.
    fn everhook(programs: &Programs, count: usize, more: &str) -> Self {
        Self::new(|dir| {
            let (probe, told) = (programs.path("probe"), dir.join("told"));
            let told = told.display();
            let probe = probe.display();
            let apps: String =
                (0..count).map(|n| format!("\"a{n}\": (command: [\"{probe}\", \"a{n}\", \"{told}\"]),\n")).collect();
            let more = more.replace("PROBE", &probe.to_string()).replace("TOLD", &told.to_string());
            let config = format!(
                "(state_dir: \"{dir}/state\", http: [(bind: \"127.0.0.1:0\", serve: [Hooks])], log: (level: \"error\"),\n\
                 defaults: (ready: Immediate, restart: (first: \"0s\", factor: 1.0, jitter: 0.0, give_up: (restarts: 1000000, within: \"1s\"))),\n\
                 apps: {{\n{apps}{more}}})",
                dir = dir.display()
            );
            fs::write(dir.join("supervisor.ron"), config).unwrap();
            let mut command = Command::new(env!("CARGO_BIN_EXE_everhook"));
            command.arg("run").arg("--config").arg(dir.join("supervisor.ron"));
            command
        })
    }

    fn new(command: impl FnOnce(&Path) -> Command) -> Self {
        let dir = folder();
        let told = dir.path().join("told");
        mkfifo(&told, Mode::from_bits_truncate(0o666)).unwrap();
        fs::set_permissions(&told, fs::Permissions::from_mode(0o666)).unwrap();
        let lines = BufReader::new(File::options().read(true).write(true).open(&told).unwrap());
        let mut command = command(dir.path());
        let out = File::create(dir.path().join("out")).unwrap();
        command.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out);
        let begun = now();
        let child = command.spawn().unwrap();
        Self { dir, child, lines, pids: HashMap::new(), begun }
    }

    /// The next program that says it runs: its name, and when that was.
    fn next(&mut self) -> (String, u64) {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        let mut words = line.split_whitespace();
        let name = words.next().unwrap().to_owned();
        self.pids.insert(name.clone(), words.next().unwrap().parse().unwrap());
        (name, words.next().unwrap().parse().unwrap())
    }

    /// Time until `count` programs ran, in ns.
    fn all(&mut self, count: usize) -> u64 {
        let mut last = 0;
        while self.pids.len() < count {
            last = self.next().1;
        }
        last - self.begun
    }

    /// Kills one and waits for the next of its name; ns from one to the other.
    fn restart(&mut self, name: &str) -> u64 {
        let begun = now();
        kill(Pid::from_raw(self.pids[name]), Signal::SIGKILL).unwrap();
        loop {
            let (who, at) = self.next();
            if who == name {
                return at - begun;
            }
        }
    }

    /// Proportional set size of the supervisor's own processes, in KiB.
    fn pss(&self) -> u64 {
        let mut own = vec![self.child.id()];
        own.extend(children(self.child.id()).into_iter().filter(|pid| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| !name.starts_with("probe"))
        }));
        own.iter().map(|pid| field(&format!("/proc/{pid}/smaps_rollup"), "Pss:")).sum()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        // Its logger lives on where it is killed.
        for _ in 0..300 {
            if self.child.try_wait().unwrap().is_some() {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        for pid in self.pids.values() {
            let mine = fs::read_to_string(format!("/proc/{pid}/cmdline"));
            if mine.is_ok_and(|line| line.contains(self.dir.path().to_str().unwrap())) {
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
        }
    }
}

fn children(of: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{of}/task")).unwrap().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<u32>>()).collect()
}

fn field(file: &str, name: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or(0)
}

fn percentile(times: &mut [u64], share: f64) -> f64 {
    times.sort_unstable();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let place = ((times.len() - 1) as f64 * share) as usize;
    #[allow(clippy::cast_precision_loss)]
    let ms = times[place] as f64 / 1e6;
    ms
}

fn row(what: &str, ours: f64, floor: f64, unit: &str, limit: f64) {
    println!(
        "{what:<54} {ours:>9.3} {unit:<4} floor {floor:>9.3} {unit:<4} ratio {:>6.2}  (at most {limit})",
        ours / floor
    );
}

fn kill_to_running(programs: &Programs, count: usize) {
    let mut floor = World::floor(programs, count);
    let mut ours = World::everhook(programs, count, "");
    floor.all(count);
    ours.all(count);
    let (mut low, mut high) = (Vec::new(), Vec::new());
    for turn in 0..210 {
        let name = format!("a{}", (turn * 37) % count);
        // The machine is idle between two kills, as a server is between two crashes.
        std::thread::sleep(Duration::from_millis(5));
        let one = floor.restart(&name);
        std::thread::sleep(Duration::from_millis(5));
        let other = ours.restart(&name);
        if turn >= 10 {
            low.push(one);
            high.push(other);
        }
    }
    let what = format!("kill to running, {count} instances");
    row(&format!("{what}, p50"), percentile(&mut high, 0.5), percentile(&mut low, 0.5), "ms", 1.2);
    row(&format!("{what}, p90"), percentile(&mut high, 0.9), percentile(&mut low, 0.9), "ms", f64::NAN);
}

fn start(programs: &Programs, count: usize) {
    let (mut low, mut high) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        low.push(World::floor(programs, count).all(count));
        high.push(World::everhook(programs, count, "").all(count));
    }
    let what = format!("start of {count} instances, median");
    row(&what, percentile(&mut high, 0.5), percentile(&mut low, 0.5), "ms", 1.75);
}

fn memory(programs: &Programs) {
    let sizes = [1, 100, 1000].map(|count| {
        let mut world = World::everhook(programs, count, "");
        world.all(count);
        std::thread::sleep(Duration::from_secs(1));
        let size = world.pss();
        println!("{:<54} {size:>9} KiB", format!("memory (PSS) of all own processes, {count} instances"));
        size
    });
    println!("{:<54} {:>9.2} KiB  (at most 3)", "each further instance", (sizes[2] - sizes[0]) as f64 / 999.0);
}

/// A program that floods, and one that writes what it says to a file.
struct Flood([Child; 2]);

impl Flood {
    /// In the folder of this world, which hears that it runs.
    fn beside(world: &mut World, programs: &Programs) -> Self {
        let (dir, probe) = (world.dir.path(), programs.path("probe"));
        let mut writer = Command::new(probe);
        writer.arg("flood").arg(dir.join("told")).arg("flood").stdin(Stdio::null()).stdout(Stdio::piped());
        let mut writer = writer.spawn().unwrap();
        let mut cat = Command::new("cat");
        cat.stdin(writer.stdout.take().unwrap()).stdout(File::create(dir.join("flood")).unwrap());
        let flood = Self([writer, cat.spawn().unwrap()]);
        world.all(2);
        flood
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        for one in &mut self.0 {
            let _ = one.kill();
            let _ = one.wait();
        }
    }
}

fn beside_a_flood(programs: &Programs) {
    let mut quiet = World::everhook(programs, 1, "");
    quiet.all(1);
    let times = |world: &mut World| -> Vec<u64> {
        (0..200)
            .map(|_| {
                std::thread::sleep(Duration::from_millis(5));
                world.restart("a0")
            })
            .collect()
    };
    let mut low = times(&mut quiet);
    drop(quiet);
    let mut floor = World::floor(programs, 1);
    floor.all(1);
    let flood = Flood::beside(&mut floor, programs);
    let mut beside = times(&mut floor);
    drop(flood);
    drop(floor);
    let mut loud = World::everhook(
        programs,
        1,
        "\"flood\": (command: [\"PROBE\", \"flood\", \"TOLD\", \"flood\"], logs: (rotate: \"50MiB\", keep: 3)),",
    );
    loud.all(2);
    let mut high = times(&mut loud);
    let high = percentile(&mut high, 0.9);
    row("restart beside a flooding app, p90 (floor: quiet)", high, percentile(&mut low, 0.9), "ms", 1.5);
    row("the same (floor: beside writer | cat > file)", high, percentile(&mut beside, 0.9), "ms", f64::NAN);
}

fn crash_loop(programs: &Programs) {
    let mut world = World::everhook(programs, 1, "\"crash\": (command: [\"PROBE\", \"crash\", \"TOLD\", \"crash\"]),");
    let begun = Instant::now();
    let mut at_first = (0, 0);
    for n in 0..10_000 {
        while world.next().0 != "crash" {}
        if n == 1_000 {
            at_first = (world.pss(), descriptors(world.child.id()));
        }
    }
    let at_last = (world.pss(), descriptors(world.child.id()));
    println!(
        "10,000 crash-looping restarts in {:.1} s: from the 1,000th on {} to {} KiB, {} to {} descriptors",
        begun.elapsed().as_secs_f64(),
        at_first.0,
        at_last.0,
        at_first.1,
        at_last.1
    );
}

fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}
