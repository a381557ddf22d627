//! The orders of a zygote, which carries out one after the other, and how long each may take. Pure: its methods
//! get the time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::pool::WorkerId;

/// The time that a zygote has to be ready for orders.
const READY_BOUND: Duration = Duration::from_secs(60);
/// The time that it has to import one module.
pub(crate) const IMPORT_BOUND: Duration = Duration::from_secs(60);
/// The time that it has to fork one worker.
const FORK_BOUND: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ZygoteOrder {
    Import(String),
    Fork(WorkerId),
}

/// What a zygote has to do.
#[derive(Debug)]
pub(crate) struct ZygoteOrders {
    ready: bool,
    /// Orders without an answer, oldest first.
    open: VecDeque<ZygoteOrder>,
    /// When it began what it does now: its start, or the first order.
    began: Instant,
}

impl ZygoteOrders {
    /// Those of a zygote that starts now.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            ready: false,
            open: VecDeque::new(),
            began: now,
        }
    }

    pub(crate) fn ready(&mut self, now: Instant) {
        self.ready = true;
        self.began = now;
    }

    pub(crate) fn give(&mut self, now: Instant, order: ZygoteOrder) {
        if self.ready && self.open.is_empty() {
            self.began = now;
        }
        self.open.push_back(order);
    }

    pub(crate) fn answered(&mut self, now: Instant, order: &ZygoteOrder) {
        if let Some(at) = self.open.iter().position(|open| open == order) {
            self.open.remove(at);
            self.began = now;
        }
    }

    /// The order that it carries out.
    pub(crate) fn current(&self) -> Option<&ZygoteOrder> {
        self.open.front().filter(|_| self.ready)
    }

    /// Since when it does what it does now. None: it has nothing to do.
    pub(crate) fn busy_since(&self) -> Option<Instant> {
        (!self.ready || !self.open.is_empty()).then_some(self.began)
    }

    /// When what it does now has taken too long.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let bound = match self.current() {
            _ if !self.ready => READY_BOUND,
            None => return None,
            Some(ZygoteOrder::Import(_)) => IMPORT_BOUND,
            Some(ZygoteOrder::Fork(_)) => FORK_BOUND,
        };
        Some(self.began + bound)
    }

    /// What to say of a zygote that has missed its deadline.
    pub(crate) fn fault(&self) -> String {
        match self.current() {
            None => format!("was not ready within {} s", READY_BOUND.as_secs()),
            Some(ZygoteOrder::Import(module)) => format!(
                "did not import `{module}` within {} s",
                IMPORT_BOUND.as_secs()
            ),
            Some(ZygoteOrder::Fork(_)) => {
                format!("forked no worker within {} s", FORK_BOUND.as_secs())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn import(module: &str) -> ZygoteOrder {
        ZygoteOrder::Import(module.into())
    }

    #[test]
    fn the_time_of_an_order_begins_when_it_is_the_first() {
        let start = Instant::now();
        let mut orders = ZygoteOrders::new(start);
        orders.give(start, import("a"));
        orders.give(start + SECOND, import("b"));
        orders.give(start + SECOND, ZygoteOrder::Fork(1));
        assert_eq!(orders.deadline(), Some(start + READY_BOUND));
        let ready = start + 50 * SECOND;
        orders.ready(ready);
        assert_eq!(orders.deadline(), Some(ready + IMPORT_BOUND));
        let next = ready + 50 * SECOND;
        orders.answered(next, &import("a"));
        assert_eq!(orders.current(), Some(&import("b")));
        assert_eq!(orders.deadline(), Some(next + IMPORT_BOUND));
        let last = next + 50 * SECOND;
        orders.answered(last, &import("b"));
        assert_eq!(orders.deadline(), Some(last + FORK_BOUND));
        orders.answered(last + SECOND, &ZygoteOrder::Fork(1));
        assert_eq!((orders.deadline(), orders.busy_since()), (None, None));
    }

    #[test]
    fn an_import_behind_a_fork_is_not_to_blame() {
        let start = Instant::now();
        let mut orders = ZygoteOrders::new(start);
        orders.ready(start);
        orders.give(start, ZygoteOrder::Fork(1));
        orders.give(start + SECOND, import("a"));
        assert_eq!(orders.current(), Some(&ZygoteOrder::Fork(1)));
        assert_eq!(orders.deadline(), Some(start + FORK_BOUND));
    }
}
