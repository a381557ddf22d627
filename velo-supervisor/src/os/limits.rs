//! What a system's refusal means: which limit was met, and where it is set.

use std::io;

use nix::errno::Errno;

/// The error, and what can be done about it where it names a limit.
///
/// ```
/// let refused = std::io::Error::from_raw_os_error(24); // EMFILE
/// let told = velo_supervisor::explain(&refused);
/// assert!(told.contains("`ulimit -n`") && told.contains("`LimitNOFILE=`"));
/// ```
pub fn explain(error: &(dyn std::error::Error + 'static)) -> String {
    match advice(error) {
        Some(advice) => format!("{error}; {advice}"),
        None => error.to_string(),
    }
}

fn advice(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    let errno = Errno::from_raw(root(error)?);
    Some(match errno {
        Errno::EMFILE => "raise this process's limit of open files (`ulimit -n`, `LimitNOFILE=`)",
        Errno::ENFILE => "raise the system's limit of open files (`sysctl fs.file-max`)",
        Errno::EAGAIN => {
            "raise the limit of processes and threads (`ulimit -u`, `LimitNPROC=`, `TasksMax=`, \
             `--pids-limit` of a container), or that of address space (`ulimit -v`, `LimitAS=`)"
        }
        Errno::ENOMEM => {
            "free memory, or raise its limits (`ulimit -v`, `LimitAS=`, `MemoryMax=`, `--memory` of \
             a container)"
        }
        Errno::ENOSPC => {
            "free memory, or raise its limits (`MemoryMax=`, `--memory` of a container)"
        }
        Errno::EFBIG => {
            "raise the limit of file sizes, which holds for shared memory too (`ulimit -f`, \
             `LimitFSIZE=`)"
        }
        Errno::EPERM | Errno::ENOSYS => {
            "allow the system call in the sandbox that this process runs in (`velo doctor` finds \
             which)"
        }
        _ => return None,
    })
}

/// The system's number, also of an error that others wrap.
fn root(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(error) = next {
        next = error.source();
        if let Some(io) = error.downcast_ref::<io::Error>() {
            if let Some(number) = io.raw_os_error() {
                return Some(number);
            }
            // Its `source` is the one below what it wraps.
            next = io.get_ref().map(|wrapped| wrapped as _);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_names_its_setting() {
        for (errno, setting) in [
            (Errno::EMFILE, "ulimit -n"),
            (Errno::ENFILE, "fs.file-max"),
            (Errno::EAGAIN, "LimitNPROC="),
            (Errno::ENOMEM, "ulimit -v"),
            (Errno::ENOSPC, "MemoryMax="),
            (Errno::EFBIG, "LimitFSIZE="),
            (Errno::EPERM, "sandbox"),
        ] {
            let told = explain(&io::Error::from(errno));
            assert!(told.contains(setting), "{told}");
        }
    }

    #[test]
    fn a_limit_is_found_below_other_errors() {
        let wrapped = io::Error::other(velo_shm::SegmentError::Map {
            len: 1,
            source: Errno::ENOMEM.into(),
        });
        assert!(explain(&wrapped).contains("ulimit -v"));
    }

    #[test]
    fn what_names_no_limit_is_left_as_it_is() {
        let error = io::Error::from(Errno::ENOENT);
        assert_eq!(explain(&error), error.to_string());
        assert_eq!(
            explain(&io::Error::other("something else")),
            "something else"
        );
    }
}
