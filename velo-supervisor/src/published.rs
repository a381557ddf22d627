//! How the embedded supervisor of a program is found by `velo top`, `velo status` and `velo inspect`:
//! it listens at a socket in the user's runtime folder, which no other user can open. The file's name
//! says which process it is, so that one that was left behind is known by its name.
//!
//! Nothing of it is on the way of an event: who connects is served by the supervisor's thread.

use std::fs::{self, DirEntry, Metadata};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};
use nix::sys::stat::{Mode, fchmod};
use tokio::net::UnixListener;

use crate::error::DaemonError;
use crate::os;
use crate::os::fds::Tracked;
use crate::runtime_folder::{self, identify, make_private, with_short_path};

/// How many viewers may wait to be accepted.
const BACKLOG: i32 = 16;
/// How many files of dead programs are looked for at a start.
const MOST_SWEPT: usize = 256;

/// The socket of this process's supervisor. Its file is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Published {
    path: PathBuf,
    identity: (u64, u64),
}

impl Published {
    /// Listens in a folder of this user's own, which is made if need be.
    pub(crate) fn listen(folder: &Path) -> Result<(Self, Tracked<UnixListener>), DaemonError> {
        make_private(folder)?;
        sweep(folder);
        let name = Name::own().map_err(DaemonError::Start)?;
        let path = folder.join(name.file());
        let failed = |source| DaemonError::Listen {
            path: path.clone(),
            source,
        };
        // It gets its name once it listens: before, who finds it would take it for a dead one.
        let unnamed = folder.join(format!("{}{UNNAMED}", name.file()));
        let _ = fs::remove_file(&unnamed);
        let listener = bind_private(&unnamed).map_err(failed)?;
        let renamed = fs::rename(&unnamed, &path).and_then(|()| fs::symlink_metadata(&path));
        let identity = match renamed {
            Ok(found) => identify(&found),
            Err(error) => {
                let _ = fs::remove_file(&unnamed);
                return Err(failed(error));
            }
        };
        let published = Self {
            path: path.clone(),
            identity,
        };
        let listener = StdListener::from(listener);
        listener.set_nonblocking(true).map_err(failed)?;
        let fd = listener.as_raw_fd();
        let listener = UnixListener::from_std(listener).map_err(failed)?;
        Ok((published, Tracked::new(listener, vec![fd])))
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        runtime_folder::remove(&self.path, self.identity);
    }
}

/// Binds a path so that at no moment another user may connect: a socket's mode counts from `bind` on,
/// and this process may have threads that depend on its `umask`.
fn bind_private(path: &Path) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    fchmod(&socket, Mode::from_bits_truncate(0o600))?;
    with_short_path(path, |path| {
        Ok(bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?)
    })?;
    listen(&socket, Backlog::new(BACKLOG)?)?;
    Ok(socket)
}

const PREFIX: &str = "program-";
const SUFFIX: &str = ".sock";
/// What a name ends in before the socket listens.
const UNNAMED: &str = ".new";

/// Which process a file is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Name {
    pid: i32,
    /// When it started, in clock ticks since the system did.
    started: u64,
    /// The inode of its namespace of process ids.
    namespace: u64,
}

impl Name {
    fn own() -> io::Result<Self> {
        let pid = nix::unistd::getpid().as_raw();
        let started = os::started(pid).ok_or_else(|| io::Error::other("no `/proc`"))?;
        let namespace = own_namespace()?;
        Ok(Self {
            pid,
            started,
            namespace,
        })
    }

    fn file(self) -> String {
        let Self {
            pid,
            started,
            namespace,
        } = self;
        format!("{PREFIX}{pid}-{started}-{namespace}{SUFFIX}")
    }

    fn parse(file: &str) -> Option<Self> {
        let file = file.strip_suffix(UNNAMED).unwrap_or(file);
        let numbers = file.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
        let mut numbers = numbers.split('-');
        let name = Self {
            pid: numbers.next()?.parse().ok()?,
            started: numbers.next()?.parse().ok()?,
            namespace: numbers.next()?.parse().ok()?,
        };
        (numbers.next().is_none() && name.pid > 0).then_some(name)
    }

    /// Whether the process has ended, as far as it can be known here.
    fn is_dead(self) -> bool {
        let here = own_namespace().is_ok_and(|own| own == self.namespace);
        here && os::started(self.pid) != Some(self.started)
    }
}

fn own_namespace() -> io::Result<u64> {
    Ok(fs::metadata("/proc/self/ns/pid")?.ino())
}

/// A program whose supervisor can be looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Its process id, as it knows it itself.
    pub pid: i32,
    /// Where its supervisor listens.
    pub path: PathBuf,
}

/// The programs of this user that have a supervisor of their own. What dead ones have left is removed.
pub fn programs() -> Vec<Program> {
    let mut found: Vec<_> = runtime_folder::all()
        .iter()
        .flat_map(|folder| files(folder))
        .filter_map(|(entry, name, known)| {
            if name.is_dead() {
                runtime_folder::remove(&entry.path(), identify(&known));
                return None;
            }
            let listens = !entry
                .file_name()
                .as_encoded_bytes()
                .ends_with(UNNAMED.as_bytes());
            listens.then(|| Program {
                pid: name.pid,
                path: entry.path(),
            })
        })
        .collect();
    found.sort_by_key(|program| program.pid);
    found
}

/// Removes the file of a program that was found, and that listens no more.
pub fn forget(path: &Path) {
    if let Ok(found) = fs::symlink_metadata(path)
        && is_own(&found)
        && path
            .file_name()
            .and_then(|name| Name::parse(name.to_str()?))
            .is_some()
    {
        runtime_folder::remove(path, identify(&found));
    }
}

fn sweep(folder: &Path) {
    for (entry, name, known) in files(folder).into_iter().take(MOST_SWEPT) {
        if name.is_dead() {
            runtime_folder::remove(&entry.path(), identify(&known));
        }
    }
}

/// The sockets of programs in a folder, if that is this user's alone.
fn files(folder: &Path) -> Vec<(DirEntry, Name, Metadata)> {
    if !runtime_folder::objection(folder).is_ok_and(|why| why.is_none()) {
        return Vec::new();
    }
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let name = Name::parse(entry.file_name().to_str()?)?;
            let found = fs::symlink_metadata(entry.path()).ok()?;
            is_own(&found).then_some((entry, name, found))
        })
        .collect()
}

/// Whether it is a socket of this user, that no other user can open.
fn is_own(found: &Metadata) -> bool {
    found.file_type().is_socket()
        && found.uid() == nix::unistd::geteuid().as_raw()
        && found.permissions().mode() & 0o077 == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("velo-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        folder
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("a folder").flatten();
        let mut names: Vec<_> = entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_name_says_which_process_it_is_of() {
        let own = Name::own().expect("a process");
        assert_eq!(Name::parse(&own.file()), Some(own));
        assert_eq!(Name::parse(&format!("{}{UNNAMED}", own.file())), Some(own));
        assert!(!own.is_dead());
        let other = Name {
            started: own.started + 1,
            ..own
        };
        assert!(other.is_dead(), "its number is another process's");
        let elsewhere = Name {
            namespace: own.namespace + 1,
            ..other
        };
        assert!(!elsewhere.is_dead(), "nothing is known of it here");
        for wrong in [
            "supervisor.sock",
            "program-1-2.sock",
            "program-0-1-1.sock",
            "program-1-1-1-1.sock",
        ] {
            assert_eq!(Name::parse(wrong), None, "{wrong}");
        }
    }

    #[tokio::test]
    async fn what_dead_programs_have_left_is_removed() {
        let folder = folder("dead");
        make_private(&folder).expect("a folder");
        let own = Name::own().expect("a process");
        let dead = Name {
            started: own.started + 1,
            ..own
        };
        for file in [dead.file(), format!("{}{UNNAMED}", dead.file())] {
            drop(bind_private(&folder.join(file)).expect("a socket"));
        }
        fs::write(folder.join("notes"), "the user's").expect("a file");
        // It has the name of a dead one's, but is no socket.
        let file = Name {
            started: own.started + 2,
            ..own
        }
        .file();
        fs::write(folder.join(&file), "the user's").expect("a file");
        let (published, _listener) = Published::listen(&folder).expect("a socket");
        let mut left = vec!["notes".to_owned(), own.file(), file.clone()];
        left.sort();
        assert_eq!(names(&folder), left);
        let mode = fs::metadata(&published.path)
            .expect("a socket")
            .permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
        drop(published);
        let mut left = vec!["notes".to_owned(), file];
        left.sort();
        assert_eq!(names(&folder), left);
        fs::remove_dir_all(&folder).expect("a folder");
    }

    #[tokio::test]
    async fn a_folder_that_others_can_use_is_not_used() {
        let folder = folder("open");
        fs::create_dir(&folder).expect("a folder");
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).expect("a mode");
        assert!(Published::listen(&folder).is_err());
        assert!(files(&folder).is_empty());
        fs::remove_dir_all(&folder).expect("a folder");
    }
}
