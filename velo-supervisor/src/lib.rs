//! The worker pool behind velo: it places streams on worker processes, and spawns, reuses, recycles
//! and reaps those processes. It never touches an event: those cross in shared memory, between the
//! client and its worker, without the supervisor. [`stream`] is such a client, for programs in Rust.
//!
//! Four kinds of process meet here, and each has its own way in:
//!
//! | process | enters by | and holds |
//! | --- | --- | --- |
//! | client, the user's program | [`embedded::connect`], [`Client::connect`] | a [`Client`], one per event loop |
//! | client without Python | [`stream::Connection::connect`] | a [`stream::Connection`] |
//! | standalone supervisor, shared by clients | [`daemon::serve`] | nothing of theirs |
//! | zygote, a single-threaded template | [`zygote::serve`] | nothing; it forks workers |
//! | worker, forked from the zygote | [`zygote::Role::Worker`] | its [`WorkerControl`] |
//!
//! ```no_run
//! use velo_supervisor::{ClientEvent, EmbeddedOptions, embedded};
//!
//! let options = EmbeddedOptions::new(["python", "-m", "velo._worker"]);
//! let mut client = embedded::connect(&options)?;
//! let request = client.acquire(4)?;
//! // Wait until `client.as_fd()` is readable, then:
//! for event in client.poll()? {
//!     if let ClientEvent::Link { request: answered, end, .. } = event {
//!         assert_eq!(answered, request);
//!         println!("a link with {} slots", end.slots());
//!     }
//! }
//! # Ok::<(), velo_supervisor::SupervisorError>(())
//! ```

mod client;
pub mod daemon;
pub mod embedded;
mod error;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub mod fuzzing;
mod options;
mod os;
mod pool;
#[doc(hidden)] // its public name is `stream`
pub mod rust_client;
mod supervisor;
mod wire;
mod worker_control;
pub mod zygote;

pub use client::{Client, ClientEvent};
pub use error::{DaemonError, SupervisorError, WorkerControlError, ZygoteError};
pub use options::{DaemonOptions, EmbeddedOptions, LogFormat};
pub use os::exit::Exit;
pub use os::limits::explain;
#[doc(inline)]
pub use rust_client as stream;
#[doc(hidden)] // for the two halves of a stream alone
pub use wire::control;
pub use wire::protocol::{
    ClientStatus, Key, KeyRefusal, Killed, LinkId, LinkLook, Order, PROTOCOL_VERSION, Question,
    Ran, Refusal, RequestId, Status, StreamLook, Welcome, WorkerInfo, WorkerLook, WorkerStatus,
    ZYGOTE_FD_ENV,
};
pub use wire::transport::TransportError;
pub use worker_control::{ABANDONED_EXIT_CODE, WorkerControl, WorkerControlEvent};
