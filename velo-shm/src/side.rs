//! The two sides of a link.

/// One of the two processes that a link joins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Opens streams.
    Client = 0,
    /// Runs them.
    Worker = 1,
}

impl Side {
    /// The other one.
    pub fn peer(self) -> Side {
        match self {
            Side::Client => Side::Worker,
            Side::Worker => Side::Client,
        }
    }
}
