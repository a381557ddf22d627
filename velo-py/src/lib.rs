//! `velo._core`: the Rust half of velo.
//!
//! A stream has two halves, in either mode. The user's is a [`channel`]: it offers events and takes
//! results. The function's is a [`port`]: it takes events and pushes results, and a [`pump`] runs
//! the user's async generator on it. [`inline`] joins the two by queues in one event loop;
//! [`client`] and [`worker`] join them by rings in shared memory, through the [`codec`].

mod aside;
mod budget;
mod burst;
mod cell;
mod channel;
mod client;
mod codec;
mod control;
mod csv;
mod daemon;
mod errors;
mod events;
mod ffi;
mod function;
#[cfg(fuzzing)]
pub mod fuzzing;
mod group;
mod inline;
mod kept;
mod ledger;
mod loan;
mod meter;
mod opener;
mod operation;
mod pace;
mod port;
mod pump;
mod results;
mod rings;
mod run;
mod slow;
mod state;
mod stint;
mod stream;
mod supervisor;
mod ticks;
mod view;
mod wait;
mod warm;
mod worker;

use pyo3::prelude::*;

use ffi::send_slot::install;

/// The module's table of contents. What Python objects share is guarded by the GIL ([`cell`]), so an
/// interpreter that can do without one is told to turn it on.
#[pymodule(name = "_core", gil_used = true)]
mod core {
    #[pymodule_export]
    use super::client::{ClientLink, Recovery};
    #[pymodule_export]
    use super::codec::python::{dumps, fingerprint_of, loads};
    #[pymodule_export]
    use super::csv::{CsvParser, has_long_number};
    #[pymodule_export]
    use super::daemon::{default_socket, serve_daemon};
    #[pymodule_export]
    use super::events::Events;
    #[pymodule_export]
    use super::function::StreamPort;
    #[pymodule_export]
    use super::group::{GroupMember, StreamGroup};
    #[pymodule_export]
    use super::kept::{Kept, keep_inline};
    #[pymodule_export]
    use super::ledger::Ledger;
    #[pymodule_export]
    use super::loan::LoanMemory;
    #[pymodule_export]
    use super::opener::open_inline;
    #[pymodule_export]
    use super::operation::Operation;
    #[pymodule_export]
    use super::pump::Pump;
    #[pymodule_export]
    use super::results::Results;
    #[pymodule_export]
    use super::run::Run;
    #[pymodule_export]
    use super::stream::{Opened, StreamBase};
    #[pymodule_export]
    use super::supervisor::{
        SupervisorClient, WorkerSeat, after_fork_child, after_fork_parent, before_fork,
        serve_zygote, shutdown, status, usable_cores,
    };
    #[pymodule_export]
    use super::ticks::Ticks;
    #[pymodule_export]
    use super::view::View;
    #[pymodule_export]
    use super::warm::warm_up;
    #[pymodule_export]
    use super::worker::{LinkWatch, WorkerLink};

    use super::{Bound, PyModule, PyModuleMethods, PyResult, install};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        let py = module.py();
        install::<Events>(py)?;
        install::<Operation>(py)?;
        install::<Pump>(py)?;
        install::<Results>(py)?;
        install::<Run>(py)?;
        install::<StreamGroup>(py)?;
        install::<Ticks>(py)?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
