//! Resuming an async generator without its `asend` objects.
//!
//! `__anext__` of an async generator makes an object per item and hands the item over in a
//! `StopIteration`. The generator itself can be resumed through `am_send` like any other; what it
//! yields then comes wrapped in a private type of CPython. [`AsyncGen`] does that for plain async
//! generators, once [`Direct::probe`] has seen that this interpreter behaves so, and follows the
//! public protocol (`__anext__`, `athrow`, `aclose`) for everything else.

use std::ffi::{c_int, c_void};
use std::ptr;

use pyo3::exceptions::{PyGeneratorExit, PyStopAsyncIteration};
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyCFunction, PyModule};

use crate::errors::Thrown;

/// The outcome of a step of a generator.
pub enum Resumed {
    /// With a result.
    Yielded(Py<PyAny>),
    /// It waits for a future that the running task has to see.
    Awaiting(Py<PyAny>),
    /// It returned.
    Finished,
}

/// One generator of a user, and its open awaitable.
pub struct AsyncGen {
    generator: Py<PyAny>,
    /// The unfinished awaitable of the public protocol, if any.
    pending: Option<Py<PyAny>>,
    direct: bool,
    started: bool,
}

impl AsyncGen {
    /// `generator` is the return value of the user's function.
    pub fn new(py: Python<'_>, generator: Py<PyAny>) -> Self {
        // SAFETY: only the type pointer of a live object is read.
        let plain = unsafe { ffi::PyAsyncGen_CheckExact(generator.as_ptr()) } != 0;
        let direct = plain && Direct::get(py).is_some();
        AsyncGen {
            generator,
            pending: None,
            direct,
            started: false,
        }
    }

    /// As `new`, for a generator that its owner closes, and not the event loop. That saves a weak
    /// reference for each generator.
    pub fn of_owner(py: Python<'_>, generator: Py<PyAny>) -> Self {
        let mut made = Self::new(py, generator);
        made.started = made.direct;
        made
    }

    /// The user's generator itself.
    pub fn object(&self) -> &Py<PyAny> {
        &self.generator
    }

    /// Runs it to its next result, its next wait or its end.
    #[inline]
    pub fn resume(&mut self, py: Python<'_>, value: &Bound<'_, PyAny>) -> Result<Resumed, Thrown> {
        match self.direct && self.started && self.pending.is_none() {
            true => self.resume_directly(py, value),
            false => self.resume_by_protocol(py, value),
        }
    }

    #[inline(never)] // apart from the step that each event takes
    fn resume_by_protocol(
        &mut self,
        py: Python<'_>,
        value: &Bound<'_, PyAny>,
    ) -> Result<Resumed, Thrown> {
        if self.pending.is_none() {
            // The first step goes by the protocol in any case: it registers the generator with the
            // event loop, which closes it should the loop shut down first.
            self.started = true;
            let awaitable = self
                .generator
                .bind(py)
                .call_method0(intern!(py, "__anext__"))?;
            self.pending = Some(awaiter(awaitable)?);
        }
        self.resume_pending(py, value)
    }

    /// Throws `error` into the generator at the place where it waits.
    pub fn throw(&mut self, py: Python<'_>, error: PyErr) -> Result<Resumed, Thrown> {
        let none = py.None();
        if let Some(pending) = self.pending.take() {
            let pending = pending.into_bound(py);
            let thrown = pending.call_method1(intern!(py, "throw"), (error.value(py),));
            return match thrown {
                Ok(waiting) => {
                    self.pending = Some(pending.unbind());
                    Ok(Resumed::Awaiting(waiting.unbind()))
                }
                Err(raised) => stopped(py, raised.into()),
            };
        }
        self.started = true;
        let athrow = self
            .generator
            .bind(py)
            .call_method1(intern!(py, "athrow"), (error.value(py),))?;
        self.pending = Some(awaiter(athrow)?);
        self.resume_pending(py, none.bind(py))
    }

    /// Closes the generator: throws `GeneratorExit` at the place where it waits, so that its `finally`
    /// blocks run. The exception comes out again, at once or after the waits of those blocks.
    pub fn close(&mut self, py: Python<'_>) -> Result<Resumed, Thrown> {
        self.throw(py, PyGeneratorExit::new_err(()))
    }

    #[inline]
    fn resume_directly(
        &mut self,
        py: Python<'_>,
        value: &Bound<'_, PyAny>,
    ) -> Result<Resumed, Thrown> {
        match send(self.generator.bind(py), value)? {
            Sent::Return(_) => Ok(Resumed::Finished),
            Sent::Next(item) => match Direct::get(py).and_then(|direct| direct.unwrap(&item)) {
                Some(result) => Ok(Resumed::Yielded(result.unbind())),
                None => Ok(Resumed::Awaiting(item.unbind())),
            },
        }
    }

    fn resume_pending(
        &mut self,
        py: Python<'_>,
        value: &Bound<'_, PyAny>,
    ) -> Result<Resumed, Thrown> {
        let Some(pending) = &self.pending else {
            return Ok(Resumed::Finished);
        };
        match send(pending.bind(py), value) {
            Ok(Sent::Next(waiting)) => Ok(Resumed::Awaiting(waiting.unbind())),
            Ok(Sent::Return(result)) => {
                self.pending = None;
                Ok(Resumed::Yielded(result.unbind()))
            }
            Err(error) => {
                self.pending = None;
                stopped(py, error)
            }
        }
    }
}

/// The outcome that an exception of `__anext__` or `athrow` stands for.
fn stopped(py: Python<'_>, error: Thrown) -> Result<Resumed, Thrown> {
    if error.is_instance_of::<PyStopAsyncIteration>(py) {
        return Ok(Resumed::Finished);
    }
    if error.is_instance_of::<pyo3::exceptions::PyStopIteration>(py) {
        return Ok(Resumed::Yielded(
            error.value(py).getattr(intern!(py, "value"))?.unbind(),
        ));
    }
    Err(error)
}

/// The iterator behind an awaitable.
fn awaiter(awaitable: Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
    // SAFETY: only the type pointer of a live object is read.
    if unsafe { ffi::PyCoro_CheckExact(awaitable.as_ptr()) } != 0 {
        return Ok(awaitable.unbind());
    }
    let py = awaitable.py();
    Ok(awaitable.call_method0(intern!(py, "__await__"))?.unbind())
}

enum Sent<'py> {
    Next(Bound<'py, PyAny>),
    Return(Bound<'py, PyAny>),
}

fn send<'py>(iterator: &Bound<'py, PyAny>, value: &Bound<'py, PyAny>) -> Result<Sent<'py>, Thrown> {
    let py = iterator.py();
    let mut result: *mut ffi::PyObject = ptr::null_mut();
    // SAFETY: both objects are live; `result` receives a new reference, or NULL with an error set.
    let status = unsafe { ffi::PyIter_Send(iterator.as_ptr(), value.as_ptr(), &mut result) };
    if status == ffi::PySendResult::PYGEN_ERROR {
        return Err(PyErr::fetch(py).into());
    }
    // SAFETY: for the other two outcomes `result` is a new reference that is ours.
    let result = unsafe { Bound::from_owned_ptr(py, result) };
    match status {
        ffi::PySendResult::PYGEN_RETURN => Ok(Sent::Return(result)),
        _ => Ok(Sent::Next(result)),
    }
}

/// The layout of this interpreter's private wrapper of yielded values, if it is known.
struct Direct {
    wrapper: *mut ffi::PyTypeObject,
}

// SAFETY: a pointer to a static type of the interpreter, only compared with.
unsafe impl Send for Direct {}
// SAFETY: as above.
unsafe impl Sync for Direct {}

/// Probes this interpreter.
pub fn warm_up(py: Python<'_>) {
    Direct::get(py);
}

impl Direct {
    fn get(py: Python<'_>) -> Option<&'static Direct> {
        static DIRECT: PyOnceLock<Option<Direct>> = PyOnceLock::new();
        DIRECT
            .get_or_init(py, || Direct::probe(py).ok().flatten())
            .as_ref()
    }

    /// Resumes a small generator directly and checks the outcome. If it is unexpected, this interpreter
    /// works in another way, and the public protocol is used.
    fn probe(py: Python<'_>) -> PyResult<Option<Direct>> {
        let code = c"async def probe(marker):\n    yield marker\n";
        let module = PyModule::from_code(py, code, c"<velo>", c"_velo_probe")?;
        let marker = PyCFunction::new_closure(py, None, None, |_, _| ())?.into_any();
        let generator = module.getattr("probe")?.call1((&marker,))?;
        let Sent::Next(item) = send(&generator, py.None().bind(py))? else {
            return Ok(None);
        };
        let direct = Direct {
            wrapper: item.get_type_ptr(),
        };
        if item.get_type().name()? != "async_generator_wrapped_value" {
            return Ok(None);
        }
        let same = direct.unwrap(&item).is_some_and(|value| value.is(&marker));
        drop(item);
        let finished = matches!(send(&generator, py.None().bind(py))?, Sent::Return(_));
        Ok((same && finished).then_some(direct))
    }

    /// The yielded value inside `item`, or None if `item` is no such wrapper.
    fn unwrap<'py>(&self, item: &Bound<'py, PyAny>) -> Option<Bound<'py, PyAny>> {
        if item.get_type_ptr() != self.wrapper {
            return None;
        }
        let mut inside: *mut ffi::PyObject = ptr::null_mut();
        // SAFETY: the wrapper is a garbage-collected type (probe() has seen a value come out), its
        // traverse function visits the one reference that it holds and runs no Python code.
        unsafe {
            let traverse = (*self.wrapper).tp_traverse?;
            traverse(item.as_ptr(), remember, (&raw mut inside).cast::<c_void>());
        }
        // SAFETY: `inside` is NULL or a reference borrowed from `item`, which is alive.
        unsafe { Bound::from_borrowed_ptr_or_opt(item.py(), inside) }
    }
}

extern "C" fn remember(object: *mut ffi::PyObject, place: *mut c_void) -> c_int {
    // SAFETY: `unwrap` passes a valid place for one pointer.
    unsafe { *place.cast::<*mut ffi::PyObject>() = object };
    0
}
