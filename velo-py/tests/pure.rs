//! The unit tests of what decides and counts without Python.
//!
//! The crate itself is an extension module, which links no Python: its own test program could not run.
//! So each file that needs none is built here as a module of this program, with its `mod tests`.

#![allow(dead_code, unreachable_pub, missing_docs)]

#[path = "../src/process/client/blame.rs"]
mod blame;
#[path = "../src/function/flush_timer.rs"]
mod flush_timer;
#[path = "../src/key_text.rs"]
mod key_text;
#[path = "../src/process/client/left_out.rs"]
mod left_out;
#[path = "../src/process/client/log.rs"]
mod log;
#[path = "../src/process/worker/slow_steps.rs"]
mod slow_steps;
#[path = "../src/process/client/slow_steps.rs"]
mod slow_streams;
#[path = "../src/user/turn_budget.rs"]
mod turn_budget;
