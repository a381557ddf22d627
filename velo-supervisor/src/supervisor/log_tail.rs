//! The log of a standalone supervisor: written to standard error, its last lines kept for clients
//! that ask.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing_subscriber::fmt::MakeWriter;

use crate::options::LogFormat;
use crate::pool::ClientId;

/// How many lines are kept.
const KEPT: usize = 1000;
/// Longer lines are kept up to here.
const LONGEST: usize = 4096;

/// Has everything that this program traces written. Does nothing where that is done already.
pub(crate) fn start(format: LogFormat) -> Arc<Tail> {
    let tail = Arc::new(Tail::default());
    let writer = Tee(tail.clone());
    let log = tracing_subscriber::fmt()
        .with_writer(writer)
        .with_ansi(false);
    // An error means that the program has a subscriber of its own.
    let _ = match format {
        LogFormat::Text => log.with_target(false).try_init(),
        LogFormat::Json => log.json().flatten_event(true).with_target(false).try_init(),
    };
    tail
}

/// The last lines of the log, and the clients that follow it.
#[derive(Default)]
pub(crate) struct Tail(Mutex<Lines>);

#[derive(Default)]
struct Lines {
    kept: VecDeque<String>,
    followers: BTreeMap<ClientId, Follower>,
}

type Follower = Box<dyn Fn(&str) + Send>;

impl Tail {
    fn lock(&self) -> MutexGuard<'_, Lines> {
        // Each change is one call, so a panic leaves nothing half-changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lines that are kept, oldest first.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.lock().kept.iter().cloned().collect()
    }

    /// Sends each line to a client from now on.
    pub(crate) fn follow(&self, client: ClientId, tell: impl Fn(&str) + Send + 'static) {
        self.lock().followers.insert(client, Box::new(tell));
    }

    /// The client is gone.
    pub(crate) fn forget(&self, client: ClientId) {
        self.lock().followers.remove(&client);
    }

    fn push(&self, line: &str) {
        let whole = |end: &usize| line.is_char_boundary(*end);
        let line = &line[..(0..=LONGEST.min(line.len())).rev().find(whole).unwrap_or(0)];
        let mut lines = self.lock();
        if lines.kept.len() == KEPT {
            lines.kept.pop_front();
        }
        lines.kept.push_back(line.to_owned());
        for tell in lines.followers.values() {
            tell(line);
        }
    }
}

impl fmt::Debug for Tail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tail").finish_non_exhaustive()
    }
}

/// Where the log is written to: one call for each event.
struct Tee(Arc<Tail>);

impl<'a> MakeWriter<'a> for Tee {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(&self.0)
    }
}

struct Line<'a>(&'a Tail);

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for line in String::from_utf8_lossy(bytes).lines() {
            self.0.push(line);
        }
        // A terminal that is gone ends no supervisor.
        let _ = io::stderr().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_and_followers_told() {
        let tail = Tail::default();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let told = heard.clone();
        tail.follow(1, move |line| {
            told.lock().expect("a list").push(line.to_owned())
        });
        for number in 0..=KEPT {
            tail.push(&format!("line {number}"));
        }
        tail.forget(1);
        tail.push(&"é".repeat(LONGEST));
        let lines = tail.lines();
        assert_eq!(lines.len(), KEPT);
        assert_eq!(lines[0], "line 2");
        assert_eq!(lines[KEPT - 1].len(), LONGEST);
        assert_eq!(heard.lock().expect("a list").len(), KEPT + 1);
    }
}
