//! Async iterators that are their own awaitables: `anext(iterator)` allocates nothing.
//!
//! `async for` asks for an item, awaits it, and asks for the next one. So an iterator can lend itself
//! as the awaitable of its next item until that item is there. A caller that asks again before that,
//! as `asyncio.gather(anext(events), anext(events))` does, gets an awaitable of its own, a
//! [`NextItem`]: two awaitables at once are never the same object, and no item comes out of both.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use pyo3::PyClass;
use pyo3::exceptions::{PyRuntimeError, PyTypeError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::pyclass::boolean_struct::True;
use pyo3::types::PyType;

use crate::cell::GilCell;
use crate::errors::{self, Thrown};
use crate::ffi::destroy::destroy;
use crate::ffi::send_slot::{Awaitable, Step, coroutine_methods, install, itself};

/// An async iterator whose next item needs no awaitable of its own.
pub trait AsyncIterate: PyClass<Frozen = True> + Sync {
    /// The name of one of its items in errors.
    const ITEM: &'static str;

    /// Its awaitables.
    fn lending(&self) -> &Lending;

    /// The next item or a future to wait for; `StopAsyncIteration` at the end.
    fn next_item(&self, py: Python<'_>) -> Result<Step, Thrown>;

    /// Gives up the wait.
    fn give_up(&self, py: Python<'_>) -> PyResult<()>;
}

/// The state of an iterator's awaitables. Guarded by the GIL.
#[derive(Default)]
pub struct Lending {
    /// The iterator is the awaitable of its next item, which is not there yet.
    lent: AtomicBool,
    /// The address of the awaitable that waits for an item; 0 when none does.
    waiter: AtomicUsize,
}

impl Lending {
    /// Steps the iterator for one of its awaitables.
    #[inline]
    fn step<T: AsyncIterate>(this: &T, py: Python<'_>, me: usize) -> Result<Step, Thrown> {
        let waiter = &this.lending().waiter;
        let waits = waiter.load(Relaxed);
        if waits != 0 && waits != me {
            let (item, advice) = (T::ITEM, "let one of them do it");
            let busy = format!("two tasks wait for the next {item} of one stream; {advice}");
            return Err(errors::busy(busy).into());
        }
        let step = this.next_item(py);
        let waits = if matches!(step, Ok(Step::Yield(_))) {
            me
        } else {
            0
        };
        waiter.store(waits, Relaxed);
        step
    }

    /// Gives up the wait of one of the awaitables.
    fn stop<T: AsyncIterate>(this: &T, py: Python<'_>, me: usize) -> PyResult<()> {
        if this.lending().waiter.load(Relaxed) == me {
            this.lending().waiter.store(0, Relaxed);
            this.give_up(py)?;
        }
        Ok(())
    }
}

impl<T: AsyncIterate> Awaitable for T {
    #[inline]
    fn step(slf: &Bound<'_, Self>, _value: &Bound<'_, PyAny>) -> Result<Step, Thrown> {
        let this = slf.get();
        let step = Lending::step(this, slf.py(), slf.as_ptr().addr());
        if !matches!(step, Ok(Step::Yield(_))) {
            this.lending().lent.store(false, Relaxed);
        }
        step
    }

    fn throw(slf: &Bound<'_, Self>, error: PyErr) -> PyResult<Step> {
        close(slf)?;
        Err(error)
    }
}

/// As [`install`], for a class that is an async iterator and its own awaitable.
pub fn install_iterator<T: AsyncIterate>(py: Python<'_>) -> PyResult<()> {
    install::<T>(py)?;
    let class: Bound<'_, PyType> = T::type_object(py);
    let class = class.as_type_ptr();
    // SAFETY: as in `install`, which found that the slots are there.
    unsafe {
        let slots = (*class).tp_as_async;
        (*slots).am_aiter = Some(itself);
        (*slots).am_anext = Some(anext::<T>);
        ffi::PyType_Modified(class);
    }
    Ok(())
}

/// `close()` of the iterator as an awaitable: gives up its wait.
pub fn close<T: AsyncIterate>(slf: &Bound<'_, T>) -> PyResult<()> {
    slf.get().lending().lent.store(false, Relaxed);
    Lending::stop(slf.get(), slf.py(), slf.as_ptr().addr())
}

/// The error of a plain `for` over an async iterator.
pub fn refuse_plain_for(what: &str) -> PyErr {
    PyTypeError::new_err(format!(
        "{what} are an async iterator: use `async for`, not `for`"
    ))
}

/// `__anext__`: the iterator itself, or another awaitable while that is lent.
pub fn lend<T: AsyncIterate>(iterator: &Bound<'_, T>) -> PyResult<Py<PyAny>> {
    let lent = &iterator.get().lending().lent;
    if !lent.load(Relaxed) {
        // The GIL guards it. An atomic `swap` would take as long as the rest of this function.
        lent.store(true, Relaxed);
        return Ok(iterator.clone().into_any().unbind());
    }
    let other = NextItem {
        iterator: iterator.clone().into_any().unbind(),
        step: |iterator, me| {
            let this = iterator.cast::<T>().map_err(PyErr::from)?;
            Lending::step(this.get(), iterator.py(), me)
        },
        stop: |iterator, me| Lending::stop(iterator.cast::<T>()?.get(), iterator.py(), me),
        done: GilCell::new(false),
    };
    Ok(Bound::new(iterator.py(), other)?.into_any().unbind())
}

/// The slot of [`lend`].
///
/// # Safety
///
/// For CPython, in the slots of the type of `T`.
pub unsafe extern "C" fn anext<T: AsyncIterate>(slf: *mut ffi::PyObject) -> *mut ffi::PyObject {
    // SAFETY: CPython calls the slot with the GIL held.
    let py = unsafe { Python::assume_attached() };
    // SAFETY: a live object, and the slot was installed only into the type of `T`.
    let iterator = unsafe { Borrowed::from_ptr(py, slf).cast_unchecked::<T>() };
    match lend(&iterator) {
        Ok(awaitable) => awaitable.into_ptr(),
        Err(error) => {
            error.restore(py);
            std::ptr::null_mut()
        }
    }
}

/// The next item of an iterator that has lent itself already.
#[pyclass(frozen, module = "velo._core")]
pub struct NextItem {
    iterator: Py<PyAny>,
    step: fn(&Bound<'_, PyAny>, usize) -> Result<Step, Thrown>,
    stop: fn(&Bound<'_, PyAny>, usize) -> PyResult<()>,
    done: GilCell<bool>,
}

impl NextItem {
    fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }
}

impl Awaitable for NextItem {
    fn step(slf: &Bound<'_, Self>, _value: &Bound<'_, PyAny>) -> Result<Step, Thrown> {
        let (this, py) = (slf.get(), slf.py());
        if this.done.with(py, |done| *done)? {
            let again = "cannot await the same `anext(...)` twice: call `anext` again";
            return Err(PyRuntimeError::new_err(again).into());
        }
        let step = (this.step)(this.iterator.bind(py), this.address());
        if !matches!(step, Ok(Step::Yield(_))) {
            this.done.with(py, |done| *done = true)?;
        }
        step
    }

    fn throw(slf: &Bound<'_, Self>, error: PyErr) -> PyResult<Step> {
        slf.get().close(slf.py())?;
        Err(error)
    }
}

impl Drop for NextItem {
    fn drop(&mut self) {
        destroy(|py| {
            let _ = self.close(py);
        });
    }
}

#[pymethods]
impl NextItem {
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        (self.stop)(self.iterator.bind(py), self.address())
    }
}

coroutine_methods!(NextItem);
