//! How a process ended.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Exit {
    /// A signal with this number ended it.
    Signal(i32),
    /// It ended by itself with this exit code.
    Code(i32),
    /// It ended, and no process that could know its status was alive to tell.
    Unknown,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal(number) => match nix::sys::signal::Signal::try_from(*number) {
                Ok(signal) => write!(f, "killed by `{signal}`"),
                Err(_) => write!(f, "killed by signal `{number}`"),
            },
            Self::Code(code) => write!(f, "exit code `{code}`"),
            Self::Unknown => f.write_str("exit status unknown"),
        }
    }
}
