//! The folder in which the supervisors of one user are found: `velo` in the user's runtime directory
//! (`XDG_RUNTIME_DIR`), or else `/tmp/velo-UID`. No other user can open anything in it.

use std::fs::{self, DirBuilder, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use crate::error::DaemonError;

/// Where this program's supervisor is found.
pub(crate) fn default() -> PathBuf {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    match runtime.filter(|folder| folder.is_absolute()) {
        Some(folder) => folder.join("velo"),
        None => temporary(),
    }
}

/// Where supervisors of this user may be found: a service and a terminal may have different runtime
/// directories.
pub(crate) fn all() -> Vec<PathBuf> {
    let user = PathBuf::from(format!("/run/user/{}/velo", nix::unistd::geteuid()));
    let mut folders = vec![default(), user, temporary()];
    folders.dedup();
    if folders.len() == 3 && folders[0] == folders[2] {
        folders.pop();
    }
    folders
}

fn temporary() -> PathBuf {
    PathBuf::from(format!("/tmp/velo-{}", nix::unistd::geteuid()))
}

/// Makes a folder that no other user can use, or checks that it is one.
pub(crate) fn make_private(folder: &Path) -> Result<(), DaemonError> {
    let failed = |source| DaemonError::Listen {
        path: folder.to_owned(),
        source,
    };
    match DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(error)),
    }
    match objection(folder).map_err(failed)? {
        None => Ok(()),
        Some(why) => Err(DaemonError::Folder {
            path: folder.to_owned(),
            why,
        }),
    }
}

/// Why a folder is not this user's alone, if so.
pub(crate) fn objection(folder: &Path) -> io::Result<Option<&'static str>> {
    // A link is not followed: in `/tmp` any user could have made it.
    let found = fs::symlink_metadata(folder)?;
    if !found.is_dir() {
        return Ok(Some("is no folder"));
    }
    if found.uid() != nix::unistd::geteuid().as_raw() {
        return Ok(Some("belongs to another user"));
    }
    if found.permissions().mode() & 0o077 != 0 {
        return Ok(Some("can be used by others (`chmod 700` it)"));
    }
    Ok(None)
}

/// The longest path that a socket's address has room for, with its last byte.
const LONGEST_ADDRESS: usize = 107;

/// Calls `use_path` with a path that a socket's address has room for, and that leads to the same file.
pub(crate) fn with_short_path<R>(
    path: &Path,
    use_path: impl FnOnce(&Path) -> io::Result<R>,
) -> io::Result<R> {
    let (Some(folder), Some(file)) = (path.parent(), path.file_name()) else {
        return use_path(path);
    };
    if path.as_os_str().len() <= LONGEST_ADDRESS {
        return use_path(path);
    }
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let open = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(folder)?;
    use_path(&Path::new(&format!("/proc/self/fd/{}", open.as_raw_fd())).join(file))
}

/// Device and inode: a path may name another file later.
pub(crate) fn identify(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

/// Removes a file if its path still names it.
pub(crate) fn remove(path: &Path, identity: (u64, u64)) {
    let known = fs::symlink_metadata(path);
    if known.is_ok_and(|known| identify(&known) == identity) {
        // If it cannot be removed, the next one that finds it does so.
        let _ = fs::remove_file(path);
    }
}
