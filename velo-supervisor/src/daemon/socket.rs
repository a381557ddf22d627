//! Where a standalone supervisor listens: a socket that only its user can reach, which replaces what a
//! dead supervisor has left there and is gone when this one ends.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::stat::{Mode, umask};
use tokio::net::UnixListener;
use velo_shm::standstill::RunningLimit;

use crate::error::DaemonError;
use crate::os::dial::dial;
use crate::os::{clock, peer};
use crate::runtime_folder::{self, identify, make_private};

/// How long another supervisor that starts at the same moment is waited for.
const TURN_BOUND: Duration = Duration::from_secs(5);

/// Where clients and supervisors meet when nothing else is said: `velo/supervisor.sock` in the user's
/// runtime directory (`XDG_RUNTIME_DIR`), or else in `/tmp/velo-UID`.
pub fn default_socket() -> PathBuf {
    runtime_folder::default().join("supervisor.sock")
}

/// A socket in the file system, removed when it is dropped.
#[derive(Debug)]
pub(super) struct Socket {
    path: PathBuf,
    /// Device and inode: the path may name another supervisor's by then.
    identity: (u64, u64),
}

impl Socket {
    /// Listens at a path, or at the default one, whose folder is made if need be.
    pub(super) fn listen(path: Option<&Path>) -> Result<(Self, UnixListener), DaemonError> {
        let path = match path {
            Some(path) => std::path::absolute(path)?,
            None => {
                let path = default_socket();
                make_private(path.parent().unwrap_or(Path::new("/")))?;
                path
            }
        };
        let failed = |source| DaemonError::Listen {
            path: path.clone(),
            source,
        };
        let _turn = Turn::take(&path).map_err(failed)?;
        clear(&path)?;
        let listener = bind(&path).map_err(failed)?;
        let identity = fs::symlink_metadata(&path).map_err(failed)?;
        let socket = Self {
            path: path.clone(),
            identity: identify(&identity),
        };
        let listener = UnixListener::from_std(listener).map_err(failed)?;
        Ok((socket, listener))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        runtime_folder::remove(&self.path, self.identity);
    }
}

/// Only one supervisor at a time looks for others, clears the path and binds it. Its turn is a lock on
/// a file beside the socket that no other user can open, and that is gone with the turn.
#[derive(Debug)]
struct Turn {
    path: PathBuf,
    _lock: Flock<File>,
}

impl Turn {
    fn take(socket: &Path) -> io::Result<Turn> {
        let mut path = socket.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        let _limit = RunningLimit::new(TURN_BOUND);
        let deadline = clock::now() + TURN_BOUND;
        loop {
            match Flock::lock(open_own(&path)?, FlockArg::LockExclusiveNonblock) {
                Ok(lock) if names(&path, &lock)? => return Ok(Turn { path, _lock: lock }),
                // The one before has removed it meanwhile.
                Ok(_) => continue,
                Err((_, error)) if clock::now() > deadline => return Err(error.into()),
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // The lock is still held, so the name is this file's. If it stays, the next turn uses it.
        let _ = fs::remove_file(&self.path);
    }
}

/// Opens a file that only this user can open. An existing file must be one that only this user can open.
fn open_own(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .mode(0o600)
        .custom_flags(flags.bits())
        .open(path)?;
    let found = file.metadata()?;
    let own = found.is_file()
        && found.uid() == nix::unistd::geteuid().as_raw()
        && found.permissions().mode() & 0o077 == 0
        && found.nlink() <= 1;
    if own {
        return Ok(file);
    }
    let what = format!(
        "`{}` is not a file of this user alone; remove it, or choose another `--socket`",
        path.display()
    );
    Err(io::Error::new(io::ErrorKind::PermissionDenied, what))
}

/// Whether a path still names a file that was opened by it.
fn names(path: &Path, file: &File) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(found) => Ok(identify(&found) == identify(&file.metadata()?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes what a dead supervisor has left at the path.
fn clear(path: &Path) -> Result<(), DaemonError> {
    let failed = |source| DaemonError::Listen {
        path: path.to_owned(),
        source,
    };
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if !found.file_type().is_socket() {
        return Err(DaemonError::NotASocket {
            path: path.to_owned(),
        });
    }
    if found.uid() != nix::unistd::geteuid().as_raw() {
        return Err(failed(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "it is a socket of another user",
        )));
    }
    match dial(path) {
        Ok(living) => Err(DaemonError::Running {
            pid: peer::process(&living)?,
            path: path.to_owned(),
        }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!(path = %path.display(), "replacing the socket of a dead supervisor");
            fs::remove_file(path).map_err(failed)
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            let why = "another supervisor has it, which accepts no connection: its process is stopped, or too busy";
            Err(failed(io::Error::new(error.kind(), why)))
        }
        Err(error) => Err(failed(error)),
    }
}

/// Binds the path so that at no moment anybody else may connect.
fn bind(path: &Path) -> io::Result<StdListener> {
    // This process has one thread yet: no other thread makes files meanwhile.
    let usual = umask(Mode::from_bits_truncate(0o177));
    let bound = StdListener::bind(path);
    umask(usual);
    let listener = bound?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::dial::tests::Full;

    #[test]
    fn a_supervisor_that_accepts_no_connection_keeps_its_socket() {
        let full = Full::new("clear");
        let error = clear(&full.path).expect_err("it is there").to_string();
        assert!(error.contains("accepts no connection"), "{error}");
        assert!(full.path.exists());
    }
}
