//! The control messages on a link's own slot.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some((kind, bytes)) = bytes.split_first() {
        velo_supervisor::fuzzing::control(*kind, bytes);
    }
});
