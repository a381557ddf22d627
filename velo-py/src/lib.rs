//! `velo._core`: the Rust half of velo.
//!
//! A stream has two halves, in either mode. The user's is a channel ([`user`]): it offers events and
//! takes results. The function's is a port ([`function`]): it takes events and pushes results, and a
//! pump runs the user's async generator on it. [`inline`] joins the two by queues in one event loop;
//! [`process`] joins them by rings in shared memory, through the [`codec`]. [`module`] holds the
//! functions and classes of the Python module that open streams and start processes.
//!
//! Process mode is in builds for Linux with the feature `process` (`cfg(process_mode)`, by `build.rs`).
//! Without it, nothing here needs more of the system than Python does.

// What serves process mode in files that serve both has no use without it.
#![cfg_attr(not(process_mode), allow(dead_code, unused_imports))]

mod cell;
mod codec;
mod csv;
mod errors;
mod ffi;
mod flow;
mod function;
mod function_side;
#[cfg(fuzzing)]
pub mod fuzzing;
mod inline;
mod key_text;
mod keys;
mod lane_frames;
mod lines;
mod module;
mod process;
mod user;
mod wait;

use pyo3::prelude::*;

use ffi::async_iterator::{NextItem, install_iterator};
use ffi::send_slot::install;

/// The module's table of contents. What Python objects share is guarded by the GIL ([`cell`]), so an
/// interpreter that can do without one is told to turn it on.
#[pymodule(name = "_core", gil_used = true)]
mod core {
    #[pymodule_export]
    use super::codec::Record;
    #[pymodule_export]
    use super::codec::python::{dumps, fingerprint_of, loads, pickle_in_payload};
    #[pymodule_export]
    use super::csv::{CsvParser, CsvRows, FloatKey, NoEvent, has_long_number};
    #[pymodule_export]
    use super::function::events::Events;
    #[pymodule_export]
    use super::function::pump::Pump;
    #[pymodule_export]
    use super::function::stream_port::StreamPort;
    #[pymodule_export]
    use super::function::ticks::Ticks;
    #[pymodule_export]
    use super::keys::key_operation::KeyOperation;
    #[pymodule_export]
    use super::keys::key_task::KeyTask;
    #[pymodule_export]
    use super::keys::keyed::Keys;
    #[pymodule_export]
    use super::keys::live_results::LiveResults;
    #[pymodule_export]
    use super::keys::remote_lane::RemoteLane;
    #[pymodule_export]
    use super::keys::results::KeyedResults;
    #[cfg(process_mode)]
    #[pymodule_export]
    use super::keys::runner::LaneRunner;
    #[pymodule_export]
    use super::keys::tracker::KeyFailure;
    #[pymodule_export]
    use super::lines::Line;
    #[pymodule_export]
    use super::lines::json::json_lines;
    #[pymodule_export]
    use super::lines::keys::LineKeys;
    #[pymodule_export]
    use super::module::cores::usable_cores;
    #[cfg(process_mode)]
    #[pymodule_export]
    use super::module::daemon::{
        DaemonNotes, default_socket, forget_program, programs, serve_daemon,
    };
    #[pymodule_export]
    use super::module::inline_session::open_inline_session;
    #[pymodule_export]
    use super::module::inline_stream::open_inline;
    #[cfg(process_mode)]
    #[pymodule_export]
    use super::module::lane_relay::LaneRelay;
    #[cfg(process_mode)]
    #[pymodule_export]
    use super::module::messages::{ClientMessage, Report, WorkerDeath, WorkerOrder};
    #[cfg(process_mode)]
    #[pymodule_export]
    use super::module::placement::{
        choose_link, count_usable, least_loaded_link, link_below_share,
    };
    #[cfg(process_mode)]
    #[pymodule_export]
    use super::module::process_stream::{RecoveryTerms, SessionGrant, StreamLimits};
    #[pymodule_export]
    use super::module::session::Session;
    #[pymodule_export]
    use super::module::standstill::{RunningLimit, stood_still};
    #[cfg(process_mode)]
    #[pymodule_export]
    use super::module::supervisor::{
        PoolStatus, PoolWorker, SupervisorClient, after_fork_child, after_fork_parent, before_fork,
        default_in_children, keep_from_children, serve_zygote, set_title, shutdown, status,
    };
    #[cfg(process_mode)]
    #[pymodule_export]
    use super::module::warm::warm_up;
    #[cfg(process_mode)]
    #[pymodule_export]
    use super::module::watch::LinkWatch;
    #[cfg(process_mode)]
    #[pymodule_export]
    use super::module::worker_control::WorkerControlHandle;
    #[cfg(process_mode)]
    #[pymodule_export]
    use super::module::worker_link::{SessionRequest, WorkerLink};
    #[cfg(process_mode)]
    #[pymodule_export]
    use super::process::client::handle::{ClientLinkHandle, Culprit};
    #[cfg(process_mode)]
    #[pymodule_export]
    use super::process::client::ring_stream::{Poison, Recovery};
    #[cfg(process_mode)]
    #[pymodule_export]
    use super::process::loan::LoanMemory;
    #[cfg(process_mode)]
    #[pymodule_export]
    use super::process::view::View;
    #[pymodule_export]
    use super::user::function_stats::{FunctionStats, Latencies};
    #[pymodule_export]
    use super::user::operation::Operation;
    #[pymodule_export]
    use super::user::read_ahead::ReadAhead;
    #[pymodule_export]
    use super::user::results::Results;
    #[pymodule_export]
    use super::user::run::Run;
    #[pymodule_export]
    use super::user::source::check_source;
    #[pymodule_export]
    use super::user::stream::{Opened, StreamBase};

    use super::{Bound, NextItem, PyModule, PyModuleMethods, PyResult, install, install_iterator};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        let py = module.py();
        install_iterator::<Events>(py)?;
        install_iterator::<KeyedResults>(py)?;
        install_iterator::<LiveResults>(py)?;
        install::<KeyOperation>(py)?;
        install::<KeyTask>(py)?;
        #[cfg(process_mode)]
        install::<LaneRunner>(py)?;
        install::<NextItem>(py)?;
        install::<Operation>(py)?;
        install::<Pump>(py)?;
        install_iterator::<Results>(py)?;
        install::<Run>(py)?;
        install_iterator::<Ticks>(py)?;
        module.add("PROCESS_MODE", cfg!(process_mode))?;
        module.add("__version__", velo_shm::VERSION)
    }
}
