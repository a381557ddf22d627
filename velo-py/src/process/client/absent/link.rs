//! The client's end of a link, in a build without process mode.

absent! {
    /// The way to a worker.
    ClientLink {}
}
