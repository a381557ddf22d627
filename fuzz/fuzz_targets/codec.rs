//! The codec's decoder: it returns an encodable value or a clean error. Pickles are not run: they come
//! from the same user, and may run any code.
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
