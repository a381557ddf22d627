//! What a standalone supervisor has that an embedded one lacks.

use std::sync::Arc;
use std::time::Duration;

use super::log_tail::Tail;
use crate::notes::Notes;

/// What only a standalone supervisor has.
#[derive(Debug)]
pub(crate) struct Standalone {
    pub(crate) runtime: String,
    pub(crate) preload: Vec<String>,
    pub(crate) max_clients: usize,
    pub(crate) client_workers: Option<u32>,
    pub(crate) client_streams: Option<u32>,
    pub(crate) hello_bound: Duration,
    pub(crate) log: Arc<Tail>,
    pub(crate) notes: Notes,
}
