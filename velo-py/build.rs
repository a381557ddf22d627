//! Sets `cfg(process_mode)` where this build has process mode: with the feature `process`, on Linux.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(process_mode)");
    let wanted = env::var_os("CARGO_FEATURE_PROCESS").is_some();
    let linux = env::var_os("CARGO_CFG_TARGET_OS").is_some_and(|system| system == "linux");
    if wanted && linux {
        println!("cargo::rustc-cfg=process_mode");
    }
}
