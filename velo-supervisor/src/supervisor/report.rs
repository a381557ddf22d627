//! A worker's report: a file in memory where it writes its stacks as it dies, and when it is asked
//! to. The supervisor reads it afterwards; what it finds there is text for people, of a bounded
//! length, and nothing else is believed of it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::fstat;
use nix::unistd::ftruncate;

use crate::os::fds::{InChild, TrackedFd};

/// How many bytes of a report are read; it has the stacks of all threads.
const MOST_READ: usize = 512 << 10;
/// How many bytes of it are passed on.
const MOST_TOLD: usize = 32 << 10;

/// A report, as the supervisor holds it.
#[derive(Debug)]
pub(crate) struct Report {
    file: TrackedFd,
}

impl Report {
    /// An empty report, and the worker's descriptor of it.
    pub(crate) fn create() -> io::Result<(Self, OwnedFd)> {
        let file = memfd_create(c"velo-report", MFdFlags::MFD_CLOEXEC)?;
        // It is emptied between two stacks, whereupon writing begins at the front again.
        fcntl(&file, FcntlArg::F_SETFL(OFlag::O_APPEND | OFlag::O_RDWR))?;
        let theirs = file.try_clone()?;
        let file = TrackedFd::new(file, InChild::Close);
        Ok((Self { file }, theirs))
    }

    /// Removes the written report.
    pub(crate) fn clear(&self) {
        // One that cannot be emptied has more in it than it should, which does no harm.
        let _ = ftruncate(&self.file, 0);
    }

    /// How many bytes are written there.
    pub(crate) fn len(&self) -> u64 {
        fstat(&self.file).map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0))
    }

    /// What is written there. The stacks of the thread that a signal hit, and of the thread with the
    /// number `main`, come first.
    pub(crate) fn read(&self, main: u64) -> Stacks {
        let Ok(file) = self.file.as_fd().try_clone_to_owned().map(File::from) else {
            return Stacks::default();
        };
        let mut bytes = vec![0; MOST_READ];
        let mut len = 0;
        while len < bytes.len() {
            match file.read_at(&mut bytes[len..], len as u64) {
                Ok(0) => break,
                Ok(more) => len += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        Stacks::parse(&String::from_utf8_lossy(&bytes[..len]), main)
    }
}

/// The stacks of a process.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Stacks {
    pub(crate) text: String,
    /// Whether they were written as the process died.
    fatal: bool,
    /// Whether the main thread is the one that a signal hit. None: nothing says so.
    in_main: Option<bool>,
}

impl Stacks {
    /// Whether another thread than the main one is what brought the process down.
    pub(crate) fn blame_another_thread(&self) -> bool {
        self.fatal && self.in_main == Some(false)
    }

    fn parse(text: &str, main: u64) -> Self {
        let of_main = format!("{main:#018x}");
        let mut blocks: Vec<&str> = text.trim().split("\n\n").collect();
        let current = blocks
            .iter()
            .find_map(|block| block.strip_prefix("Current thread "));
        let in_main = current.map(|block| block.starts_with(&of_main));
        // What the stacks are of is said in the first line, where it is said at all.
        blocks.sort_by_key(|block| match block {
            _ if block.starts_with("Fatal Python error") => 0,
            _ if block.starts_with("Current thread ") => 1,
            _ if block.starts_with("Thread ") && block[7..].starts_with(&of_main) => 2,
            _ => 3,
        });
        let mut text = blocks.join("\n\n");
        if text.len() > MOST_TOLD {
            let end = (0..=MOST_TOLD).rev().find(|at| text.is_char_boundary(*at));
            text.truncate(end.unwrap_or(0));
            text.push_str("\n  ...");
        }
        let fatal = text.starts_with("Fatal Python error");
        Self {
            text,
            fatal,
            in_main,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const MAIN: u64 = 0x7f00_1234_5678;

    const FATAL: &str = "Fatal Python error: Segmentation fault\n\n\
        Thread 0x00007f0000000001 (most recent call first):\n  File \"a.py\", line 1 in other\n\n\
        Current thread 0x00007f0012345678 (most recent call first):\n  File \"b.py\", line 2 in f\n";

    #[test]
    fn what_was_written_is_read_and_the_thread_that_fell_comes_first() {
        let (report, theirs) = Report::create().expect("a memfd");
        assert_eq!(report.read(MAIN), Stacks::default());
        let mut theirs = File::from(theirs);
        theirs.write_all(FATAL.as_bytes()).expect("write");
        let stacks = report.read(MAIN);
        let lines: Vec<_> = stacks.text.lines().collect();
        assert_eq!(lines[0], "Fatal Python error: Segmentation fault");
        assert_eq!(lines[3], "  File \"b.py\", line 2 in f");
        assert!(!stacks.blame_another_thread());
        assert_eq!(report.len(), FATAL.len() as u64);
        report.clear();
        assert_eq!((report.len(), report.read(MAIN)), (0, Stacks::default()));
        theirs.write_all(b"again").expect("write");
        assert_eq!(report.read(MAIN).text, "again", "from the front");
    }

    #[test]
    fn a_fall_in_another_thread_is_told_apart() {
        assert!(Stacks::parse(FATAL, MAIN + 1).blame_another_thread());
        let dump = FATAL.split_once("\n\n").expect("blocks").1;
        let asked_for = Stacks::parse(dump, MAIN + 1);
        assert!(
            !asked_for.blame_another_thread(),
            "nothing fell: {asked_for:?}"
        );
        assert!(!Stacks::parse("Fatal Python error: x\n", MAIN).blame_another_thread());
    }

    #[test]
    fn whatever_is_written_little_is_told() {
        let (report, theirs) = Report::create().expect("a memfd");
        let mut theirs = File::from(theirs);
        for _ in 0..64 {
            theirs.write_all(&[0xe2; 64 << 10]).expect("write");
        }
        let text = report.read(MAIN).text;
        assert!(text.len() < MOST_TOLD + 16 && text.ends_with("..."));
    }
}
