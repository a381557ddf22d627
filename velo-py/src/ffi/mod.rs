//! Raw CPython, and nothing else: everything outside this folder is safe PyO3.

pub mod asyncgen;
pub mod context_vars;
pub mod destroy;
pub mod fd;
pub mod objects;
pub mod send_slot;
pub mod turn;
