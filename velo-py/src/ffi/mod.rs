//! Raw CPython, and nothing else: everything outside this folder is safe PyO3.

pub mod async_iterator;
pub mod asyncgen;
pub mod destroy;
pub mod fd;
pub mod objects;
pub mod send_slot;
pub mod turn;
