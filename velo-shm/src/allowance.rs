//! How long a step of a function may take.

use std::time::Duration;

/// Which setting bounds a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Setting {
    /// How long a function may hold the worker.
    Stall,
    /// How long a function may spend on one event.
    Event,
}

/// How long a step may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// The bound.
    pub time: Duration,
    /// By this setting.
    pub setting: Setting,
}
