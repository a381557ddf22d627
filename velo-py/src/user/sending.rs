//! The input of a stream: offering events, putting them back, and the end of the input.

use pyo3::prelude::*;

use crate::errors;
use crate::flow::Offer;
use crate::user::read_ahead::ReadAhead;
use crate::user::state::StreamCore;

impl StreamCore {
    /// Refuses to send once the stream takes no more events.
    #[inline]
    pub fn check_open(&self, py: Python<'_>) -> PyResult<()> {
        self.check_thread()?;
        match self.state.with(py, |state| state.closed())? {
            None => Ok(()),
            Some(why) => Err(errors::closed(why)),
        }
    }

    /// The function has ended while events were being sent.
    pub fn ended_early(&self, py: Python<'_>) -> PyErr {
        let why = self
            .state
            .with(py, |state| state.over.clone())
            .ok()
            .flatten();
        errors::closed(why.unwrap_or_else(|| {
            "the stream function has ended: `recv` has what is left, or its error".to_owned()
        }))
    }

    /// Offers an event, after those that were put back.
    #[inline]
    pub fn offer(&self, py: Python<'_>, event: &Bound<'_, PyAny>) -> PyResult<Offer> {
        match self.send_stash(py)? {
            true => self.channel.offer(py, event),
            false => Ok(Offer::Full),
        }
    }

    /// Sends an event, and drops the oldest ones if there is no room.
    pub fn send_newest(&self, py: Python<'_>, event: &Bound<'_, PyAny>) -> PyResult<()> {
        if self.channel.is_finished(py)? {
            return Err(self.ended_early(py));
        }
        let dropped = self.channel.offer_newest(py, event)?;
        self.count_and_flush(py, 1)?;
        Ok(self.state.with(py, |state| state.meter.dropped(dropped))?)
    }

    /// Keeps an event that was taken from a source and could not be sent yet.
    pub fn put_back(&self, py: Python<'_>, event: Py<PyAny>) -> PyResult<()> {
        Ok(self.state.with(py, |state| state.stash.push_back(event))?)
    }

    /// Sets the source that the stream's events come from; None at its end.
    pub fn reads(&self, py: Python<'_>, ahead: Option<Py<ReadAhead>>) -> PyResult<()> {
        let before = self
            .ahead
            .with(py, |place| std::mem::replace(place, ahead))?;
        for event in before.map_or_else(Default::default, |ahead| ahead.get().close(py)) {
            self.put_back(py, event)?;
        }
        Ok(())
    }

    /// Puts back the events of a source that were read and not sent: they go before the events that other
    /// tasks send.
    #[inline]
    pub fn put_back_what_was_read(&self, py: Python<'_>) -> PyResult<()> {
        let ahead = self
            .ahead
            .with(py, |place| place.as_ref().map(|ahead| ahead.clone_ref(py)))?;
        for event in ahead.map_or_else(Default::default, |ahead| ahead.get().take_all(py)) {
            self.put_back(py, event)?;
        }
        Ok(())
    }

    /// Sends the events that were put back. False when there is no room for them.
    #[inline]
    pub fn send_stash(&self, py: Python<'_>) -> PyResult<bool> {
        match self.state.with(py, |state| state.stash.is_empty())? {
            true => Ok(true),
            false => self.send_all_of_stash(py),
        }
    }

    #[inline(never)] // apart from the look at the stash that each event takes
    fn send_all_of_stash(&self, py: Python<'_>) -> PyResult<bool> {
        while let Some(event) = self.state.with(py, |state| state.stash.pop_front())? {
            if let Offer::Full = self.channel.offer(py, event.bind(py))? {
                self.state.with(py, |state| state.stash.push_front(event))?;
                return Ok(false);
            }
            self.count_and_flush(py, 1)?;
        }
        Ok(true)
    }

    /// Closes the input; the first reason stays.
    pub fn close_input(&self, py: Python<'_>, why: &str) -> PyResult<bool> {
        Ok(self.state.with(py, |state| {
            let first = state.closed.is_none();
            state.closed.get_or_insert_with(|| why.to_owned());
            first
        })?)
    }

    /// Ends the input after the events that were put back. False if there is no room for that now.
    pub fn try_end(&self, py: Python<'_>, why: &str) -> PyResult<bool> {
        self.check_thread()?;
        if self.close_input(py, why)? {
            self.waits.send.wake(py); // a task that waits for room learns that the input is closed
        }
        if self.state.with(py, |state| state.has_told_end())? || self.channel.is_finished(py)? {
            return Ok(true);
        }
        self.put_back_what_was_read(py)?;
        let told = self.send_stash(py)? && matches!(self.channel.end_input(py)?, Offer::Sent);
        if told {
            self.state.with(py, |state| state.told_end())?;
        }
        Ok(told)
    }

    /// Detaches the stream from its session after the events that were put back; or waits for its end,
    /// if its input was ended. False if there is no room for that now.
    pub fn try_detach(&self, py: Python<'_>, why: &str) -> PyResult<bool> {
        self.check_thread()?;
        if self.close_input(py, why)? {
            self.waits.send.wake(py);
        }
        if self.state.with(py, |state| state.has_told_end())? || self.channel.is_finished(py)? {
            return Ok(true);
        }
        self.put_back_what_was_read(py)?;
        let gone = self.send_stash(py)? && self.channel.detach(py)?;
        if gone {
            self.state.with(py, |state| state.told_end())?;
        }
        Ok(gone)
    }

    /// Closes the input and cancels the function.
    pub fn abandon(&self, py: Python<'_>) -> PyResult<()> {
        if self.is_of_parent().is_some() {
            return Ok(());
        }
        self.close_input(py, "the stream was cancelled")?;
        self.state.with(py, |state| state.cancelled = true)?;
        self.waits.send.wake(py);
        self.cancel.cancel(py)
    }
}
