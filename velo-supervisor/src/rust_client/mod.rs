//! Python stream functions, used from Rust: events and results cross through the rings that Python
//! programs use, in the workers of the same supervisor.
//!
//! A [`Connection`] is to a standalone supervisor (`velo supervisor start`). A [`Stream`] is a running
//! copy of a function that workers can import. Events are sent and results received as whatever
//! [`serde`] can write and read; Python sees structs as dicts. There is no Python in this process, and
//! no runtime to start: calls block, with a timeout if they are given one, and a thread that waits sleeps.
//!
//! ```no_run
//! use velo_supervisor::stream::{Connection, StreamOptions};
//!
//! #[derive(serde::Serialize)]
//! struct Reading {
//!     sensor: u32,
//!     celsius: f64,
//! }
//!
//! let velo = Connection::to_default()?;
//! // The generator function `means` in sensors.py, which lies in /srv/functions.
//! let options = StreamOptions::new().path("/srv/functions");
//! let mut means = velo.open("sensors:means", &options)?;
//! means.send(&Reading { sensor: 7, celsius: 21.5 })?;
//! let mean: Option<f64> = means.recv()?;
//! println!("{mean:?}");
//! means.end()?;
//! while let Some(mean) = means.recv::<f64>()? {
//!     println!("after the last event: {mean}");
//! }
//! # Ok::<(), velo_supervisor::stream::StreamError>(())
//! ```
//!
//! What a function raises is a [`StreamError::Function`], a worker that dies a
//! [`StreamError::WorkerDied`]. The connection outlives both, and the supervisor too: streams go on
//! without it, and the next one to open finds the supervisor that has taken its place.
//!
//! # Threads and event loops
//!
//! A connection can be used by many threads at a time; a stream moves between threads and is used by
//! one. An event loop waits for [`Connection::as_fd`](std::os::fd::AsFd::as_fd) to be readable, and then
//! calls [`Stream::recv_timeout`] or [`Stream::send_timeout`] of each of its streams with a timeout of
//! zero, until they say [`StreamError::TimedOut`].
//!
//! # Values
//!
//! | Python | as MessagePack | in Rust, for example |
//! | --- | --- | --- |
//! | `None`, `bool`, `int` of 64 bits, `float`, `str` | the same | `Option<T>`, `bool`, `i64`, `f64`, `String` |
//! | `bytes` | bytes | `serde_bytes::ByteBuf` |
//! | `list`; as a result also `tuple`, `set`, `frozenset` | array | `Vec<T>`, tuples, structs |
//! | `dict` | map | structs, `HashMap<K, V>` |
//!
//! A result that holds anything else, such as a NumPy array or an object of a class, is a
//! [`StreamError::Decode`] that says so.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

mod error;
mod feed;
mod hub;
mod link;
mod link_request;
mod news;
mod options;
mod placement;
mod quota;
mod stream;
mod values;

pub use error::{FunctionError, StreamError, WorkerDied};
pub use feed::Feed;
pub use options::StreamOptions;
pub use stream::Stream;

use crate::daemon::default_socket;
use hub::Hub;

/// A connection to a standalone supervisor, and the links to workers that its streams share.
///
/// Its streams keep it: it ends with the last of them. A clone is the same connection.
#[derive(Clone)]
pub struct Connection {
    hub: Arc<Hub>,
}

impl Connection {
    /// Connects to the supervisor that listens at `socket`.
    ///
    /// # Errors
    ///
    /// [`StreamError::Supervisor`] when none listens there, or another user's;
    /// [`StreamError::Pool`] when it runs another version of velo.
    pub fn connect(socket: impl AsRef<Path>) -> Result<Self, StreamError> {
        let hub = Hub::new(socket.as_ref())?;
        drop(hub.greet(hub.lock(), None)?);
        Ok(Self { hub })
    }

    /// Connects to the supervisor that listens where `velo supervisor start` does by itself.
    ///
    /// # Errors
    ///
    /// As for [`connect`](Self::connect).
    pub fn to_default() -> Result<Self, StreamError> {
        Self::connect(default_socket())
    }

    /// Opens a stream of the function that workers import as `module:function`. It waits for a worker
    /// if there is none yet; what the import raises is told by [`Stream::recv`].
    ///
    /// # Errors
    ///
    /// [`StreamError::Name`] when that is no name; [`StreamError::Pool`] when there is no worker, or
    /// a quota is reached; [`StreamError::TimedOut`] after
    /// [`open_timeout`](StreamOptions::open_timeout); [`StreamError::Supervisor`] when a supervisor is
    /// needed, and gone.
    pub fn open(&self, function: &str, options: &StreamOptions) -> Result<Stream, StreamError> {
        let definition = values::definition(function, &options.paths)?;
        let own = function.split_once(':').map_or(function, |(_, name)| name);
        let name = options.name.as_deref().unwrap_or(own);
        let place = self.hub.open(&definition, name, options)?;
        Ok(Stream::new(self.hub.clone(), place, name.to_owned()))
    }
}

impl AsFd for Connection {
    /// Readable when a call that has timed out may succeed, for any of its streams. Only to be polled.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.hub.as_fd()
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("socket", &self.hub.path)
            .field("links", &self.hub.link_count())
            .finish_non_exhaustive()
    }
}
