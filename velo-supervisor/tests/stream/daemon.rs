//! A standalone supervisor for a test, started as a user starts it, with the Python that velo is
//! installed in.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use velo_supervisor::stream::{Connection, Stream, StreamOptions};

/// Longer than anything here takes on a slow machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The Python that has velo: `VELO_PYTHON`, or the one that `make` sets up.
fn python() -> Option<&'static PathBuf> {
    static PYTHON: OnceLock<Option<PathBuf>> = OnceLock::new();
    let find = || {
        let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.venv/bin/python");
        let python = std::env::var_os("VELO_PYTHON").map_or(made, PathBuf::from);
        let asked = Command::new(&python).args(["-c", "import velo"]).output();
        asked
            .is_ok_and(|out| out.status.success())
            .then_some(python)
    };
    PYTHON.get_or_init(find).as_ref()
}

/// A supervisor, and the folder that it lives in.
pub struct Daemon {
    child: Child,
    folder: PathBuf,
}

impl Daemon {
    /// One with these options; none, and a word about it, where velo is not installed.
    pub fn start(options: &[&str]) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("velo-{}-{number}", std::process::id()));
        std::fs::create_dir(&folder).expect("a folder");
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(&folder, permissions).expect("a folder of our own");
        let child = spawn(&folder, options)?;
        let daemon = Self { child, folder };
        daemon.until_ready();
        Some(daemon)
    }

    fn until_ready(&self) {
        wait_for("a supervisor", || Connection::connect(self.socket()).ok());
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.join("s.sock")
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn connect(&self) -> Connection {
        Connection::connect(self.socket()).expect("a connection")
    }

    /// Kill -9.
    pub fn kill(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }

    /// Another one in its place.
    pub fn again(&mut self) {
        self.child = spawn(&self.folder, &[]).expect("velo");
        self.until_ready();
    }

    /// What it shows of itself.
    pub fn status(&self) -> velo_supervisor::Status {
        use velo_supervisor::{Client, ClientEvent, Order};

        let mut client = Client::connect(&self.socket()).expect("a supervisor");
        client.order(Order::Status).expect("an order");
        wait_for("a status", || {
            let events = client.poll().expect("an answer");
            events.into_iter().find_map(|event| match event {
                ClientEvent::Status(status) => Some(status),
                _ => None,
            })
        })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // The first asks it to wait for open streams. Two that come at once may count as one.
        let pid = Pid::from_raw(self.child.id().cast_signed());
        while matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill(pid, Signal::SIGTERM);
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn spawn(folder: &Path, options: &[&str]) -> Option<Child> {
    let Some(python) = python() else {
        eprintln!("skipped: no Python with velo at .venv/bin/python, nor in `VELO_PYTHON`");
        return None;
    };
    let log = std::fs::File::options()
        .append(true)
        .create(true)
        .open(folder.join("log"))
        .expect("a log");
    let mut command = Command::new(python);
    command
        .args(["-m", "velo", "supervisor", "start", "--workers", "2"])
        .args(options)
        .arg("--socket")
        .arg(folder.join("s.sock"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a log"))
        .stderr(log);
    // SAFETY: the call between fork and exec takes no lock and no memory.
    unsafe {
        command.pre_exec(|| {
            // Also when the tests are killed.
            nix::sys::prctl::set_pdeathsig(Some(Signal::SIGTERM)).map_err(Into::into)
        });
    }
    Some(command.spawn().expect("a process"))
}

/// Looks again and again until something is there.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Settings with which the functions of these tests are found.
pub fn options() -> StreamOptions {
    StreamOptions::new().path(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stream"))
}

/// A stream of one of the functions.
pub fn open(velo: &Connection, function: &str) -> Stream {
    velo.open(&format!("functions:{function}"), &options())
        .expect("a stream")
}
