//! The text of a key as the caller writes it.

use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::key_text::{LONGEST, quoted, shorten};

/// Adds the text of a key to `out`, after its length, and shortened if it is long. The text is the key's
/// `repr`; for usual kinds of keys it is written here.
pub fn put(key: Option<&Bound<'_, PyAny>>, out: &mut Vec<u8>) {
    const { assert!(LONGEST <= u8::MAX as usize) };
    let text = key.map(text).unwrap_or_default();
    let text = shorten(&text);
    out.push(text.len() as u8);
    out.extend_from_slice(text.as_bytes());
}

fn text(key: &Bound<'_, PyAny>) -> String {
    if let Ok(text) = key.cast::<PyString>() {
        return quoted(&text.to_string_lossy());
    }
    match key.repr().as_ref().map(|text| text.to_string_lossy()) {
        Ok(text) => text.into_owned(),
        // Its `repr` raises. The key works without one.
        Err(_) => {
            let kind = key.get_type().qualname();
            let kind = kind.map_or_else(|_| "object".to_owned(), |name| name.to_string());
            format!("<{kind}>")
        }
    }
}
