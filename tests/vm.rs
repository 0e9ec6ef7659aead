//! As the init of a machine: a virtual one, with a kernel of Debian and everhook as `/init`; and as a unit of
//! systemd, which is `/init` then. It has what a build machine often lacks: cgroup v2 with all controllers, and
//! a power switch. It is emulated, as not every machine that builds may virtualise.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

/// A machine that is still on by then hangs; an emulated one is slow where others build beside it.
const LIMIT: Duration = Duration::from_secs(600);
/// Each emulated machine takes a whole processor: no more than two at a time.
static ROOMS: [Mutex<()>; 2] = [Mutex::new(()), Mutex::new(())];
static NEXT: AtomicUsize = AtomicUsize::new(0);

const CONFIG: &str = r#"(echo: false, apps: {
    "tester": (command: ["sh", "/test.sh"], ready: Immediate, restart: (policy: Never)),
    "db": (command: ["sh", "/leaves.sh", "db"], ready: Immediate),
    "web": (command: ["sh", "/leaves.sh", "web"], ready: Immediate, after: ["db"]),
    "limited": (command: ["sleep", "1000"], ready: Immediate, limits: (memory: "64MiB", cpu: 0.5, tasks: 20)),
    "hog": (command: ["sh", "/hog.sh"], ready: Immediate, limits: (memory: "64MiB"), restart: (first: "1h", max: "1h")),
    "parent": (command: ["sh", "-c", "sh /hog.sh; echo survived; exec sleep 1000"], ready: Immediate, limits: (memory: "64MiB")),
    "orphans": (command: ["sh", "/orphans.sh"], ready: Immediate, enabled: false, restart: (policy: Never)),
})"#;

/// Another config, for who names one to the kernel.
const SMALL: &str = r#"(echo: false, apps: {
    "tester": (command: ["sh", "/small.sh"], ready: Immediate, restart: (policy: Never)),
    "db": (command: ["sh", "/leaves.sh", "db"], ready: Immediate),
    "web": (command: ["sh", "/leaves.sh", "web"], ready: Immediate, after: ["db"]),
})"#;

/// Says what it sees on the console, lines of `VM`, a key and a value.
const TEST: &str = r#"exec > /dev/console 2>&1
until_so() { n=0; until eval "$1"; do n=$((n + 1)); [ $n -lt 600 ] || { echo "VM never $1"; return; }; sleep 0.1; done; }
echo "VM mounts $(awk '{ print $2 "=" $3 }' /proc/mounts | tr '\n' ' ')"
echo "VM ctrl-alt-del $(cat /proc/sys/kernel/ctrl-alt-del)"
group=$(echo /sys/fs/cgroup/*-limited.1)
echo "VM limits $(cat $group/memory.max) $(cat $group/cpu.max) $(cat $group/pids.max)"
json() { everhook "$@" --json | tr -d '\n'; }
until_so 'json status hog | grep -q "\"oom\": *true"'
until_so 'everhook events parent --json | grep -q "out of memory"'
echo "VM parent-events $(everhook events parent --json | grep 'out of memory' | head -n 1)"
sed 's/enabled: false, //' /etc/everhook/supervisor.ron > /new.ron && cat /new.ron > /etc/everhook/supervisor.ron
everhook reload > /dev/null
until_so 'json status orphans | grep -q "\"code\": *7"'
zombies() { grep -l '^State:.Z' /proc/[0-9]*/status 2> /dev/null | wc -l; }
until_so '[ $(zombies) = 0 ]'
echo "VM made $(cat /made)"
echo "VM zombies $(zombies)"
echo "VM status $(json status)"
unit=/sys/fs/cgroup/unit.service && mkdir $unit && mkdir $unit/app $unit/.control
echo '+memory +pids' > $unit/cgroup.subtree_control
enter() { sh -c "echo \$\$ > $1/cgroup.procs && $2" 2> /dev/null; }
enter $unit/app 'exec sleep 1000' &
until_so '[ -n "$(cat $unit/app/cgroup.procs)" ]'
echo "VM before $(enter $unit 'echo free' || echo busy)"
echo "VM release $(enter $unit/.control 'exec everhook cgroup-release')"
echo "VM after $(enter $unit 'echo free' || echo busy)"
echo "VM again $(enter $unit/.control 'exec everhook cgroup-release' && echo ok)"
echo "VM lives $(cat $unit/app/cgroup.procs | wc -l)"
echo "VM warnings $(everhook check | grep -c 'runs without')"
kill -TERM 1
"#;
const SMALL_TEST: &str = r#"exec > /dev/console 2>&1
everhook wait web --for ready -c /other.ron > /dev/null
kill -$(sed 's/.*test=\([A-Z0-9]*\).*/\1/' /proc/cmdline) 1
"#;
/// Whose clock is set.
const CLOCK: &str = r#"(echo: false, apps: {
    "tester": (command: ["sh", "/clock.sh"], ready: Immediate, restart: (policy: Never)),
    "late": (command: ["sleep", "1000"], ready: After("2s")),
    "hourly": (command: ["sh", "-c", "echo ran >> /ran"], schedule: (cron: "0 * * * *", missed: Run)),
    "loops": (command: ["sh", "-c", "date >> /looped; exit 1"], enabled: false,
        restart: (first: "200ms", factor: 1.0, give_up: (restarts: 20, within: "10m"))),
})"#;
const CLOCK_TEST: &str = r#"exec > /dev/console 2>&1
export EVERHOOK_CONFIG=/clock.ron
until_so() { n=0; until eval "$1"; do n=$((n + 1)); [ $n -lt 600 ] || { echo "VM never $1"; return; }; sleep 0.1; done; }
set_to() { date -s "@$1" > /dev/null; }
jump() { set_to $(($(date +%s) + $1)); }
before_the_hour() { set_to $((($(date +%s) / 3600 + 1) * 3600 - 2)); }
runs() { cat /ran 2> /dev/null | wc -l; }
everhook wait late --for ready > /dev/null
everhook restart late --no-wait > /dev/null
jump -3600
everhook wait late --for ready --timeout 60s > /dev/null && echo "VM late ready"
before_the_hour
until_so '[ $(runs) = 1 ]'
jump 10800
until_so '[ $(runs) = 2 ]'
jump -28800
before_the_hour
until_so '[ $(runs) -ge 3 ]'
everhook wait hourly --for done > /dev/null
echo "VM ran $(runs)"
sed 's/enabled: false,//' /clock.ron > /new.ron && cat /new.ron > /clock.ron
everhook reload > /dev/null
for n in 0 1 2 3 4 5 6 7 8 9; do jump 31536000; sleep 0.2; jump -31536000; sleep 0.2; done
until_so 'everhook status loops | grep -q failed'
echo "VM looped $(wc -l < /looped)"
echo "VM runs-missed $(everhook events hourly --json -n 100 | grep -c run_missed)"
echo "VM supervisor $(everhook events --json -n 1000 | grep -c '"to":"took_over"')"
kill -TERM 1
"#;
const HOG: &str = "exec dd if=/dev/zero of=/dev/null bs=200M count=1\n";
/// A thousand at a time lose their parent.
const ORPHANS: &str = "for i in 0 1 2 3 4 5 6 7 8 9; do\n\
    (n=0; while [ $n -lt 1000 ]; do : & n=$((n + 1)); done; echo $n >> /count)\n\
    done\nawk '{ n += $1 } END { print n }' /count > /made; exit 7\n";
const LEAVES: &str =
    "trap 'sleep 0.3; echo \"VM left '$1'\" > /dev/console; exit 0' TERM\nwhile :; do sleep 0.1; done\n";

/// Under systemd.
const UNIT: &str = r#"(echo: false, apps: {
    "db": (command: ["sh", "/leaves.sh", "db"], ready: Immediate),
    "web": (command: ["sh", "/leaves.sh", "web"], ready: Immediate, after: ["db"]),
    "tree": (command: "sleep 1000 & setsid sleep 1000 & wait", ready: Immediate),
    "limited": (command: ["sleep", "1000"], ready: Immediate, limits: (memory: "64MiB", cpu: 0.5, tasks: 20)),
    "hog": (command: ["sh", "/hog.sh"], ready: Immediate, limits: (memory: "64MiB"), restart: (first: "1h", max: "1h")),
    "groups": (command: ["sh", "/groups.sh"], ready: Immediate, after: ["limited"]),
    "late": (command: ["sleep", "1000"], ready: Immediate, enabled: false),
})"#;
/// An app that limits processes of its own, as a runtime of containers does.
const GROUPS: &str = "own=/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup)\n\
    mkdir $own/box && echo $$ > $own/box/cgroup.procs && echo '+memory +pids' > $own/cgroup.subtree_control\n\
    cat $own/cgroup.subtree_control > /grouped; exec sleep 1000\n";
const UNIT_TEST: &str = r#"exec > /dev/console 2>&1
export PATH=/usr/local/bin:/bin
until_so() { n=0; until eval "$1"; do n=$((n + 1)); [ $n -lt 600 ] || { echo "VM never $1"; return; }; sleep 0.1; done; }
unit=/sys/fs/cgroup/system.slice/everhook.service
show() { systemctl show --value --property $1 everhook; }
is_up() { [ "$(show ActiveState)" = active ] && [ $(show NRestarts) -ge $1 ]; }
pids() { for app in tree limited groups; do find $unit/*-$app.1 -name cgroup.procs -exec cat {} +; done | sort -n | tr '\n' ' '; }
limits() { (cd $unit/*-limited.1 && cat memory.max cpu.max pids.max) 2> /dev/null | tr '\n' ' ' | grep -v max; }
set_config() { cat > /new.ron && cat /new.ron > /etc/everhook/supervisor.ron; }
until_so 'everhook status hog | grep -q "out of memory"'
until_so '[ -s /grouped ] && [ $(pids | wc -w) = 5 ]'
echo "VM groups $(cat /grouped)"
echo "VM after-oom $(show ActiveState) $(show NRestarts)"
echo "VM pids $(pids)"
echo "VM limits $(limits)"
kill -9 $(show MainPID)
until_so 'is_up 1 && [ -n "$(limits)" ]'
echo "VM pids $(pids)"
echo "VM limits $(limits)"
cp /etc/everhook/supervisor.ron /good.ron
echo '(apps: {"web": (comand: "x")})' | set_config
kill -9 $(show MainPID)
until_so '[ $(show NRestarts) -ge 7 ] || [ "$(show ActiveState)" = failed ]'
echo "VM without-config $(show SubState)"
set_config < /good.ron
until_so 'is_up 7 && [ -n "$(limits)" ]'
echo "VM pids $(pids)"
echo "VM limits $(limits)"
sed 's/enabled: false/enabled: true/' /good.ron | set_config
systemctl reload everhook
until_so 'everhook status late | grep -q ready'
systemctl stop everhook
echo "VM stopped $(show ActiveState) $(show Result) $(find $unit -name cgroup.procs -exec cat {} + 2> /dev/null | wc -l)"
systemctl start everhook
until_so 'everhook status web | grep -q ready'
echo '(apps: {"web": (comand: "x")})' | set_config
kill -9 $(show MainPID)
until_so '[ "$(show SubState)" = auto-restart ]'
systemctl stop everhook
echo "VM orphans $(pids | wc -w)"
systemctl kill -s KILL everhook
until_so '[ -z "$(find $unit -name cgroup.procs -exec cat {} + 2> /dev/null)" ]'
systemctl poweroff
"#;
const TESTER: &str = "[Unit]\nWants=everhook.service\nAfter=everhook.service\n\
    [Service]\nType=oneshot\nExecStart=/bin/sh /unit.sh\nTimeoutStartSec=infinity\n";

/// What a machine boots into.
#[derive(Clone, Copy, PartialEq)]
enum Init {
    Everhook,
    Systemd,
}

impl Init {
    fn name(self) -> &'static str {
        if self == Self::Everhook { "everhook" } else { "systemd" }
    }

    fn files(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Everhook => &[
                ("etc/everhook/supervisor.ron", CONFIG),
                ("other.ron", SMALL),
                ("broken.ron", "(apps: {\"a\": (comand: \"x\")})"),
                ("test.sh", TEST),
                ("small.sh", SMALL_TEST),
                ("clock.ron", CLOCK),
                ("clock.sh", CLOCK_TEST),
                ("orphans.sh", ORPHANS),
            ],
            Self::Systemd => &[
                ("etc/everhook/supervisor.ron", UNIT),
                ("etc/systemd/system/everhook.service", include_str!("../contrib/everhook.service")),
                ("etc/systemd/system/tester.service", TESTER),
                ("groups.sh", GROUPS),
                ("unit.sh", UNIT_TEST),
            ],
        }
    }

    /// Kernel and image, made once.
    fn image(self) -> Option<&'static (PathBuf, PathBuf)> {
        static IMAGES: [OnceLock<Option<(PathBuf, PathBuf)>>; 2] = [const { OnceLock::new() }; 2];
        let made = IMAGES[self as usize].get_or_init(|| self.make());
        if made.is_none() {
            println!("no qemu-system-x86_64, busybox or systemd: left out");
        }
        made.as_ref()
    }

    fn make(self) -> Option<(PathBuf, PathBuf)> {
        /// The kernel is of both.
        static ONE_BY_ONE: Mutex<()> = Mutex::new(());
        let _one = ONE_BY_ONE.lock().unwrap();
        let present = |tool: &str| Command::new(tool).arg("--help").stdout(Stdio::null()).status().is_ok();
        let is_there = self == Self::Everhook || Path::new("/lib/systemd/systemd").exists();
        if !present("qemu-system-x86_64") || !present("busybox") || !is_there {
            return None;
        }
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("vm");
        let files = kept.join(self.name());
        let common = [("etc/passwd", "root:x:0:0:root:/:/bin/sh\n"), ("hog.sh", HOG), ("leaves.sh", LEAVES)];
        for (name, text) in common.iter().chain(self.files()) {
            let path = files.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let image = kept.join(format!("{}.image", self.name()));
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/vm_image.sh");
        let mut make = Command::new("sh");
        make.arg(script).arg(env!("CARGO_BIN_EXE_everhook")).args([&kept, &image, &files]).arg(self.name());
        assert!(make.status().unwrap().success(), "the image cannot be made");
        Some((kept.join("vmlinuz"), image))
    }
}

/// What a machine said until it was switched off.
struct Console(String);

impl Console {
    /// Boots everhook with these words for the kernel, and waits for the end.
    fn of(words: &str) -> Option<Self> {
        Self::of_init(Init::Everhook, words)
    }

    fn of_init(init: Init, words: &str) -> Option<Self> {
        let (kernel, image) = init.image()?;
        let room = &ROOMS[NEXT.fetch_add(1, Ordering::Relaxed) % ROOMS.len()];
        let _room = room.lock().unwrap_or_else(PoisonError::into_inner);
        // Timers of an emulated machine that others keep busy are late, and not broken.
        let append = format!("console=ttyS0 panic=-1 quiet no_timer_check {words}");
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args([
            "-M",
            "pc",
            "-accel",
            "tcg",
            "-cpu",
            "max",
            "-m",
            "512",
            "-nographic",
            "-no-reboot",
            "-nic",
            "none",
        ]);
        qemu.arg("-kernel").arg(kernel).arg("-initrd").arg(image).args(["-append", &append]);
        let mut machine = qemu.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let mut said = machine.stdout.take().unwrap();
        let reader = thread::spawn(move || {
            let mut bytes = Vec::new();
            said.read_to_end(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes).into_owned()
        });
        let ended = wait(&mut machine);
        let console = Self(reader.join().unwrap());
        assert!(ended, "it is still on: {}", console.0);
        Some(console)
    }

    fn values(&self, key: &str) -> Vec<&str> {
        let key = format!("VM {key} ");
        self.0.lines().filter_map(|line| Some(line.split_once(&key)?.1.trim_end())).collect()
    }

    fn value(&self, key: &str) -> &str {
        self.values(key).first().unwrap_or_else(|| panic!("no {key}: {}", self.0))
    }

    fn is_off(&self) {
        assert!(self.0.contains("reboot: Power down") && !self.0.contains("Kernel panic"), "{}", self.0);
        assert!(self.values("never").is_empty(), "{}", self.0);
    }
}

fn wait(machine: &mut Child) -> bool {
    let end = Instant::now() + LIMIT;
    while Instant::now() < end {
        if machine.try_wait().unwrap().is_some() {
            return true;
        }
        thread::sleep(Duration::from_millis(20));
    }
    machine.kill().unwrap();
    machine.wait().unwrap();
    false
}

fn instance<'a>(status: &'a Value, app: &str) -> &'a Value {
    let apps = status["apps"].as_array().unwrap();
    &apps.iter().find(|found| found["name"] == app).unwrap()["instances"][0]
}

#[test]
fn it_runs_a_machine() {
    let Some(console) = Console::of("") else { return };
    console.is_off();
    let mounts = console.value("mounts");
    for mount in ["/proc=proc", "/sys=sysfs", "/dev=devtmpfs", "/run=tmpfs", "/sys/fs/cgroup=cgroup2"] {
        assert!(mounts.split(' ').any(|found| found == mount), "{mount}: {mounts}");
    }
    assert_eq!(console.value("ctrl-alt-del"), "0", "it is a signal");
    assert_eq!(console.value("limits"), format!("{} 50000 100000 20", 64 << 20));
    assert_eq!((console.value("made"), console.value("zombies")), ("10000", "0"));
    assert_eq!(console.value("warnings"), "0", "every limit is held");

    let released = console.value("release");
    assert!(released.starts_with("cgroup /sys/fs/cgroup/unit.service hands down nothing"), "{released}");
    assert_eq!((console.value("before"), console.value("after"), console.value("again")), ("busy", "free", "ok"));
    assert_eq!(console.value("lives"), "1", "whoever lives below it is not touched");

    let status: Value = serde_json::from_str(console.value("status")).unwrap();
    assert_eq!(status["supervisor"]["pid"], 1);
    let hog = instance(&status, "hog");
    assert_eq!((&hog["last_exit"]["oom"], &hog["last_exit"]["signal"]), (&Value::Bool(true), &Value::from(9)));
    assert_eq!(hog["state"], "backoff", "{hog}");
    assert!(hog["reason"].as_str().unwrap().contains("out of memory"), "{hog}");
    let parent = instance(&status, "parent");
    assert_eq!((&parent["state"], &parent["restarts"]), (&Value::from("ready"), &Value::from(0)), "a worker's alone");
    let event: Value = serde_json::from_str(console.value("parent-events")).unwrap();
    assert_eq!((&event["instance"], &event["kind"]), (&Value::from("parent.1"), &Value::from("instance")));
    let limited = instance(&status, "limited");
    assert!(limited["memory_bytes"].as_u64().is_some_and(|bytes| bytes > 0 && bytes < 64 << 20), "{limited}");
    assert!(limited["cpu_s"].as_f64().is_some(), "{limited}");
    assert_eq!(console.values("left"), ["web", "db"], "in the reverse of their order");
}

#[test]
fn ctrl_alt_del_ends_it_in_order_whatever_else_the_kernel_was_told() {
    let Some(console) = Console::of("splash EVERHOOK_CONFIG=/other.ron test=INT -- nonsense --weird") else { return };
    console.is_off();
    assert_eq!(console.values("left"), ["web", "db"]);
}

#[test]
fn a_failing_power_supply_ends_it_in_order() {
    let Some(console) = Console::of("test=PWR -- run --config /other.ron") else { return };
    console.is_off();
    assert_eq!(console.values("left"), ["web", "db"]);
}

#[test]
fn without_a_config_it_says_so_and_switches_off() {
    let Some(console) = Console::of("EVERHOOK_CONFIG=/broken.ron") else { return };
    console.is_off();
    assert!(console.0.contains("unknown field \"comand\"") && console.0.contains("/broken.ron:1:"), "{}", console.0);
}

/// T03, P08 and P09 of what others' users met: delays go by a clock that nobody sets, times by the one
/// that is set.
#[test]
fn a_clock_that_is_set_delays_nothing_and_runs_nothing_twice() {
    let Some(console) = Console::of("EVERHOOK_CONFIG=/clock.ron") else { return };
    console.is_off();
    assert_eq!(console.value("late"), "ready");
    assert_eq!(console.value("ran"), "3", "on time, once for three hours that were skipped, and on time again");
    assert_eq!(console.value("looped"), "21", "a start and twenty restarts");
    assert_eq!(console.value("supervisor"), "0", "it is the same everhook");
    assert_ne!(console.value("runs-missed"), "0");
}

/// P36 of what others' users met: whether apps outlive a crash of their supervisor, and whether any outlives its
/// stop, is for the unit to say.
#[test]
fn under_systemd_apps_outlive_a_crash_and_not_a_stop() {
    let words =
        "systemd.unit=tester.service systemd.show_status=0 systemd.log_target=console systemd.log_level=warning";
    let Some(console) = Console::of_init(Init::Systemd, words) else { return };
    console.is_off();
    assert_eq!(console.value("groups"), "memory pids", "an app has limits of its own");
    assert_eq!(console.value("after-oom"), "active 0", "what an app runs out of ends no other and not everhook");
    let pids = console.values("pids");
    assert_eq!(pids, [pids[0]; 3], "the same processes run on");
    assert_eq!(console.values("limits"), ["67108864 50000 100000 20"; 3]);
    assert_ne!(console.value("without-config"), "failed", "it is tried until the config is good again");
    assert_eq!(console.value("stopped"), "inactive success 0");
    assert_eq!(console.value("orphans"), "5", "there was no everhook to end them");
    assert_eq!(console.values("left"), ["web", "db"], "in the reverse of their order");
}
