//! The worker pool, told anything in any order by workers, clients, the zygote and the links'
//! shared memory.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let (steps, _) = bytes.as_chunks();
    velo_supervisor::fuzzing::pool(&steps[..steps.len().min(512)]);
});
