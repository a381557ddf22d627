//! Python objects in and out of a pair of rings: what both ends of a process-mode stream share.

use std::sync::{Arc, LazyLock, Weak};

use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyDict};
use velo_shm::{
    Consumer, Full, Link, Loan, Part, Producer, ReserveError, Spin, lending_len, ticks,
};
pub use velo_supervisor::control::{END, ERROR, ITEM, STATE};

use crate::codec::{Codec, EncodeError, Memory, OwnMemory, SliceOut};
use crate::errors::{self, Thrown};
use crate::flow::{Interest, Offer};
use crate::process::hold::{Hold, Sweep};
use crate::process::loan::{self, Encoded, LEND_FROM};
use crate::process::view::View;
use velo_supervisor::explain;

/// Buffers from this size on arrive as views of ring memory; smaller ones are cheaper to copy.
const VIEW_FROM: usize = 16 << 10;
/// How much room is reserved before the encoded size is known.
const GUESS: usize = 64;

/// The two rings of one stream, from one end.
pub struct RingPair {
    pub producer: Producer,
    pub consumer: Consumer,
    pub spin: Spin,
    /// Bytes of the reservation that failed last, while it has not succeeded.
    pub stalled: Option<usize>,
    pub bytes_out: u64,
    pub bytes_in: u64,
    /// The most that views may hold of the other side's ring before results are copied instead.
    hold_limit: u64,
}

impl RingPair {
    /// Both rings of an open slot.
    pub fn new(producer: Producer, consumer: Consumer, max_bytes: u64) -> Self {
        RingPair {
            producer,
            consumer,
            spin: new_spin(),
            stalled: None,
            bytes_out: 0,
            bytes_in: 0,
            hold_limit: max_bytes / 2,
        }
    }

    /// Encodes `value` straight into the ring. It is seen after the next `publish`.
    #[inline]
    pub fn push(
        &mut self,
        codec: &Codec,
        value: &Bound<'_, PyAny>,
        kind: u8,
        counted: bool,
    ) -> PyResult<Offer> {
        let py = value.py();
        let hint = codec.size_hint(value).max(GUESS);
        if self.producer.lends() && self.may_lie_in_a_loan(codec, value, hint) {
            let encoded = Encoded::new(codec, value, &self.producer)?;
            return self.push_encoded(py, &encoded, kind, counted);
        }
        let needed = match self.producer.reserve(hint, counted) {
            Ok(mut room) => {
                let mut out = SliceOut::new(&mut room);
                match codec.encode(py, value, &mut out) {
                    Ok(()) => {
                        let used = out.len();
                        room.commit(kind, used);
                        self.bytes_out += used as u64;
                        self.stalled = None;
                        return Ok(Offer::Sent);
                    }
                    Err(EncodeError::Python(error)) => return Err(error),
                    Err(EncodeError::Overflow { .. }) => None,
                }
            }
            Err(refused) => Some(refused),
        };
        match needed {
            None => {
                // It did not fit the room at hand: find out how long it is.
                let encoded = Encoded::new(codec, value, &self.producer)?;
                self.push_encoded(py, &encoded, kind, counted)
            }
            Some(refused) => self.refused(refused, hint),
        }
    }

    /// Whether there is any use in looking for loans below a value, of which some are about. What
    /// is one large buffer elsewhere is better written straight into the ring.
    #[cold]
    fn may_lie_in_a_loan(&self, codec: &Codec, value: &Bound<'_, PyAny>, hint: usize) -> bool {
        hint < LEND_FROM
            || codec
                .items_of(value)
                .is_some_and(|(start, len)| self.producer.part(start, len).is_some())
    }

    /// Memory of `len` bytes to be filled and sent without a copy. None: there is none now.
    pub fn lend(&mut self, len: usize) -> PyResult<Option<Arc<Loan>>> {
        match self.producer.loan(len) {
            Ok(loan) => Ok(Some(loan)),
            Err(ReserveError::Full(_)) => Ok(None),
            Err(refused) => self.refused(refused, len).map(|_| None),
        }
    }

    /// Copies an encoded value into the ring, except for the parts of loans that it names.
    pub fn push_encoded(
        &mut self,
        py: Python<'_>,
        encoded: &Encoded,
        kind: u8,
        counted: bool,
    ) -> PyResult<Offer> {
        let Encoded { bytes, parts } = encoded;
        let offer = self.push_bytes(bytes, parts, kind, counted)?;
        if matches!(offer, Offer::Sent) {
            loan::seal(py, parts)?;
        }
        Ok(offer)
    }

    /// Copies bytes into the ring, and names parts of loans beside them.
    pub fn push_bytes(
        &mut self,
        bytes: &[u8],
        parts: &[Part],
        kind: u8,
        counted: bool,
    ) -> PyResult<Offer> {
        let len = lending_len(bytes.len(), parts.len());
        match self.producer.reserve(len, counted) {
            Ok(mut room) => {
                room[..bytes.len()].copy_from_slice(bytes);
                room.commit_lending(kind, bytes.len(), parts);
                let lent: usize = parts.iter().map(Part::len).sum();
                self.bytes_out += (bytes.len() + lent) as u64;
                self.stalled = None;
                Ok(Offer::Sent)
            }
            Err(refused) => self.refused(refused, len),
        }
    }

    #[cold]
    pub fn refused(&mut self, refused: ReserveError, len: usize) -> PyResult<Offer> {
        match refused {
            ReserveError::Full(Full::Events) => {
                self.stalled = None;
                Ok(Offer::Full)
            }
            ReserveError::Full(Full::Bytes) => {
                self.stalled = Some(len);
                Ok(Offer::Full)
            }
            ReserveError::TooLarge { len, .. } => Err(errors::too_large(self.too_large(len))),
            ReserveError::NoMemory(error) => {
                Err(pyo3::exceptions::PyMemoryError::new_err(format!(
                    "no shared memory for an event of {len} bytes: {}",
                    explain(&error)
                )))
            }
            ReserveError::Corrupted(corrupted) => Err(errors::ring_corrupted(&corrupted)),
            other => Err(errors::velo(format!(
                "cannot send an event of {len} bytes: {other}"
            ))),
        }
    }

    /// Why `len` bytes can never be sent.
    pub fn too_large(&self, len: usize) -> String {
        too_large(len, self.producer.max_len())
    }

    /// Writes again what the other side reads, in case it was written over.
    pub fn restate(&self) {
        self.producer.restate();
        self.consumer.restate();
    }

    /// Room for one more event, or for the one that did not fit last.
    pub fn has_space(&mut self) -> PyResult<bool> {
        let full = match self.stalled {
            Some(len) => self.producer.wait_for_bytes(len),
            None => self.producer.wait_for_space(),
        };
        full.map(|full| !full)
            .map_err(|corrupted| errors::ring_corrupted(&corrupted))
    }

    /// Decodes a frame's payload. Large buffers become views that hold its space, unless all of it
    /// is to be `private`.
    #[inline]
    pub fn decode<'py>(
        &mut self,
        py: Python<'py>,
        codec: &Codec,
        sweep: &Weak<dyn Sweep>,
        private: bool,
    ) -> Result<Option<Received<'py>>, Thrown> {
        // The first look may go on to a larger ring, of which other rules hold.
        let lends = match self.consumer.peek() {
            Ok(Some(frame)) => frame.lends,
            Ok(None) => return Ok(None),
            Err(corrupted) => return Err(errors::ring_corrupted(&corrupted).into()),
        };
        let loans = lends.then(|| Box::new(self.borrow()));
        let may_hold = self.consumer.may_lease() && self.consumer.leased_bytes() < self.hold_limit;
        let frame = match self.consumer.peek() {
            Ok(Some(frame)) => frame,
            Ok(None) => return Ok(None),
            Err(corrupted) => return Err(errors::ring_corrupted(&corrupted).into()),
        };
        let kind = frame.kind;
        self.bytes_in += frame.payload.len() as u64;
        let mut memory = RingMemory {
            sweep,
            may_hold,
            private,
            hold: None,
            loans,
        };
        let value = match frame.payload.is_empty() {
            true => Ok(py.None().into_bound(py)),
            false => codec
                .decode(py, frame.payload, &mut memory)
                .map_err(Thrown::from),
        };
        Ok(Some(Received {
            kind,
            value,
            hold: memory.hold,
        }))
    }

    /// The loans that the next frame names.
    #[cold]
    fn borrow(&mut self) -> Loans {
        let may_hold = self.consumer.borrowed_bytes() < self.hold_limit;
        let lent = self.consumer.borrow();
        self.bytes_in += lent.iter().map(|lease| lease.len() as u64).sum::<u64>();
        Loans {
            lent: lent.into_iter().map(Hold::of).collect(),
            may_hold,
        }
    }

    /// The state that a function had in another worker, from the first frame.
    pub fn restore<'py>(&mut self, py: Python<'py>, codec: &Codec) -> PyResult<Bound<'py, PyDict>> {
        let wrong = || errors::corrupted("a stream goes on without the state that it had");
        let frame = self
            .consumer
            .peek()
            .map_err(|found| errors::ring_corrupted(&found))?;
        let frame = frame
            .filter(|frame| frame.kind == STATE)
            .ok_or_else(wrong)?;
        let state = codec.decode(py, frame.payload, &mut OwnMemory);
        self.consumer.release();
        state?.cast_into::<PyDict>().map_err(|_| wrong())
    }

    /// The frame that was decoded is done with, but for the views that hold its space.
    #[inline]
    pub fn done(&mut self, hold: Option<Arc<Hold>>) {
        match hold {
            Some(hold) if Arc::strong_count(&hold) > 1 => {
                hold.set(self.consumer.lease());
            }
            _ => self.consumer.release(),
        }
    }
}

/// A decoded frame.
pub struct Received<'py> {
    /// What kind of frame it is.
    pub kind: u8,
    /// The decoded value.
    pub value: Result<Bound<'py, PyAny>, Thrown>,
    /// To be given to [`RingPair::done`].
    pub hold: Option<Arc<Hold>>,
}

struct RingMemory<'a> {
    sweep: &'a Weak<dyn Sweep>,
    may_hold: bool,
    /// The receiver wants a copy of its own, to write to.
    private: bool,
    hold: Option<Arc<Hold>>,
    /// In one word, as most frames name none: this is made for each of them.
    loans: Option<Box<Loans>>,
}

/// The loans that a frame names.
struct Loans {
    lent: Vec<Arc<Hold>>,
    /// They may become views. Otherwise they are copied, so that a receiver that keeps many views does
    /// not stop the stream.
    may_hold: bool,
}

impl Memory for RingMemory<'_> {
    fn view<'py>(&mut self, py: Python<'py>, bytes: &[u8]) -> PyResult<Option<Bound<'py, PyAny>>> {
        if self.private {
            return Ok(Some(PyByteArray::new(py, bytes).into_any()));
        }
        if bytes.len() < VIEW_FROM || !self.may_hold {
            return Ok(None);
        }
        let hold = self.hold.get_or_insert_default().clone();
        let view = View::new(bytes, hold, self.sweep.clone());
        Ok(Some(Bound::new(py, view)?.into_any()))
    }

    fn lent<'py>(
        &mut self,
        py: Python<'py>,
        number: u32,
    ) -> PyResult<Option<(Bound<'py, PyAny>, usize)>> {
        let Some(loans) = &self.loans else {
            return Ok(None);
        };
        let Some(hold) = loans.lent.get(number as usize) else {
            return Ok(None);
        };
        let Some(lease) = hold.lease() else {
            return Ok(None);
        };
        let buffer = if self.private {
            PyByteArray::new(py, lease).into_any()
        } else if loans.may_hold {
            Bound::new(py, View::new(lease, hold.clone(), self.sweep.clone()))?.into_any()
        } else {
            PyBytes::new(py, lease).into_any()
        };
        Ok(Some((buffer, lease.len())))
    }

    fn is_private(&self) -> bool {
        self.private
    }
}

/// Why `len` bytes can never be sent through a ring that takes `limit` at once.
pub fn too_large(len: usize, limit: u64) -> String {
    format!(
        "{len} bytes cannot be sent at once: the limit is {limit} bytes, half of `max_bytes`; \
         raise it with `StreamConfig(max_bytes=...)`"
    )
}

/// Whether anything here spins: `VELO_SPIN=0` says no, which is for measuring what spinning gives.
static SPINS: LazyLock<bool> =
    LazyLock::new(|| std::env::var_os("VELO_SPIN").is_none_or(|value| value != "0"));

/// How long a spin of one place pays off: it learns from each of them.
pub fn new_spin() -> Spin {
    match *SPINS {
        true => Spin::new(),
        false => Spin::never(),
    }
}

/// Spins with the GIL released until something came, for as long as it has been paying off. How
/// many ticks that took.
#[inline]
pub fn spin(
    py: Python<'_>,
    rings: &mut RingPair,
    (end, slot): (&Link, u32),
    interest: Interest,
) -> u64 {
    let RingPair {
        producer,
        consumer,
        spin,
        ..
    } = rings;
    if consumer.has_data() {
        return 0;
    }
    let Some(plan) = spin.plan(|| end.may_share_core()) else {
        return 0;
    };
    let began = ticks::now();
    let disturbed = || end.any_ready_but(slot);
    let mut rounds = 0u32;
    py.detach(|| {
        if interest.throughput {
            plan.back_off(|| producer.in_flight(), disturbed);
        }
        spin.run(plan, || {
            rounds = rounds.wrapping_add(1);
            consumer.has_data()
                || (interest.space && producer.free_events() > 0)
                || (interest.handled && producer.in_flight() == 0)
                || (rounds.is_multiple_of(8) && disturbed())
        })
    });
    ticks::now().saturating_sub(began)
}
