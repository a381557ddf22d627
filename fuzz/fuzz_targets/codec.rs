//! The codec's decoder: a value or a clean error, and a value is one that can be encoded. Pickles
//! are not run: what reaches them belongs to the same user, and may do what it likes.
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use pyo3::prelude::*;
use velo_fuzz::python;

fuzz_target!(init: python::start(), |bytes: &[u8]| -> Corpus {
    let Some((how, payload)) = bytes.split_first() else {
        return Corpus::Reject;
    };
    Python::attach(|py| python::decode(py, *how, payload));
    Corpus::Keep
});
