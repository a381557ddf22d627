//! What the codec has looked up and remembers, for every value of the process.

use pyo3::prelude::*;

use super::datetime_types::Types;
use super::dtype::LazyNumpy;
use super::keys::Keys;
use super::pickler::Pickle;
use crate::cell::GilCell;

/// Types, pickle's functions, dtypes, recent keys.
pub struct Lookups {
    pub pickle: Pickle,
    pub times: Types,
    pub numpy: LazyNumpy,
    pub keys: GilCell<Keys>,
}

impl Lookups {
    /// Looks up what is needed for every value. NumPy and cloudpickle are left until a value needs
    /// them.
    pub fn new(py: Python<'_>) -> PyResult<Self> {
        Ok(Self {
            pickle: Pickle::new(py)?,
            times: Types::new(py)?,
            numpy: LazyNumpy::new(),
            keys: GilCell::default(),
        })
    }
}
