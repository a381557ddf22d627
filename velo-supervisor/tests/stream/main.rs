//! The client for Rust, against a supervisor whose workers run Python.

mod daemon;
mod life;
mod rogue;
mod trouble;
mod values;
