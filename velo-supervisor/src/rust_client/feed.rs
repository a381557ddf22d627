//! Sending while receiving.

use std::iter::FusedIterator;
use std::marker::PhantomData;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::StreamError;
use super::stream::{Interest, Offered, Stream, Taken};

/// With a result there, at most this many events are sent before it is taken, and none after this
/// time.
const BATCH: u32 = 64;
const PATIENCE: Duration = Duration::from_micros(50);

/// The results of a source of events; see [`Stream::feed`].
#[derive(Debug)]
#[must_use = "nothing is sent before the results are asked for"]
pub struct Feed<'a, I: Iterator, R> {
    stream: &'a mut Stream,
    events: I,
    /// Taken from the source, and not sent.
    next: Option<I::Item>,
    exhausted: bool,
    over: bool,
    result: PhantomData<fn() -> R>,
}

impl<'a, I: Iterator, R> Feed<'a, I, R> {
    pub(super) fn new(stream: &'a mut Stream, events: I) -> Self {
        Self {
            stream,
            events,
            next: None,
            exhausted: false,
            over: false,
            result: PhantomData,
        }
    }
}

impl Stream {
    /// Sends events while it receives: an iterator over the results, which ends when every event is
    /// handled and leaves the stream open. `events` is asked for an event when there is room for it; a
    /// source that waits holds up the results that come meanwhile.
    ///
    /// After an early end of the iteration, the events that were sent are still worked on.
    pub fn feed<R, I>(&mut self, events: I) -> Feed<'_, I::IntoIter, R>
    where
        R: DeserializeOwned,
        I: IntoIterator,
        I::Item: Serialize,
    {
        Feed::new(self, events.into_iter())
    }
}

impl<I: Iterator, R> Feed<'_, I, R>
where
    I::Item: Serialize,
    R: DeserializeOwned,
{
    fn advance(&mut self) -> Result<Option<R>, StreamError> {
        loop {
            match self.stream.take()? {
                Taken::Result(result) => return Ok(Some(result)),
                Taken::Ended => {
                    let more = self.next.take().or_else(|| self.events.next());
                    // The function has ended before the source has, or with it.
                    return more.map_or(Ok(None), |_| Err(StreamError::Ended));
                }
                Taken::Empty => {}
            }
            let Some(interest) = self.fill()? else {
                continue;
            };
            if matches!(interest, Interest::Handled) && self.all_handled() {
                // What came of the last event was there before it counted as handled.
                return match self.stream.take()? {
                    Taken::Result(result) => Ok(Some(result)),
                    Taken::Empty | Taken::Ended => Ok(None),
                };
            }
            self.stream.wait(interest, None)?;
        }
    }

    /// Sends events while there is room. Returns the interest to wait for; none if there is a result.
    fn fill(&mut self) -> Result<Option<Interest>, StreamError> {
        let began = Instant::now();
        for sent in 1.. {
            if self.next.is_none() && !self.exhausted {
                self.next = self.events.next();
                self.exhausted = self.next.is_none();
            }
            let Some(event) = &self.next else {
                // A function that has ended handles no more.
                let over = self.stream.told.ended.load(Relaxed);
                return Ok(Some(if over {
                    Interest::Result
                } else {
                    Interest::Handled
                }));
            };
            match self.stream.offer(event) {
                Ok(Offered::Sent) => {
                    self.next = None;
                    // The source may take its time with the next one.
                    self.stream.show();
                }
                Ok(Offered::Full(bytes)) => {
                    let or_result = true;
                    return Ok(Some(Interest::Room { bytes, or_result }));
                }
                Ok(Offered::Over) => return Ok(Some(Interest::Result)),
                Err(error) => {
                    self.next = None; // it can never be sent
                    return Err(error);
                }
            }
            let rings = self.stream.rings.as_mut();
            let there = rings.is_none_or(|rings| rings.consumer.has_data());
            if there && (sent >= BATCH || began.elapsed() > PATIENCE) {
                break;
            }
        }
        Ok(None)
    }

    fn all_handled(&mut self) -> bool {
        let told = &self.stream.told;
        let asked = told.asked.load(Relaxed);
        self.stream.rings.as_mut().is_none_or(|rings| {
            let producer = &mut rings.producer;
            (asked || producer.committed() > 0) && producer.in_flight() == 0
        })
    }
}

impl<I: Iterator, R> Iterator for Feed<'_, I, R>
where
    I::Item: Serialize,
    R: DeserializeOwned,
{
    type Item = Result<R, StreamError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        match self.advance() {
            Ok(Some(result)) => Some(Ok(result)),
            Ok(None) => {
                self.over = true;
                None
            }
            Err(error) => {
                self.over = matches!(error, StreamError::Ended) || self.stream.rings.is_none();
                Some(Err(error))
            }
        }
    }
}

impl<I: Iterator, R> FusedIterator for Feed<'_, I, R>
where
    I::Item: Serialize,
    R: DeserializeOwned,
{
}
