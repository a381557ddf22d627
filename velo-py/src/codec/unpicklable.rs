//! Finds the part of a value that cannot be pickled, so that the message can name it.
//!
//! The search runs only after pickle has refused the value. It pickles a bounded number of parts.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use std::collections::HashSet;
use std::fmt::Write;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyFrozenSet, PyList, PySet, PyTuple};

use super::error::Stop;
use super::pickler::Pickle;
use crate::ffi::objects::{Exact, exact, id};

/// The name of the whole value in the message.
static IN_WORKER: AtomicBool = AtomicBool::new(false);

/// This process is a worker: what it encodes are results.
pub fn say_result() {
    IN_WORKER.store(true, Relaxed);
}

/// What the value itself is called.
fn root() -> &'static str {
    if IN_WORKER.load(Relaxed) {
        "result"
    } else {
        "event"
    }
}

/// The number of parts that are tried before the search gives its best result so far.
const TRIES: usize = 2_000;

/// The longest path.
const STEPS: usize = 32;

/// The longest quotation of a key or a reason.
const QUOTED: usize = 200;

/// A `TypeError` that names the part of `obj` that pickle refused, caused by pickle's own `error`.
pub fn explain(pickle: &Pickle, obj: &Bound<'_, PyAny>, error: PyErr) -> PyErr {
    let py = obj.py();
    let mut search = Search {
        pickle,
        tries: TRIES,
        failing: HashSet::new(),
    };
    let (path, culprit, error) = search
        .run(obj, root().to_owned(), 0, &error)
        .unwrap_or_else(|| (root().to_owned(), obj.clone(), error.clone_ref(py)));
    let reason = error
        .value(py)
        .str()
        .map_or_else(|_| String::new(), |text| text.to_string());
    let message = format!(
        "cannot send {path}: a `{}` cannot be pickled ({})",
        type_name(&culprit),
        quoted(&reason)
    );
    let explained = PyTypeError::new_err(message);
    explained.set_cause(py, Some(error));
    explained
}

struct Search<'a> {
    pickle: &'a Pickle,
    tries: usize,
    /// The refused objects, each of which is searched once.
    failing: HashSet<usize>,
}

type Found<'py> = (String, Bound<'py, PyAny>, PyErr);

impl Search<'_> {
    /// The first refused object, from `obj` inwards, of which no part is refused by itself.
    fn run<'py>(
        &mut self,
        obj: &Bound<'py, PyAny>,
        path: String,
        steps: usize,
        error: &PyErr,
    ) -> Option<Found<'py>> {
        let py = obj.py();
        self.failing.insert(id(obj));
        let mut is_culprit = true;
        if steps < STEPS {
            for (step, part) in parts(obj) {
                if is_plain(&part) {
                    continue;
                }
                if self.failing.contains(&id(&part)) {
                    is_culprit = false;
                    continue;
                }
                if self.tries == 0 {
                    break;
                }
                self.tries -= 1;
                if let Err(Stop::Refused(error)) = self.pickle.dump(&part) {
                    is_culprit = false;
                    let found = self.run(&part, step.after(&path), steps + 1, &error);
                    if found.is_some() {
                        return found;
                    }
                }
            }
        }
        is_culprit.then(|| (path, obj.clone(), error.clone_ref(py)))
    }
}

/// One step into an object.
enum Step<'py> {
    Index(usize),
    Key(Bound<'py, PyAny>),
    Attribute(String),
    /// A key or a set member, which only iterating reaches.
    Nth(usize),
}

impl Step<'_> {
    fn after(self, path: &str) -> String {
        match self {
            Self::Index(index) => format!("{path}[{index}]"),
            Self::Attribute(name) => format!("{path}.{name}"),
            Self::Nth(index) => format!("list({path})[{index}]"),
            Self::Key(key) => match key.extract::<String>() {
                Ok(text) => format!("{path}[{:?}]", quoted(&text)),
                Err(_) => {
                    let key = key
                        .repr()
                        .map_or_else(|_| "?".to_owned(), |text| text.to_string());
                    format!("{path}[{}]", quoted(&key))
                }
            },
        }
    }
}

type Parts<'py> = Vec<(Step<'py>, Bound<'py, PyAny>)>;

/// The contents of an object, as far as they can be read. An exception only shortens the list.
fn parts<'py>(obj: &Bound<'py, PyAny>) -> Parts<'py> {
    let mut parts = Vec::new();
    if let Ok(dict) = obj.cast::<PyDict>() {
        for (index, (key, value)) in dict.iter().enumerate() {
            parts.push((Step::Nth(index), key.clone()));
            parts.push((Step::Key(key), value));
        }
    } else if let Ok(list) = obj.cast::<PyList>() {
        parts.extend(
            list.iter()
                .enumerate()
                .map(|(index, item)| (Step::Index(index), item)),
        );
    } else if let Ok(tuple) = obj.cast::<PyTuple>() {
        let names = obj
            .getattr("_fields")
            .and_then(|names| names.extract::<Vec<String>>());
        let names = names.unwrap_or_default();
        parts.extend(
            tuple
                .iter()
                .enumerate()
                .map(|(index, item)| match names.get(index) {
                    Some(name) => (Step::Attribute(name.clone()), item),
                    None => (Step::Index(index), item),
                }),
        );
    } else if (obj.is_instance_of::<PySet>() || obj.is_instance_of::<PyFrozenSet>())
        && let Ok(items) = obj.try_iter()
    {
        parts.extend(
            items
                .flatten()
                .enumerate()
                .map(|(index, item)| (Step::Nth(index), item)),
        );
    }
    if matches!(exact(obj), Exact::Other) {
        let _ = add_state(obj, &mut parts);
        let _ = add_function(obj, &mut parts);
    }
    parts
}

/// Adds the object's state as pickle takes it: attributes and slots, or the result of `__getstate__`.
fn add_state<'py>(obj: &Bound<'py, PyAny>, parts: &mut Parts<'py>) -> PyResult<()> {
    let state = match obj.getattr("__getstate__") {
        Ok(getstate) => getstate.call0()?,
        Err(_) => obj.getattr("__dict__")?,
    };
    let dicts = match state.cast::<PyTuple>() {
        Ok(pair) if pair.len() == 2 => pair.iter().collect(),
        _ => vec![state.clone()],
    };
    if dicts
        .iter()
        .any(|dict| !dict.is_none() && !dict.is_instance_of::<PyDict>())
    {
        parts.push((Step::Attribute("__getstate__()".to_owned()), state));
        return Ok(());
    }
    for dict in dicts.iter().filter_map(|dict| dict.cast::<PyDict>().ok()) {
        for (name, value) in dict.iter() {
            parts.push((Step::Attribute(name.str()?.to_string()), value));
        }
    }
    Ok(())
}

/// Adds the objects that a function, a method or a partial refers to.
fn add_function<'py>(obj: &Bound<'py, PyAny>, parts: &mut Parts<'py>) -> PyResult<()> {
    for name in ["__self__", "func", "args", "keywords"] {
        if let Ok(part) = obj.getattr(name) {
            parts.push((Step::Attribute(name.to_owned()), part));
        }
    }
    let code = obj.getattr("__code__")?;
    let names: Vec<String> = code.getattr("co_names")?.extract()?;
    let globals = obj.getattr("__globals__")?;
    for name in names {
        if let Some(part) = globals.cast::<PyDict>()?.get_item(&name)? {
            parts.push((Step::Attribute(format!("__globals__[{name:?}]")), part));
        }
    }
    let names: Vec<String> = code.getattr("co_freevars")?.extract()?;
    for (name, cell) in names
        .into_iter()
        .zip(obj.getattr("__closure__")?.try_iter()?)
    {
        if let Ok(part) = cell?.getattr("cell_contents") {
            parts.push((Step::Attribute(format!("<closure>.{name}")), part));
        }
    }
    Ok(())
}

/// Whether `obj` is of a type that is never refused.
fn is_plain(obj: &Bound<'_, PyAny>) -> bool {
    use Exact::{Bool, ByteArray, Bytes, Complex, Float, Int, None, Str};
    matches!(
        exact(obj),
        Str(_) | Int(_) | Float(_) | Bool(_) | None | Bytes(_) | ByteArray(_) | Complex(_)
    )
}

/// The type's name with its module, unless it is a builtin.
fn type_name(obj: &Bound<'_, PyAny>) -> String {
    let ty = obj.get_type();
    let name = ty
        .qualname()
        .map_or_else(|_| "?".to_owned(), |name| name.to_string());
    match ty.module() {
        Ok(module) if module != "builtins" => format!("{module}.{name}"),
        _ => name,
    }
}

/// `text` in one line of bounded length.
fn quoted(text: &str) -> String {
    let mut quoted = String::new();
    for (count, char) in text.chars().enumerate() {
        if count == QUOTED {
            let _ = write!(quoted, "...");
            break;
        }
        quoted.push(if char.is_control() { ' ' } else { char });
    }
    quoted
}
