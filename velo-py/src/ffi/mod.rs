//! Calls of CPython that PyO3 has no safe form for, each behind a safe function.
//!
//! Other `unsafe` of this crate, each for one reason: `cell.rs` hands out the contents of a cell;
//! `process/view.rs` and `process/loan.rs` answer CPython's requests for a buffer (with
//! [`buffer::fill_buffer`]), and a view is moved between threads; `module/supervisor.rs` takes the
//! descriptor that a zygote inherits.

pub mod async_iterator;
pub mod asyncgen;
pub mod buffer;
pub mod context_vars;
pub mod destroy;
#[cfg(process_mode)]
pub mod fd;
pub mod iterate;
pub mod objects;
pub mod references;
pub mod send_slot;
pub mod turn;
