//! What an app needs on disk before it can start: folders, FIFOs, its run record, its cgroup. Made
//! once and reused over restarts, since a new inode costs more than a spawn. Runs on the files thread
//! (at the start: before there is anything to hold up).

use std::{
    collections::BTreeMap,
    fs, io,
    os::{
        fd::OwnedFd,
        unix::fs::{MetadataExt, PermissionsExt, chown},
    },
    path::Path,
    sync::Arc,
};

use super::{layout::Layout, rename};
use crate::{
    domain::{
        api::Stream,
        config::{self, Identity, Replace},
        model::InstanceId,
        service::Seat,
    },
    os::{
        cgroup::{Base, Cgroup},
        fifo, files, limits, users,
    },
};

/// Uid and gid.
pub type Ids = (u32, u32);

/// Whom everhook's own processes run as, under root.
#[derive(Clone, Copy)]
pub struct OwnUsers {
    pub listener: Ids,
    pub logger: Ids,
    pub courier: Ids,
}

impl OwnUsers {
    /// The users of these names, or numbers that no distribution hands out.
    #[must_use]
    pub fn find() -> Self {
        let user = |name, number| {
            let account = users::account(name).filter(|account| account.uid != 0);
            account.map_or((number, number), |account| (account.uid, account.gid))
        };
        Self {
            listener: user("everhook-listener", 60900),
            logger: user("everhook-logger", 60901),
            courier: user("everhook-courier", 60902),
        }
    }
}

/// Ends the name of what belongs to a second seat.
pub const SECOND: &str = ".second";

/// Room that the output of a process has in the kernel, in bytes, before it waits for the logger.
const ROOM: usize = 64 * 1024;
/// Descriptors that must be left for whoever asks, for jobs, and for what starts and ends.
const SPARE: u64 = 64;

/// What the process in a seat is started with.
pub struct Kit {
    pub out: Arc<OwnedFd>,
    pub err: Arc<OwnedFd>,
    pub record: Arc<OwnedFd>,
    pub cgroup: Option<Arc<Cgroup>>,
}

impl Kit {
    /// Nobody lives in its group any more, or whoever could not be killed keeps it.
    pub fn remove_group(&self) {
        let _ = self.cgroup.as_ref().map(|group| group.remove());
    }
}

/// Whoever makes folders for others.
#[derive(Clone)]
pub struct Maker {
    pub layout: Layout,
    /// May owners be set?
    pub root: bool,
    pub cgroups: Option<Arc<Base>>,
    /// Under root.
    pub own_users: Option<OwnUsers>,
}

impl Maker {
    /// The folders that everything shares.
    ///
    /// # Errors
    /// Names the folder.
    pub fn common(&self) -> Result<(), String> {
        let Layout { state, run } = &self.layout;
        // Of jobs whose supervisor was killed; where it fails, making it says why.
        let _ = fs::remove_dir_all(run.join("keys"));
        for (folder, mode) in [
            (state.join("apps"), 0o755),
            (state.join("mirrors"), 0o711),
            (state.join("logs"), 0o755),
            (run.join("records"), 0o700),
            (run.join("fifo"), 0o711),
            (run.join("notify"), 0o711),
            (run.join("keys"), 0o711),
        ] {
            self.folder(&folder, mode, None)?;
        }
        self.logs(&state.join("logs/deploys"))?;
        let buffer = self.layout.buffer();
        let named = |e: io::Error| format!("{}: {e}", buffer.display());
        let file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(&buffer).map_err(named)?;
        file.set_permissions(fs::Permissions::from_mode(0o600)).map_err(named)?;
        self.logger().map_or(Ok(()), |(uid, gid)| chown(&buffer, Some(uid), Some(gid)).map_err(named))
    }

    fn logger(&self) -> Option<Ids> {
        self.own_users.map(|users| users.logger)
    }

    /// A folder of the logger's. What an earlier logger wrote, as another user, is the logger's too.
    fn logs(&self, path: &Path) -> Result<(), String> {
        let named = |e: io::Error| format!("{}: {e}", path.display());
        if let (Some((uid, gid)), Ok(facts)) = (self.logger(), fs::symlink_metadata(path))
            && facts.is_dir()
            && facts.uid() != uid
        {
            files::hand_over(path, facts.uid(), (uid, gid)).map_err(named)?;
        }
        self.folder(path, 0o750, self.logger())
    }

    /// Makes a folder where it is missing, and sees to its mode and owner.
    ///
    /// # Errors
    /// Names the folder.
    pub fn folder(&self, path: &Path, mode: u32, owner: Option<Ids>) -> Result<(), String> {
        let named = |e: io::Error| format!("{}: {e}", path.display());
        fs::create_dir_all(path).map_err(named)?;
        if !fs::symlink_metadata(path).map_err(named)?.is_dir() {
            return Err(format!("{} is no folder", path.display()));
        }
        if self.root {
            let (uid, gid) = owner.unwrap_or((0, 0));
            chown(path, Some(uid), Some(gid)).map_err(named)?;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(named)
    }

    /// An app's own folder, where what people want of it is kept too.
    ///
    /// # Errors
    /// Names the folder.
    pub fn home(&self, app: &config::App) -> Result<(), String> {
        let home = self.layout.app(&app.name);
        // Another app had this name, and paths to it still lead there.
        rename::remove_link(&home).map_err(|e| format!("{}: {e}", home.display()))?;
        self.folder(&home, 0o755, None)
    }

    /// Everything that an app's processes are started with, for each seat.
    ///
    /// # Errors
    /// One sentence that names what could not be made.
    pub fn kits(&self, app: &config::App) -> Result<BTreeMap<Seat, Kit>, String> {
        self.home(app)?;
        self.logs(&self.layout.logs().join(app.name.as_str()))?;
        if app.deploy.is_some() {
            let own = Some((app.work_as.uid, app.work_as.gid));
            self.folder(&self.layout.releases(&app.name), 0o755, None)?;
            for own_folder in [self.layout.app(&app.name).join("shared"), self.layout.cache(&app.name)] {
                // One of a former user's becomes this one's with all that is in it, when that one runs no more.
                if !is_of_another(&own_folder, app.work_as.uid) {
                    self.folder(&own_folder, 0o755, own)?;
                }
            }
        }
        let mut kits = BTreeMap::new();
        for number in 1..=app.instances {
            let first = self.kit(app, Seat::first(number), None)?;
            if app.replace == Replace::StartFirst {
                let seat = Seat { number, second: true };
                kits.insert(seat, self.kit(app, seat, Some(&first))?);
            }
            kits.insert(Seat::first(number), first);
        }
        Ok(kits)
    }

    /// `first`: the kit of the copy's first seat, whose output is this one's too.
    fn kit(&self, app: &config::App, seat: Seat, first: Option<&Kit>) -> Result<Kit, String> {
        let named = |path: &Path| {
            let path = path.to_owned();
            move |e: io::Error| format!("{}: {e}", path.display())
        };
        let id = InstanceId { app: app.name.clone(), number: seat.number };
        let (instance, name) = (id.to_string(), seat_name(&id, seat));
        let record = self.layout.record(&name);
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&record)
            .map_err(named(&record))?;
        leaves_spare(&file)?;
        let cgroup = self.cgroup(&name)?;
        let stream = |stream| self.stream(&instance, stream, &app.run_as).map(Arc::new);
        Ok(Kit {
            out: first.map_or_else(|| stream(Stream::Out), |first| Ok(Arc::clone(&first.out)))?,
            err: first.map_or_else(|| stream(Stream::Err), |first| Ok(Arc::clone(&first.err)))?,
            record: Arc::new(file.into()),
            cgroup,
        })
    }

    /// A cgroup of this name, where any can be made.
    ///
    /// # Errors
    /// Names the group.
    pub fn cgroup(&self, name: &str) -> Result<Option<Arc<Cgroup>>, String> {
        let Some(base) = &self.cgroups else { return Ok(None) };
        base.make(&format!("{}-{name}", self.layout.cgroup()))
            .map(|group| Some(Arc::new(group)))
            .map_err(|e| format!("cgroup {name}: {e}"))
    }

    /// The child's end of a FIFO that this identity may open by path too.
    ///
    /// # Errors
    /// Names the FIFO.
    pub fn stream(&self, source: &str, stream: Stream, who: &Identity) -> Result<OwnedFd, String> {
        let path = self.layout.fifo(source, stream);
        fifo::make(&path, who.uid, who.gid).map_err(|e| format!("{}: {e}", path.display()))
    }
}

/// Does another user but root have this folder?
#[must_use]
pub fn is_of_another(folder: &Path, uid: u32) -> bool {
    fs::symlink_metadata(folder).is_ok_and(|facts| facts.is_dir() && ![0, uid].contains(&facts.uid()))
}

/// Makes a missing working tree's folder for its app's user, where only root could have put something else
/// there; elsewhere that user makes it.
///
/// # Errors
/// Names the folder.
pub fn make_tree(path: &Path, owner: (u32, u32)) -> Result<(), String> {
    let mut above = path.ancestors().skip(1);
    let is_roots = |folder: &Path| {
        let facts = fs::symlink_metadata(folder).ok().filter(fs::Metadata::is_dir);
        // In a sticky folder nobody moves what is root's.
        facts.is_some_and(|facts| facts.uid() == 0 && (facts.mode() & 0o022 == 0 || facts.mode() & 0o1000 != 0))
    };
    let parent = path.parent().and_then(|parent| fs::symlink_metadata(parent).ok());
    let is_closed = parent.is_some_and(|facts| facts.mode() & 0o022 == 0);
    if fs::symlink_metadata(path).is_ok() || !is_closed || !above.all(is_roots) {
        return Ok(());
    }
    let made = fs::create_dir(path).and_then(|()| chown(path, Some(owner.0), Some(owner.1)));
    made.map_err(|e| format!("{}: {e}", path.display()))
}

/// What a seat's run record and cgroup are called.
#[must_use]
pub fn seat_name(id: &InstanceId, seat: Seat) -> String {
    if seat.second { format!("{id}{SECOND}") } else { id.to_string() }
}

/// A process needs further descriptors while it runs, two of them for good: an app that would take the
/// last ones is not started, so that those that run are looked after.
fn leaves_spare(newest: &fs::File) -> Result<(), String> {
    let (most, left) = limits::files_left(newest).map_err(|e| format!("the limit of descriptors: {e}"))?;
    if left >= SPARE + (most - left) / 2 {
        return Ok(());
    }
    Err(format!(
        "there are not enough file descriptors left for it: everhook may have {most} open and has {}; raise the hard \
         limit, such as LimitNOFILE= of a systemd unit or `ulimit -Hn`",
        most - left
    ))
}

/// That the kernel gives an output less room than it should: a process then waits for the logger more often.
#[must_use]
pub fn cut(kit: &Kit) -> Option<String> {
    let room = [&kit.out, &kit.err].into_iter().filter_map(|output| fifo::room(output).ok()).min()?;
    (room < ROOM).then(|| {
        format!(
            "the kernel gives its output {room} bytes of room instead of {ROOM}, since everhook's user has too much in \
             pipes already: raise fs.pipe-user-pages-soft, such as `sysctl fs.pipe-user-pages-soft=0`"
        )
    })
}
