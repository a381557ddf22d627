//! The client for Rust, against a supervisor whose workers run Python.

mod corrupting_worker;
mod daemon;
mod life;
mod trouble;
mod values;
