//! The worker pool behind velo: it places streams on worker processes, and starts, reuses, replaces
//! and reaps those processes.
//!
//! It never touches an event: events cross in shared memory between a client and its worker, without
//! the supervisor. It never trusts a peer's message, and never waits for one peer while others have
//! work for it.
//!
//! ```
//! use velo_supervisor::{EmbeddedOptions, embedded};
//!
//! let options = EmbeddedOptions::new(["python", "-m", "velo._worker"]);
//! let client = embedded::connect(&options)?; // a thread of this process
//! let status = embedded::status().expect("a supervisor runs");
//! assert!(status.workers.is_empty()); // a worker starts when `client` acquires a link to it
//! # embedded::shutdown(std::time::Duration::from_secs(1));
//! # drop(client);
//! # Ok::<(), velo_supervisor::SupervisorError>(())
//! ```
//!
//! Each kind of process has its own way in:
//!
//! | process | enters by | and holds |
//! | --- | --- | --- |
//! | client, the user's program | [`embedded::connect`], [`Client::connect`] | a [`Client`], one per event loop |
//! | client without Python | [`stream::Connection::connect`] | a [`stream::Connection`] |
//! | standalone supervisor, shared by clients | [`daemon::serve`] | nothing of theirs |
//! | zygote, a single-threaded template | [`zygote::serve`] | nothing; it forks workers |
//! | worker, forked from the zygote | [`zygote::Role::Worker`] | its [`WorkerControl`] |
//!
//! A client acquires a link to a worker, waits until its descriptor is readable, and polls:
//!
//! ```no_run
//! # use velo_supervisor::{ClientEvent, EmbeddedOptions, embedded};
//! # let mut client = embedded::connect(&EmbeddedOptions::new(["python", "-m", "velo._worker"]))?;
//! let request = client.acquire(4)?;
//! for event in client.poll()? {
//!     if let ClientEvent::Link { request: answered, end, .. } = event {
//!         assert_eq!(answered, request);
//!         println!("a link with {} slots", end.slots());
//!     }
//! }
//! # Ok::<(), velo_supervisor::SupervisorError>(())
//! ```

mod client;
#[doc(hidden)] // for the clients of other crates alone
pub mod client_side;
pub mod daemon;
pub mod embedded;
mod error;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub mod fuzzing;
mod notes;
mod options;
mod os;
mod pool;
pub mod published;
mod runtime_folder;
#[doc(hidden)] // its public name is `stream`
pub mod rust_client;
mod supervisor;
mod wire;
mod worker_control;
pub mod zygote;

pub use client::{Client, ClientEvent};
pub use error::{DaemonError, SupervisorError, WorkerControlError, ZygoteError};
pub use notes::Notes;
pub use options::{DaemonOptions, EmbeddedOptions, LogFormat};
pub use os::exit::Exit;
pub use os::limits::explain;
pub use os::title::set_title;
#[doc(inline)]
pub use rust_client as stream;
#[doc(hidden)] // for the two halves of a stream alone
pub use wire::control;
pub use wire::protocol::{
    ClientStatus, Key, KeyRefusal, Killed, LinkId, LinkLook, Order, PROTOCOL_VERSION, Question,
    Ran, Refusal, RequestId, RunningLook, Status, StreamLook, Welcome, WorkerInfo, WorkerLook,
    WorkerStatus, ZYGOTE_FD_ENV,
};
pub use wire::transport::TransportError;
pub use worker_control::{ABANDONED_EXIT_CODE, WorkerControl, WorkerControlEvent};
