//! What an app may use and do, judged.

use super::{Limits, judge::Judge, raw};
use crate::domain::model::{Capabilities, Size};

/// The least that `memory` can sensibly be: below it not even a shell starts.
const LEAST_MEMORY: u64 = 1 << 20;
/// The kernel's `cpu.max` counts hundredths of a processor at best.
const LEAST_CPU: f64 = 0.01;

/// Reads `limits` of an app. What only root could grant keeps that app alone from running.
pub fn of_app(judge: &mut Judge<'_>, app: &str, raw: &raw::Limits) -> (Limits, Option<(&'static str, String)>) {
    let mut reader = Reader { judge, app };
    let capabilities = raw.capabilities.as_ref().map(|names| reader.capabilities(names));
    let limits = Limits {
        memory: raw.memory,
        memory_restart: raw.memory_restart,
        cpu: raw.cpu,
        tasks: raw.tasks,
        files: raw.files,
        core: raw.core,
        nice: raw.nice,
        oom_score: raw.oom_score,
        umask: raw.umask.as_deref().map(|text| reader.umask(text)),
        capabilities,
        no_new_privs: raw.no_new_privs.unwrap_or(false),
    };
    reader.ranges(&limits);
    reader.enforced(&limits);
    let beyond = if judge.as_root() { None } else { beyond(&limits) };
    (limits, beyond.map(|what| ("limits", what)))
}

/// What an ordinary user cannot give its own processes.
fn beyond(limits: &Limits) -> Option<String> {
    let lower = |name: &str, value: Option<i32>| {
        value.filter(|value| *value < 0).map(|value| format!("only root can set {name} to {value}"))
    };
    let granted = limits.capabilities.filter(|set| set.0 != 0).map(|_| "only root can give capabilities".to_owned());
    lower("nice", limits.nice).or(lower("oom_score", limits.oom_score)).or(granted)
}

struct Reader<'j, 'a> {
    judge: &'j mut Judge<'a>,
    app: &'j str,
}

impl Reader<'_, '_> {
    fn require(&mut self, holds: bool, field: &str, message: &str) {
        self.judge.require(holds, &["apps", self.app, "limits", field], message);
    }

    fn ranges(&mut self, limits: &Limits) {
        let enough = |size: Option<Size>| size.is_none_or(|size| size.0 >= LEAST_MEMORY);
        let below = limits.memory.zip(limits.memory_restart).is_none_or(|(most, restart)| restart < most);
        for (holds, field, message) in [
            (enough(limits.memory), "memory", "expected at least \"1MiB\""),
            (enough(limits.memory_restart), "memory_restart", "expected at least \"1MiB\""),
            (below, "memory_restart", "the kernel kills at `memory` before this is reached: expected less than that"),
            (
                limits.cpu.is_none_or(|cpu| cpu.is_finite() && cpu >= LEAST_CPU),
                "cpu",
                "expected a number of processors of at least 0.01; 1.5 is one and a half",
            ),
            (limits.tasks != Some(0), "tasks", "at least one process must be able to run"),
            (
                limits.files.is_none_or(|files| files >= 3),
                "files",
                "expected at least 3: every process has three streams",
            ),
            (limits.nice.is_none_or(|nice| (-20..=19).contains(&nice)), "nice", "expected -20 to 19"),
            (
                limits.oom_score.is_none_or(|score| (-1000..=1000).contains(&score)),
                "oom_score",
                "expected -1000 to 1000",
            ),
        ] {
            self.require(holds, field, message);
        }
    }

    /// What cannot be held here is no reason not to run.
    fn enforced(&mut self, limits: &Limits) {
        for (wanted, field) in
            [(limits.memory.is_some(), "memory"), (limits.cpu.is_some(), "cpu"), (limits.tasks.is_some(), "tasks")]
        {
            if let (true, Err(why)) = (wanted, (self.judge.facts.can_limit)(field)) {
                let message = format!("app \"{}\": it runs without its limit of {field}: {why}", self.app);
                self.judge.warn(&["apps", self.app, "limits", field], message);
            }
        }
    }

    fn umask(&mut self, text: &str) -> u32 {
        let digits = (1..=4).contains(&text.len()) && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
        let mask = u32::from_str_radix(text, 8).ok().filter(|mask| digits && *mask <= 0o777);
        self.require(mask.is_some(), "umask", "expected octal digits up to 777, such as \"0027\"");
        mask.unwrap_or_default()
    }

    fn capabilities(&mut self, names: &[String]) -> Capabilities {
        let mut set = Capabilities::default();
        for (i, name) in names.iter().enumerate() {
            match name.parse() {
                Ok(one) => set = set.with(one),
                Err(error) => {
                    let keys = ["apps", self.app, "limits", "capabilities", &i.to_string()];
                    self.judge.error(&keys, error.to_string());
                }
            }
        }
        set
    }
}
