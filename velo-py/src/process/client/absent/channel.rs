//! The channel of a stream in process mode, in a build without that.

use std::sync::Arc;

use pyo3::prelude::*;

use crate::codec::ArraySpec;
use crate::errors::Thrown;
use crate::flow::{Interest, Offer, Take};
use crate::lane_frames::Name;
use crate::process::client::link::ClientLink;
use crate::process::client::told::Told;

absent! {
    /// The user's half of a stream in process mode.
    RingChannel {
        fn offer(Python<'_>, &Bound<'_, PyAny>) -> PyResult<Offer>;
        fn offer_newest(Python<'_>, &Bound<'_, PyAny>) -> PyResult<u64>;
        fn dropped(Python<'_>) -> PyResult<(u64, u64)>;
        fn loan(Python<'_>, &ArraySpec) -> PyResult<Option<Py<PyAny>>>;
        fn flush_events(Python<'_>) -> PyResult<()>;
        fn free_events(Python<'_>) -> PyResult<usize>;
        fn take(Python<'_>, bool) -> Result<Take, Thrown>;
        fn flush_results(Python<'_>) -> PyResult<()>;
        fn is_finished(Python<'_>) -> PyResult<bool>;
        fn progress(Python<'_>) -> PyResult<(u64, u64)>;
        fn handled_at(Python<'_>) -> PyResult<u64>;
        fn has_results(Python<'_>) -> PyResult<bool>;
        fn is_settled(Python<'_>) -> PyResult<bool>;
        fn bytes(Python<'_>) -> PyResult<(u64, u64)>;
        fn publish_latencies(Python<'_>, u64, u64) -> PyResult<()>;
        fn show_evicted(Python<'_>, u32) -> PyResult<()>;
        fn may_sleep(Python<'_>, Interest) -> PyResult<bool>;
        fn spin(Python<'_>, Interest) -> PyResult<u64>;
        fn detach(Python<'_>) -> PyResult<bool>;
        fn end_input(Python<'_>) -> PyResult<Offer>;
        fn is_leaving() -> bool;
        fn stays();
        fn is_on(Python<'_>, &Arc<ClientLink>) -> PyResult<bool>;
        fn send_named(Python<'_>, (u8, bool), Name, Option<&Bound<'_, PyAny>>) -> PyResult<Option<u32>>;
        fn send_encoded(Python<'_>, (u8, bool), Name, &[u8]) -> PyResult<Option<u32>>;
        fn send_bytes(Python<'_>, u8, &[u8]) -> PyResult<bool>;
        fn next_message(Python<'_>, bool) -> PyResult<Told>;
    }
}
