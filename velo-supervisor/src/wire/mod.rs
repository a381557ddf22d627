//! What processes say to each other: the messages, and the sockets and links that carry them.

#[doc(hidden)] // for the two halves of a stream alone
pub mod control;
pub(crate) mod link;
pub(crate) mod protocol;
pub(crate) mod transport;
