//! The lookups of the codec, made once for all values of the process.

use pyo3::prelude::*;

use super::datetime_types::Types;
use super::dtype::LazyNumpy;
use super::pickler::Pickle;
use super::recent_keys::RecentKeys;
use crate::cell::GilCell;
use crate::csv::Form;

/// Types, pickle's functions, dtypes, recent keys.
pub struct Lookups {
    pub pickle: Pickle,
    pub times: Types,
    pub numpy: LazyNumpy,
    pub keys: GilCell<RecentKeys>,
    /// The form of the last record of CSV.
    pub form: GilCell<Option<Form>>,
}

impl Lookups {
    /// Looks up the types and functions of every value. NumPy and cloudpickle wait until a value needs
    /// them.
    pub fn new(py: Python<'_>) -> PyResult<Self> {
        Ok(Self {
            pickle: Pickle::new(py)?,
            times: Types::new(py)?,
            numpy: LazyNumpy::new(),
            keys: GilCell::default(),
            form: GilCell::default(),
        })
    }
}
