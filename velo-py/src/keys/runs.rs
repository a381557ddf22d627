//! What is known of all runs of all keys whose states are saved.

/// What is known of all runs.
#[derive(Default)]
pub struct Saving {
    /// Keys that make room for others, or that are idle, are unloaded, and their functions see no end.
    pub unloads: bool,
    /// Keys go on from their last snapshots when their worker dies, so often in a row.
    pub max_restarts: Option<u32>,
    /// All keys are told that no more events come, although the source is not exhausted.
    pub ends: bool,
    /// The caller may have the state of a key that opens.
    pub restores: bool,
    /// Entries, with their runs, that something has happened to since their last snapshots; and others.
    pub dirty: Vec<(u32, u32)>,
    /// The number of the last run.
    runs: u32,
}

impl Saving {
    /// Of no keys yet.
    pub fn new(unloads: bool, max_restarts: Option<u32>) -> Self {
        Saving {
            unloads,
            max_restarts,
            ..Saving::default()
        }
    }

    /// The number of the run that begins.
    pub fn next_run(&mut self) -> u32 {
        self.runs = self.runs.wrapping_add(1).max(1);
        self.runs
    }
}

/// By how much one count is beyond another; both begin anew after the highest number.
pub fn beyond(count: u32, other: u32) -> u32 {
    let by = count.wrapping_sub(other);
    if by > u32::MAX / 2 { 0 } else { by }
}
